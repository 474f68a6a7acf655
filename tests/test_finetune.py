"""Fine-tuning on a folder: words are learned, each part changes its own weights only, and runs go on exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lumiere.conditioning.text import T5Text, small_t5, unknown_words, word_tokenizer
from lumiere.conditioning.words import add_words
from lumiere.pipeline import LumierePipeline
from lumiere.super_resolution import SuperResolution
from lumiere.training.run import train
from tests.media_samples import numbered_frames, write_video
from tests.test_super_resolution import stage


@pytest.fixture(scope="module")
def model(base_network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, made by the smoke recipes, with a super-resolution."""
    pipeline = LumierePipeline.from_pretrained(base_network)
    pipeline.register_modules(super_resolution=SuperResolution.of(stage()))
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for index in range(3):
        path = write_video(folder / f"clip{index}.mp4", numbered_frames(12 + index))
        path.with_suffix(".txt").write_text(f"A purple hedgehog, number {index}")
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def finished(model: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("finetune")
    train("finetune_clips_smoke", ["--data", str(videos), "--model", str(model), "--out", str(out)])
    return out


def weights_of(folder: Path, part: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / part).glob("*.safetensors")
    return {name: weight.float() for name, weight in load_file(file).items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name].to(torch.bfloat16).float())}


def test_image_part_changes_image_weights_only_and_motion_part_temporal_ones_only(model: Path, finished: Path) -> None:
    before = weights_of(model, "unet")
    between = weights_of(finished / "image" / "export", "unet")
    after = weights_of(finished / "motion" / "export", "unet")
    temporal = {name for name in before if name.startswith("temporal.")}
    learned = changed(before, between)
    assert learned and not learned & temporal
    between = {name: weight.to(torch.bfloat16).float() for name, weight in between.items()}
    moved = changed(between, after)
    assert moved and moved <= temporal


def test_new_words_are_known_afterwards(model: Path, finished: Path) -> None:
    caption = "A purple hedgehog, number 2"
    old = LumierePipeline.from_pretrained(model)
    new = LumierePipeline.from_pretrained(finished / "motion" / "export")
    assert "hedgehog" in unknown_words(old.tokenizer, [caption])
    assert unknown_words(new.tokenizer, [caption]) == []
    for word in ("red", "circle", "bouncing"):
        assert new.tokenizer.get_vocab().get(word) == old.tokenizer.get_vocab().get(word)


def test_run_says_what_it_used_and_what_it_gained(finished: Path) -> None:
    losses = json.loads((finished / "held_out.json").read_text())
    assert list(losses) == ["start", "after image", "after motion"]
    assert all(0 < numbers["loss"] < 10 for numbers in losses.values())
    report = (finished / "data.txt").read_text()
    assert "broken.mp4" in report and "held out" in report
    assert (finished / "recipe.yaml").read_text().startswith("stage: finetune_clips")
    assert list((finished / "motion" / "samples").glob("*/clips.png"))


def test_finished_pipeline_makes_clips_of_the_trained_length(finished: Path) -> None:
    pipeline = LumierePipeline.from_pretrained(finished / "motion" / "export")
    pipeline.set_progress_bar_config(disable=True)
    clip = pipeline("a purple hedgehog", generator=torch.Generator().manual_seed(0), output_type="np").frames
    assert clip.shape == (1, 8, 16, 16, 3), "super-resolution hears a text encoder that is no more, so it is left out"


def test_running_again_goes_on_where_it_stopped(model: Path, videos: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for part in ("image", "motion"):
        newest = sorted((out / part).glob("step-*"))[-1]
        (newest / "state.json").unlink()
        shutil.rmtree(out / part / "export")
    train("finetune_clips_smoke", ["--data", str(videos), "--model", str(model), "--out", str(out)])
    whole, again = (weights_of(one / "motion" / "export", "unet") for one in (finished, out))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_image_part_can_be_left_out(model: Path, videos: Path, tmp_path: Path) -> None:
    words = ["--data", str(videos), "--model", str(model), "--out", str(tmp_path), "--image", "null"]
    export = train("finetune_clips_smoke", words)
    moved = changed(weights_of(model, "unet"), weights_of(export, "unet"))
    assert moved and all(name.startswith("temporal.") for name in moved)
    assert not (tmp_path / "image").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clips.num_frames", "7"], "the nearest are 6 and 8"),
        (["--clips.size", "18"], "clips.size is 18"),
        (["--clips.num_frames", "100"], "0 usable videos"),
        (["--model", "nowhere"], "nowhere"),
        (["--data", "nowhere"], "is no folder"),
        (["--clips.num_frame", "8"], "num_frames"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(
    model: Path, videos: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    common = ["--data", str(videos), "--model", str(model), "--out", str(tmp_path / "run")]
    with pytest.raises(ValueError, match=message):
        train("finetune_clips_smoke", common + words)
    assert not (tmp_path / "run").exists()


def test_folder_must_be_given(model: Path) -> None:
    with pytest.raises(ValueError, match="'data' is missing"):
        train("finetune_clips_smoke", ["--model", str(model)])


def test_added_words_change_nothing_for_known_prompts() -> None:
    torch.manual_seed(0)
    tokenizer = word_tokenizer(["a", "red", "ball"], max_length=5)
    text_encoder = small_t5(len(tokenizer), width=16, num_layers=1)
    before = T5Text(tokenizer, text_encoder).encode(["a red ball", "ball"])
    prompts = ["A red hedgehog eats, slowly; a long meal of many apples and pears", "ball"]
    grown, words = add_words(tokenizer, text_encoder, prompts, generator=torch.Generator().manual_seed(0))
    assert words == ["hedgehog", "eats", "slowly", "long", "meal", "of", "many", "apples", "and", "pears"]
    after = T5Text(grown, text_encoder).encode(["a red ball", "ball"])
    length = before.states.shape[1]
    assert before.mask is not None and after.mask is not None
    assert torch.equal(before.mask, after.mask[:, :length]) and not after.mask[:, length:].any()
    kept = before.mask.unsqueeze(-1)
    assert torch.allclose(before.states * kept, after.states[:, :length] * kept, atol=1e-5)


def test_long_captions_are_read_to_their_end() -> None:
    tokenizer = word_tokenizer(["a"], max_length=4)
    text_encoder = small_t5(len(tokenizer), width=16, num_layers=1)
    grown, _ = add_words(tokenizer, text_encoder, ["one two three four five six"], generator=torch.Generator())
    states = T5Text(grown, text_encoder).encode(["one two three four five six"])
    assert states.mask is not None and int(states.mask.sum()) == 7
    known = set(grown("six five").input_ids)
    assert grown.unk_token_id not in known


def test_adding_no_words_keeps_the_embeddings() -> None:
    tokenizer = word_tokenizer(["a", "red"], max_length=8)
    text_encoder = small_t5(len(tokenizer), width=16, num_layers=1)
    before = text_encoder.shared.weight.detach().clone()
    _, words = add_words(tokenizer, text_encoder, ["a red"], generator=torch.Generator())
    assert words == []
    assert torch.equal(text_encoder.shared.weight, before)
