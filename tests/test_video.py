"""Clips and frames: one crossing between them, and time folded without copies."""

import numpy as np
import pytest
import torch

from lumiere.video import as_floats, contact_sheet, fold_time, from_uint8, psnr_db, resize_clip, to_uint8, unfold_time


def test_every_byte_survives_the_way_to_a_clip_and_back() -> None:
    frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(4, 8, 8, 3)
    clip = from_uint8(frames)
    assert clip.shape == (3, 4, 8, 8)
    assert float(clip.min()) == -1
    assert float(clip.max()) == 1
    assert np.array_equal(to_uint8(clip), frames)


def test_batches_of_frames_become_batches_of_clips() -> None:
    frames = torch.randint(0, 256, (2, 5, 4, 6, 3), dtype=torch.uint8)
    clip = from_uint8(frames)
    assert clip.shape == (2, 3, 5, 4, 6)
    assert clip[1, 2, 3, 0, 5] == frames[1, 3, 0, 5, 2] / 127.5 - 1
    assert np.array_equal(to_uint8(clip), frames.numpy())


@pytest.mark.parametrize("frames", [np.zeros((4, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)])
def test_frames_of_another_kind_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="8-bit"):
        from_uint8(frames)


def test_8_bit_clips_become_floats_as_they_lie_in_memory_and_floats_stay() -> None:
    frames = torch.arange(256, dtype=torch.uint8).repeat(3).view(4, 8, 8, 3)
    clip = as_floats(frames.movedim(-1, -4))
    assert torch.equal(clip, from_uint8(frames.numpy())) and clip.stride() == frames.movedim(-1, -4).stride()
    assert np.array_equal(to_uint8(clip), frames.numpy())
    assert as_floats(clip) is clip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_clip_is_never_turned_into_frames(value: float) -> None:
    clip = torch.zeros(3, 4, 8, 8)
    clip[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match="1 of 768 values"):
        to_uint8(clip)


def test_values_outside_are_clipped_and_a_picture_is_no_clip() -> None:
    assert set(to_uint8(torch.full((3, 1, 2, 2), 3.0)).ravel()) == {255}
    with pytest.raises(ValueError, match="shape"):
        to_uint8(torch.zeros(3, 8, 8))


def test_folding_time_puts_each_clip_s_frames_one_after_the_other() -> None:
    clip = torch.randn(2, 3, 5, 4, 6)
    folded = fold_time(clip)
    assert folded.shape == (10, 3, 4, 6)
    assert torch.equal(folded[7], clip[1, :, 2])
    assert torch.equal(unfold_time(folded, 5), clip)


def test_folding_and_unfolding_time_copy_nothing_when_channels_lie_last() -> None:
    clip = torch.randn(2, 3, 5, 4, 6).contiguous(memory_format=torch.channels_last_3d)
    folded = fold_time(clip)
    assert folded.data_ptr() == clip.data_ptr()
    assert folded.is_contiguous(memory_format=torch.channels_last)
    assert unfold_time(folded, 5).data_ptr() == clip.data_ptr()


def test_a_smaller_clip_is_the_mean_of_the_pixels() -> None:
    clip = torch.randn(2, 3, 2, 8, 4)
    expected = clip.reshape(2, 3, 2, 4, 2, 2, 2).mean((4, 6))
    assert torch.allclose(resize_clip(clip, (4, 2)), expected, atol=1e-6)


def test_a_larger_clip_keeps_a_ramp_a_ramp() -> None:
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 2, 16, 16)
    inner = resize_clip(ramp, (32, 32))[..., 8:-8]
    steps = inner.diff(dim=-1)
    assert inner.shape == (1, 3, 2, 32, 16)
    assert torch.allclose(steps, torch.full_like(steps, 1 / 15), atol=1e-3)


def test_psnr_is_its_formula() -> None:
    truth = torch.zeros(2, 3, 2, 4, 4)
    assert torch.allclose(
        psnr_db(truth + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1, 1), truth), torch.tensor([20.0, 40])
    )
    assert psnr_db(truth, truth).tolist() == [100, 100]


def test_a_contact_sheet_reads_like_a_page() -> None:
    clip = torch.stack([torch.full((3, 4, 5), level) for level in (-1.0, 0.0, 1.0)], dim=1)
    sheet = contact_sheet(clip, columns=2, scale=2)
    assert sheet.shape == (2 * (2 * 5 - 1), 2 * (2 * 6 - 1), 3)
    assert (sheet[:8, :10] == 0).all()
    assert (sheet[:8, 12:] == 128).all()
    assert (sheet[10:, :10] == 255).all()
    assert contact_sheet(clip, every=2).shape == (4, 11, 3)
