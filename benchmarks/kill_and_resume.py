"""Training that never loses anything: a run that is killed again and again ends as one that was left alone.

    python -m benchmarks.kill_and_resume --kills 20 --out benchmarks/reports/kill_and_resume.json

trains the temporal layers of a tiny network once to the end, and once more while it is killed (``kill -9``) at random
moments, each time resumed by the same command; then compares the weights, averages and optimiser state of the last
checkpoint, the exported files and the curves, bit for bit. Checkpoints are written after every step, so that many of
the kills fall into the writing of one.

Expected: nothing differs, whatever the moments.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from lumiere.training.checkpoint import checkpoints, read_tensors

EARLY = 0.2
"""Share of the kills that may come before the run has done anything."""
TIMINGS = ("clips_per_s", "seconds")
"""What curves hold of the machine, not of the training."""


@dataclass(frozen=True)
class Options:
    """What to kill, and how often."""

    kills: int = 20
    num_steps: int = 60
    seed: int = 0
    """Of the moments."""
    threads: int = 1
    """Processor threads of a run."""
    work: Path | None = None
    """Folder for the runs; none: a temporary one."""
    out: Path | None = None
    """JSON file to write."""


@dataclass(frozen=True)
class Kill:
    """One end of the run that was not left alone."""

    after_s: float
    """Seconds since the process was started."""
    step: int
    """Of the newest checkpoint then; 0: none yet."""
    was_writing: bool
    """Whether a checkpoint was being written: its half is left."""


def command(recipe: str, out: Path, *words: str) -> list[str]:
    """What trains a recipe in a folder."""
    return [sys.executable, "-m", "lumiere", "train", recipe, "--out", str(out), *words]


def start(words: list[str], options: Options) -> subprocess.Popen[bytes]:
    """A training process of so many threads, which says nothing."""
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end. Raises RuntimeError with what the process said when it failed."""
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"training ended with {process.returncode}: {said.decode()[-2000:]}")


@dataclass(frozen=True)
class Pace:
    """How long a run takes that is left alone, in seconds."""

    first_s: float
    """Up to its first checkpoint."""
    step_s: float
    """From one checkpoint to the next."""


def left_alone(words: list[str], out: Path, options: Options) -> Pace:
    """Train to the end."""
    started, process = time.monotonic(), start(words, options)
    _wait_for_checkpoint(process, out, before=[])
    first_s = time.monotonic() - started
    while process.poll() is None and checkpoints(out)[-1].name != f"step-{options.num_steps:07d}":
        time.sleep(0.01)
    last_s = time.monotonic() - started
    finish(process)
    return Pace(first_s, (last_s - first_s) / max(1, options.num_steps - 1))


def killed(words: list[str], out: Path, pace: Pace, options: Options) -> list[Kill]:
    """Start the run and kill it, so many times: most within two steps of its first new checkpoint, some before it."""
    moments, found = random.Random(options.seed), []
    while len(found) < options.kills:
        before, started, process = checkpoints(out), time.monotonic(), start(words, options)
        if moments.random() < EARLY:
            time.sleep(moments.uniform(0, pace.first_s))
        else:
            _wait_for_checkpoint(process, out, before)
            time.sleep(moments.uniform(0, 2 * pace.step_s))
        if process.poll() is not None:
            finish(process)
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        step = int(checkpoints(out)[-1].name.removeprefix("step-")) if checkpoints(out) else 0
        is_writing = any(out.glob(".writing-step-*"))
        found.append(Kill(round(time.monotonic() - started, 2), step, is_writing))
    return found


def _wait_for_checkpoint(process: subprocess.Popen[bytes], out: Path, before: list[Path]) -> None:
    while process.poll() is None and checkpoints(out)[-1:] == before[-1:]:
        time.sleep(0.005)


def differences(one: Path, other: Path) -> dict[str, list[str]]:
    """What two finished runs differ in, by kind; each kind of comparison is there, empty where nothing differs."""
    last, last_other = checkpoints(one)[-1], checkpoints(other)[-1]
    found: dict[str, list[str]] = {"step": [] if last.name == last_other.name else [last.name, last_other.name]}
    for what in ("weights", "ema", "optimizer"):
        first, second = read_tensors(last, what), read_tensors(last_other, what)  # type: ignore[arg-type]
        names = sorted(first.keys() | second.keys())
        found[what] = [
            name for name in names if name not in first or name not in second or not _is_same(first[name], second[name])
        ]
    files = [{str(path.relative_to(run)): path for path in (run / "export").rglob("*.*")} for run in (one, other)]
    found["export"] = [
        name
        for name in sorted(files[0].keys() | files[1].keys())
        if name not in files[0] or name not in files[1] or files[0][name].read_bytes() != files[1][name].read_bytes()
    ]
    lines = [curve(run) for run in (one, other)]
    found["curves"] = [] if lines[0] == lines[1] else [f"{len(lines[0])} and {len(lines[1])} lines"]
    return found


def curve(run: Path) -> list[dict[str, Any]]:
    """The numbers of a run that training decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def measure(options: Options, work: Path) -> dict[str, Any]:
    """Both runs and what they differ in."""
    finish(start(command("text_to_image_smoke", work / "image"), options))
    often = {"num_steps": options.num_steps, "log_every": 1, "save_every": 1, "validate_every": 5}
    settings = [word for name, value in often.items() for word in (f"--loop.{name}", str(value))]
    settings += ["--image", str(work / "image" / "export")]
    alone, broken = work / "alone", work / "broken"
    pace = left_alone(command("text_to_video_smoke", alone, *settings), alone, options)
    words = command("text_to_video_smoke", broken, *settings)
    kills = killed(words, broken, pace, options)
    finish(start(words, options))
    return {
        "date": datetime.date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "options": asdict(options) | {"work": None, "out": None},
        "kills": [asdict(kill) for kill in kills],
        "differences": differences(alone, broken),
    }


def table(report: dict[str, Any]) -> Table:
    """The kills, and what they changed."""
    shown = Table("kill", "after s", "newest checkpoint", "while one was written")
    for number, kill in enumerate(report["kills"], start=1):
        step = f"step {kill['step']}" if kill["step"] else "none yet"
        shown.add_row(str(number), f"{kill['after_s']:.1f}", step, "yes" if kill["was_writing"] else "")
    shown.add_section()
    for what, names in report["differences"].items():
        shown.add_row(what, "", "bit-equal" if not names else f"{len(names)} differ: {', '.join(names[:3])}", "")
    return shown


def main(options: Options) -> None:
    """Measure, print, and write the report if asked."""
    with tempfile.TemporaryDirectory() as folder:
        report = measure(options, options.work or Path(folder))
    Console().print(table(report))
    if len(report["kills"]) < options.kills:
        print(f"the run was finished after {len(report['kills'])} kills: give it more --num-steps")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
