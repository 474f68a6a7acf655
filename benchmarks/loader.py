"""Batches out of shards beside bare decoding of the same clips with PyAV, in one run: what drawing and batching cost.

    python -m benchmarks.loader [--folder SHARDS] [--batches 50] [--batch-size 4] [--readers 4] [--out REPORT.json]

Without a folder, shards are made of videos of noise that moves. Both sides read the bytes from the tars and decode in
as many threads, in the same order; bare decoding throws the pictures away. The rounds take turns, and the fastest of
each counts. The bar: the loader takes at most 1.2 times as long.
"""

from __future__ import annotations

import io
import json
import platform
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import tyro

from lumiere.data.pack import PackSettings, pack
from lumiere.data.scan import Bucket
from lumiere.data.shards import ShardClip, ShardClips, ShardSettings
from lumiere.data.store import read_bytes
from lumiere.media import write_clip

BAR = 1.2


@dataclass(frozen=True)
class Options:
    """What is measured."""

    folder: Path | None = None
    """Shards; None: made for this."""
    batches: int = 50
    batch_size: int = 4
    readers: int = 4
    """Threads on both sides."""
    rounds: int = 3
    size: int = 128
    """Width and height of the clips that are made."""
    frames: int = 80
    videos: int = 16
    """Videos that are made, of four clips each."""
    out: Path | None = None


def made(folder: Path, options: Options) -> Path:
    """Shards of noise that moves: far more to decode than most videos of that size."""
    (folder / "videos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(options.videos):
        small = rng.integers(0, 256, (options.size // 4, options.size // 4, 3), dtype=np.uint8)
        picture = small.repeat(4, 0).repeat(4, 1)
        frames = np.stack([np.roll(picture, place, axis=1) for place in range(4 * options.frames)])
        write_clip(frames, folder / "videos" / f"{number}.mp4")
        (folder / "videos" / f"{number}.txt").write_text("noise that moves")
    bucket = Bucket(height=options.size, width=options.size, frames=options.frames)
    pack(folder / "videos", folder / "shards", PackSettings(buckets=(bucket,), videos_per_shard=4))
    return folder / "shards"


def decode(clip: ShardClip) -> int:
    """Decode a clip and forget it; the number of its pictures."""
    with av.open(io.BytesIO(read_bytes(clip.tar, clip.span))) as container:
        return sum(frame.to_ndarray(format="rgb24") is not None for frame in container.decode(video=0))


def measure(folder: Path, options: Options) -> dict[str, Any]:
    """Seconds of both sides, and their ratio."""
    settings = ShardSettings(readers=options.readers, held_out_every=2)
    loader_s, bare_s = [], []
    for _ in range(options.rounds):
        clips = ShardClips(folder, settings, batch_size=options.batch_size, seed=0)
        drawn = [clip for step in range(options.batches) for clip in clips.clips_of(step)]
        start = time.perf_counter()
        with ThreadPoolExecutor(options.readers) as pool:
            decoded = sum(pool.map(decode, drawn))
        bare_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        given = sum(batch.clips.shape[0] * batch.clips.shape[2] for batch in map_batches(clips, options))
        loader_s.append(time.perf_counter() - start)
        assert decoded == given, (decoded, given)
    ratio = min(loader_s) / min(bare_s)
    return {
        "batches_per_s": options.batches / min(loader_s),
        "loader_s": loader_s,
        "bare_s": bare_s,
        "ratio": ratio,
        "bar": BAR,
        "is_within": ratio <= BAR,
    }


def map_batches(clips: ShardClips, options: Options) -> Any:
    """The batches of the loader, one after the other."""
    return (clips.batch(step, options.batch_size) for step in range(options.batches))


def main(options: Options) -> None:
    """Measure, print, and keep the report."""
    with tempfile.TemporaryDirectory() as place:
        found = measure(options.folder or made(Path(place), options), options)
    report = {"options": {k: str(v) for k, v in asdict(options).items()}, "machine": platform.processor(), **found}
    print(json.dumps(report, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
