"""What a run has learned goes out as a pipeline, motion or style, and comes back equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lumiere.applications.stylization import apply_style
from lumiere.cli import main
from lumiere.data.pack import PackSettings, pack
from lumiere.data.scan import Bucket
from lumiere.pipeline import LumierePipeline
from lumiere.training.checkpoint import checkpoints, read_tensors
from lumiere.training.export import export
from lumiere.training.run import train
from tests.media_samples import numbered_frames, write_video
from tests.test_style import pictures
from tests.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and runs of its motion and of a style."""
    place = tmp_path_factory.mktemp("export")
    (place / "videos").mkdir()
    for index in range(3):
        path = write_video(place / "videos" / f"{index}.mkv", numbered_frames(16, height=16, width=16))
        path.with_suffix(".txt").write_text("a red ball")
    sizes = (Bucket(height=16, width=16, frames=8),)
    pack(place / "videos", place / "shards", PackSettings(buckets=sizes, min_side=8, workers=1), progress=False)
    tiny_pipeline(default_steps=1).save_pretrained(place / "model")
    model = ["--model", str(place / "model")]
    train("clips_smoke", ["--data", str(place / "shards"), *model, "--out", str(place / "run")])
    told = ["--data", str(pictures(place / "pictures", 3)), *model, "--out", str(place / "style")]
    train("style_smoke", [*told, "--loop.num_steps", "1"])
    return place


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.relative_to(folder)}:{name}": weight
        for file in sorted(folder.rglob("*.safetensors"))
        for name, weight in load_file(file).items()
    }


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and one
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def test_the_averaged_pipeline_is_the_run_s_own_and_the_raw_one_its_last_step_s(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(place / "run"), str(tmp_path / "ema")]) == 0
    assert f"wrote {tmp_path / 'ema'}" in capsys.readouterr().out
    assert_equal(weights_of(tmp_path / "ema"), weights_of(place / "run" / "export"))
    assert main(["export", str(place / "run"), str(tmp_path / "raw"), "--weights", "raw"]) == 0
    raw = LumierePipeline.from_pretrained(tmp_path / "raw").unet.state_dict()
    kept = read_tensors(checkpoints(place / "run")[-1], "weights")
    assert all(torch.equal(raw[name].float(), weight.to(torch.bfloat16).float()) for name, weight in kept.items())
    averaged = read_tensors(checkpoints(place / "run")[-1], "ema")
    assert any(not torch.equal(averaged[name], weight) for name, weight in kept.items())
    assert not list(tmp_path.glob(".writing*"))


def test_motion_alone_fits_the_model_that_it_was_trained_on(place: Path, tmp_path: Path) -> None:
    for weights in ("ema", "raw"):
        file = export(place / "run", tmp_path / f"{weights}.safetensors", what="motion", weights=weights)
        unet = LumierePipeline.from_pretrained(place / "model").unet
        unet.load_motion(file)
        state = unet.state_dict()
        kept = read_tensors(checkpoints(place / "run")[-1], "ema" if weights == "ema" else "weights")
        assert kept and all(torch.equal(state[name], weight) for name, weight in kept.items())
    # Of a pipeline, and of its network alone.
    for source in (place / "model", place / "model" / "unet"):
        file = export(source, tmp_path / f"{source.name}.safetensors", what="motion")
        own = LumierePipeline.from_pretrained(place / "model").unet.temporal.state_dict()
        assert_equal(load_file(file), own)


def test_a_style_goes_out_alone_or_in_its_model(place: Path, tmp_path: Path) -> None:
    file = export(place / "style", tmp_path / "style.safetensors", what="lora")
    assert_equal(load_file(file), load_file(place / "style" / "export" / "style.safetensors"))
    merged = LumierePipeline.from_pretrained(export(place / "style", tmp_path / "merged"))
    styled = LumierePipeline.from_pretrained(place / "model")
    apply_style(styled, file, 1.0)
    assert_equal(dict(merged.unet.state_dict()), dict(styled.unet.state_dict()))


@pytest.mark.parametrize(
    ("source", "out", "words", "reason"),
    [
        ("run", "out/x", ["--what", "motion"], "one file, whose name ends in .safetensors"),
        ("run", "out/x.safetensors", [], "--what pipeline writes a folder"),
        ("run", "out/x.safetensors", ["--what", "lora"], "run of clips, which learns no style"),
        ("style", "out/x.safetensors", ["--what", "motion"], "changes no temporal weights"),
        ("model", "out/x", [], "a pipeline already (copy the folder)"),
        ("model/unet", "out/x", [], "a network, no pipeline"),
        ("model", "out/x.safetensors", ["--what", "lora"], "holds no style"),
        ("model", "out/x.safetensors", ["--what", "motion", "--weights", "raw"], "weights has no effect"),
        ("videos", "out/x", [], "neither a run (recipe.yaml) nor a model"),
        ("run", "model", [], "exists already"),
    ],
)
def test_what_makes_no_sense_is_refused(
    place: Path, source: str, out: str, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(place / source), str(place / out), *words]) == 2
    assert reason in capsys.readouterr().err
    assert not (place / "out").exists()


def test_runs_without_a_checkpoint_or_of_another_recipe_are_refused(place: Path, tmp_path: Path) -> None:
    recipe = (place / "run" / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(ValueError, match="no checkpoint yet"):
        export(tmp_path, tmp_path / "out")
    newest = checkpoints(place / "run")[-1]
    (tmp_path / newest.name).symlink_to(newest)
    (tmp_path / "recipe.yaml").write_text(recipe.replace("tell_given: false", "tell_given: true"))
    with pytest.raises(ValueError, match=r"other weights.*temporal\.given"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "recipe.yaml").write_text("stage: text_to_image\n")
    with pytest.raises(ValueError, match="trains no pipeline of a base"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "recipe.yaml").write_text(json.dumps({"stage": "finetune_clips"}))
    with pytest.raises(ValueError, match="motion holds no checkpoint"):
        export(tmp_path, tmp_path / "out")
