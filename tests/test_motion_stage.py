"""The motion of any base is trained from shards or a folder: temporal weights move, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lumiere.backbones import inflate_model
from lumiere.cli import main
from lumiere.config import find_recipe, load_settings
from lumiere.data.pack import PackSettings, pack
from lumiere.data.scan import Bucket
from lumiere.pipeline import LumierePipeline
from lumiere.training.run import train
from lumiere.training.stages.motion import MotionSettings, MotionTraining
from tests.media_samples import numbered_frames, write_video
from tests.tiny_pipeline import tiny_pipeline
from tests.tiny_text_to_image import stable_diffusion


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, shards of them, a tiny base on pixels, and a tiny Stable Diffusion that was inflated."""
    place = tmp_path_factory.mktemp("motion")
    for name in ("videos", "packed"):
        (place / name).mkdir()
        for index in range(4):
            path = write_video(place / name / f"{index}.mkv", numbered_frames(16, height=32, width=32))
            path.with_suffix(".txt").write_text("a red ball")
            if name == "packed":
                path.with_suffix(".txt").unlink()
                path.with_suffix(".json").write_text(json.dumps({"captions": [f"a red ball {index}", "a star"]}))
    sizes = (Bucket(height=16, width=16, frames=8),)
    packing = PackSettings(buckets=sizes, min_side=8, workers=1, videos_per_shard=2)
    pack(place / "packed", place / "shards", packing, progress=False)
    tiny_pipeline().save_pretrained(place / "pixels")
    stable_diffusion(place / "image")
    inflate_model(place / "image", place / "latents", num_frames=8)
    for name in ("pixels", "latents"):
        index = json.loads((place / name / "model_index.json").read_text())
        (place / name / "model_index.json").write_text(json.dumps({**index, "default_steps": 1}))
    return place


def words(place: Path, model: str, out: Path, *more: str) -> list[str]:
    return ["--data", str(place / "shards"), "--model", str(place / model), "--out", str(out), *more]


def stage(place: Path, model: str, *more: str) -> MotionTraining:
    settings = load_settings(MotionSettings, find_recipe("clips_smoke"), words(place, model, place / "run", *more))
    return MotionTraining(settings)


def changed(model: Path, export: Path) -> set[str]:
    before, after = (LumierePipeline.from_pretrained(one) for one in (model, export))
    found = set()
    for part in ("unet", "text_encoder", "vae"):
        if getattr(before, part) is None:
            continue
        own, theirs = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        found |= {
            f"{part}.{name}"
            for name, weight in theirs.items()
            if name not in own or not torch.equal(own[name].to(torch.bfloat16).float(), weight.float())
        }
    return found


@pytest.mark.parametrize("model", ["pixels", "latents"])
def test_one_step_from_shards_moves_temporal_weights_alone(model: str, place: Path, tmp_path: Path) -> None:
    export = train("clips_smoke", words(place, model, tmp_path))
    moved = changed(place / model, export)
    assert moved and all(name.startswith("unet.temporal.") for name in moved)
    pipeline = LumierePipeline.from_pretrained(export)
    assert pipeline.config.num_frames == 8 and pipeline.default_size == (16, 16)
    assert list((tmp_path / "samples").glob("*/clips.png"))


def test_an_inflated_base_can_be_widened_and_told(place: Path, tmp_path: Path) -> None:
    more = ["--tell_given", "true", "--checkpointing", "true", "--chunk_image_layers", "4"]
    export = train("clips_smoke", words(place, "latents", tmp_path, *more))
    moved = changed(place / "latents", export)
    assert "unet.temporal.given.weight" in moved and all(name.startswith("unet.temporal.") for name in moved)
    assert "held_out/loss_given" in (tmp_path / "metrics.jsonl").read_text()


def test_less_memory_gives_the_same_gradients(place: Path) -> None:
    found = []
    for more in ((), ("--checkpointing", "true", "--chunk_image_layers", "3")):
        one = stage(place, "latents", *more)
        one.losses(0, 2).mean().backward()
        found.append({name: weight.grad for name, weight in one.named_parameters() if weight.grad is not None})
    plain, thrifty = found
    assert plain.keys() == thrifty.keys() and plain
    assert all(torch.allclose(plain[name], thrifty[name], atol=1e-5) for name in plain)


