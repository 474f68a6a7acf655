"""How much worse a network predicts a clip when one word of its caption is wrong: 1 means that it does not listen.

Held-out clips, fixed noise and fixed timesteps: what differs between two losses is the one word. Motions begin with the
clip, so that the words for them say all there is to know of a path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lumiere.data.captions import caption
from lumiere.data.drawing import BACKGROUNDS
from lumiere.data.storybook import (
    COLOUR_NAMES,
    MOTIONS,
    OBJECTS,
    SPEEDS,
    Scene,
    draw_scene,
    frame_times,
    from_start,
    render,
)

CHOICES = {
    "object": OBJECTS,
    "colour": COLOUR_NAMES,
    "background": BACKGROUNDS,
    "motion": MOTIONS,
    "speed": SPEEDS,
}
MIN_RATIO = 1.02
"""The wrong word must cost this much for the network to count as listening to it."""

MeasureLoss = Callable[[Tensor, str, int, Tensor], float]
"""(clip [1, 3, T, H, W], its caption or a wrong one, seed of the noise, timestep [1] in 0..1) -> loss."""


@dataclass(frozen=True)
class WrongWord:
    """The mean loss with one attribute wrong over the mean loss with all words right, and its standard error."""

    ratio: float
    error: float


def wrong_word_losses(
    measure: MeasureLoss, *, num_clips: int, num_frames: int, size: tuple[int, int], seed: int = 7
) -> Iterator[dict[str, float]]:
    """For each held-out clip, in turn, its loss with the "true" caption and with each attribute wrong.

    The clips' noise levels are spread evenly over the schedule.
    """
    for index in range(num_clips):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        scene = from_start(draw_scene(generator, held_out=True))
        clip = render([scene], frame_times(num_frames), size=size)
        level = torch.tensor([(index + 0.5) / num_clips])
        captions = {"true": _worded(scene, index)}
        captions |= {name: _worded(with_wrong_word(scene, name, generator), index) for name in CHOICES}
        yield {name: measure(clip, text, index, level) for name, text in captions.items()}


def with_wrong_word(scene: Scene, attribute: str, generator: torch.Generator) -> Scene:
    """A one-actor scene that differs from ``scene`` in this one attribute."""
    true = scene.background if attribute == "background" else getattr(scene.actors[0], attribute)
    others = [word for word in CHOICES[attribute] if word != true]
    wrong = others[int(torch.randint(len(others), (), generator=generator))]
    if attribute == "background":
        return replace(scene, background=wrong)
    changes: dict[str, Any] = {attribute: wrong}
    return replace(scene, actors=(replace(scene.actors[0], **changes),))


def _worded(scene: Scene, seed: int) -> str:
    """The caption in wording ``seed``: scenes of one seed are worded alike but for the words that differ."""
    return caption(scene, torch.Generator().manual_seed(seed))


def summarise(losses: list[dict[str, float]]) -> dict[str, WrongWord]:
    """Each attribute's ratio over all clips, from the losses of ``wrong_word_losses``."""
    true = torch.tensor([row["true"] for row in losses], dtype=torch.float64)
    found = {}
    for name in CHOICES:
        wrong = torch.tensor([row[name] for row in losses], dtype=torch.float64)
        ratio = wrong.mean() / true.mean()
        # The delta method for a ratio of means of paired values.
        spread = (wrong - ratio * true).std() if len(losses) > 1 else torch.tensor(float("nan"))
        found[name] = WrongWord(float(ratio), float(spread / true.mean() / len(losses) ** 0.5))
    return found


def as_dict(found: dict[str, WrongWord]) -> dict[str, dict[str, float]]:
    """The ratios for a report."""
    return {name: asdict(one) for name, one in found.items()}
