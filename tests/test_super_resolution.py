"""Super-resolution stages: ours and published folders against diffusers' own pipelines, windows, refusals, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    IFSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
)
from torch import Tensor

import lumiere.super_resolution as super_resolution
from lumiere import LumierePipeline, SuperResolution, SuperResolutionStage
from lumiere.conditioning.frames import first_frame, kept_region, num_channels
from lumiere.conditioning.text import TextStates
from lumiere.diffusion.sample import draw_frame_noise
from lumiere.model.inflate import widen_input
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from lumiere.super_resolution import augmented, low_res_schedule
from lumiere.video import resize_clip
from tests.tiny_pipeline import tiny_pipeline
from tests.tiny_text_to_image import upscaler_x4
from tests.tiny_unets import deepfloyd_2, video_upscaler


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clips(batch: int = 1, frames: int = 8, size: int = 8) -> Tensor:
    return noise(batch, 3, frames, size, size, seed=5).clamp(-1, 1)


def seeds(*values: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(value) for value in values]


def states(batch: int = 1, width: int = 12) -> tuple[TextStates, TextStates]:
    return TextStates(noise(1, 5, width, seed=1).expand(batch, -1, -1)), TextStates(torch.zeros(batch, 5, width))


def stage(*, width: int = 12, prediction: str = "v_prediction", **settings: Any) -> SuperResolutionStage:
    """A stage of the embedded kind: 2x2 pixel blocks, time halved once, every layer has something to say.

    ``width`` is that of the text states that it hears.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        temporal = TemporalSettings(halve_time=(True, False), hears_time_and_text=True)
        unet = STUNet.from_image_unet(video_upscaler(width=width), temporal=temporal)
        for weight in unet.temporal_parameters():
            torch.nn.init.normal_(weight, std=0.05)
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    defaults = {"scale": 2, "pixel_block_size": 2, "default_steps": 2, "window_frames": 4, "window_frames_overlap": 2}
    made = SuperResolutionStage(unet.eval(), scheduler, low_res_schedule(), **{**defaults, **settings})
    made.set_progress_bar_config(disable=True)
    return made


def test_a_clip_gets_larger_and_its_seed_decides() -> None:
    upscale = stage()
    once = upscale(clips(), states=states(), generator=seeds(1))
    assert once.shape == (1, 3, 8, 16, 16) and bool(torch.isfinite(once).all())
    assert torch.equal(once, upscale(clips(), states=states(), generator=seeds(1)))
    assert not torch.equal(once, upscale(clips(), states=states(), generator=seeds(2)))
    both = upscale(clips(2), states=states(2), generator=seeds(3, 1))
    alone = upscale(clips(2)[1:], states=states(), generator=seeds(1))
    assert torch.allclose(both[1:], alone, atol=1e-3)


def test_windows_are_used_and_one_that_holds_the_clip_changes_nothing() -> None:
    whole = stage(window_frames=None)(clips(), states=states(), generator=seeds(1))
    assert torch.equal(stage(window_frames=8)(clips(), states=states(), generator=seeds(1)), whole)
    cut = stage()(clips(), states=states(), generator=seeds(1))
    assert not torch.allclose(cut, whole, atol=1e-3)
    tiled = stage(window_frames=None, window_px=8, window_px_overlap=4)(clips(), states=states(), generator=seeds(1))
    assert tiled.shape == whole.shape and not torch.allclose(tiled, whole, atol=1e-3)


@pytest.mark.parametrize("frames", [1, 2, 7, 9])
def test_every_number_of_frames_comes_back(frames: int) -> None:
    assert stage()(clips(frames=frames), states=states(), generator=seeds(1)).shape[2] == frames


def test_parts_of_a_clip_have_the_noise_of_their_place() -> None:
    shape = (2, 3, 6, 4, 4)
    whole = draw_frame_noise(shape, [1, 2], salt="a")
    assert torch.equal(whole[:, :, 2:], draw_frame_noise((2, 3, 4, 4, 4), [1, 2], salt="a", first_frame=2))
    assert torch.equal(whole[1:], draw_frame_noise((1, *shape[1:]), [2], salt="a"))
    others = [draw_frame_noise(shape, [1, 2], salt="b"), whole.flip(0), whole.roll(1, 2)]
    assert all(float((whole * other).mean().abs()) < 0.15 for other in others)
    large = draw_frame_noise((1, 3, 8, 32, 32), [5])
    assert abs(float(large.mean())) < 0.02 and abs(float(large.std()) - 1) < 0.02


def test_the_small_clip_is_noised_to_its_level_and_the_network_is_told() -> None:
    low, level = clips(2), torch.tensor([0, 999])
    drawn = noise(*low.shape, seed=9)
    made = augmented(low, (8, 8), scheduler=low_res_schedule(), levels=level, draw=lambda _: drawn, upsampling="none")
    assert torch.allclose(made[0], low[0], atol=0.05) and torch.allclose(made[1], drawn[1], atol=0.05)
    clean, told = (stage()(clips(), states=states(), generator=seeds(1), noise_level=at) for at in (0, 300))
    assert not torch.allclose(clean, told, atol=1e-3)


