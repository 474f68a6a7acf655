"""Training of a super-resolution stage: image network, then temporal layers, each leaving the other as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lumiere import SuperResolutionStage
from lumiere.config import find_recipe, load_settings
from lumiere.training.run import train
from lumiere.training.stages.super_resolution import SuperResolutionSettings, SuperResolutionTraining

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def image_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("super_resolution_image_smoke", ["--out", str(tmp_path_factory.mktemp("runs") / "image")])


def test_each_run_trains_its_own_part(image_stage: Path, tmp_path: Path) -> None:
    stage = train("super_resolution_smoke", ["--start_from", str(image_stage), "--out", str(tmp_path / "clips")])
    before, after = load_file(image_stage / WEIGHTS), load_file(stage / WEIGHTS)
    assert before.keys() == after.keys()
    for name in before:
        as_saved = before[name].bfloat16()
        assert torch.equal(as_saved, after[name]) or name.startswith("temporal."), name
    assert any(not torch.equal(before[name].bfloat16(), after[name]) for name in before)
    numbers = [json.loads(line) for line in (tmp_path / "clips" / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out/psnr_over_bicubic_db" in line for line in numbers)
    assert list((tmp_path / "clips" / "samples").glob("*/upscaled.png"))
    made = SuperResolutionStage.from_folder(stage)
    assert (made.config.window_frames, made.config.scale) == (4, 4)


def test_a_resumed_run_is_the_unbroken_one(image_stage: Path, tmp_path: Path) -> None:
    given = ["--start_from", str(image_stage), "--loop.save_every", "2", "--loop.decay_steps", "0"]
    whole = train("super_resolution_smoke", [*given, "--out", str(tmp_path / "whole")])
    part = [*given, "--out", str(tmp_path / "part")]
    train("super_resolution_smoke", [*part, "--loop.num_steps", "2"])
    resumed = train("super_resolution_smoke", part)
    for name, weight in load_file(whole / WEIGHTS).items():
        assert torch.equal(weight, load_file(resumed / WEIGHTS)[name]), name


def test_a_new_network_begins_with_the_enlargement_as_it_is() -> None:
    settings = load_settings(SuperResolutionSettings, find_recipe("super_resolution_image_smoke"))
    other = settings.model_copy(update={"predicts_change": False})
    with torch.no_grad():
        assert abs(SuperResolutionTraining(settings).validate()["psnr_over_bicubic_db"]) < 0.3
        assert SuperResolutionTraining(other).validate()["psnr_over_bicubic_db"] < -3


def test_the_small_clip_is_left_out_as_often_as_asked() -> None:
    settings = load_settings(SuperResolutionSettings, find_recipe("super_resolution_image_smoke"))
    training = SuperResolutionTraining(settings.model_copy(update={"no_clip_share": 0.5}))
    heard: list[int] = []
    training._denoising = lambda network, clean, beside, levels, *_: heard.extend(levels.tolist())  # type: ignore[assignment,return-value]
    for step in range(8):
        training.losses(step, 8)
    assert 16 <= heard.count(999) <= 48 and max(level for level in heard if level < 999) <= settings.max_noise_level


def test_crops_and_their_small_versions_belong_together(image_stage: Path) -> None:
    """A crop made small is that part of the whole picture made small, so training sees what sampling will."""
    settings = load_settings(SuperResolutionSettings, find_recipe("super_resolution_image_smoke"))
    training = SuperResolutionTraining(settings)
    clips = training.data.batch(0, 3).clips
    crops = training.part(clips, torch.Generator().manual_seed(0))
    assert crops.shape == (3, 3, 1, 16, 16)
    small, whole = training._small(crops), training._small(clips)
    for index in range(3):
        places = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.allclose(small[index], whole[index, ..., y : y + 4, x : x + 4], atol=1e-6)
        ]
        assert places, index


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop", "18"], "multiple of 4"),
        (["--crop", "64"], "no larger than data.size"),
        (["--data.num_frames", "8"], "set start_from"),
    ],
)
def test_what_cannot_be_trained_is_refused(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train("super_resolution_image_smoke", [*options, "--out", str(tmp_path)])
