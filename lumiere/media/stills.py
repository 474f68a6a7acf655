"""Animations that FFmpeg does not read, through Pillow: WebP, and a folder of numbered PNG frames."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lumiere.media.picture import BrokenOff, Picture, VideoInfo, check_picture_size, over_background
from lumiere.video import FPS

FRAME_RATE_KEY = "frame-rate"
"""Text chunk in the first PNG of a folder: frames a second."""

# Everything that Pillow raises on broken pictures.
PILLOW_ERRORS = (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError)


def is_webp(path: Path) -> bool:
    """Whether a file begins as WebP files do."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


def webp_pictures(path: Path) -> Iterator[Picture]:
    """Yield the pictures of a WebP animation; raises ValueError, or BrokenOff after the last sound picture."""
    time_s = 0.0
    with _open(path) as image:
        for index in range(getattr(image, "n_frames", 1)):
            try:
                image.seek(index)
                pixels = _rgb(image)
            except PILLOW_ERRORS as error:
                raise _failure(index, f"{path}: picture {index} cannot be decoded: {error}") from error
            duration_s = image.info.get("duration", 0) / 1000 or None
            yield Picture(time_s, duration_s, convert=partial(np.copy, pixels))
            time_s += duration_s or 1 / FPS


def folder_pictures(folder: Path) -> Iterator[Picture]:
    """Yield the PNG frames of a folder in the order of their names, at the rate that the first one carries."""
    files = frame_files(folder)
    if not files:
        raise ValueError(f"{folder} is a folder without PNG frames (give a video file or a folder of .png)")
    fps = folder_frame_rate(folder)
    for index, file in enumerate(files):
        try:
            with _open(file) as image:
                pixels = _rgb(image)
        except PILLOW_ERRORS as error:
            raise _failure(index, f"{file} cannot be decoded: {error}") from error
        yield Picture(index / fps, 1 / fps, convert=partial(np.copy, pixels))


def frame_files(folder: Path) -> list[Path]:
    """The PNG frames of a folder, in the order of their names."""
    return sorted(folder.glob("*.png"))


def folder_frame_rate(folder: Path) -> float:
    """Frames a second of a folder of PNG frames: what its first frame carries, or 16."""
    with _open(frame_files(folder)[0]) as image:
        written = getattr(image, "text", {}).get(FRAME_RATE_KEY)
    return float(written) if written else float(FPS)


def describe_stills(path: Path) -> VideoInfo:
    """What a WebP animation or a folder of PNG frames holds; raises ValueError when nothing can be decoded."""
    pictures = folder_pictures(path) if path.is_dir() else webp_pictures(path)
    durations: list[float] = []
    damage = None
    try:
        for picture in pictures:
            durations.append(picture.duration_s or 1 / FPS)
            height, width = picture.rgb.shape[:2]
    except BrokenOff as error:
        damage = str(error)
    return VideoInfo(
        path=path,
        format="png frames" if path.is_dir() else "webp",
        codec="png" if path.is_dir() else "webp",
        pixel_format="rgb24",
        width=width,
        height=height,
        pixel_aspect=1.0,
        rotation=0,
        fps=len(durations) / sum(durations),
        num_frames=len(durations),
        duration_s=sum(durations),
        is_variable_rate=float(np.ptp(durations)) > 0.002,  # WebP counts in milliseconds
        has_audio=False,
        has_alpha=False,
        damage=damage,
    )


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
    except PILLOW_ERRORS as error:
        raise ValueError(f"{path} cannot be opened as a picture: {error}") from error
    check_picture_size(*image.size, path=path)
    return image


def _rgb(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        return over_background(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _failure(index: int, message: str) -> ValueError:
    return BrokenOff(message) if index else ValueError(message)