def test_a_network_that_says_how_the_clip_changes_and_says_nothing_leaves_the_enlargement() -> None:
    upscale = stage(prediction="sample", predicts_change=True)
    for weight in upscale.unet.conv_out.parameters():
        torch.nn.init.zeros_(weight)
    low = resize_clip(clips(size=4), (8, 8)) * 0.5
    made = upscale(low, states=states(), generator=seeds(1), noise_level=0, guidance_scale=3.0)
    enlarged = F.interpolate(low[0].transpose(0, 1), (16, 16), mode="bicubic").transpose(0, 1)[None]
    assert torch.allclose(made, enlarged, atol=0.04)
    nothing = upscale(low, states=states(), generator=seeds(1), noise_level=999)
    assert float(nothing.abs().max()) < 0.05, "of a small clip that is all noise nothing is left to start from"
    with pytest.raises(ValueError, match="prediction_type sample"):
        stage(predicts_change=True)


@pytest.mark.parametrize(
    ("settings", "call", "message"),
    [
        ({"window_frames": 3}, {}, "multiple of 2"),
        ({"window_frames": 1}, {}, "multiple of 2"),
        ({"window_frames": 4, "window_frames_overlap": 4}, {}, "from 0 to 3"),
        ({}, {"clip": clips(size=9)}, "multiple of 4 in the small one"),
        ({"window_px": 12}, {}, "windows' side would be 12"),
        ({}, {"noise_level": 1000}, "from 0 to 999"),
        ({}, {"clip": clips()[0]}, r"\[B, 3, T, H, W\]"),
        ({}, {"states": None}, "no text encoder"),
    ],
)
def test_what_cannot_be_done_is_refused_first(settings: dict[str, Any], call: dict[str, Any], message: str) -> None:
    arguments = {"clip": clips(), "states": states(), "generator": seeds(1), **call}
    with pytest.raises(ValueError, match=message):
        stage(**settings)(**arguments)


def test_stages_go_to_disk_and_back_in_order(tmp_path: Path) -> None:
    both = SuperResolution.of(stage(), stage(scale=1, noise_level=7))
    assert both.scale == 2
    both.save_pretrained(tmp_path)
    again = SuperResolution.from_pretrained(tmp_path)
    assert [one.config.noise_level for one in again.stages] == [100, 7]
    assert (tmp_path / "stage_1" / "model_index.json").is_file()
    for one in (*both.stages, *again.stages):
        one.set_progress_bar_config(disable=True)
    made, remade = (part(clips(), states=states(), prompts=([""], [""]), generator=seeds(4)) for part in (both, again))
    assert made.shape == (1, 3, 8, 16, 16) and torch.equal(made, remade)
    with pytest.raises(ValueError, match="without a stage"):
        SuperResolution.of()


def draw_as_diffusers(monkeypatch: pytest.MonkeyPatch, *shapes: tuple[int, ...]) -> None:
    """Let a stage draw what diffusers draws from one generator of seed 3: the small picture's noise, then the start."""
    generator = torch.Generator().manual_seed(3)
    drawn = {shape: torch.randn(shape, generator=generator) for shape in shapes}
    monkeypatch.setattr(super_resolution, "draw_frame_noise", lambda shape, *_, **__: drawn[tuple(shape)])


def test_a_still_of_an_x4_upscaler_s_folder_is_diffusers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = StableDiffusionUpscalePipeline.from_pretrained(upscaler_x4(tmp_path / "x4"))
    low = clips(frames=1)
    published.set_progress_bar_config(disable=True)
    expected = published(
        "a red star",
        image=(low[:, :, 0] + 1) / 2,
        num_inference_steps=2,
        guidance_scale=3.0,
        noise_level=5,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images
    upscale = SuperResolutionStage.from_folder(tmp_path / "x4")
    upscale.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "noise_level": 5}
    clip = upscale(clips(frames=4), ["a red star"], generator=seeds(3), **settings)
    assert clip.shape == (1, 3, 4, 32, 32) and float(clip.std()) > 0
    draw_as_diffusers(monkeypatch, (1, 3, 1, 8, 8), (1, 4, 1, 8, 8))
    still = upscale(low, "a red star", generator=seeds(3), **settings)
    assert still.shape == (1, 3, 1, 32, 32)
    assert torch.allclose(((still[:, :, 0] + 1) / 2).clamp(0, 1), expected, atol=1e-4)


