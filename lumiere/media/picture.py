"""What every reader of files yields: timed pictures; how one becomes upright, opaque and of the wanted size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

MAX_PIXELS = 2**26
"""Largest picture that is decoded: 67 million pixels, twice 8K. A file of 40 bytes can ask for 200 times that."""

BACKGROUND = 255
"""What shows through transparent pixels: white."""


class BrokenOff(ValueError):
    """Raised after the last sound picture of a damaged file: everything before it was right."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file holds."""

    path: Path
    format: str  # of the file, in FFmpeg's words
    codec: str
    pixel_format: str
    width: int  # of the upright picture, in stored pixels
    height: int
    pixel_aspect: float  # shown width of one upright pixel over its shown height
    rotation: int  # degrees clockwise by which the stored picture is turned to be upright
    fps: float  # mean
    num_frames: int
    duration_s: float
    is_variable_rate: bool
    has_audio: bool
    has_alpha: bool
    damage: str | None = None  # why the file ends early


class Picture:
    """One picture of a video: when it appears, and its pixels, which are converted only when asked for."""

    def __init__(
        self,
        time_s: float,
        duration_s: float | None,
        *,
        convert: Callable[[], np.ndarray],
        pixel_aspect: float = 1.0,
    ) -> None:
        self.time_s = time_s
        self.duration_s = duration_s
        self.pixel_aspect = pixel_aspect
        self._convert = convert

    @cached_property
    def rgb(self) -> np.ndarray:
        """Upright 8-bit pixels [H, W, 3]."""
        return self._convert()


def check_picture_size(width: int, height: int, *, path: Path) -> None:
    """Refuse pictures without area and pictures that would fill the memory, before they are decoded."""
    if width < 1 or height < 1:
        raise ValueError(f"{path} declares pictures of {width}x{height} pixels (no such picture, or a broken header)")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{path} declares pictures of {width}x{height} pixels; at most {MAX_PIXELS} pixels are decoded"
            " (scale the video down first)"
        )


def over_background(rgba: np.ndarray) -> np.ndarray:
    """The opaque picture [H, W, 3] of an 8-bit picture with alpha [H, W, 4], laid over white."""
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = rgba[..., :3] * alpha + np.uint16(BACKGROUND) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def crop_and_resize(rgb: np.ndarray, size: tuple[int, int], *, pixel_aspect: float = 1.0) -> np.ndarray:
    """The middle of a picture [H, W, 3] at ``size`` = (h, w): area averages when smaller, bicubic when larger.

    The crop is the largest that has the wanted proportions as shown, so pixels that are not square come out square.
    """
    height, width = rgb.shape[:2]
    wanted = size[1] / size[0] / pixel_aspect
    crop_width, crop_height = min(width, height * wanted), min(height, width / wanted)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    if (left, top, size) == (0, 0, (height, width)):
        return rgb
    right, bottom = min(left + crop_width, width), min(top + crop_height, height)
    if crop_height < size[0] or crop_width < size[1]:
        resized = Image.fromarray(rgb).resize(size[::-1], Image.Resampling.BICUBIC, box=(left, top, right, bottom))
        return np.asarray(resized)
    # Not Pillow's box filter: it counts every pixel whole or not at all.
    rows = _area_weights(height, size[0], begin=top, end=bottom)
    columns = _area_weights(width, size[1], begin=left, end=right)
    by_rows = (rows @ rgb.reshape(height, width * 3).astype(np.float32)).reshape(size[0], width, 3)
    return (columns @ by_rows + 0.5).astype(np.uint8)


@lru_cache(maxsize=64)
def _area_weights(length: int, count: int, *, begin: float, end: float) -> np.ndarray:
    """Weights [count, length]: how much of each of ``count`` equal parts of begin..end each pixel fills."""
    edges = np.linspace(begin, end, count + 1)
    pixels = np.arange(length)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (covered.clip(min=0) / np.diff(edges)[:, None]).astype(np.float32)
