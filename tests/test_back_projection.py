"""What super-resolution does beside its network: back-projection to the small clip, and looks at the finished one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lumiere import SuperResolution, SuperResolutionStage
from lumiere.conditioning.frames import kept_region
from lumiere.diffusion.back_projection import back_projected
from lumiere.video import resize_clip
from tests.test_super_resolution import clips, noise, seeds, stage, states
from tests.tiny_text_to_image import upscaler_x4


def small_of(large: Tensor, scale: int = 4) -> Tensor:
    return resize_clip(large, (large.shape[-2] // scale, large.shape[-1] // scale))


def error(large: Tensor, small: Tensor) -> float:
    """How far the clip, made small again, is from the small one."""
    return float((small_of(large, large.shape[-1] // small.shape[-1]) - small).square().mean().sqrt())


def test_a_clip_that_says_what_the_small_one_does_stays() -> None:
    large = noise(2, 3, 4, 32, 48)
    assert torch.allclose(back_projected(large, small_of(large)), large, atol=1e-5)


def test_tints_and_clouds_go_and_what_lies_within_a_small_pixel_stays() -> None:
    true = noise(1, 3, 2, 64, 64)
    ramp = torch.linspace(0, 2 * torch.pi, 64)
    cloud = 0.1 * torch.sin(ramp) * torch.cos(ramp)[:, None] + torch.tensor([0.2, 0.0, -0.1]).view(3, 1, 1, 1)
    left = back_projected(true + cloud, small_of(true)) - true
    assert float(left.square().mean()) < 0.01 * float(cloud.square().mean())
    within = noise(1, 3, 2, 64, 64, seed=1)
    within = within - small_of(within).repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert torch.allclose(back_projected(true + within, small_of(true)), true + within, atol=1e-5)


def test_a_share_goes_so_much_of_the_way() -> None:
    large, small = noise(1, 3, 2, 16, 16), noise(1, 3, 2, 4, 4, seed=1)
    half, whole = (back_projected(large, small, share=share) for share in (0.5, 1.0))
    assert torch.allclose(half, (large + whole) / 2, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"prediction": "sample", "predicts_change": True}])
def test_a_stage_keeps_to_the_small_clip_at_every_step(settings: dict) -> None:
    upscale, small = stage(**settings), 0.5 * clips()
    call = {"states": states(), "generator": seeds(1)}
    free, kept = (upscale(small, back_projection=share, **call) for share in (0.0, 1.0))
    # One iteration, and values are kept within -1..1: near, not equal.
    assert error(kept, small) < 0.4 * error(free, small)
    # At every step: not what one correction of the finished clip would be.
    assert not torch.allclose(kept, back_projected(free, small).clamp(-1, 1), atol=1e-2)
    seen: list[Tensor] = []
    upscale(small, back_projection=1.0, on_step=lambda step: seen.append(upscale.codec.decode(step.clean())), **call)
    assert len(seen) == 2 and all(error(clean, small) < 0.4 * error(free, small) for clean in seen)


def test_given_pixels_come_back_bit_for_bit_and_any_number_of_frames() -> None:
    small, large = 0.5 * clips(frames=7), noise(1, 3, 7, 16, 16, seed=3).clamp(-1, 1)
    to_make = torch.zeros(1, 1, 1, 16, 16)
    to_make[..., 4:12, 4:12] = 1
    made = stage(back_projection=1.0)(small, states=states(), generator=seeds(1), given=kept_region(large, to_make))
    is_given = (to_make == 0).expand_as(made)
    assert torch.equal(made[is_given], large[is_given])
    free = stage(back_projection=0.0)(small, states=states(), generator=seeds(1), given=kept_region(large, to_make))
    assert not torch.allclose(made, free, atol=1e-2)


def test_latents_are_corrected_once_they_are_decoded(tmp_path: Path) -> None:
    upscale = SuperResolutionStage.from_folder(upscaler_x4(tmp_path / "x4"))
    upscale.set_progress_bar_config(disable=True)
    small, call = 0.5 * clips(frames=2), {"prompt": "a red star", "num_inference_steps": 2, "noise_level": 5}
    free, kept = (upscale(small, back_projection=share, generator=seeds(1), **call) for share in (0.0, 1.0))
    assert torch.equal(kept, back_projected(free, small).clamp(-1, 1))
    assert error(kept, small) < 0.4 * error(free, small)


def test_a_finished_clip_is_looked_at_again_where_the_stage_says() -> None:
    settings: dict = {"prediction": "sample", "predicts_change": True}
    call = {"states": states(), "generator": seeds(1)}
    counted: list[int] = []
    made = stage(polish=[0.3, 0.2], **settings)(clips(), on_step=lambda step: counted.append(step.num_steps), **call)
    assert counted == [4] * 4
    plain = stage(**settings)
    assert torch.equal(plain(clips(), polish=[0.3, 0.2], **call), made)
    assert not torch.allclose(plain(clips(), **call), made, atol=1e-3)
    assert SuperResolution.of(stage(polish=[0.3, 0.2])).num_steps == 4
    with pytest.raises(ValueError, match="polish holds 2"):
        stage(polish=[2])


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="it lies from 0"):
        stage(back_projection=share)
    with pytest.raises(ValueError, match="it lies from 0"):
        stage()(clips(), states=states(), generator=seeds(1), back_projection=share)


def test_the_setting_is_saved_with_the_stage(tmp_path: Path) -> None:
    stage(back_projection=0.75).save_pretrained(tmp_path)
    assert SuperResolutionStage.from_folder(tmp_path).config.back_projection == 0.75