def test_a_still_of_deepfloyd_s_second_stage_is_diffusers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = deepfloyd_2()
    told, not_told = states(width=unet.config.encoder_hid_dim)
    published = IFSuperResolutionPipeline(
        tokenizer=None,
        text_encoder=None,
        unet=unet,
        scheduler=DDPMScheduler(variance_type="learned_range", clip_sample=False, thresholding=True),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    published.save_pretrained(tmp_path / "if2")
    low = clips(frames=1)
    published.scheduler = DDPMScheduler.from_config(published.scheduler.config, variance_type="fixed_small")
    published.set_progress_bar_config(disable=True)
    expected = published(
        prompt_embeds=told.states,
        negative_prompt_embeds=not_told.states,
        image=low[:, :, 0],
        height=32,
        width=32,
        num_inference_steps=2,
        guidance_scale=3.0,
        noise_level=200,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images
    upscale = SuperResolutionStage.from_folder(tmp_path / "if2")
    assert upscale.scheduler.config.variance_type == "fixed_small"
    upscale.set_progress_bar_config(disable=True)
    # diffusers draws the start first and the small picture's noise then; here it is the other way round.
    generator = torch.Generator().manual_seed(3)
    start, beside = (torch.randn(1, 3, 1, 32, 32, generator=generator) for _ in range(2))
    drawn = iter([beside, start])
    monkeypatch.setattr(super_resolution, "draw_frame_noise", lambda *_, **__: next(drawn))
    monkeypatch.setattr(super_resolution, "mixed_generator", lambda *_: generator)
    still = upscale(
        low,
        states=(told, not_told),
        num_inference_steps=2,
        guidance_scale=3.0,
        noise_level=200,
        generator=[generator],
    )
    assert torch.allclose(still[:, :, 0], expected, atol=1e-4)


def test_other_folders_are_no_stages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model_index"):
        SuperResolutionStage.from_folder(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="StableDiffusionUpscalePipeline"):
        SuperResolutionStage.from_folder(tmp_path)


def test_a_pipeline_s_clip_is_the_base_s_made_larger(tmp_path: Path) -> None:
    """In memory and from disk; the stage hears the base's text and has the clip's seed."""
    pipeline = tiny_pipeline(num_frames=4)
    pipeline.register_modules(super_resolution=SuperResolution.of(stage()))
    call = {"num_inference_steps": 2, "output_type": "pt"}
    base = pipeline("a red ball", generator=seeds(1), super_resolution=False, **call).frames
    assert base.shape == (1, 4, 3, 16, 16)
    sharp = pipeline("a red ball", generator=seeds(1), **call).frames
    assert sharp.shape == (1, 4, 3, 32, 32)
    by_hand = pipeline.super_resolution.stages[0](
        base.transpose(1, 2) * 2 - 1, states=pipeline.encode_prompt("a red ball"), generator=seeds(1), salt="stage_1"
    )
    assert torch.allclose(sharp, (by_hand.transpose(1, 2) / 2 + 0.5).clamp(0, 1), atol=1e-4)
    other = pipeline("a blue star", generator=seeds(1), **call).frames
    assert not torch.allclose(sharp, other, atol=1e-3)
    pipeline.save_pretrained(tmp_path)
    again = LumierePipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert all(one._progress_bar_config == {"disable": True} for one in (again, *again.super_resolution.stages))
    assert torch.allclose(again("a red ball", generator=seeds(1), **call).frames, sharp, atol=1e-4)
    assert next(again.to(torch.bfloat16).super_resolution.parameters()).dtype == torch.bfloat16


def test_what_is_given_of_the_large_clip_comes_back() -> None:
    """Through a stage alone, with frames that it had to add; and through base and stage, each told in its own size."""
    large = clips(frames=3, size=16)
    given = kept_region(large, (torch.arange(16) < 6).float().view(1, 1, 1, 1, 16))
    small = resize_clip(large, (8, 8))
    free, kept = (stage()(small, states=states(), generator=seeds(1), given=known) for known in (None, given))
    assert torch.equal(kept[..., 6:], large[..., 6:]) and not torch.allclose(free[..., 6:], large[..., 6:], atol=0.1)
    assert not torch.allclose(kept[..., :6], free[..., :6], atol=1e-3)
    with pytest.raises(ValueError, match="this stage makes"):
        stage()(small, states=states(), generator=seeds(1), given=given.made_small(2))
    pipeline = tiny_pipeline(num_frames=4)
    widen_input(pipeline.unet, num_channels(pipeline.codec))
    pipeline.register_modules(super_resolution=SuperResolution.of(stage(), stage()))
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt", "generator": seeds(1)}
    frames = pipeline("a red ball", conditioning=first_frame(image, 4), **call).frames
    assert frames.shape == (1, 4, 3, 64, 64) and torch.equal(frames[:, 0], image / 2 + 0.5)
    with pytest.raises(ValueError, match=r"this call makes \[1, 3, 4, 64, 64\]"):
        pipeline("a red ball", conditioning=first_frame(image[..., :16, :16], 4), **call)
