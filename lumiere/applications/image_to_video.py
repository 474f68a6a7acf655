"""An image comes to life: it is frame 0, the rest is made."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lumiere.applications.make import make, num_frames_of, scaled_to_fit
from lumiere.conditioning.frames import first_frame
from lumiere.pipeline import LumierePipeline


def animate(
    pipeline: LumierePipeline, image: Tensor, prompt: str, *, num_frames: int | None = None, **call: Any
) -> Tensor:
    """A clip [1, 3, T, h, w] in -1..1 that begins with ``image`` [1, 3, H, W], scaled to fit the pipeline's frame."""
    start = scaled_to_fit(pipeline, image, call)
    return make(pipeline, prompt, first_frame(start, num_frames_of(pipeline, num_frames)), **call)
