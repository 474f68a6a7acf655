"""Scores: the committed prompts, counting, the cost of a wrong word, and whole evaluations on tiny networks."""

from __future__ import annotations

import json
import random
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lumiere.data.captions import vocabulary, words
from lumiere.data.storybook import Actor, Scene, draw_scene, frame_times, is_held_out, place_actor, render
from lumiere.evaluation.prompts import NUM_ONE_OBJECT, Prompt, draw_prompts, load_prompts, prompts_as_json
from lumiere.evaluation.protocols import evaluate_stills, evaluate_storybook, evaluate_wrong_words, stored_frames
from lumiere.evaluation.storybook import ActorReading, Reading
from lumiere.evaluation.super_resolution_protocol import evaluate_super_resolution
from lumiere.evaluation.tally import ATTRIBUTES, Answer, Tally, answers, wilson_interval
from lumiere.evaluation.wrong_words import CHOICES, summarise, with_wrong_word, wrong_word_losses
from lumiere.pipeline import LumierePipeline
from lumiere.super_resolution import SuperResolution
from lumiere.video import resize_clip, to_uint8
from tests.test_super_resolution import stage
from tests.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def pipeline() -> LumierePipeline:
    """Clips of 8 frames of 32x32 pixels, of nothing."""
    return tiny_pipeline(height=32, width=32, default_steps=1, default_guidance_scale=1.0)


@pytest.fixture(autouse=True)
def _words_that_the_tiny_tokenizer_lacks() -> None:
    warnings.filterwarnings("ignore", message="the model")


# The committed prompts.


def test_prompts_are_of_the_held_out_tenth() -> None:
    for prompt in load_prompts():
        for actor in prompt.actors:
            assert is_held_out(Actor(actor.object, actor.colour, actor.motion, actor.speed), prompt.background)


def test_there_are_128_prompts_of_one_object_and_32_of_two() -> None:
    counts = [len(prompt.actors) for prompt in load_prompts()]
    assert counts == [1] * 128 + [2] * 32
    assert len({prompt.text for prompt in load_prompts()}) == 160


def test_prompts_are_balanced() -> None:
    one = load_prompts()[:NUM_ONE_OBJECT]
    counts = {name: Counter(getattr(prompt.actors[0], name) for prompt in one) for name in ("object", "colour")}
    counts["background"] = Counter(prompt.background for prompt in one)
    counts["motion"] = Counter(prompt.actors[0].motion for prompt in one)
    counts["speed"] = Counter(prompt.actors[0].speed for prompt in one)
    for name, found in counts.items():
        assert len(found) == len(CHOICES[name])
        assert max(found.values()) - min(found.values()) <= 1, (name, found)


def test_prompts_are_worded_with_known_words_in_many_ways() -> None:
    prompts = load_prompts()
    used = {word for prompt in prompts for word in words(prompt.text)}
    assert used <= set(vocabulary())
    assert len(used) > 0.95 * len(vocabulary())


@pytest.mark.slow
def test_the_list_can_be_drawn_again() -> None:
    assert prompts_as_json(draw_prompts()) == prompts_as_json(load_prompts())


# Counting.


def test_wilson_interval_has_the_textbook_values() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert wilson_interval(85, 100) == pytest.approx((0.7672, 0.9069), abs=1e-3)
    with pytest.raises(ValueError, match="one trial"):
        wilson_interval(0, 0)


def test_wilson_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(2000):
        right = sum(rng.random() < 0.9 for _ in range(128))
        low, high = wilson_interval(right, 128)
        covered += low <= 0.9 <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_actors_are_matched_in_the_better_order() -> None:
    asked = (Actor("ball", "red", "spin", "slow"), Actor("box", "blue", "rise", "fast"))
    seen = (ActorReading("box", "blue", "rise", "fast"), ActorReading("ball", "red", "unreadable", "unreadable"))
    found = answers("sea", asked, Reading("sea", seen))
    assert [one for one in found if not one.is_right] == [
        Answer("motion", "spin", "unreadable"),
        Answer("speed", "slow", "unreadable"),
    ]


def test_a_tally_counts_right_unreadable_and_mistakes() -> None:
    tally = Tally()
    tally.add([Answer("object", "ball", "ball"), Answer("colour", "red", "unreadable")])
    tally.add([Answer("object", "ball", "box"), Answer("colour", "red", "red")])
    assert (tally.share("object"), tally.share("colour")) == (0.5, 0.5)
    assert (tally.unreadable["object"], tally.unreadable["colour"]) == (0, 1)
    assert tally.as_dict()["object"]["mistakes"] == [{"asked": "ball", "read": "box", "count": 1}]


# The cost of a wrong word.


