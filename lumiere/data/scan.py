"""What is in a set of videos and what of it can be trained on, found out before any training.

Every video is read once, from its first picture to its last, in a process of its own kind: one that hangs or crashes is
listed and left out, like one that is broken, too short or has no caption.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from lumiere.config import Settings
from lumiere.data.cuts import ContentCuts, SmallCuts
from lumiere.data.sources import SourceVideo, read_sources
from lumiere.data.workers import Failed, results
from lumiere.media import BrokenOff, iterate_frames, probe
from lumiere.progress import progress_bar

NUM_THUMBNAILS, THUMBNAIL_HEIGHT = 4, 72


class Bucket(Settings):
    """A size of clips: height and width in pixels, and frames."""

    height: int = Field(ge=8)
    width: int = Field(ge=8)
    frames: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.frames} frames"


class ScanSettings(Settings):
    """How videos become clips."""

    fps: float = Field(default=16.0, gt=0, le=1000)
    """Frames a second of the clips."""
    buckets: tuple[Bucket, ...] = (Bucket(height=128, width=128, frames=80),)
    """Sizes of clips. A scene goes into the one nearest to its shape, and of those into the longest that it fills."""
    min_side: int = Field(default=32, ge=1)
    """Videos whose shorter side has fewer pixels are left out."""
    detector: Literal["own", "scenedetect"] = "own"
    """What finds cuts: ``data.cuts``, or PySceneDetect's ContentDetector with its own defaults."""
    cut_least: float = Field(default=18.0, ge=0)
    """Grey values, of 255, by which the pictures of a cut differ at least, on average."""
    cut_times: float = Field(default=4.0, ge=1)
    """How many times as large a cut's change is as the usual one around it."""
    video_column: str | None = None
    caption_column: str | None = None
    """Columns of a manifest, where they have other names than the usual ones."""
    workers: int = Field(default=0, ge=0)
    """Processes that read; 0: one for each core."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds after which a video is given up."""

    @model_validator(mode="after")
    def _has_buckets(self) -> ScanSettings:
        if not self.buckets:
            raise ValueError("buckets is empty; give at least one size of clips")
        if self.detector == "scenedetect":
            _check_detector(self)
        return self

    @property
    def num_workers(self) -> int:
        """Processes that read."""
        return self.workers or os.cpu_count() or 1


