"""Whole text-to-image models become text-to-video ones: the same pictures before, a video model after."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from lumiere.backbones import inflate_model
from lumiere.codec import Latents
from lumiere.pipeline import LumierePipeline
from lumiere.super_resolution import SuperResolutionStage
from tests.original_format import write_single_file
from tests.tiny_text_to_image import MODELS, deepfloyd_second, stable_diffusion

PROMPT = "A red ball bounces "
FRAMES = 8


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: make(folder / name) for name, make in MODELS.items()}


def still_picture(source: Path, noise: torch.Tensor, **call: Any) -> np.ndarray:
    """The picture [H, W, 3] that the image pipeline makes of one noise."""
    theirs = DiffusionPipeline.from_pretrained(source, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    if "IF" in type(theirs).__name__:
        scheduler = type(theirs.scheduler).from_config(theirs.scheduler.config, variance_type="fixed_small")
        theirs.scheduler = _without_chance(scheduler)
        theirs.prepare_intermediate_images = lambda *_, **__: noise * theirs.scheduler.init_noise_sigma
        return theirs(PROMPT, output_type="np", **call).images[0]
    height, width = (size * 2 for size in noise.shape[-2:])
    return theirs(PROMPT, latents=noise, height=height, width=width, output_type="np", **call).images[0]


def _without_chance(scheduler: Any) -> Any:
    """A sampler of the same schedule that draws no noise of its own."""
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(scheduler.config)


@pytest.mark.parametrize("name", MODELS)
def test_a_still_clip_is_the_image_pipeline_s_own_picture(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    backbone = inflate_model(sources[name], tmp_path / "video", num_frames=FRAMES)
    pipeline = LumierePipeline.from_pretrained(tmp_path / "video")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.config.num_frames == FRAMES
    if name == "if1":
        pipeline.scheduler = _without_chance(pipeline.scheduler)
    channels = pipeline.codec.channels
    noise = torch.randn(1, channels, 16, 16, generator=torch.Generator().manual_seed(3))
    call = {"num_inference_steps": 4, "guidance_scale": 4.0}
    true = still_picture(sources[name], noise, **call)
    clip = pipeline(PROMPT, latents=noise[:, :, None].expand(-1, -1, FRAMES, -1, -1), **call).frames[0]
    assert clip.shape == (FRAMES, *true.shape)
    assert float(true.std()) > 0.05
    # As 8-bit pictures would be: half a step. Our walk sums in another order than the library.
    assert np.abs(clip - true).max() < 0.5 / 255
    # And with another prompt it is another picture, as theirs is.
    other = pipeline("a blue star", latents=noise[:, :, None].expand(-1, -1, FRAMES, -1, -1), **call).frames[0]
    assert np.abs(other - clip).max() > 2 / 255
    frozen = {source.part: source.num_weights for source in backbone.sources if source.is_frozen}
    assert ("vae" in frozen) == (name != "if1") and ("text_encoder_2" in frozen) == (name == "sdxl")


@pytest.mark.parametrize("name", MODELS)
def test_an_inflated_model_trains_is_saved_and_loaded(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    from lumiere.data.batches import StorybookBatches, StorybookSettings
    from lumiere.training.loop import LoopSettings
    from lumiere.training.noise import NoiseSettings
    from lumiere.training.stages.clips import ClipStage

    inflate_model(sources[name], tmp_path / "video", num_frames=FRAMES)
    pipeline = LumierePipeline.from_pretrained(tmp_path / "video")
    pipeline.text_encoder.requires_grad_(False)
    if pipeline.text_encoder_2 is not None:
        pipeline.text_encoder_2.requires_grad_(False)
    stage = ClipStage(
        pipeline,
        StorybookBatches(StorybookSettings(size=pipeline.default_size[0], num_frames=FRAMES), seed=0),
        loop=LoopSettings(num_steps=1, batch_size=1, learning_rate=0.01),
        noise=NoiseSettings(),
        caption_dropout=0.0,
        num_validation_clips=1,
    )
    before = {key: value.clone() for key, value in pipeline.unet.state_dict().items()}
    optimizer = torch.optim.Adam([weight for weight in pipeline.unet.parameters() if weight.requires_grad], lr=0.01)
    stage.losses(0, 1).mean().backward()
    optimizer.step()
    moved = {key for key, value in pipeline.unet.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and all(key.startswith("temporal.") for key in moved)
    pipeline.save_pretrained(tmp_path / "trained")
    again = LumierePipeline.from_pretrained(tmp_path / "trained")
    clips = [
        one(PROMPT, generator=torch.Generator().manual_seed(1), num_inference_steps=2).frames
        for one in (pipeline, again)
    ]
    assert np.array_equal(*clips)
    # Its motion fits another copy of the same image network, and no other.
    pipeline.unet.save_motion(tmp_path / "motion.safetensors")
    inflate_model(sources[name], tmp_path / "moving", num_frames=FRAMES, motion_file=tmp_path / "motion.safetensors")
    moving = LumierePipeline.from_pretrained(tmp_path / "moving")
    clip = moving(PROMPT, generator=torch.Generator().manual_seed(1), num_inference_steps=2).frames
    assert np.array_equal(clip, clips[0])
    other = "sd1" if name == "sdxl" else "sdxl"
    with pytest.raises(ValueError, match="another image network"):
        inflate_model(sources[other], tmp_path / "other", motion_file=tmp_path / "motion.safetensors")


def test_image_layers_in_parts_say_the_same(sources: dict[str, Path], tmp_path: Path) -> None:
    for name in MODELS:
        inflate_model(sources[name], tmp_path / name, num_frames=FRAMES)
        pipeline = LumierePipeline.from_pretrained(tmp_path / name)
        pipeline.set_progress_bar_config(disable=True)
        for weight in pipeline.unet.temporal_parameters():
            torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(0))
        clips = []
        for most in (None, 3, 1):
            pipeline.unet.chunk_image_layers(most)
            clips.append(pipeline(PROMPT, generator=torch.Generator().manual_seed(1), num_inference_steps=2).frames)
        assert np.allclose(clips[0], clips[1], atol=1e-4) and np.allclose(clips[0], clips[2], atol=1e-4)
    with pytest.raises(ValueError, match="at least one"):
        pipeline.unet.chunk_image_layers(0)


def test_latents_of_frames_are_the_vae_s_own_whatever_the_chunk(sources: dict[str, Path]) -> None:
    vae = DiffusionPipeline.from_pretrained(sources["sdxl"]).vae
    clip = torch.rand(2, 3, 5, 16, 16) * 2 - 1
    frame = vae.encode(clip[:, :, 3]).latent_dist.mode() * vae.config.scaling_factor
    for chunk in (1, 3, 100):
        latents = Latents(vae, chunk=chunk).encode(clip)
        assert latents.shape == (2, 4, 5, 8, 8) and torch.allclose(latents[:, :, 3], frame, atol=1e-5)
        back = Latents(vae, chunk=chunk).decode(latents)
        assert torch.allclose(back[:, :, 3], vae.decode(frame / vae.config.scaling_factor).sample, atol=1e-5)
    vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    codec = Latents(vae)
    own = vae.encode(clip[:, :, 0]).latent_dist.mode()
    expected = (own[:, 2] - 0.3) / 3 * vae.config.scaling_factor
    assert torch.allclose(codec.encode(clip)[:, 2, 0], expected, atol=1e-5)
    # In half precision such a VAE overflows: it runs in fp32.
    vae.half()
    assert codec.decode(torch.zeros(1, 4, 1, 8, 8)).isfinite().all() and vae.dtype == torch.float32


def changed(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_models_that_cannot_be_inflated_are_refused_before_long_work(sources: dict[str, Path], tmp_path: Path) -> None:
    def refused(source: Path, reason: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=reason):
            inflate_model(source, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    refused(tmp_path / "nowhere", "no such folder")
    lacking = changed(sources["sdxl"], tmp_path / "lacking")
    shutil.rmtree(lacking / "tokenizer_2")
    shutil.rmtree(lacking / "vae")
    refused(lacking, "no tokenizer_2 and no vae")
    inpainting = changed(sources["sd1"], tmp_path / "inpainting")
    config = json.loads((inpainting / "unet" / "config.json").read_text())
    (inpainting / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 9}))
    refused(inpainting, "9 channels, not 4")
    refiner = changed(sources["sdxl"], tmp_path / "refiner")
    index = json.loads((refiner / "model_index.json").read_text())
    for name, reason in (
        ("StableDiffusionXLImg2ImgPipeline", "refiner"),
        ("StableDiffusionInpaintPipeline", "inpainting"),
        ("FluxPipeline", "known are"),
    ):
        (refiner / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
        refused(refiner, reason)
    pickled = changed(sources["sd1"], tmp_path / "pickled")
    (pickled / "vae" / "diffusion_pytorch_model.safetensors").rename(pickled / "vae" / "diffusion_pytorch_model.bin")
    refused(pickled, "pickled")
    refused(sources["sd1"], "the nearest are 4 and 8", num_frames=6)
    (tmp_path / "model.ckpt").write_bytes(b"0")
    refused(tmp_path / "model.ckpt", "not opened")
    save_file({"lora.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    refused(tmp_path / "lora.safetensors", "no whole Stable Diffusion")
    save_file({"model.diffusion_model.x": torch.zeros(2)}, tmp_path / "single.safetensors")
    refused(tmp_path / "single.safetensors", "--like FOLDER")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="exists already"):
        inflate_model(sources["sd1"], tmp_path / "full")


def test_half_precision_variants_and_shards_are_read(tmp_path: Path) -> None:
    source = stable_diffusion(tmp_path / "sd")
    pipeline = DiffusionPipeline.from_pretrained(source)
    pipeline.to(torch.float16).save_pretrained(tmp_path / "variant", variant="fp16")
    assert not list((tmp_path / "variant" / "unet").glob("diffusion_pytorch_model.safetensors"))
    backbone = inflate_model(tmp_path / "variant", tmp_path / "from_variant", num_frames=FRAMES)
    assert backbone.model.unet.dtype == torch.float16
    DiffusionPipeline.from_pretrained(source).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards" / "unet").glob("*-of-*.safetensors"))) > 1
    sharded = inflate_model(tmp_path / "shards", tmp_path / "from_shards", num_frames=FRAMES)
    own = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, sharded.model.unet.state_dict()[key]) for key, value in own.items())


def test_the_command_says_what_came_from_where(
    sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lumiere.cli import main

    assert main(["inflate", str(sources["sdxl"]), str(tmp_path / "out"), "--num_frames", "8", "--dtype", "bf16"]) == 0
    said = capsys.readouterr().out
    assert "temporal layers" in said and "text_encoder_2" in said and "80 frames of 32x32 need" in said
    pipeline = LumierePipeline.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert pipeline.config.num_frames == 8 and pipeline.unet.dtype == torch.bfloat16
    assert main(["inflate", str(sources["sdxl"] / "unet"), str(tmp_path / "bare"), "--motion", "x"]) == 2
    assert "whole models" in capsys.readouterr().err


def test_a_single_file_is_read_with_the_vocabulary_of_a_folder_like_it(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    file = write_single_file(sources["sd1"], tmp_path / "model.safetensors")
    inflate_model(file, tmp_path / "from_file", num_frames=FRAMES, like=sources["sd1"])
    inflate_model(sources["sd1"], tmp_path / "from_folder", num_frames=FRAMES)
    clips = []
    for name in ("from_file", "from_folder"):
        pipeline = LumierePipeline.from_pretrained(tmp_path / name)
        clips.append(pipeline(PROMPT, generator=torch.Generator().manual_seed(1), num_inference_steps=2).frames)
    assert np.abs(clips[0] - clips[1]).max() < 1e-5
    with pytest.raises(ValueError, match="single file is like"):
        inflate_model(file, tmp_path / "other", like=sources["if1"])


@pytest.mark.parametrize("name", MODELS)
def test_prompts_are_encoded_once_and_the_encoders_can_go(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    inflate_model(sources[name], tmp_path / "out", num_frames=FRAMES)
    pipeline = LumierePipeline.from_pretrained(tmp_path / "out")
    call: dict[str, Any] = {"num_inference_steps": 2, "num_videos_per_prompt": 2}
    whole = pipeline([PROMPT, "a star"], generator=torch.Generator().manual_seed(1), **call).frames
    told, not_told = pipeline.encode_prompt([PROMPT, "a star"])
    pipeline.free_text_encoders()
    assert not any("text_encoder" in part for part, module in pipeline.components.items() if module is not None)
    call |= {"prompt_embeds": told, "negative_prompt_embeds": not_told}
    # Two prompts are encoded here, four above: sums are rounded otherwise.
    assert np.abs(pipeline(generator=torch.Generator().manual_seed(1), **call).frames - whole).max() < 0.5 / 255
    with pytest.raises(ValueError, match="were freed"):
        pipeline(PROMPT)
    with pytest.raises(ValueError, match="only one of both"):
        pipeline(PROMPT, **call)
    with pytest.raises(ValueError, match="given together"):
        pipeline(prompt_embeds=told)
    with pytest.raises(ValueError, match="neither"):
        pipeline()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_text_encoder_in_8_bit_says_nearly_the_same(sources: dict[str, Path], tmp_path: Path) -> None:
    inflate_model(sources["sd1"], tmp_path / "out", num_frames=FRAMES)
    whole = LumierePipeline.from_pretrained(tmp_path / "out")
    small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(whole.text_encoder), {torch.nn.Linear}, torch.qint8)
    in_8_bit = LumierePipeline.from_pretrained(tmp_path / "out", text_encoder=small)
    (own, _), (other, _) = (one.encode_prompt(PROMPT) for one in (whole, in_8_bit))
    distance = float((own.states - other.states).norm() / own.states.norm())
    assert 0 < distance < 0.1
    frames = [
        one(PROMPT, generator=torch.Generator().manual_seed(1), num_inference_steps=2).frames
        for one in (whole, in_8_bit)
    ]
    assert 0 < np.abs(frames[0] - frames[1]).mean() < 0.05


def test_published_upscalers_become_stages(tmp_path: Path) -> None:
    source = deepfloyd_second(tmp_path / "if2")
    backbone = inflate_model(source, tmp_path / "stage")
    assert any("by itself" in note for note in backbone.notes)
    stage = SuperResolutionStage.from_folder(tmp_path / "stage")
    assert stage.scheduler.config.variance_type == "fixed_small"
    clip = torch.rand(1, 3, 2, 8, 8) * 2 - 1
    made = [
        one(clip, PROMPT, num_inference_steps=2, generator=[torch.Generator().manual_seed(1)])
        for one in (stage, SuperResolutionStage.from_folder(source))
    ]
    assert made[0].shape[-1] > 8 and float((made[0] - made[1]).abs().max()) < 1 / 255