@pytest.mark.parametrize("attribute", CHOICES)
def test_a_wrong_word_changes_one_fact_only(attribute: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        scene = draw_scene(generator)
        other = with_wrong_word(scene, attribute, generator)
        facts = [
            {"background": one.background} | {name: getattr(one.actors[0], name) for name in vars(scene.actors[0])}
            for one in (scene, other)
        ]
        assert {name for name in facts[0] if facts[0][name] != facts[1][name]} == {attribute}


def test_the_ratio_finds_what_a_network_listens_to() -> None:
    def hears_only_colour(clip: Tensor, text: str, seed: int, level: Tensor) -> float:
        """A loss that is half again as high unless the text names the colour of the clip's most colourful pixel."""
        pixels = clip[0].flatten(1)
        red, green, blue = pixels[:, (pixels.amax(0) - pixels.amin(0)).argmax()].tolist()
        heard[text, seed] = heard.get((text, seed), 0) + 1
        names = {"red": (0.76, -0.76, -0.72), "green": (-0.8, 0.24, -0.64), "blue": (-0.76, -0.48, 0.76)}
        near = min(
            names, key=lambda name: abs(names[name][0] - red) + abs(names[name][1] - green) + abs(names[name][2] - blue)
        )
        return 2.0 + float(level) if near in text or "crimson" in text else 3.0 + 1.5 * float(level)

    heard: dict[tuple[str, int], int] = {}
    rows = list(wrong_word_losses(hears_only_colour, num_clips=40, num_frames=1, size=(32, 32)))
    rows = [row for row in rows if row["true"] < 3.0]  # where it recognised the colour
    found = summarise(rows)
    assert len(rows) > 5
    assert found["colour"].ratio == pytest.approx(1.5, abs=0.1)
    for name in ("object", "background", "motion", "speed"):
        # "green hills" are the one place in captions that names a colour.
        assert found[name].ratio == pytest.approx(1.0, abs=0.08), name


def test_wrong_words_are_measured_on_a_pipeline(pipeline: LumierePipeline, tmp_path: Path) -> None:
    first = evaluate_wrong_words(pipeline, out=tmp_path, num_clips=3, progress=False)
    again = evaluate_wrong_words(pipeline, num_clips=3, progress=False)
    assert first == again
    assert set(first) == set(ATTRIBUTES)
    assert all(np.isfinite(one.ratio) and 0.5 < one.ratio < 2 for one in first.values())
    assert json.loads((tmp_path / "wrong_words.json").read_text())["ratios"]["motion"]["ratio"] == first["motion"].ratio


# Whole evaluations.


def drawn(prompt: Prompt, *, num_frames: int = 80) -> np.ndarray:
    """The true clip [T, H, W, 3] of a prompt."""
    generator = torch.Generator().manual_seed(3)
    count = len(prompt.actors)
    actors = tuple(
        place_actor(Actor(**vars(words)), generator, place=place, num_actors=count)
        for place, words in enumerate(prompt.actors)
    )
    return to_uint8(render([Scene(prompt.background, actors)], frame_times(num_frames), size=32))[0]


def test_a_network_that_makes_nothing_scores_nothing(pipeline: LumierePipeline, tmp_path: Path) -> None:
    report = evaluate_storybook(pipeline, out=tmp_path, num_seeds=2, num_prompts=4, progress=False)
    for name in ("object", "motion", "speed"):
        assert report["one_object"][name]["right"] <= 1
        assert report["one_object"][name]["total"] == 8
    assert report["two_objects"]["object"]["total"] == 4
    assert json.loads((tmp_path / "report.json").read_text())["settings"] == report["settings"]
    assert len(report["settings"]["weights"]["unet"]) == 64
    assert Image.open(tmp_path / "sheets" / "clips_00.png").width > 8 * 96
    seeds = [clip["seed"] for clip in report["clips"]]
    assert len(set(seeds)) == len(seeds)


def test_true_clips_in_place_of_the_networks_score_in_full(pipeline: LumierePipeline, tmp_path: Path) -> None:
    evaluate_storybook(pipeline, out=tmp_path, num_seeds=1, num_prompts=8, progress=False)
    prompts = load_prompts()
    for path in (tmp_path / "clips").iterdir():
        np.savez_compressed(path, frames=drawn(prompts[int(path.name[:3])]))
    report = evaluate_storybook(pipeline, out=tmp_path, num_seeds=1, num_prompts=8, progress=False)
    for name in ATTRIBUTES:
        assert report["one_object"][name]["share"] == 1.0, report["one_object"][name]
        assert report["two_objects"][name]["share"] >= 0.5


def test_pairs_can_be_left_out(pipeline: LumierePipeline, tmp_path: Path) -> None:
    report = evaluate_storybook(pipeline, out=tmp_path, num_seeds=1, num_prompts=2, num_pairs=0, progress=False)
    assert report["one_object"]["colour"]["total"] == 2 and len(report["clips"]) == 2
    assert report["two_objects"] == {}


def bicubic(_: SuperResolution, small: Tensor, **__: Any) -> Tensor:
    """What stands in for super-resolution where its answer has to be known."""
    return resize_clip(small, (64, 64)).clamp(-1, 1)


def test_super_resolution_is_scored_against_bicubic_and_by_the_same_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny_pipeline(height=32, width=32, default_steps=1, default_guidance_scale=1.0)
    with pytest.raises(ValueError, match="no super-resolution"):
        evaluate_super_resolution(pipeline, out=tmp_path, progress=False)
    pipeline.register_modules(super_resolution=SuperResolution.of(stage()))
    asked: dict[str, Any] = {"out": tmp_path / "own", "num_clips": 2, "num_frames": 4, "num_prompts": 2}
    report = evaluate_super_resolution(pipeline, steps=1, progress=False, **asked)
    assert report["closeness"]["gain_db"] < 0, "random weights are no nearer to the truth than bicubic"
    assert stored_frames(next((tmp_path / "own" / "clips").iterdir())).shape == (3, 8, 64, 64)
    assert stored_frames(next((tmp_path / "own" / "base" / "clips").iterdir())).shape == (3, 8, 32, 32)
    assert Image.open(tmp_path / "own" / "true_clips.png").size == (4 * 64, 2 * 64)
    with pytest.raises(ValueError, match="super_resolution_steps differ"):
        evaluate_super_resolution(pipeline, steps=2, progress=False, **asked)

    monkeypatch.setattr(SuperResolution, "forward", bicubic)
    asked = {"out": tmp_path / "bicubic", "num_clips": 2, "num_frames": 4, "num_prompts": 8}
    evaluate_super_resolution(pipeline, progress=False, **asked)
    for path in (tmp_path / "bicubic" / "base" / "clips").iterdir():
        np.savez_compressed(path, frames=drawn(load_prompts()[int(path.name[:3])]))
        (tmp_path / "bicubic" / "clips" / path.name).unlink()
    report = evaluate_super_resolution(pipeline, progress=False, **asked)
    assert report["closeness"]["gain_db"] == 0 and 15 < report["closeness"]["psnr_db"] < 60
    for name in ATTRIBUTES:
        assert report["small"][name]["share"] == 1
        assert report["large"][name]["share"] == 1


def test_an_interrupted_evaluation_goes_on_where_it_stopped(pipeline: LumierePipeline, tmp_path: Path) -> None:
    first = evaluate_stills(pipeline, out=tmp_path, num_seeds=1, num_prompts=4, batch=4, progress=False)
    clips = sorted((tmp_path / "clips").iterdir())
    kept = {path: path.stat().st_mtime_ns for path in clips[1:]}
    frames = {path: np.load(path)["frames"] for path in clips}
    clips[0].unlink()
    again = evaluate_stills(pipeline, out=tmp_path, num_seeds=1, num_prompts=4, batch=1, progress=False)
    assert {path: path.stat().st_mtime_ns for path in clips[1:]} == kept
    # One clip is made alone as it was in a batch, to the last bits of fp32.
    gap = np.abs(np.load(clips[0])["frames"].astype(int) - frames[clips[0]].astype(int))
    assert gap.max() <= 1
    assert first["stills"] == again["stills"]


def test_a_folder_of_other_settings_is_refused(pipeline: LumierePipeline, tmp_path: Path) -> None:
    evaluate_stills(pipeline, out=tmp_path, num_seeds=1, num_prompts=2, progress=False)
    with pytest.raises(ValueError, match="guidance differ"):
        evaluate_stills(pipeline, out=tmp_path, num_seeds=1, num_prompts=2, guidance=2.0, progress=False)


def test_impossible_numbers_are_refused(pipeline: LumierePipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="128 one-object"):
        evaluate_storybook(pipeline, out=tmp_path, num_prompts=129, progress=False)
    with pytest.raises(ValueError, match="prompts of two objects"):
        evaluate_storybook(pipeline, out=tmp_path, num_pairs=33, progress=False)
    with pytest.raises(ValueError, match="num_seeds is 0"):
        evaluate_storybook(pipeline, out=tmp_path, num_seeds=0, progress=False)


def test_a_saved_pipeline_is_evaluated_from_its_folder(pipeline: LumierePipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    report = evaluate_stills(tmp_path / "model", out=tmp_path / "out", num_seeds=1, num_prompts=2, progress=False)
    assert report["stills"]["object"]["total"] == 2
    assert Image.open(tmp_path / "out" / "stills.png").height > 90