@dataclass(frozen=True)
class Scene:
    """A piece of a video without cuts: its first frame and its length, at the clips' rate; where its clips go."""

    start: int
    frames: int
    bucket: Bucket | None

    @property
    def clips(self) -> list[int]:
        """The first frames of its clips: one after the other from its start; a rest that is too short is left."""
        if self.bucket is None:
            return []
        return [self.start + self.bucket.frames * place for place in range(self.frames // self.bucket.frames)]


@dataclass(frozen=True)
class Scanned:
    """What is known of one video. ``dropped`` says why nothing of it is used."""

    name: str
    captions: tuple[str, ...] = ()
    width: int = 0
    height: int = 0
    fps: float = 0.0
    duration_s: float = 0.0
    frames: int = 0
    scenes: tuple[Scene, ...] = ()
    dropped: str | None = None
    note: str | None = None
    thumbnail: bytes = field(default=b"", repr=False)

    @property
    def num_clips(self) -> int:
        """Clips that come of it."""
        return 0 if self.dropped else sum(len(scene.clips) for scene in self.scenes)

    def as_dict(self) -> dict[str, Any]:
        """What the report stores; everything but the picture."""
        return {
            "name": self.name,
            "captions": list(self.captions),
            "width": self.width,
            "height": self.height,
            "fps": round(self.fps, 4),
            "duration_s": round(self.duration_s, 3),
            "frames": self.frames,
            "scenes": [
                {"start": scene.start, "frames": scene.frames, "bucket": str(scene.bucket or ""), "clips": scene.clips}
                for scene in self.scenes
            ],
            "clips": self.num_clips,
            "dropped": self.dropped,
            "note": self.note,
        }


def scan(path: str | Path, settings: ScanSettings | None = None, *, progress: bool = True) -> list[Scanned]:
    """What is known of every video at ``path`` (``data.sources``), in its order.

    Raises ValueError when nothing there can be read at all; single bad videos are listed with the reason.
    """
    settings = settings or ScanSettings()
    sources = read_sources(path, video_column=settings.video_column, caption_column=settings.caption_column)
    return list(scan_sources(sources, settings, progress=progress))


def scan_sources(sources: Sequence[SourceVideo], settings: ScanSettings, *, progress: bool = True) -> Iterator[Scanned]:
    """The same for videos that were listed already."""
    readable = [(place, source) for place, source in enumerate(sources) if source.problem is None]
    found: dict[int, Scanned] = {
        place: Scanned(source.name, source.captions, dropped=source.problem)
        for place, source in enumerate(sources)
        if source.problem is not None
    }
    work = partial(scan_video, settings=settings)
    with progress_bar("videos", is_shown=progress) as bar:
        task = bar.add_task("reading videos", total=len(readable))
        workers = min(settings.num_workers, max(1, len(readable)))
        for index, answer in results(
            work, [source for _, source in readable], workers=workers, timeout_s=settings.timeout_s
        ):
            place, source = readable[index]
            if isinstance(answer, Failed):
                answer = Scanned(source.name, source.captions, dropped=answer.reason)
            found[place] = answer
            bar.advance(task)
    return iter([found[place] for place in range(len(sources))])


def scan_video(source: SourceVideo, settings: ScanSettings) -> Scanned:
    """What is known of one video, every picture of which is read."""
    cuts: SmallCuts | ContentCuts = SmallCuts(least=settings.cut_least, times=settings.cut_times)
    if settings.detector == "scenedetect":
        cuts = ContentCuts(settings.fps)
    with source.on_disk() as path:
        try:
            info = probe(path)
            frames, shown, note = _read(path, settings.fps, cuts)
        except ValueError as error:
            return Scanned(source.name, source.captions, dropped=str(error).replace(str(path), source.name))
    starts = cuts.starts()
    ends = [*starts[1:], frames]
    width = info.width * info.pixel_aspect
    scenes = tuple(
        Scene(start, end - start, _bucket(settings.buckets, info.height / width, end - start))
        for start, end in zip(starts, ends, strict=True)
    )
    return Scanned(
        source.name,
        source.captions,
        width=info.width,
        height=info.height,
        fps=info.fps,
        duration_s=info.duration_s,
        frames=frames,
        scenes=scenes,
        dropped=_why_dropped(info.width, info.height, scenes, settings),
        note=None if note is None else note.replace(str(path), source.name),
        thumbnail=_thumbnail(shown),
    )


def _read(path: Path, fps: float, cuts: SmallCuts | ContentCuts) -> tuple[int, list[np.ndarray], str | None]:
    """The number of frames, some of them to be shown, and where reading broke off; cuts are told of each."""
    shown: dict[int, np.ndarray] = {}
    note, every, total = None, 1, 0
    try:
        for count, frame in enumerate(iterate_frames(path, fps=fps)):
            cuts.see(frame)
            total = count + 1
            if count % every == 0:
                shown[count] = _small(frame)
                if len(shown) >= 2 * NUM_THUMBNAILS:  # Twice as far apart from here on.
                    every *= 2
                    shown = {place: kept for place, kept in shown.items() if place % every == 0}
    except BrokenOff as error:
        note = str(error)
    return total, list(shown.values())[:NUM_THUMBNAILS], note


def _check_detector(settings: ScanSettings) -> None:
    """Refuse PySceneDetect where it is not installed, and settings that it does not follow."""
    if find_spec("scenedetect") is None:
        raise ValueError(
            'detector scenedetect needs PySceneDetect: pip install "lumiere[prep]" (or scenedetect-headless), or leave'
            " the detector as it is (own)"
        )
    for name in ("cut_least", "cut_times"):
        if getattr(settings, name) != ScanSettings.model_fields[name].default:
            raise ValueError(f"{name} has no effect with detector scenedetect; leave it out")


def _bucket(buckets: Sequence[Bucket], shape: float, frames: int) -> Bucket | None:
    """Of the sizes that a scene of ``shape`` (height over width) fills, the one nearest in shape, and the longest."""
    filled = [bucket for bucket in buckets if bucket.frames <= frames]
    if not filled:
        return None

    def distance(bucket: Bucket) -> tuple[float, int, int]:
        off = abs(float(np.log(bucket.height / bucket.width / shape)))
        return (round(off, 6), -bucket.frames, -bucket.height * bucket.width)

    return min(filled, key=distance)


def _why_dropped(width: int, height: int, scenes: Sequence[Scene], settings: ScanSettings) -> str | None:
    if min(width, height) < settings.min_side:
        return f"too small: {width}x{height}, and min_side is {settings.min_side}"
    if not any(scene.clips for scene in scenes):
        longest, needed = max(scene.frames for scene in scenes), min(bucket.frames for bucket in settings.buckets)
        cuts = f" between its {len(scenes) - 1} cuts" if len(scenes) > 1 else ""
        return f"too short: {longest} frames at {settings.fps:g} fps{cuts}, and {needed} are needed"
    return None


def _small(frame: np.ndarray) -> np.ndarray:
    width = max(1, round(frame.shape[1] * THUMBNAIL_HEIGHT / frame.shape[0]))
    return np.asarray(Image.fromarray(frame).resize((min(width, 4 * THUMBNAIL_HEIGHT), THUMBNAIL_HEIGHT)))


def _thumbnail(frames: Sequence[np.ndarray]) -> bytes:
    """Some frames side by side, as JPEG."""
    if not frames:
        return b""
    file = io.BytesIO()
    Image.fromarray(np.concatenate(frames, axis=1)).save(file, "JPEG", quality=80)
    return file.getvalue()
