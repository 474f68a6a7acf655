"""Batches of the storybook: a pure function of (seed, step), so that a resumed run needs no data state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor

from lumiere.config import Settings
from lumiere.data.captions import brief_caption, caption, terse_caption
from lumiere.data.drawing import BACKGROUNDS, STYLES
from lumiere.data.storybook import (
    COLOUR_NAMES,
    MOTIONS,
    OBJECTS,
    RESIZING_MOTIONS,
    SPEEDS,
    TURNING_MOTIONS,
    Scene,
    draw_scene,
    frame_times,
    from_start,
    is_held_out,
    object_region,
    render,
    without_actors,
)
from lumiere.video import as_floats

CLIP_S = 5.0


@dataclass(frozen=True)
class Batch:
    """Clips [B, 3, T, H, W] in -1..1, or of 8-bit pixels that ``on`` makes floats of, and their captions; where the
    storybook drew them, ``scenes`` at ``times_s`` [B, T]."""

    clips: Tensor
    captions: list[str]
    scenes: tuple[Scene, ...] = ()
    times_s: Tensor | None = None

    def on(self, device: torch.device | None) -> Batch:
        """The same with its clips on ``device`` (None: where they are), as floats."""
        return replace(self, clips=as_floats(self.clips, device))


class StorybookSettings(Settings):
    """What of the storybook is drawn."""

    size: int = Field(default=32, ge=8)
    """Width and height in pixels."""
    num_frames: int = Field(default=80, ge=1)
    """Frames of a clip; 1 draws stills at random moments."""
    any_moments: bool = False
    """Whether the frames of a clip are at random moments of it, each by itself, as the lone one of a still is."""
    frame_step: int = Field(default=1, ge=1)
    """Only every so manieth frame of a clip is drawn: 20 frames with a step of 4 are the five seconds of 80."""
    pair_share: float = Field(default=0.0, ge=0, le=1)
    """Share of scenes with two actors."""
    pairs_from_step: int = Field(default=0, ge=0)
    """First step that draws pairs: one object is learned first."""
    empty_share: float = Field(default=0.0, ge=0, le=1)
    """Share of scenes without an actor: what is left when one is taken away."""
    terse_share: float = Field(default=0.0, ge=0, le=1)
    """Share of captions that only say how the actor moves, for where a picture says the rest."""
    motion_from_start: bool = False
    """Whether motions begin with the clip and keep their speed's own pace, instead of a random phase and tempo: far
    sooner learned, as then the words say where everything is at each moment."""
    first_moment: bool = False
    """Whether stills are the first frames of clips, instead of any."""
    style_share: float = Field(default=0.0, ge=0, le=1)
    """Share of scenes drawn in one of the other drawing styles, each as often, for networks that meet all of them."""
    turning_share: float = Field(default=0.0, ge=0, le=1)
    """Share of scenes whose motion is surely one in which objects turn, beside those that chance gives: turned outlines
    are the hardest to learn."""
    resizing_share: float = Field(default=0.0, ge=0, le=1)
    """The same for motions in which the size of objects changes."""


class StorybookBatches:
    """Endless storybook clips, drawn on ``device`` (None: the CPU); what is drawn does not depend on it."""

    def __init__(self, settings: StorybookSettings, *, seed: int, device: torch.device | None = None) -> None:
        self.settings, self.seed, self.device = settings, seed, device

    def batch(self, step: int, count: int, *, held_out: bool = False) -> Batch:
        """The ``count`` clips of a step, with captions of varied wording."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step * 2 + held_out)
        share = self.settings.pair_share if step >= self.settings.pairs_from_step else 0.0
        num_pairs = _random_round(count * share, generator) if share else 0
        turning, resizing = (0.0, 0.0) if held_out else (self.settings.turning_share, self.settings.resizing_share)
        num_turning = _random_round(count * turning, generator) if turning else 0
        num_resizing = _random_round(count * resizing, generator) if resizing else 0
        num_empty = _random_round(count * self.settings.empty_share, generator) if self.settings.empty_share else 0
        num_alone = max(0, count - num_pairs - num_empty)
        scenes = [
            draw_scene(
                generator,
                num_actors=1 if index < num_alone else 0 if index < count - num_pairs else 2,
                held_out=held_out,
                motions=_motions(index, num_turning, num_resizing),
            )
            for index in range(count)
        ]
        if self.settings.motion_from_start:
            scenes = [from_start(scene) for scene in scenes]
        captions = [self._caption(scene, generator) for scene in scenes]
        times = self._times(count, generator).to(self.device)
        if self.settings.style_share:
            scenes = [replace(scene, style=self._style(generator)) for scene in scenes]
        return Batch(_rendered(scenes, times, self.settings.size), captions, tuple(scenes), times)

    def empty(self, batch: Batch) -> Tensor:
        """The clips of a batch without their actors, [B, 3, T, H, W]."""
        assert batch.times_s is not None
        return _rendered([without_actors(scene) for scene in batch.scenes], batch.times_s, self.settings.size)

    def at(self, batch: Batch, times_s: Tensor) -> Batch:
        """The same scenes and captions at other times [B, T]."""
        times_s = times_s.to(self.device)
        return replace(batch, clips=_rendered(batch.scenes, times_s, self.settings.size), times_s=times_s)

    def objects(self, batch: Batch) -> Tensor:
        """Boxes around the objects of a batch of clips, [B, 1, T, H, W] of 0 and 1."""
        return object_region(batch.clips, self.empty(batch))

    def in_other_colours(self, batch: Batch, share: float, step: int) -> tuple[Tensor, list[str]]:
        """The clips [B, 3, T, H, W] of a step's batch, a ``share`` with their object in another colour, and captions.

        Every second caption of those says no more than what is to be seen: the object in the batch's own colour. Scenes
        without an actor, or with two, stay as they are; no scene of the held-out tenth is drawn.
        """
        assert batch.times_s is not None
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step * 2 + 6_000_000_029)
        lucks = torch.rand(len(batch.scenes), generator=generator).tolist()
        rows = [row for row, luck in enumerate(lucks) if luck < share and len(batch.scenes[row].actors) == 1]
        if not rows:
            return batch.clips, batch.captions
        clips, captions = batch.clips.clone(), list(batch.captions)
        others = [_in_another_colour(batch.scenes[row], generator) for row in rows]
        clips[rows] = _rendered(others, batch.times_s[rows], self.settings.size).to(clips)
        for row in rows[::2]:
            captions[row] = brief_caption(batch.scenes[row])
        return clips, captions

    def _caption(self, scene: Scene, generator: torch.Generator) -> str:
        share = self.settings.terse_share
        is_terse = bool(share) and bool(scene.actors) and float(torch.rand((), generator=generator)) < share
        return (terse_caption if is_terse else caption)(scene, generator)

    def _style(self, generator: torch.Generator) -> str:
        """The plain style, or by ``style_share`` another one."""
        luck = float(torch.rand((), generator=generator)) / self.settings.style_share
        others = STYLES[1:]
        return others[int(luck * len(others))] if luck < 1 else STYLES[0]

    def _times(self, count: int, generator: torch.Generator) -> Tensor:
        if self.settings.first_moment:
            return torch.zeros(count, self.settings.num_frames)
        if self.settings.num_frames == 1 or self.settings.any_moments:
            return torch.rand(count, self.settings.num_frames, generator=generator) * CLIP_S
        return self.settings.frame_step * frame_times(self.settings.num_frames).expand(count, -1)


