"""Super-resolution of every family learns motion from shards: temporal weights move, come out again, and are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lumiere import LumierePipeline, SuperResolution, SuperResolutionStage
from lumiere.backbones import inflate_model
from lumiere.cli import main
from lumiere.conditioning.text import TextStates
from lumiere.config import find_recipe, load_settings
from lumiere.data.pack import PackSettings, pack
from lumiere.data.scan import Bucket
from lumiere.media import probe
from lumiere.model.temporal import TemporalSettings
from lumiere.training.checkpoint import checkpoints, read_tensors
from lumiere.training.run import train
from lumiere.training.stages.super_resolution_clips import SuperResolutionClipsSettings, SuperResolutionClipsTraining
from tests.media_samples import numbered_frames, write_video
from tests.test_super_resolution import stage as embedded_stage
from tests.tiny_pipeline import tiny_pipeline
from tests.tiny_text_to_image import deepfloyd, deepfloyd_second, upscaler_x4

RECIPE = "super_resolution_clips_smoke"
FAMILIES = ["x4", "if2", "embedded"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of clips of 8 frames of 32x32, and a small stage of each family: published ones, and one of ours."""
    place = tmp_path_factory.mktemp("upscalers")
    (place / "videos").mkdir()
    for index in range(8):
        path = write_video(place / "videos" / f"{index}.mkv", numbered_frames(8, height=32, width=32))
        path.with_suffix(".txt").write_text(f"a red ball {index}")
    sizes = (Bucket(height=32, width=32, frames=8),)
    packing = PackSettings(buckets=sizes, min_side=8, workers=1, videos_per_shard=2)
    pack(place / "videos", place / "shards", packing, progress=False)
    upscaler_x4(place / "x4")
    deepfloyd_second(place / "if2")
    embedded_stage(scale=4).save_pretrained(place / "embedded")
    tiny_pipeline().save_pretrained(place / "base")
    return place


def words(place: Path, model: str, *more: str) -> list[str]:
    base = ["--base", str(place / "base")] if model == "embedded" else []
    # The tiny x4 upscaler knows ten levels of noise.
    levels = ["--max_noise_level", "9", "--default_noise_level", "5"] if model == "x4" else []
    return ["--data", str(place / "shards"), "--model", str(place / model), *base, *levels, *more]


def training(place: Path, model: str, *more: str) -> SuperResolutionClipsTraining:
    told = words(place, model, "--out", str(place / "run"), "--caption_dropout", "0", *more)
    return SuperResolutionClipsTraining(load_settings(SuperResolutionClipsSettings, find_recipe(RECIPE), told))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("model", FAMILIES)