def test_a_folder_of_videos_serves_too(place: Path, tmp_path: Path) -> None:
    more = ["--data", str(place / "videos"), "--clips.size", "16", "--clips.num_frames", "8"]
    no_shards = load_settings(MotionSettings, find_recipe("clips_smoke"), words(place, "pixels", tmp_path, *more))
    settings = no_shards.model_copy(update={"shards": type(no_shards.shards)()})
    one = MotionTraining(settings)
    assert one.losses(0, 2).shape == (2,)
    with pytest.raises(ValueError, match="shards has no effect"):
        MotionTraining(no_shards)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--clips.size", "16"], "clips has no effect"),
        (["--given.nothing", "1"], "given has no effect.*tell_given"),
        (["--cache", "nowhere"], "nowhere is no cache"),
    ],
)
def test_what_makes_no_sense_is_refused(place: Path, tmp_path: Path, more: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        train("clips_smoke", words(place, "latents", tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_shards_of_sizes_that_the_model_does_not_take_are_refused_with_the_nearest(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "shards", tmp_path / "shards")
    for path in (tmp_path / "shards").glob("shard-*.json"):
        index = json.loads(path.read_text())
        for clip in index["clips"]:
            clip |= {"width": 18, "frames": 7}
        path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"clips of 18x16x7.*multiples of 8 pixels and 4 frames.*width: 16, frames: 8"):
        stage(place, "latents", "--data", str(tmp_path / "shards"))
    (tmp_path / "shards" / "a.mp4").touch()
    with pytest.raises(ValueError, match="shards and videos"):
        stage(place, "latents", "--data", str(tmp_path / "shards"))


def test_words_that_the_frozen_encoder_never_saw_are_said(place: Path) -> None:
    with pytest.warns(UserWarning, match="4 words .* never seen by the text encoder.*: 0, "):
        stage(place, "pixels")


def test_finetune_trains_the_motion_of_an_inflated_model(place: Path, tmp_path: Path) -> None:
    more = ["--data", str(place / "videos"), "--model", str(place / "latents"), "--out", str(tmp_path)]
    export = train("finetune_clips_smoke", [*more, "--image", "null", "--clips.held_out_every", "2"])
    moved = changed(place / "latents", export)
    assert moved and all(name.startswith("unet.temporal.") for name in moved)


@pytest.mark.parametrize("model", ["pixels", "latents"])
def test_a_cache_gives_the_same_losses_and_gradients(model: str, place: Path, tmp_path: Path) -> None:
    command = ["data", "cache", str(place / "shards"), "--model", str(place / model), "--out", str(tmp_path / "kept")]
    assert main([*command, "--device", "cpu", "--part", "2/2"]) == 0
    with pytest.raises(ValueError, match="holds nothing of shard-000000"):
        stage(place, model, "--cache", str(tmp_path / "kept"))
    assert main([*command, "--device", "cpu"]) == 0
    dropout = ["--caption_dropout", "0.5"]
    plain, cached = stage(place, model, *dropout), stage(place, model, *dropout, "--cache", str(tmp_path / "kept"))
    assert cached.pipeline.text_encoder is None and plain.pipeline.text_encoder is not None
    assert cached.has_latents == (model == "latents")
    for step in range(4):
        assert plain.data.batch(step, 2).captions == cached.data.batch(step, 2).captions
        assert torch.allclose(plain.losses(step, 2), cached.losses(step, 2), rtol=1e-5, atol=1e-6)
    for one in (plain, cached):
        one.losses(0, 2).mean().backward()
    for (name, weight), (_, other) in zip(plain.named_parameters(), cached.named_parameters(), strict=True):
        if weight.grad is not None:
            assert torch.allclose(weight.grad, other.grad, rtol=1e-3, atol=1e-6), name
    ours, theirs = plain.validate(), cached.validate()
    assert ours == pytest.approx(theirs, rel=1e-5)
    cached.export(tmp_path / "export")
    assert LumierePipeline.from_pretrained(tmp_path / "export").text_encoder is not None
    assert cached.pipeline.text_encoder is None


def test_a_cache_is_whole_goes_on_and_is_never_another_model_s(place: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    command = ["data", "cache", str(place / "shards"), "--device", "cpu", "--out", str(kept)]
    own = ["--model", str(place / "latents")]
    assert main([*command, *own]) == 0
    first, second = sorted(kept.glob("*.safetensors"))
    tensors = load_file(first)
    assert sum(name.startswith("latents/") for name in tensors) == 4
    assert sum(name.endswith("/states") for name in tensors) == 4, "three captions and the empty one"
    stamp = first.stat().st_mtime_ns
    second.unlink()
    (kept / ".writing-shard-000001.safetensors").write_bytes(b"half")
    assert main([*command, *own]) == 0
    assert first.stat().st_mtime_ns == stamp and not list(kept.glob(".writing*"))
    assert main([*command, "--model", str(place / "pixels")]) == 2
    with pytest.raises(ValueError, match="another text encoder"):
        stage(place, "pixels", "--cache", str(tmp_path / "text"), *_text_cache(place, tmp_path / "text"))
    with pytest.raises(ValueError, match=r"holds latents.*is told given parts.*--latents false"):
        stage(place, "latents", "--cache", str(kept), "--tell_given", "true")
    told = stage(place, "latents", "--cache", str(tmp_path / "text"), "--tell_given", "true")
    assert told.losses(0, 2).shape == (2,) and not told.has_latents
    index = json.loads((place / "shards" / "shard-000000.json").read_text())
    shutil.copytree(place / "shards", tmp_path / "shards")
    (tmp_path / "shards" / "shard-000000.json").write_text(json.dumps({**index, "sha256": "0"}))
    with pytest.raises(ValueError, match="another tar of that name"):
        stage(place, "latents", "--cache", str(kept), "--data", str(tmp_path / "shards"))
    second.write_bytes(second.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        stage(place, "latents", "--cache", str(kept))


def _text_cache(place: Path, out: Path) -> list[str]:
    """Write a cache of text alone of the inflated model."""
    command = ["data", "cache", str(place / "shards"), "--model", str(place / "latents"), "--out", str(out)]
    assert main([*command, "--device", "cpu", "--latents", "false"]) == 0
    return []
