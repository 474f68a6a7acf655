"""From a folder of videos to a clip, with an accident on the way: every command of docs/walkthrough.md, run.

    python examples/walkthrough.py FOLDER_OF_VIDEOS OUT [--steps 40] [--size 32] [--frames 24]

scans the videos, packs them, trains the motion of the embedded base on two processes, kills both with ``kill -9`` in
the middle, goes on with one, exports what was learned and makes a clip with it. Transcript: ``OUT/walkthrough.md``.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import tyro
from tyro.conf import Positional

SHOWN_LINES = 34
"""Lines of a command's output that the transcript keeps, from both ends."""


@dataclass
class Walk:
    """What to walk through."""

    videos: Annotated[Positional[Path], tyro.conf.arg(metavar="FOLDER_OF_VIDEOS")]
    """Videos with captions in .txt files of the same names."""
    out: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Where everything goes."""
    steps: int = 40
    """Training steps."""
    size: int = 32
    """Height and width of the clips in pixels."""
    frames: int = 24
    """Their frames, 16 a second."""
    prompt: str = ""
    """What the clip at the end shows; empty: the caption of the first video."""
    transcript: Annotated[list[str], tyro.conf.Suppress] = field(default_factory=list)

    def run(self) -> Path:
        """Walk, and return the transcript's path. Raises RuntimeError when a command does otherwise than it should."""
        self.out.mkdir(parents=True, exist_ok=True)
        run, save_every = self.out / "run", max(1, self.steps // 4)
        prompt = self.prompt or next(iter(sorted(self.videos.glob("*.txt")))).read_text(encoding="utf-8").strip()
        bucket = f"[{{height: {self.size}, width: {self.size}, frames: {self.frames}}}]"
        self.say("What is there, and what of it can be used?")
        self.command("lumiere", "data", "scan", self.videos, "--out", self.out / "scan", "--buckets", bucket)
        self.say("Cut, resized and packed.")
        self.command("lumiere", "data", "pack", self.videos, "--out", self.out / "shards", "--buckets", bucket)
        train = ["train", "clips", "--data", self.out / "shards", "--out", run, "--loop.num_steps", self.steps]
        train += ["--loop.save_every", save_every, "--loop.validate_every", self.steps, "--loop.log_every", 5]
        train += ["--loop.warmup_steps", 5, "--loop.decay_steps", 0, "--shards.held_out_every", 5]
        self.say("What will training take?")
        self.command("lumiere", *train, "--plan", "--plan-ranks", 2)
        self.say("Two processes train; when a checkpoint is there, `kill -9` hits both.")
        self.command("torchrun", "--standalone", "--nproc-per-node", 2, "-m", "lumiere", *train, killed_at=run)
        self.say("The same settings on one process, which does the work of two: it goes on from the newest checkpoint.")
        self.command("lumiere", *train, "--loop.accumulation", 2)
        self.say("What was learned: a whole pipeline, and the temporal weights alone.")
        self.command("lumiere", "export", run, self.out / "model")
        self.command("lumiere", "export", run, self.out / "motion.safetensors", "--what", "motion")
        self.say("A clip.")
        clip = self.out / "clip.mp4"
        self.command("lumiere", "generate", prompt, "--model", self.out / "model", "--base-only", "--out", clip)
        path = self.out / "walkthrough.md"
        path.write_text("\n".join(self.transcript) + "\n", encoding="utf-8")
        return path

    def say(self, text: str) -> None:
        """A line between the commands."""
        print(f"\n# {text}", flush=True)
        self.transcript += [text, ""]

    def command(self, *words: object, killed_at: Path | None = None) -> None:
        """Run a command and keep what it says; that ``killed_at`` a run is when a checkpoint is there."""
        shown = shlex.join(str(word) for word in words)
        print(f"$ {shown}", flush=True)
        program = {"lumiere": ["lumiere"], "torchrun": ["torch.distributed.run"]}[str(words[0])]
        whole = [sys.executable, "-m", *program, *(str(word) for word in words[1:])]
        environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        if killed_at is not None:
            while process.poll() is None and not list(killed_at.glob("step-*")):
                time.sleep(0.05)
            time.sleep(1)
            # torchrun's processes are not of its group.
            for one in (*psutil.Process(process.pid).children(recursive=True), process):
                one.kill()
        said, _ = process.communicate()
        print(said, flush=True)
        is_as_wanted = process.returncode == (0 if killed_at is None else -signal.SIGKILL)
        if not is_as_wanted:
            raise RuntimeError(f"{shown} ended with {process.returncode}")
        lines = [line.rstrip() for line in re.sub(r"[^\n]*\r", "", said).splitlines() if _is_news(line)]
        if len(lines) > SHOWN_LINES:
            half = SHOWN_LINES // 2
            lines = [*lines[:half], f"... {len(lines) - 2 * half} lines ...", *lines[-half:]]
        if killed_at is not None:
            lines.append("(killed)")
        self.transcript += ["```console", f"$ {shown}", *lines, "```", ""]


def _is_news(line: str) -> bool:
    """Whether a line is no progress bar, library's warning or empty."""
    noise = r"%\||━|UserWarning|FutureWarning|warnings\.warn|OMP_NUM_THREADS|never seen|^\*+$"
    return bool(line.strip()) and not re.search(noise, line)


if __name__ == "__main__":
    print(tyro.cli(Walk).run())
