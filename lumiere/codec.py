"""Pixels <-> what the network sees: pixels themselves, blocks of them moved into channels, or a VAE's latents."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from lumiere.video import fold_time, unfold_time


class Codec(Protocol):
    """Clips of pixels [B, 3, T, H, W] in -1..1 to clips in the network's space and back."""

    @property
    def channels(self) -> int:
        """Channels of an encoded clip."""

    @property
    def spatial_factor(self) -> int:
        """How many pixels wide one position of the network's grid is."""

    def encode(self, clip: Tensor) -> Tensor:
        """[B, channels, T, H/factor, W/factor] of a clip."""

    def decode(self, encoded: Tensor) -> Tensor:
        """The clip of an encoded one."""


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


class Latents:
    """The latents of a diffusers ``AutoencoderKL``, frame by frame: ``chunk`` frames at once, so memory stays flat.

    The VAE's own slicing and tiling (``vae.enable_tiling()``) make single frames cheaper.
    """

    def __init__(self, vae: Any, *, chunk: int = 1) -> None:
        self.vae, self.chunk = vae, chunk

    @property
    def channels(self) -> int:
        """Channels of an encoded clip."""
        return int(self.vae.config.latent_channels)

    @property
    def spatial_factor(self) -> int:
        """How many pixels wide one position of the network's grid is."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def _network(self) -> Any:
        """The VAE; in fp32 where half precision overflows in it (SDXL's), which gives black frames."""
        if self.vae.dtype == torch.float16 and self.vae.config.get("force_upcast"):
            self.vae.to(torch.float32)
        return self.vae

    @torch.no_grad()
    def encode(self, clip: Tensor) -> Tensor:
        """The most likely latents [B, C, T, H/factor, W/factor] of a clip [B, 3, T, H, W], in the network's scale."""
        vae = self._network
        parts = [
            vae.encode(frames.to(vae.device, vae.dtype)).latent_dist.mode().to(clip)
            for frames in fold_time(clip).split(self.chunk)
        ]
        shift, scale = self._shift_and_scale(clip)
        return unfold_time((torch.cat(parts) - shift) * scale, clip.shape[2])

    @torch.no_grad()
    def decode(self, encoded: Tensor) -> Tensor:
        """The clip [B, 3, T, H, W] of latents."""
        vae = self._network
        shift, scale = self._shift_and_scale(encoded)
        frames = fold_time(encoded) / scale + shift
        parts = [vae.decode(part.to(vae.device, vae.dtype)).sample.to(encoded) for part in frames.split(self.chunk)]
        return unfold_time(torch.cat(parts), encoded.shape[2])

    def _shift_and_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """What is taken from latents, and what they are multiplied with then: numbers, or one for each channel."""
        config = self.vae.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        shift = torch.tensor(float(config.get("shift_factor") or 0.0))
        scale = torch.tensor(float(config.scaling_factor))
        if mean is not None and deviation is not None:
            shift, scale = torch.tensor(mean).view(1, -1, 1, 1), scale / torch.tensor(deviation).view(1, -1, 1, 1)
        return shift.to(like), scale.to(like)