def _motions(index: int, num_turning: int, num_resizing: int) -> Sequence[str]:
    """Which motions a scene may have: the first of a batch turn, the next change their size, the others do anything."""
    if index < num_turning:
        return TURNING_MOTIONS
    return RESIZING_MOTIONS if index < num_turning + num_resizing else MOTIONS


def _in_another_colour(scene: Scene, generator: torch.Generator) -> Scene:
    """The scene of one actor in another colour in which it is not held out."""
    actor = scene.actors[0]
    others = [replace(actor, colour=name) for name in COLOUR_NAMES if name != actor.colour]
    others = [other for other in others if not is_held_out(other, scene.background)]
    return replace(scene, actors=(others[int(torch.randint(len(others), (), generator=generator))],))


def _rendered(scenes: Sequence[Scene], times_s: Tensor, size: int) -> Tensor:
    """The clips [B, 3, T, H, W] of scenes at times [B, T]; those of as many actors and one style are drawn together."""
    kinds: dict[tuple[int, str], list[int]] = {}
    for index, scene in enumerate(scenes):
        kinds.setdefault((len(scene.actors), scene.style), []).append(index)
    clips: dict[int, Tensor] = {}
    for rows in kinds.values():
        clips |= zip(rows, render([scenes[index] for index in rows], times_s[rows], size=size), strict=True)
    return torch.stack([clips[index] for index in range(len(scenes))])


def _random_round(value: float, generator: torch.Generator) -> int:
    """``value`` rounded up or down by chance, so that the mean stays."""
    return round(value + float(torch.rand((), generator=generator)) - 0.5)


def scene_facts(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """The facts that a caption states, as class indices [B]: for the first actor, and the background."""
    first = [scene.actors[0] for scene in scenes]
    return {
        "object": torch.tensor([OBJECTS.index(actor.object) for actor in first]),
        "colour": torch.tensor([COLOUR_NAMES.index(actor.colour) for actor in first]),
        "motion": torch.tensor([MOTIONS.index(actor.motion) for actor in first]),
        "speed": torch.tensor([SPEEDS.index(actor.speed) for actor in first]),
        "background": torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes]),
    }


FACT_SIZES = {
    "object": len(OBJECTS),
    "colour": len(COLOUR_NAMES),
    "motion": len(MOTIONS),
    "speed": len(SPEEDS),
    "background": len(BACKGROUNDS),
}
