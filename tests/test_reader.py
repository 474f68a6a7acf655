"""The reader of storybook clips: right on true ones, silent on what shows nothing.

The larger measurement, with its numbers, is benchmarks/storybook_reader.py.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from lumiere.data.drawing import BACKGROUNDS, draw
from lumiere.data.storybook import (
    COLOUR_NAMES,
    MOTIONS,
    OBJECTS,
    SPEEDS,
    Actor,
    Scene,
    draw_scene,
    frame_times,
    place_actor,
    pose,
    render,
)
from lumiere.evaluation.scenery import blur
from lumiere.evaluation.storybook import UNREADABLE, read_clip, read_pair, read_still, read_stills
from lumiere.evaluation.tally import ACTOR_ATTRIBUTES, ATTRIBUTES, Tally, answers


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes_of_every_motion(*, seed: int, rounds: int = 2) -> list[Scene]:
    """Each motion at each speed ``rounds`` times; objects, colours and backgrounds go round."""
    random, scenes = generator(seed), []
    for index, (motion, speed) in enumerate(itertools.chain(*[itertools.product(MOTIONS, SPEEDS)] * 1)):
        for turn in range(rounds):
            place = 3 * index + 7 * turn
            actor = Actor(OBJECTS[place % 8], COLOUR_NAMES[(place // 2 + turn) % 8], motion, speed)
            background = BACKGROUNDS[(index + turn) % len(BACKGROUNDS)]
            seed_of_page = float(torch.rand((), generator=random))
            scenes.append(Scene(background, (place_actor(actor, random),), seed=seed_of_page))
    return scenes


def clip_of(scene: Scene, *, size: int = 32) -> Tensor:
    return render([scene], frame_times(), size=size)[0]


def soft_and_grainy(clip: Tensor, random: torch.Generator) -> Tensor:
    clip = blur(clip.transpose(0, 1), 0.6).transpose(0, 1)
    return (clip + 0.05 * torch.randn(clip.shape, generator=random)).clamp(-1, 1)


def tally_of(scenes: list[Scene], clips: list[Tensor]) -> Tally:
    tally = Tally()
    for scene, clip in zip(scenes, clips, strict=True):
        tally.add(answers(scene.background, scene.actors, read_clip(clip)))
    return tally


def assert_right(tally: Tally, at_least: float) -> None:
    for name in ATTRIBUTES:
        assert tally.share(name) >= at_least, (name, tally.share(name), tally.mistakes)


# Right on true clips and stills.


def test_true_clips_are_read_right() -> None:
    scenes = scenes_of_every_motion(seed=0)
    assert_right(tally_of(scenes, [clip_of(scene) for scene in scenes]), 0.97)


@pytest.mark.slow
def test_random_true_clips_are_read_right() -> None:
    random = generator(1)
    scenes = [draw_scene(random, held_out=index % 2 == 0) for index in range(200)]
    assert_right(tally_of(scenes, [clip_of(scene) for scene in scenes]), 0.97)


@pytest.mark.slow
def test_soft_and_grainy_clips_are_read_right() -> None:
    random = generator(2)
    scenes = scenes_of_every_motion(seed=2)
    assert_right(tally_of(scenes, [soft_and_grainy(clip_of(scene), random) for scene in scenes]), 0.95)


@pytest.mark.parametrize("is_spoilt", [False, True])
def test_true_stills_are_read_right(is_spoilt: bool) -> None:
    random, tally = generator(3), Tally()
    scenes = [draw_scene(random) for _ in range(150)]
    stills = render(scenes, torch.rand(150, 1, generator=random) * 5, size=32)
    if is_spoilt:
        stills = torch.stack([soft_and_grainy(still, random) for still in stills])
    for scene, reading in zip(scenes, read_stills(stills[:, :, 0]), strict=True):
        tally.add(answers(scene.background, scene.actors, reading))
    for name in ("object", "colour", "background"):
        # Not every still of a growing object is large enough to be told from others.
        assert tally.share(name) >= (0.95 if is_spoilt else 0.97), (name, tally.mistakes)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_larger_clips_are_read_the_same(size: int) -> None:
    scene = scenes_of_every_motion(seed=4)[size // 8]
    small, large = read_clip(clip_of(scene)), read_clip(clip_of(scene, size=size))
    assert small.background == large.background == scene.background
    for name in ACTOR_ATTRIBUTES:
        assert getattr(small.actors[0], name) == getattr(large.actors[0], name) == getattr(scene.actors[0], name)


def test_one_still_is_read_as_in_a_batch() -> None:
    random = generator(5)
    stills = render([draw_scene(random) for _ in range(4)], frame_times(1), size=32)[:, :, 0]
    for still, reading in zip(stills, read_stills(stills), strict=True):
        alone = read_still(still)
        assert (alone.background, alone.actors[0].object, alone.actors[0].colour) == (
            reading.background,
            reading.actors[0].object,
            reading.actors[0].colour,
        )


def test_two_actors_are_read_apart() -> None:
    random, tally = generator(6), Tally()
    for _ in range(6):
        scene = draw_scene(random, num_actors=2)
        reading = read_pair(clip_of(scene))
        tally.add(answers(scene.background, scene.actors, reading))
    for name in ATTRIBUTES:
        assert tally.share(name) >= 0.75, (name, tally.mistakes)


# What is measured is true.


def test_the_measured_track_is_the_true_one() -> None:
    actor = Actor("fish", "red", "orbit", "fast", x=0.1, y=0.05, phase=0.2)
    seen = read_clip(clip_of(Scene("snow", (actor,)))).actors[0]
    assert seen.track is not None
    assert seen.measured is not None
    true = pose(actor, frame_times())
    assert (seen.track.pose.x - true.x).abs().max() < 0.05
    assert (seen.track.pose.y - true.y).abs().max() < 0.05
    assert (seen.track.pose.scale - actor.radius).abs().max() < 0.03
    assert torch.cos(seen.track.pose.angle).min() > 0.95
    assert math.isclose(seen.measured.duration_s, 1.0, rel_tol=0.03)


@pytest.mark.parametrize(("motion", "backward"), [("slide right", "slide left"), ("rise", "fall"), ("fall", "rise")])
def test_a_clip_played_backward_moves_the_other_way(motion: str, backward: str) -> None:
    clip = clip_of(Scene("sea", (Actor("heart", "red", motion, "slow"),)))
    assert read_clip(clip).actors[0].motion == motion
    assert read_clip(clip.flip(1)).actors[0].motion == backward


def test_a_mirrored_clip_slides_the_other_way() -> None:
    clip = clip_of(Scene("meadow", (Actor("tree", "purple", "slide right", "fast"),)))
    assert read_clip(clip.flip(3)).actors[0].motion == "slide left"


def test_a_slow_clip_shown_faster_is_fast() -> None:
    for motion in ("pulse", "bounce", "spin"):
        scene = Scene("desert", (Actor("mushroom", "blue", motion, "slow"),))
        clip = render([scene], frame_times() * 2.5, size=32)[0]
        assert (read_clip(clip).actors[0].motion, read_clip(clip).actors[0].speed) == (motion, "fast")


# Silent on what shows nothing.


def noises(random: torch.Generator) -> dict[str, Tensor]:
    shape = (3, 80, 32, 32)
    grainy = torch.randn(shape, generator=random)
    return {
        "uniform": torch.rand(shape, generator=random) * 2 - 1,
        "gaussian": grainy.clamp(-1, 1),
        "faint": 0.05 * grainy,
        "cloudy": (6 * blur(grainy.transpose(0, 1), 3.0).transpose(0, 1)).clamp(-1, 1),
        "steady": grainy[:, :1].expand(shape).clamp(-1, 1),
        "black": torch.full(shape, -1.0),
    }


def test_noise_is_unreadable() -> None:
    for name, clip in noises(generator(7)).items():
        reading = read_clip(clip)
        said = {reading.background, *(getattr(reading.actors[0], field) for field in ACTOR_ATTRIBUTES)}
        assert said == {UNREADABLE}, (name, reading)
        still = read_still(clip[:, 0])
        assert {still.background, still.actors[0].object, still.actors[0].colour} == {UNREADABLE}, (name, still)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_page_has_a_background_and_no_actor(background: str) -> None:
    page = draw([background], torch.tensor([0.4]), [], frame_times()[None], style="flat", height=32, width=32)[0]
    reading = read_clip(page)
    assert reading.background == background
    assert {getattr(reading.actors[0], field) for field in ACTOR_ATTRIBUTES} == {UNREADABLE}


def motions_read(clips: list[Tensor]) -> Counter[str]:
    return Counter(read_clip(clip).actors[0].motion for clip in clips)


def test_a_still_clip_has_no_motion() -> None:
    random = generator(8)
    clips = [clip_of(draw_scene(random))[:, 40:41].expand(-1, 80, -1, -1) for _ in range(8)]
    clips = [clip + 0.03 * torch.randn(clip.shape, generator=random) for clip in clips]
    assert motions_read(clips)[UNREADABLE] >= 7


def test_a_shuffled_clip_has_no_motion() -> None:
    random = generator(9)
    clips = [clip_of(draw_scene(random))[:, torch.randperm(80, generator=random)] for _ in range(8)]
    assert motions_read(clips)[UNREADABLE] >= 7


def test_a_shape_that_is_no_object_is_unreadable() -> None:
    random = generator(10)
    place = (torch.arange(32) + 0.5) / 16 - 1
    pages = draw(
        ["sea"] * 24, torch.rand(24, generator=random), [], torch.zeros(24, 1), style="flat", height=32, width=32
    )
    stills = []
    for page in pages[:, :, 0]:
        width, height, turn = (float(torch.rand((), generator=random)) for _ in range(3))
        width, height, turn = 0.25 + 0.25 * width, 0.25 + 0.25 * height, 3 * turn
        x = place[None] * math.cos(turn) + place[:, None] * math.sin(turn)
        y = place[:, None] * math.cos(turn) - place[None] * math.sin(turn)
        cover = (0.5 - (torch.hypot(x / width, y / height) - 1) * min(width, height) / 0.1).clamp(0, 1)
        red = torch.tensor([0.88, 0.12, 0.14]).view(3, 1, 1) * 2 - 1
        stills.append(page + cover * (red - page))
    readings = read_stills(torch.stack(stills))
    assert sum(reading.actors[0].colour == "red" for reading in readings) >= 23
    assert sum(reading.actors[0].object == UNREADABLE for reading in readings) >= 20


def test_an_object_that_turns_into_another_is_neither() -> None:
    one, other = (
        clip_of(Scene("snow", (Actor(name, "blue", "bounce", "slow"),), seed=0.5)) for name in ("star", "box")
    )
    changing = torch.cat([one[:, :40], other[:, 40:]], dim=1)
    assert read_clip(changing).actors[0].object == UNREADABLE


# What cannot be read at all is refused.


def test_frames_must_be_square_and_large_enough() -> None:
    with pytest.raises(ValueError, match="square"):
        read_still(torch.zeros(3, 32, 48))
    with pytest.raises(ValueError, match="needs 32 or more"):
        read_clip(torch.zeros(3, 8, 16, 16))
    with pytest.raises(ValueError, match=r"\[3, T, H, W\]"):
        read_clip(torch.zeros(1, 3, 8, 32, 32))
