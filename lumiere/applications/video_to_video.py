"""Video-to-video: a clip is noised part of the way and made anew from there by another prompt, or in another style.

Source: SDEdit, Meng et al., arXiv 2108.01073; Lumiere, section 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lumiere.applications.fitting import Fit
from lumiere.applications.make import check_region, check_same_size, frame_size, framed
from lumiere.conditioning.frames import kept_region
from lumiere.pipeline import LumierePipeline
from lumiere.strengths import EDIT_STRENGTH
from lumiere.video import resize_clip


def edit(
    pipeline: LumierePipeline,
    clip: Tensor,
    prompt: str,
    *,
    strength: float = EDIT_STRENGTH,
    to_make: Tensor | None = None,
    **call: Any,
) -> Tensor:
    """``clip`` [1, 3, T, H, W] in -1..1, made anew by the prompt from as much noise as ``strength`` says.

    0 gives the clip back as the base's frames hold it, 1 keeps nothing of it. Where ``to_make``
    [1, 1, T or 1, H, W] is 0 the clip stays, bit for bit; this needs a base that can be told of given frames. Clips
    longer than the base's own are made in windows. Raises ValueError for more than one clip, a strength outside 0..1,
    and a mask that does not fit.
    """
    batch, _, frames, height, width = clip.shape
    if batch != 1:
        raise ValueError(f"{batch} clips are given; edit one at a time")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it lies in 0 (the clip stays) to 1 (nothing of it does)")
    if not strength:
        call = {**call, "super_resolution": False}
    fit = Fit(height, width, frame_size(pipeline, call))
    source = _lengthened(fit.into_frame_with_edges(clip), pipeline.unet.temporal_factor).clamp(-1, 1)
    given = None
    if to_make is not None:
        check_same_size(video=clip, mask=to_make)
        check_region(to_make)
        given = kept_region(clip, to_make)
    made = source
    if strength:
        known = None if given is None else framed(given, fit).lengthened(source.shape[2])
        output: Any = pipeline(
            prompt,
            num_frames=source.shape[2],
            video=source,
            strength=strength,
            conditioning=known,
            output_type="pt",
            **call,
        )
        made = output.frames.transpose(1, 2) * 2 - 1
    made = resize_clip(fit.out_of_frame(made)[:, :, :frames], (height, width)).clamp(-1, 1)
    return made if given is None else given.put_into(made)


def _lengthened(clip: Tensor, factor: int) -> Tensor:
    """The clip with its last frame repeated until the network's temporal factor divides its length."""
    missing = -clip.shape[2] % factor
    return torch.cat([clip, clip[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
