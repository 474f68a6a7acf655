"""What a clip is: [B, C, T, H, W], float, -1..1; the only crossing to 8-bit frames [T, H, W, 3]."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FPS = 16
"""Frames a second of every clip the network makes (Lumiere, section 3)."""


def from_uint8(frames: np.ndarray | Tensor) -> Tensor:
    """A clip [..., 3, T, H, W] in -1..1 from 8-bit frames [..., T, H, W, 3]."""
    pixels = torch.as_tensor(frames)
    if pixels.dtype != torch.uint8 or pixels.ndim < 4 or pixels.shape[-1] != 3:
        raise ValueError(f"frames must be 8-bit [..., T, H, W, 3]; got {pixels.dtype} {list(pixels.shape)}")
    return as_floats(pixels.movedim(-1, -4))


def as_floats(clip: Tensor, device: torch.device | str | None = None) -> Tensor:
    """A clip of 8-bit pixels (0..255, of any shape) as floats in -1..1, on ``device``; one of floats as it is, there.

    It goes there first: 8-bit pixels are a quarter of the bytes.
    """
    clip = clip.to(device)
    return clip.float().div_(127.5).sub_(1) if clip.dtype == torch.uint8 else clip


def to_uint8(clip: Tensor) -> np.ndarray:
    """8-bit frames [..., T, H, W, 3] from a clip [..., 3, T, H, W] in -1..1; values outside are clipped.

    Raises ValueError when a value is NaN or infinite, so that a broken clip is never written as a black one.
    """
    if clip.ndim < 4 or clip.shape[-4] != 3:
        raise ValueError(f"a clip has shape [..., 3, T, H, W]; got {list(clip.shape)}")
    clip = clip.detach().float().cpu()
    bad = int((~torch.isfinite(clip)).sum())
    if bad:
        raise ValueError(
            f"the clip has {bad} of {clip.numel()} values that are NaN or infinite and is not converted"
            " (run in float32, or check the weights)"
        )
    pixels = ((clip.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.movedim(-4, -1).contiguous().numpy()


def fold_time(features: Tensor) -> Tensor:
    """The frames [B*T, C, H, W] of feature clips [B, C, T, H, W]: a free view when channels lie last in memory."""
    batch, channels, frames, height, width = features.shape
    return features.permute(0, 2, 3, 4, 1).reshape(batch * frames, height, width, channels).permute(0, 3, 1, 2)


def unfold_time(folded: Tensor, num_frames: int) -> Tensor:
    """The feature clips [B, C, T, H, W] of frames [B*T, C, H, W]: a free view when channels lie last in memory."""
    total, channels, height, width = folded.shape
    assert total % num_frames == 0, (total, num_frames)
    last = folded.permute(0, 2, 3, 1).reshape(total // num_frames, num_frames, height, width, channels)
    return last.permute(0, 4, 1, 2, 3)


def frames_at(clip: Tensor, places: Tensor) -> Tensor:
    """The frames [B, C, N, H, W] of clips [B, C, T, H, W] at ``places`` [B, N]."""
    return clip.gather(2, places[:, None, :, None, None].expand(-1, clip.shape[1], -1, *clip.shape[3:]))


def channels_last(clip: Tensor) -> Tensor:
    """The same clip [B, C, T, H, W], channels last in memory, where folding time is free."""
    return clip.contiguous(memory_format=torch.channels_last_3d)


def resize_clip(clip: Tensor, size: tuple[int, int]) -> Tensor:
    """The clip [B, C, T, h, w] at ``size`` = (h, w): area averages when smaller, bicubic when larger."""
    frames = fold_time(clip)
    if size[0] <= clip.shape[-2] and size[1] <= clip.shape[-1]:
        frames = F.interpolate(frames, size, mode="area")
    else:
        frames = F.interpolate(frames, size, mode="bicubic", align_corners=False, antialias=True)
    return unfold_time(frames, clip.shape[2])


def in_blocks(clip: Tensor, scale: int) -> Tensor:
    """The clip [..., H, W] ``scale`` times larger, each pixel a square: to be shown beside truly larger ones."""
    return clip.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


def psnr_db(clips: Tensor, truth: Tensor) -> Tensor:
    """The peak signal-to-noise ratio in dB [B] of clips [B, ...] against true ones, both in -1..1; at most 100."""
    error = (clips.clamp(-1, 1) - truth).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=4e-10))


def contact_sheet(clip: Tensor, *, columns: int = 10, every: int = 1, scale: int = 1) -> np.ndarray:
    """Every ``every``-th frame of one clip [3, T, H, W], in reading order, as one 8-bit picture [H', W', 3]."""
    frames = to_uint8(clip)[::every]
    count, height, width, _ = frames.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), 255, dtype=np.uint8)
    for index, frame in enumerate(frames):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = frame
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def between(is_there: Tensor) -> Tensor:
    """All places [..., N] from the first that is true to the last."""
    after, before = (side.to(torch.int32).cummax(-1).values > 0 for side in (is_there, is_there.flip(-1)))
    return after & before.flip(-1)
