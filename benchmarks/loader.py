"""Batches out of shards beside bare decoding of the same clips with PyAV, in one run: what drawing and batching cost.

    python -m benchmarks.loader [--sizes 64x64x16 128x128x80] [--folders SHARDS] [--readers 1 4] [--out REPORT.json]

Four ways through the same clips, in as many threads, each of which reads a clip's bytes out of its tar:

- *decoding*: PyAV decodes every picture, and it is thrown away as the decoder left it (YUV);
- *decoding to RGB*: every picture becomes an array too, by one converter a clip, and is thrown away: the least that
  anyone does who wants pictures, and what the bar of 1.2 times is set on;
- *the loader*: batches [B, 3, T, H, W] of 8-bit pixels, with captions. What it reads ahead and is not asked for is
  waited for, and counted as given;
- *the loader, and floats*: the same, and each batch that is asked for becomes floats in -1..1, as training makes them
  on its device; here on the CPU, by one thread.

The ways take turns, and of each the fastest round counts, in seconds that pass and in seconds of the processor (all
threads of it): the latter say more on a machine that does other work beside, and the bar is set on them. Shards are
made of videos of noise that moves, which are decoded in half the time of real footage, so that all else weighs more;
folders of others are measured too where they are given.
"""

from __future__ import annotations

import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import torch
import tyro
from av.video.reformatter import VideoReformatter

from lumiere.data.pack import PackSettings, pack
from lumiere.data.scan import Bucket
from lumiere.data.shards import ShardClip, ShardClips, ShardSettings
from lumiere.data.store import read_bytes
from lumiere.media import write_clip

BAR = 1.2


@dataclass(frozen=True)
class Options:
    """What is measured."""

    sizes: tuple[str, ...] = ("64x64x16", "128x128x80")
    """Width, height and frames of the clips that are made."""
    folders: tuple[Path, ...] = ()
    """Shards that are there, each with clips of one size."""
    readers: tuple[int, ...] = (1, 4)
    """Threads of each way."""
    batch_size: int = 4
    round_s: float = 0.7
    """About how long decoding to RGB takes in a round."""
    rounds: int = 7
    videos: int = 8
    """Videos that are made, of four clips each."""
    out: Path | None = None


def made(folder: Path, size: str, num_videos: int) -> Path:
    """Shards of noise that moves."""
    width, height, num_frames = (int(part) for part in size.split("x"))
    (folder / "videos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(num_videos):
        small = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        picture = small.repeat(4, 0).repeat(4, 1)
        frames = np.stack([np.roll(picture, place, axis=1) for place in range(4 * num_frames)])
        write_clip(frames, folder / "videos" / f"{number}.mp4")
        (folder / "videos" / f"{number}.txt").write_text("noise that moves")
    bucket = Bucket(height=height, width=width, frames=num_frames)
    pack(folder / "videos", folder / "shards", PackSettings(buckets=(bucket,), videos_per_shard=4))
    return folder / "shards"


def decode(clip: ShardClip) -> int:
    """Decode a clip and forget it; the number of its pictures."""
    return sum(1 for _ in pictures(clip))


def decode_to_rgb(clip: ShardClip) -> int:
    """Decode a clip to arrays and forget them; the number of its pictures."""
    converter = VideoReformatter()
    # In the thread that asks, as decoding is: threads of its own cost each picture more than they save.
    rgb = (converter.reformat(frame, format="rgb24", threads=1) for frame in pictures(clip))
    return sum(frame.to_ndarray() is not None for frame in rgb)


def pictures(clip: ShardClip) -> Any:
    """The pictures of a clip as PyAV gives them, decoded by the thread that asks."""
    with av.open(io.BytesIO(read_bytes(clip.tar, clip.span))) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        yield from container.decode(stream)


def measure(folder: Path, readers: int, options: Options) -> dict[str, Any]:
    """Seconds of each way, and how many times as long the loader took."""
    settings = ShardSettings(readers=readers, held_out_every=10)
    clips = ShardClips(folder, settings, batch_size=options.batch_size, seed=0)

    def drawn(steps: range) -> list[ShardClip]:
        # The loader reads on when the last one was given.
        ahead = range(steps.start, steps.stop + settings.batches_ahead)
        return [clip for step in ahead for clip in clips.clips_of(step)]

    def each(work: Callable[[ShardClip], int], steps: range) -> int:
        with ThreadPoolExecutor(readers) as pool:
            return sum(pool.map(work, drawn(steps)))

    def load(steps: range, *, as_floats: bool = False) -> int:
        for step in steps:
            batch = clips.batch(step, options.batch_size)
            assert len(batch.captions) == options.batch_size
            if as_floats:
                assert batch.on(torch.device("cpu")).clips.is_floating_point()
        wait(clips._ahead.values())
        return sum(clip.frames for clip in drawn(steps))

    ways: dict[str, Callable[[range], int]] = {
        "decoding": lambda steps: each(decode, steps),
        "decoding_to_rgb": lambda steps: each(decode_to_rgb, steps),
        "loader": load,
        "loader_and_floats": lambda steps: load(steps, as_floats=True),
    }
    began = time.perf_counter()
    each(decode_to_rgb, range(1))
    batch_s = (time.perf_counter() - began) / (1 + settings.batches_ahead)
    count = max(2, round(options.round_s / batch_s))
    passed: dict[str, list[float]] = {way: [] for way in ways}
    worked: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(options.rounds):
        # Nothing that was read ahead in the round before.
        first = number * (count + settings.batches_ahead + 1)
        for way, run in ways.items():
            began, began_work = time.perf_counter(), time.process_time()
            frames = run(range(first, first + count))
            passed[way].append(time.perf_counter() - began)
            worked[way].append(time.process_time() - began_work)
            assert frames == sum(clip.frames for clip in drawn(range(first, first + count))), way
    num_clips = len(drawn(range(count)))
    return {
        "clips": clips.clips_of(0)[0].size,
        "readers": readers,
        "clips_per_round": num_clips,
        "clips_per_s": round(num_clips / min(passed["loader"]), 1),
        "seconds": compared(passed),
        "processor_seconds": compared(worked),
        "is_within": min(worked["loader"]) <= BAR * min(worked["decoding_to_rgb"]),
    }


def compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The fastest round of each way, how often the loader takes as long, and the median of that over rounds."""
    found: dict[str, Any] = {way: round(min(rounds), 4) for way, rounds in seconds.items()}
    for loader, way in product(("loader", "loader_and_floats"), ("decoding", "decoding_to_rgb")):
        pairs = zip(seconds[loader], seconds[way], strict=True)
        found[f"{loader}_per_{way}"] = round(min(seconds[loader]) / min(seconds[way]), 3)
        found[f"{loader}_per_{way}_median"] = round(median(ours / other for ours, other in pairs), 3)
    return found


def machine() -> dict[str, Any]:
    """Where this ran, when, and with what."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "cores": cores,
        "load": os.getloadavg()[0],
        **{name: version(name) for name in ("av", "numpy", "torch")},
    }


def main(options: Options) -> None:
    """Measure, print, and keep the report."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        shards = {size: made(Path(place) / size, size, options.videos) for size in options.sizes}
        for name, folder in [*shards.items(), *((one.name, one) for one in options.folders)]:
            for readers in options.readers:
                rows.append({"shards": "noise that moves" if name in shards else name})
                rows[-1] |= measure(folder, readers, options)
                print(json.dumps(rows[-1]), flush=True)
    report = {**machine(), "batch_size": options.batch_size, "rounds": options.rounds, "bar": BAR, "rows": rows}
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
