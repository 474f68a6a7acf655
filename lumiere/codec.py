"""Pixels <-> what the network sees. Here: pixels themselves, or blocks of them moved into channels."""

from __future__ import annotations

from torch import Tensor


class PixelBlocks:
    """Blocks of ``size`` x ``size`` pixels as channels: an exact, fixed rearrangement (size 1 is plain pixels).

    A network on 2x2 blocks works on a grid of half the width for the same picture, which costs a quarter.
    """

    def __init__(self, size: int = 1) -> None:
        if size < 1:
            raise ValueError(f"a pixel block has size {size}; it must be 1 or more")
        self.size = size

    @property
    def channels(self) -> int:
        """Channels of an encoded clip."""
        return 3 * self.size**2

    @property
    def spatial_factor(self) -> int:
        """How many pixels wide one position of the network's grid is."""
        return self.size

    def encode(self, clip: Tensor) -> Tensor:
        """[B, C*size*size, T, H/size, W/size] of a clip [B, C, T, H, W].

        Raises ValueError when H or W is no multiple of the block size.
        """
        batch, channels, frames, height, width = clip.shape
        size = self.size
        if height % size or width % size:
            raise ValueError(
                f"frames are {height}x{width}; height and width must be multiples of {size}"
                f" (crop to {height // size * size}x{width // size * size})"
            )
        blocks = clip.reshape(batch, channels, frames, height // size, size, width // size, size)
        blocks = blocks.permute(0, 1, 4, 6, 2, 3, 5)
        return blocks.reshape(batch, channels * size * size, frames, height // size, width // size)

    def decode(self, encoded: Tensor) -> Tensor:
        """The clip [B, C, T, H, W] of an encoded one."""
        batch, channels, frames, height, width = encoded.shape
        size = self.size
        clip = encoded.reshape(batch, channels // size**2, size, size, frames, height, width)
        clip = clip.permute(0, 1, 4, 5, 2, 6, 3)
        return clip.reshape(batch, channels // size**2, frames, height * size, width * size)
