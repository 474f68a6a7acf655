"""<C, M>: every row of the paper's table, its encodings, and the random masks of training."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lumiere.codec import Latents, PixelBlocks
from lumiere.conditioning import frames
from lumiere.conditioning.frames import Conditioning, MaskMix, num_channels, random_conditioning


def clip(batch: int = 2, count: int = 6, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, count, size, size, generator=generator) * 1.8 - 0.9


def given_frames(made: Conditioning) -> list[int]:
    """The frames that are given, of masks that give whole frames only."""
    rows = made.mask.amin((1, 3, 4))
    assert torch.equal(rows, made.mask.amax((1, 3, 4))) and bool((rows == rows[:1]).all())
    return rows[0].nonzero().flatten().tolist()


def check_pixels(made: Conditioning, source: Tensor) -> None:
    """C is the source where M is 1, and zero elsewhere."""
    assert torch.equal(made.pixels, source * made.mask)
    assert set(made.mask.unique().tolist()) <= {0.0, 1.0}


def test_text_to_video_is_given_nothing() -> None:
    made = frames.nothing(clip().shape)
    assert made.pixels.abs().sum() == 0 and made.mask.sum() == 0
    assert torch.equal(made.put_into(clip()), clip())


def test_image_to_video_is_given_frame_0() -> None:
    made = frames.first_frame(clip()[:, :, 3], 6)
    assert given_frames(made) == [0] and torch.equal(made.pixels[:, :, 0], clip()[:, :, 3])
    assert made.pixels[:, :, 1:].abs().sum() == 0


def test_other_known_frames_fall_where_they_belong() -> None:
    source = clip()
    for made, places in (
        (frames.last_frame(source[:, :, 5], 6), [5]),
        (frames.first_and_last(source[:, :, 0], source[:, :, 5], 6), [0, 5]),
        (frames.continuation(source[:, :, :2], 6), [0, 1]),
        (frames.frames_given(source[:, :, [4, 1]], [4, 1], 6), [1, 4]),
    ):
        assert given_frames(made) == places
        check_pixels(made, source)


@pytest.mark.parametrize(("factor", "places"), [(1.0, [0, 1, 2]), (2.0, [0, 2, 4]), (2.5, [0, 3, 5])])
def test_a_slowed_down_clip_has_gaps(factor: float, places: list[int]) -> None:
    source = clip(count=3)
    made = frames.slowed_down(source, factor)
    assert given_frames(made) == places and made.pixels.shape[2] == places[-1] + 1
    assert torch.equal(made.pixels[:, :, places], source)


def test_a_region_to_make_is_white_outside_and_not_given_inside() -> None:
    source, to_make = clip(), torch.zeros(1, 1, 1, 8, 8)
    to_make[..., 2:5, 3:6] = 1
    made = frames.kept_region(source, to_make)
    check_pixels(made, source)
    assert made.mask[..., 2:5, 3:6].sum() == 0 and made.mask.sum() == 2 * 6 * (64 - 9)
    broken = torch.where(to_make > 0, torch.nan, source)
    assert torch.equal(frames.kept_region(broken, to_make).pixels, made.pixels)


def test_a_cinemagraph_keeps_the_image_but_where_it_may_move() -> None:
    image, may_move = clip()[:, :, 0], torch.zeros(2, 1, 8, 8)
    may_move[:, :, :4] = 1
    made = frames.cinemagraph(image, may_move, 5)
    check_pixels(made, image[:, :, None].expand(-1, -1, 5, -1, -1))
    assert bool((made.mask[:, :, 0] == 1).all())
    assert bool((made.mask[:, :, 1:, 4:] == 1).all()) and made.mask[:, :, 1:, :4].sum() == 0


def test_what_is_given_comes_back_bit_for_bit() -> None:
    source, made_up = clip(), torch.full_like(clip(), 0.123)
    made = frames.kept_region(source, (torch.arange(8) < 4).float().view(1, 1, 1, 1, 8))
    whole = made.put_into(made_up)
    assert torch.equal(whole[..., 4:], source[..., 4:]) and torch.equal(whole[..., :4], made_up[..., :4])


@pytest.mark.parametrize("size", [1, 2])
def test_encoded_it_has_the_codec_s_channels(size: int) -> None:
    codec, made = PixelBlocks(size), frames.first_frame(clip()[:, :, 0], 6)
    encoded = made.encoded(codec)
    assert encoded.shape == (2, num_channels(codec), 6, 8 // size, 8 // size)
    assert codec.channels + num_channels(codec) == {1: 7, 2: 28}[size]
    pixels, mask = encoded[:, : codec.channels], encoded[:, codec.channels :]
    assert torch.equal(codec.decode(pixels), made.pixels)
    assert bool((mask[:, :, 0] == 1).all()) and mask[:, :, 1:].sum() == 0


def test_latents_are_those_of_the_masked_pixels() -> None:
    """Two clips that differ only inside the hole are the same to the network; half a place is not given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        ).eval()
    codec = Latents(vae)
    hole = torch.zeros(1, 1, 1, 8, 8)
    hole[..., 1:4, 1:4] = 1
    one, other = clip(), torch.where(hole > 0, -clip(), clip())
    encoded = [frames.kept_region(source, hole).encoded(codec) for source in (one, other)]
    assert torch.equal(*encoded)
    assert codec.channels + num_channels(codec) == 9
    expected = torch.ones(4, 4)
    expected[0:2, 0:2] = 0
    assert torch.equal(encoded[0][0, -1, 0], expected)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2 frames for 1 places"):
        frames.frames_given(clip()[:, :, :2], [0], 6)
    with pytest.raises(ValueError, match="from 0 to 5"):
        frames.frames_given(clip()[:, :, :1], [6], 6)
    with pytest.raises(ValueError, match="used once"):
        frames.frames_given(clip()[:, :, :2], [1, 1], 6)
    with pytest.raises(ValueError, match="from 1 on"):
        frames.slowed_down(clip(), 0.5)
    with pytest.raises(ValueError, match="the mask has shape"):
        Conditioning(clip(), torch.zeros(2, 1, 6, 4, 4))
    with pytest.raises(ValueError, match="every share"):
        MaskMix(**dict.fromkeys(MaskMix.model_fields, 0.0)).kinds()


