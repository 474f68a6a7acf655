"""Single pictures and masks out of image files, whatever their mode: upright, opaque, 8 bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lumiere.media.picture import check_picture_size, over_background

WHITE_FROM = 128
"""Grey values from here on count as white in a mask."""


def read_image(path: str | Path) -> np.ndarray:
    """The picture [H, W, 3], 8-bit: turned as its file says, 16 bits scaled to 8, transparent parts over white.

    Raises ValueError when it cannot be read as a picture, or is an animation of several.
    """
    picture = _opened(Path(path))
    if picture.mode.startswith(("I", "F")):
        return np.repeat(_scaled(picture, Path(path))[..., None], 3, axis=-1)
    if picture.has_transparency_data:
        return over_background(np.asarray(picture.convert("RGBA")))
    return np.array(picture.convert("RGB"))


def read_mask_image(path: str | Path, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """The mask [H, W], True where the picture is white (half grey on); its colours are weighed as grey.

    Raises ValueError when it cannot be read, is not of ``size`` = (h, w), or is all black or all white.
    """
    path = Path(path)
    rgb = read_image(path)
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    if size is not None and grey.shape != tuple(size):
        raise ValueError(
            f"{path} is a mask of {grey.shape[1]}x{grey.shape[0]} pixels for a picture of {size[1]}x{size[0]}"
            " (make it the same size)"
        )
    return checked_mask(grey >= WHITE_FROM, path)


def checked_mask(mask: np.ndarray, path: Path) -> np.ndarray:
    """The mask, unless it is all of one value: then nothing, or everything, would be made."""
    if not mask.any():
        raise ValueError(f"{path} is all black, so there is nothing to make (paint what to make or to move white)")
    if mask.all():
        raise ValueError(f"{path} is all white, so nothing is kept (paint what to keep black)")
    return mask


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            check_picture_size(picture.width, picture.height, path=path)
            count = getattr(picture, "n_frames", 1)
            if count > 1:
                raise ValueError(
                    f"{path} is an animation of {count} pictures; give a single one (or the file to a verb for videos)"
                )
            return ImageOps.exif_transpose(picture).copy()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def _scaled(picture: Image.Image, path: Path) -> np.ndarray:
    """Pictures of more than 8 bits a value [H, W] in 8: 16-bit whole numbers by their range, floats from 0 to 1."""
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{path} holds values that are NaN or infinite")
    top = 1.0 if picture.mode.startswith("F") else 65535.0
    return (values / top * 255 + 0.5).clip(0, 255).astype(np.uint8)