def test_one_step_moves_temporal_weights_alone_and_they_come_out_again(
    model: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    made = train(RECIPE, words(place, model, "--out", str(run), "--loop.bf16_weights", "true"))
    before, after = weights_of(place / model), weights_of(made)
    assert all(torch.equal(after[name], weight.to(torch.bfloat16)) for name, weight in before.items()) != (
        model == "embedded"
    )
    assert all(
        torch.equal(after[name], weight.to(torch.bfloat16))
        for name, weight in before.items()
        if not name.startswith("temporal.")
    )
    learned = read_tensors(checkpoints(run)[-1], "ema")
    assert learned and all(name.startswith("temporal.") for name in learned)
    assert any(bool(weight.any()) for name, weight in learned.items() if "project" in name)
    assert all(torch.equal(after[name], weight.to(torch.bfloat16)) for name, weight in learned.items())
    numbers = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any({"held_out/psnr_over_bicubic_db", "held_out/loss_noise_00_50"} <= line.keys() for line in numbers)
    assert list((run / "samples").glob("*/upscaled.png"))
    # Exported again, whole and its motion alone, it is the same.
    assert main(["export", str(run), str(tmp_path / "again")]) == 0
    assert main(["export", str(run), str(tmp_path / "motion.safetensors"), "--what", "motion"]) == 0
    again = weights_of(tmp_path / "again")
    assert again.keys() == after.keys() and all(torch.equal(again[name], after[name]) for name in after)
    # (Motion in full precision: what is trained in bfloat16 is kept in it.)
    motion = SuperResolutionStage.from_folder(place / model).unet
    motion.load_motion(tmp_path / "motion.safetensors")
    assert all(torch.equal(motion.state_dict()[name].to(torch.bfloat16), after[name]) for name in learned)


@pytest.mark.parametrize("model", ["x4", "if2"])
def test_what_was_trained_makes_videos_larger(
    model: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = train(RECIPE, words(place, model, "--out", str(tmp_path / "run")))
    video = write_video(tmp_path / "small.mp4", numbered_frames(8, height=16, width=16))
    large = tmp_path / "large.mp4"
    assert main(["upscale", str(video), "--model", str(made), "--out", str(large), "--steps", "1"]) == 0
    assert (probe(large).width, probe(large).height, probe(large).num_frames) == (64, 64, 8)


def test_a_stage_that_was_trained_is_a_pipeline_s_super_resolution(place: Path, tmp_path: Path) -> None:
    made = train(RECIPE, words(place, "embedded", "--out", str(tmp_path / "run"), "--loop.learning_rate", "0.1"))
    stages = [SuperResolutionStage.from_folder(folder) for folder in (made, place / "embedded")]
    assert (stages[0].config.window_frames, stages[0].config.window_frames_overlap) == (4, 2)
    clips = []
    for stage in stages:
        pipeline = tiny_pipeline()
        pipeline.register_modules(super_resolution=SuperResolution.of(stage.to(torch.float32)))
        pipeline.save_pretrained(tmp_path / "whole")
        again = LumierePipeline.from_pretrained(tmp_path / "whole")
        again.set_progress_bar_config(disable=True)
        call: dict[str, Any] = {"num_inference_steps": 1, "output_type": "pt"}
        clips += [
            one("a red ball", generator=torch.Generator().manual_seed(0), **call).frames for one in (pipeline, again)
        ]
    assert clips[0].shape == (1, 8, 3, 64, 64)
    assert torch.allclose(clips[0], clips[1], atol=1e-4) and not torch.allclose(clips[0], clips[2], atol=1e-3)


def test_windows_and_their_small_versions_are_parts_of_the_clips(place: Path) -> None:
    stage = training(place, "x4")
    clips = stage.data.batch(0, 2).clips
    parts = stage.part(clips, torch.Generator().manual_seed(0))
    assert parts.shape == (2, 3, 4, 16, 16)
    places = [(t, y, x) for t in range(5) for y in range(0, 17, 4) for x in range(0, 17, 4)]
    for clip, part in zip(clips, parts, strict=True):
        found = [(t, y, x) for t, y, x in places if torch.equal(clip[:, t : t + 4, y : y + 16, x : x + 16], part)]
        assert found
    # The loss follows from the position alone.
    assert torch.equal(stage.losses(3, 2), training(place, "x4").losses(3, 2))


@pytest.mark.parametrize("model", FAMILIES)
def test_what_is_trained_is_asked_as_it_is_in_sampling(
    model: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network sees the same small clip, level and words in training as when the stage makes a clip larger."""
    stage = training(place, model, "--max_noise_level", "0", "--default_noise_level", "0")
    seen: list[dict[str, Any]] = []
    forward = stage.unet.forward

    def watched(sample: torch.Tensor, timestep: Any, states: torch.Tensor, **told: Any) -> Any:
        seen.append({"clip": sample[:, stage.codec.channels :], "states": states, "level": told["class_labels"]})
        return forward(sample, timestep, states, **told)

    monkeypatch.setattr(stage.unet, "forward", watched)
    batch = stage.data.batch(0, 2).on(stage.device)
    with torch.no_grad():
        stage.losses(0, 2)
        generator = torch.Generator().manual_seed(2_000_000_011)
        small = stage._small(stage.part(batch.clips, generator))
        said = TextStates(stage.read(batch.captions).states)
        options = {"num_inference_steps": 1, "guidance_scale": 1.0}
        stage.stage(small, states=(said, said), generator=[torch.Generator()] * 2, **options)
    trained, sampled = seen[0], seen[-1]
    assert torch.equal(trained["level"], sampled["level"])
    assert torch.equal(trained["states"], sampled["states"])
    # Level 0 still holds a little noise, which sampling draws otherwise.
    assert trained["clip"].shape == sampled["clip"].shape
    assert float((trained["clip"] - sampled["clip"]).abs().mean()) < 0.1


def test_a_cache_gives_the_same_losses_and_the_text_encoder_comes_back(place: Path, tmp_path: Path) -> None:
    """The base's cache serves the upscaler: DeepFloyd IF's stages have one text encoder."""
    inflate_model(deepfloyd(tmp_path / "if1"), tmp_path / "if-video", num_frames=8)
    told = ["--model", str(tmp_path / "if-video"), "--latents", "false", "--out", str(tmp_path / "kept")]
    assert main(["data", "cache", str(place / "shards"), *told]) == 0
    kept = training(place, "if2", "--cache", str(tmp_path / "kept"))
    asked = training(place, "if2")
    assert kept.stage.text_encoder is None
    assert torch.allclose(kept.losses(0, 2), asked.losses(0, 2), rtol=1e-4)
    kept.export(tmp_path / "out")
    assert SuperResolutionStage.from_folder(tmp_path / "out").text is not None


def test_temporal_layers_can_be_chosen_when_an_upscaler_is_inflated(place: Path, tmp_path: Path) -> None:
    settings = TemporalSettings(halve_time=(True, False), hears_time_and_text=True)
    inflate_model(place / "x4", tmp_path / "x4", temporal=settings)
    assert SuperResolutionStage.from_folder(tmp_path / "x4").unet.temporal_factor == 2
    with pytest.raises(ValueError, match="num_frames is 5; this network needs a multiple of 2"):
        train(RECIPE, words(tmp_path, "x4", "--data", str(place / "shards"), "--num_frames", "5"))
    with pytest.raises(ValueError, match="temporal layers already"):
        SuperResolutionStage.from_folder(tmp_path / "x4", temporal=settings)


@pytest.mark.parametrize(
    ("model", "more", "reason"),
    [
        ("x4", ["--scale", "8"], "its scale is 4"),
        ("x4", ["--crop", "18"], "must be multiples of 16"),
        ("x4", ["--crop", "48"], "do not fit into them"),
        ("x4", ["--num_frames", "16"], "do not fit into them"),
        ("x4", ["--base", "base"], "base has no effect"),
        ("x4", ["--max_noise_level", "10"], "knows 10 levels"),
        ("embedded", ["--base", "null"], "the network hears states of 12, and the text encoder's have"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    place: Path, tmp_path: Path, model: str, more: list[str], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        train(RECIPE, [*words(place, model, "--out", str(tmp_path)), *more])
