"""A still picture of which one region moves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lumiere.applications.make import check_region, check_same_size, make, num_frames_of, scaled_to_fit
from lumiere.conditioning import frames
from lumiere.pipeline import LumierePipeline


def cinemagraph(
    pipeline: LumierePipeline,
    image: Tensor,
    may_move: Tensor,
    prompt: str,
    *,
    num_frames: int | None = None,
    **call: Any,
) -> Tensor:
    """A clip [1, 3, T, h, w] of ``image`` [1, 3, H, W] in which only what is 1 in ``may_move`` [1, 1, H, W] moves.

    Raises ValueError when the region does not fit the image, or is all of one value.
    """
    check_same_size(image=image, region=may_move)
    check_region(may_move)
    still, region = (scaled_to_fit(pipeline, picture, call) for picture in (image, may_move))
    given = frames.cinemagraph(still, (region > 0.5).to(still), num_frames_of(pipeline, num_frames))
    return make(pipeline, prompt, given, **call)
