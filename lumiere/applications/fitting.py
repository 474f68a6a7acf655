"""Pictures of any shape in the base's square: scaled to fit, the rest left to be made and cut away at the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lumiere.video import resize_clip


@dataclass(frozen=True)
class Fit:
    """Where a picture of ``height`` x ``width`` pixels lies in a frame of ``frame`` = (height, width)."""

    height: int
    width: int
    frame: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the scaled picture, as large as fits."""
        scale = min(self.frame[0] / self.height, self.frame[1] / self.width)
        return max(1, round(self.height * scale)), max(1, round(self.width * scale))

    @property
    def corner(self) -> tuple[int, int]:
        """(top, left) of the picture, which lies in the middle."""
        return (self.frame[0] - self.size[0]) // 2, (self.frame[1] - self.size[1]) // 2

    def into_frame(self, clip: Tensor) -> Tensor:
        """The clip [B, C, T, height, width] scaled into frames of zeros [B, C, T, *frame]."""
        if tuple(clip.shape[-2:]) != (self.height, self.width):
            raise ValueError(f"pictures are {list(clip.shape[-2:])}; this fit is for {[self.height, self.width]}")
        (top, left), (height, width) = self.corner, self.size
        framed = clip.new_zeros(*clip.shape[:3], *self.frame)
        framed[..., top : top + height, left : left + width] = resize_clip(clip, self.size)
        return framed

    def into_frame_with_edges(self, clip: Tensor) -> Tensor:
        """The same, with the picture's edges drawn out to the frame's instead of zeros."""
        (top, left), (height, width) = self.corner, self.size
        rows = (torch.arange(self.frame[0]) - top).clamp(0, height - 1)
        columns = (torch.arange(self.frame[1]) - left).clamp(0, width - 1)
        return self.into_frame(clip)[..., top + rows, :][..., left + columns]

    def covered(self) -> Tensor:
        """1 where the picture lies in the frame [1, 1, 1, *frame], 0 in what is cut away."""
        (top, left), (height, width) = self.corner, self.size
        mask = torch.zeros(1, 1, 1, *self.frame)
        mask[..., top : top + height, left : left + width] = 1
        return mask

    def out_of_frame(self, clip: Tensor) -> Tensor:
        """The picture's part of frames [B, C, T, s * frame], s whole: super-resolution may have made them larger."""
        scale = clip.shape[-1] // self.frame[1]
        (top, left), (height, width) = self.corner, self.size
        return clip[..., top * scale : (top + height) * scale, left * scale : (left + width) * scale]
