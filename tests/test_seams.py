"""Seams between what is given and what is made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lumiere.codec import PixelBlocks
from lumiere.conditioning.frames import Conditioning, encoded_mask, first_frame
from lumiere.conditioning.seams import seam_remover, without_seams

SHAPE = (1, 3, 24, 12, 12)


def smooth_clip() -> Tensor:
    """A still slope of brightness."""
    slope = torch.linspace(-0.4, 0.4, 12)
    return (slope[:, None] + 0.5 * slope).expand(SHAPE).clone()


def first_given(num_frames: int = SHAPE[2]) -> Tensor:
    return first_frame(torch.zeros(1, *SHAPE[1:2], *SHAPE[3:]), num_frames).mask


def test_an_even_error_of_all_made_frames_is_taken_off() -> None:
    true, mask = smooth_clip(), first_given()
    made = true + 0.05 * (1 - mask)
    joined = without_seams(made, mask, reach=1000)
    assert torch.equal(joined[:, :, 0], true[:, :, 0])
    assert torch.allclose(joined, true, atol=2e-3)


def test_it_fades_with_the_distance() -> None:
    true, mask = smooth_clip(), first_given()
    joined = without_seams(true + 0.05 * (1 - mask), mask, reach=6)
    left = (joined - true).mean((0, 1, 3, 4))[1:]
    assert float(left[0]) < 0.015 and float(left[-1]) > 0.04
    assert bool((left.diff() > 0).all())
    assert torch.allclose(left[1:4].diff().log().diff(), torch.full((2,), -1 / 6), atol=0.02)  # exp(-distance / reach)


def test_a_clip_without_seams_stays_as_it_is() -> None:
    """A slope that goes on over the border of a region, and a picture that brightens evenly, are no seams."""
    region = torch.zeros(1, 1, 24, 12, 12)
    region[..., 4:8, 5:9] = 1
    slope = smooth_clip()
    assert torch.allclose(without_seams(slope, 1 - region, reach=32), slope, atol=1e-5)
    two_given = first_given()
    two_given[:, :, 1] = 1
    brighter = slope + torch.arange(24).view(1, 1, -1, 1, 1) * 0.01
    assert torch.allclose(without_seams(brighter, two_given, reach=32), brighter, atol=1e-4)


def test_the_border_of_a_region_is_taken_off_too() -> None:
    true = smooth_clip()
    mask = torch.ones(1, 1, 24, 12, 12)
    mask[..., 3:9, 3:9] = 0
    joined = without_seams(true - 0.06 * (1 - mask), mask, reach=1000)
    assert torch.allclose(joined, true, atol=2e-3)
    assert torch.equal(joined[mask.expand(SHAPE) > 0], true[mask.expand(SHAPE) > 0])


def test_nothing_crosses_an_outline_or_follows_a_jump() -> None:
    """What differs much from what is given is another thing and keeps its colour; so does what lies behind an edge."""
    mask = first_given()
    clip = torch.full(SHAPE, -0.5)
    clip[..., 6:] = 0.5  # An edge through the picture.
    made = clip.clone()
    made[:, :, 1:, :, :6] += 0.05  # A little off on the one side,
    made[:, :, 1:, :, 6:] = -0.9  # and on the other something new.
    joined = without_seams(made, mask, reach=1000)
    assert torch.allclose(joined[:, :, 1:, :, :6], clip[:, :, 1:, :, :6], atol=3e-3)
    assert torch.allclose(joined[:, :, 1:, :, 6:], made[:, :, 1:, :, 6:], atol=1e-3)


def test_a_clip_comes_out_the_same_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    clips = 0.1 * torch.randn(2, *SHAPE[1:], generator=generator)
    mask = torch.cat([first_given(), first_given().flip(2)])
    both = without_seams(clips, mask, reach=32)
    alone = torch.cat([without_seams(clips[row : row + 1], mask[row : row + 1], reach=32) for row in (0, 1)])
    assert torch.allclose(both, alone, atol=1e-6)


def test_nothing_given_or_all_given_moves_nothing() -> None:
    clip = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for value in (0.0, 1.0):
        assert torch.equal(without_seams(clip, torch.full((1, 1, *SHAPE[2:]), value), reach=32), clip)
    single = clip[:, :, :1]
    assert without_seams(single, first_given(1), reach=32).shape == single.shape


def test_in_blocks_of_pixels_it_is_the_same_as_in_pixels() -> None:
    given = first_frame(smooth_clip()[:, :, 0], 24)
    made, codec = given.put_into(smooth_clip() + 0.05), PixelBlocks(2)
    join = seam_remover(given, codec, reach=32)
    assert join is not None
    assert torch.equal(codec.decode(join(codec.encode(made))), without_seams(made, given.mask, reach=32))
    assert seam_remover(given, codec, reach=0) is None


class Halves:
    """A codec that is no block of pixels: the mean of each 2x2."""

    channels, spatial_factor = 3, 2

    def encode(self, clip: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool3d(clip, (1, 2, 2))

    def decode(self, encoded: Tensor) -> Tensor:
        raise AssertionError(encoded)


def test_latents_are_joined_as_they_are() -> None:
    mask = torch.ones(1, 1, 24, 12, 12)
    mask[..., 3:, :] = 0  # A place of the grid is given where all of its pixels are.
    given, codec = Conditioning.of(smooth_clip(), mask), Halves()
    latents = torch.randn(1, 3, 24, 6, 6, generator=torch.Generator().manual_seed(0))
    join = seam_remover(given, codec, reach=32)
    assert join is not None
    assert torch.equal(join(latents), without_seams(latents, encoded_mask(mask, codec), reach=32))
    assert torch.equal(join(latents)[..., :1, :], latents[..., :1, :])


@pytest.mark.parametrize("reach", [-1.0, float("inf"), float("nan")])
def test_a_reach_that_is_no_distance_is_refused(reach: float) -> None:
    with pytest.raises(ValueError, match="seam_reach is"):
        seam_remover(first_frame(torch.zeros(1, 3, 12, 12), 24), PixelBlocks(2), reach=reach)
