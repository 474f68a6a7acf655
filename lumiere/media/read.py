"""Frames [T, H, W, 3] at any rate and size out of any file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from lumiere.media.container import container_pictures, describe_container
from lumiere.media.picture import BrokenOff, Picture, VideoInfo, crop_and_resize
from lumiere.media.stills import describe_stills, folder_pictures, is_webp, webp_pictures
from lumiere.video import FPS

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".apng", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogv", ".ts", ".webm", ".webp", ".wmv"}
)
"""Names by which a folder's videos are recognised; ``read_clip`` itself goes by content."""

TIME_ROUNDING_S = 0.0015
"""Containers count in milliseconds: a clip of exactly five seconds has no 81st frame because its end is rounded up."""

MAX_CLIP_BYTES = 2**31
"""Largest clip that is read into memory at once: 80 frames of 4K."""


def probe(path: str | Path) -> VideoInfo:
    """What a video holds: size as shown, rate, number of pictures, duration, sound, transparency, damage.

    Decodes the first picture and counts the others. Raises ValueError when not even that can be decoded.
    """
    path = _readable(path)
    return describe_stills(path) if path.is_dir() or is_webp(path) else describe_container(path)


def read_clip(
    path: str | Path,
    *,
    num_frames: int | None = None,
    fps: float = FPS,
    size: tuple[int, int] | None = None,
    start_s: float = 0.0,
) -> tuple[np.ndarray, VideoInfo]:
    """8-bit frames [T, H, W, 3] from ``start_s`` on, at ``fps``, and what the file holds.

    Each frame is the picture whose presentation time is nearest. Without ``num_frames``: to the end, and the info's
    ``damage`` tells where a damaged file ended early. ``size`` = (h, w) crops the middle and resizes; without it
    pixels stay as stored, even where they are not square. Transparent parts lie over white.
    Raises ValueError when the file cannot be read, changes size, or is too short for ``num_frames``.
    """
    info = probe(path)
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames must be at least 1; got {num_frames}")
    frames: list[np.ndarray] = []
    try:
        for frame in islice(iterate_frames(path, fps=fps, size=size, start_s=start_s), num_frames):
            frames.append(frame)
            _check_frame(frames, path=info.path)
    except BrokenOff as error:
        info = replace(info, damage=str(error))
    if not frames or len(frames) < (num_frames or 1):
        raise ValueError(_too_short(info, len(frames), num_frames or 1, fps=fps, start_s=start_s))
    return np.stack(frames), info


def iterate_frames(
    path: str | Path, *, fps: float = FPS, size: tuple[int, int] | None = None, start_s: float = 0.0
) -> Iterator[np.ndarray]:
    """The frames [H, W, 3] that ``read_clip`` would return, one by one, with no more than three pictures in memory.

    Raises ValueError when the file cannot be read, and BrokenOff after the last sound frame of a damaged one.
    """
    path = _readable(path)
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise ValueError(f"fps must lie above 0 and not above 1000; got {fps}")
    if not (math.isfinite(start_s) and start_s >= 0):
        raise ValueError(f"start_s must be 0 or more seconds; got {start_s}")
    if size is not None and not all(1 <= side <= 8192 for side in size):
        raise ValueError(f"size is (height, width), each from 1 to 8192; got {size}")
    pictures = nearest_pictures(_pictures(path, start_s), fps=fps, start_s=start_s)
    if size is None:
        return (picture.rgb for picture in pictures)
    return (crop_and_resize(picture.rgb, size, pixel_aspect=picture.pixel_aspect) for picture in pictures)


def _pictures(path: Path, start_s: float) -> Iterator[Picture]:
    if path.is_dir():
        return folder_pictures(path)
    return webp_pictures(path) if is_webp(path) else container_pictures(path, start_s=start_s)


def nearest_pictures(pictures: Iterable[Picture], *, fps: float, start_s: float = 0.0) -> Iterator[Picture]:
    """Yield for each moment start_s + k / fps the picture whose time is nearest, the earlier one of two.

    The last picture is shown for its own duration, and every moment before that end counts. A BrokenOff that ends the
    pictures is passed on behind the last of them.
    """
    shown: Picture | None = None
    gap_s = 1 / fps
    count = 0
    broken: BrokenOff | None = None
    iterator = iter(pictures)
    while True:
        try:
            picture = next(iterator, None)
        except BrokenOff as error:
            broken, picture = error, None
        if picture is None:
            break
        if shown is not None:
            gap_s = picture.time_s - shown.time_s
            border_s = (shown.time_s + picture.time_s) / 2
            while start_s + count / fps <= border_s + 1e-9:
                yield shown
                count += 1
        shown = picture
    assert shown is not None, "readers raise ValueError when there is no picture"
    end_s = shown.time_s + (shown.duration_s or gap_s)
    while start_s + count / fps <= end_s - TIME_ROUNDING_S:
        yield shown
        count += 1
    if broken is not None:
        raise broken


def _readable(path: str | Path) -> Path:
    path = Path(path)
    try:
        exists = path.exists()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not exists:
        raise ValueError(f"{path} does not exist")
    if path.is_dir():
        return path
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder of PNG frames")
    try:
        with path.open("rb") as file:
            head = file.read(1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise ValueError(f"{path} is empty (0 bytes)")
    return path


def _check_frame(frames: list[np.ndarray], *, path: Path) -> None:
    if frames[-1].shape != frames[0].shape:
        raise ValueError(
            f"{path} changes its picture from {frames[0].shape[1]}x{frames[0].shape[0]} to"
            f" {frames[-1].shape[1]}x{frames[-1].shape[0]} on the way (give size)"
        )
    if len(frames) * frames[0].nbytes > MAX_CLIP_BYTES:
        raise ValueError(
            f"{path} is too long to hold: more than {len(frames) - 1} frames of {frames[0].shape[1]}x"
            f"{frames[0].shape[0]} exceed {MAX_CLIP_BYTES / 2**30:.0f} GiB (give num_frames, size or a lower fps)"
        )


def _too_short(info: VideoInfo, found: int, wanted: int, *, fps: float, start_s: float) -> str:
    damage = f"; {info.damage}" if info.damage else ""
    return (
        f"{info.path} has {found} frames at {fps:g} fps from {start_s:g} s on, and {wanted} are needed"
        f" ({wanted / fps:.2f} s of its {info.duration_s:.2f} s{damage})"
    )
