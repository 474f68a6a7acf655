"""Some frames are known, the others are made: between two pictures, in a loop, after the end, between frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lumiere.applications.make import check_same_size, make, num_frames_of, scaled_to_fit
from lumiere.conditioning.frames import continuation, first_and_last, slowed_down
from lumiere.pipeline import LumierePipeline


def interpolate(
    pipeline: LumierePipeline, first: Tensor, last: Tensor, prompt: str, *, num_frames: int | None = None, **call: Any
) -> Tensor:
    """A clip [1, 3, T, h, w] from one image [1, 3, H, W] to another of the same size."""
    check_same_size(first=first, last=last)
    start, end = (scaled_to_fit(pipeline, image, call) for image in (first, last))
    return make(pipeline, prompt, first_and_last(start, end, num_frames_of(pipeline, num_frames)), **call)


def loop(
    pipeline: LumierePipeline, image: Tensor, prompt: str, *, num_frames: int | None = None, **call: Any
) -> Tensor:
    """A clip [1, 3, T, h, w] that begins with ``image`` [1, 3, H, W], and after whose last frame it comes again.

    It is given twice, as the first frame and as the one behind the last, which is not part of the clip: shown over and
    over, the clip shows it anyway.
    """
    with_next = num_frames_of(pipeline, num_frames) + 1
    return interpolate(pipeline, image, image, prompt, num_frames=with_next, **call)[:, :, :-1]


def extend(
    pipeline: LumierePipeline, clip: Tensor, prompt: str, *, num_new: int, num_known: int = 16, **call: Any
) -> Tensor:
    """The ``num_new`` frames [1, 3, N, H, W] that come after ``clip`` [1, 3, T, H, W], made from its last ones.

    Raises ValueError for an empty clip or no new frames.
    """
    if num_new < 1 or clip.shape[2] < 1:
        raise ValueError(f"{num_new} new frames after {clip.shape[2]}; both are at least 1")
    end = clip[:, :, -num_known:]
    made = make(pipeline, prompt, continuation(end, end.shape[2] + num_new), **call)
    return made[:, :, end.shape[2] :]


def retime(pipeline: LumierePipeline, clip: Tensor, speed: float, prompt: str, **call: Any) -> Tensor:
    """``clip`` [1, 3, T, H, W] at ``speed`` (0..1] of its own, with the frames between made; longer than it was.

    Raises ValueError for other speeds: faster needs no network, only fewer frames.
    """
    if not 0 < speed <= 1:
        raise ValueError(f"speed is {speed}; it lies above 0 and up to 1 (to make a video faster, leave frames out)")
    if speed == 1:
        return torch.clone(clip)
    return make(pipeline, prompt, slowed_down(clip, 1 / speed), **call)
