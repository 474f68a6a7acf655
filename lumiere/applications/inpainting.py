"""Part of a clip is made anew, inside (inpainting) or around it (outpainting); the rest is kept."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lumiere.applications.make import check_region, check_same_size, make
from lumiere.conditioning.frames import Conditioning, kept_region
from lumiere.pipeline import LumierePipeline


def inpaint(pipeline: LumierePipeline, clip: Tensor, to_make: Tensor, prompt: str, **call: Any) -> Tensor:
    """``clip`` [1, 3, T, H, W] with what is 1 in ``to_make`` [1, 1, T or 1, H, W] made by the prompt.

    Raises ValueError when the mask does not fit the clip, or is all of one value.
    """
    check_same_size(video=clip, mask=to_make)
    if to_make.shape[2] not in (1, clip.shape[2]):
        raise ValueError(
            f"the mask has {to_make.shape[2]} frames for a video of {clip.shape[2]} (give as many, or one for all)"
        )
    check_region(to_make)
    return make(pipeline, prompt, kept_region(clip, to_make), **call)


def outpaint(pipeline: LumierePipeline, clip: Tensor, aspect: float, prompt: str, **call: Any) -> Tensor:
    """``clip`` [1, 3, T, H, W] in the middle of a picture of width / height ``aspect``, with the rest made.

    No pixel of the clip is lost: the picture grows in width or in height. Raises ValueError when it would not grow.
    """
    canvas, border = canvas_around(clip.shape[-2], clip.shape[-1], aspect)
    given = Conditioning(F.pad(clip, border), F.pad(torch.ones_like(clip[:, :1]), border))
    assert tuple(given.pixels.shape[-2:]) == canvas
    return make(pipeline, prompt, given, **call)


def canvas_around(height: int, width: int, aspect: float) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """(height, width), even, of the smallest picture of an aspect around one; its border (left, right, top, bottom)."""
    if not aspect > 0:
        raise ValueError(f"an aspect is width over height, above 0; got {aspect}")
    wide, high = max(width, round(height * aspect)), max(height, round(width / aspect))
    wide, high = wide + wide % 2, high + high % 2
    if wide - width < 2 and high - height < 2:
        raise ValueError(f"a picture of {width}x{height} has that shape already, so there is nothing to make around it")
    left, top = (wide - width) // 2, (high - height) // 2
    return (high, wide), (left, wide - width - left, top, high - height - top)
