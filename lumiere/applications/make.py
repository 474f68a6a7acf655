"""The one way from what is given of a clip, of any size and length, to the whole clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lumiere.applications.fitting import Fit
from lumiere.conditioning.frames import Conditioning
from lumiere.pipeline import LumierePipeline
from lumiere.video import resize_clip

WHOLE = 0.999
"""A place of the network's grid is given where at least this share of it is."""


def make(pipeline: LumierePipeline, prompt: str, given: Conditioning, **call: Any) -> Tensor:
    """The clip [1, 3, T, H, W] in -1..1 that ``given`` is a part of; ``call`` are options of the pipeline's call.

    Scaled to fit the pipeline's frame, with what lies beside it and behind its end left to be made and cut away, and
    scaled back; what was given is then put in its place, bit for bit. Raises ValueError for more than one clip.
    """
    batch, _, frames, height, width = given.pixels.shape
    if batch != 1:
        raise ValueError(f"{batch} clips are given; make one at a time")
    fit = Fit(height, width, frame_size(pipeline, call))
    factor = pipeline.unet.temporal_factor
    known = framed(given, fit).lengthened(-(-frames // factor) * factor)
    output: Any = pipeline(prompt, num_frames=known.mask.shape[2], conditioning=known, output_type="pt", **call)
    made = fit.out_of_frame(output.frames.transpose(1, 2) * 2 - 1)[:, :, :frames]
    return given.put_into(resize_clip(made, (height, width)).clamp(-1, 1))


def framed(given: Conditioning, fit: Fit) -> Conditioning:
    """What is given, scaled into the frame; a place counts where all of it is given."""
    mask = (fit.into_frame(given.mask) >= WHOLE) & (fit.covered() > 0)
    return Conditioning.of(fit.into_frame(given.pixels), mask.float())


def frame_size(pipeline: LumierePipeline, call: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) in pixels of the clips of a call with these options, super-resolution included."""
    return pipeline.frame_size(super_resolution=call.get("super_resolution", True))


def scaled_to_fit(pipeline: LumierePipeline, image: Tensor, call: Mapping[str, Any]) -> Tensor:
    """The image [B, 3, H, W] as large as fits the frame of a call with these options, with its own proportions."""
    size = Fit(image.shape[-2], image.shape[-1], frame_size(pipeline, call)).size
    return resize_clip(image[:, :, None], size)[:, :, 0].clamp(-1, 1)


def num_frames_of(pipeline: LumierePipeline, wanted: int | None) -> int:
    """The wanted number of frames, or the pipeline's own."""
    return int(pipeline.config.num_frames) if wanted is None else wanted


def check_same_size(**clips: Tensor) -> None:
    """Raise ValueError that names the sizes when pictures that belong together are not of one size."""
    sizes = {name: (clip.shape[-1], clip.shape[-2]) for name, clip in clips.items()}
    if len(set(sizes.values())) > 1:
        named = ", ".join(f"{name} {width}x{height}" for name, (width, height) in sizes.items())
        raise ValueError(f"pictures are of different sizes: {named} (crop or scale them to one size)")


def check_region(region: Tensor) -> None:
    """Raise ValueError when a mask is all of one value, or holds others than 0 and 1."""
    values = set(torch.unique(region).tolist())
    if not values <= {0.0, 1.0}:
        raise ValueError(f"a region is 0 or 1 everywhere; this one holds {min(values):g} to {max(values):g}")
    if values == {0.0}:
        raise ValueError("the region is empty, so nothing would be made (paint what to make or to move white)")
    if values == {1.0}:
        raise ValueError("the region is everything, so nothing would be kept (paint what to keep black)")