def test_training_draws_its_mix_and_the_same_again() -> None:
    source, mix = clip(batch=200, size=16), MaskMix()
    made = random_conditioning(source, mix, torch.Generator().manual_seed(3))
    again = random_conditioning(source, mix, torch.Generator().manual_seed(3))
    assert torch.equal(made.pixels, again.pixels) and torch.equal(made.mask, again.mask)
    assert set(made.mask.unique().tolist()) == {0.0, 1.0}
    shares = made.mask.mean((1, 2, 3, 4))
    nothing = float((shares == 0).float().mean())
    assert abs(nothing - mix.nothing) < 0.1
    whole = made.mask.flatten(3).amin(3).squeeze(1)
    some = made.mask.flatten(3).amax(3).squeeze(1)
    first_only = (whole[:, 0] == 1) & (some[:, 1:].sum(1) == 0)
    assert abs(float(first_only.float().mean()) - mix.first_frame) < 0.12
    regions = (shares > 0) & (whole.sum(1) < some.sum(1))
    assert 0.15 < float(regions.float().mean()) < 0.45
    kinds = Counter((bool(first_only[i]), bool(regions[i])) for i in range(200))
    assert len(kinds) == 3


@pytest.mark.parametrize("kind", MaskMix.model_fields)
def test_each_kind_of_mask_says_nothing_that_is_not_in_the_clip(kind: str) -> None:
    mix = MaskMix(**{name: float(name == kind) for name in MaskMix.model_fields})
    source = clip(batch=12)
    made = random_conditioning(source, mix, torch.Generator().manual_seed(1))
    still = source[:, :, :1].expand_as(source) if kind == "cinemagraph" else source
    check_pixels(made, still)
    assert (made.mask.sum() == 0) == (kind == "nothing")
    assert float(made.mask.mean()) < 0.999


def test_known_objects_are_what_is_to_be_made() -> None:
    mix = MaskMix(**{name: float(name == "outside_objects") for name in MaskMix.model_fields})
    source, objects = clip(batch=3), torch.zeros(3, 1, 6, 8, 8)
    objects[0, :, :, 1:3], objects[1, :, 2, 0] = 1, 1
    made = random_conditioning(source, mix, torch.Generator().manual_seed(1), objects=objects)
    assert torch.equal(made.mask[:2], 1 - objects[:2])
    assert 0 < float(made.mask[2].mean()) < 1, "where no object is, a box"


@pytest.mark.parametrize("make", [frames.moving_boxes, frames.moving_blobs])
def test_regions_lie_in_the_picture_and_some_of_them_move(make) -> None:
    moved = 0
    for seed in range(30):
        region = make(8, 24, 24, torch.Generator().manual_seed(seed))
        assert region.shape == (1, 1, 8, 24, 24) and set(region.unique().tolist()) <= {0.0, 1.0}
        assert 0.01 < float(region.mean()) < 0.9
        moved += not torch.equal(region[:, :, 0], region[:, :, -1])
    assert 5 < moved < 30


def test_made_small_a_place_is_given_where_all_its_pixels_are() -> None:
    source, hole = clip(), torch.zeros(1, 1, 1, 8, 8)
    hole[..., 3:5, 2] = 1
    made = frames.kept_region(source, hole)
    small = made.made_small(2)
    expected = torch.ones(4, 4)
    expected[1:3, 1] = 0
    assert torch.equal(small.mask[0, 0, 0], expected)
    mean = source.unflatten(-1, (4, 2)).mean(-1).unflatten(-2, (4, 2)).mean(-2)
    assert torch.allclose(small.pixels, mean * small.mask, atol=1e-6)
    assert made.made_small(1) is made
    longer = made.lengthened(9)
    assert longer.pixels.shape[2] == 9 and longer.mask[:, :, 6:].sum() == 0
    assert torch.equal(longer.pixels[:, :, :6], made.pixels)
