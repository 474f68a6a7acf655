"""Blocks of pixels as channels: an exact rearrangement."""

import pytest
import torch
import torch.nn.functional as F

from lumiere.codec import PixelBlocks


@pytest.mark.parametrize("size", [1, 2, 4])
def test_pixels_come_back_exactly(size: int) -> None:
    clip = torch.randn(2, 3, 5, 8, 12)
    codec = PixelBlocks(size)
    encoded = codec.encode(clip)
    assert encoded.shape == (2, codec.channels, 5, 8 // codec.spatial_factor, 12 // codec.spatial_factor)
    assert torch.equal(codec.decode(encoded), clip)


def test_blocks_are_torch_s_pixel_unshuffle_of_every_frame() -> None:
    clip = torch.randn(2, 3, 4, 6, 8)
    expected = F.pixel_unshuffle(clip.transpose(1, 2), 2).transpose(1, 2)
    assert torch.equal(PixelBlocks(2).encode(clip), expected)


def test_plain_pixels_are_left_alone() -> None:
    clip = torch.randn(1, 3, 2, 5, 7)
    assert torch.equal(PixelBlocks(1).encode(clip), clip)


def test_noise_stays_standard_normal() -> None:
    noise = torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    encoded = PixelBlocks(2).encode(noise)
    assert torch.equal(encoded.sort().values.flatten().sort().values, noise.flatten().sort().values)


def test_sizes_that_do_not_divide_are_refused_with_one_that_does() -> None:
    with pytest.raises(ValueError, match="crop to 6x4"):
        PixelBlocks(2).encode(torch.zeros(1, 3, 1, 7, 5))
    with pytest.raises(ValueError, match="1 or more"):
        PixelBlocks(0)
