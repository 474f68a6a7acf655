"""Numbers of a few samples, quick enough to be taken while a network is being trained: by name, for recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor

from lumiere.data.batches import Batch, StorybookBatches
from lumiere.evaluation.scenery import SIZE
from lumiere.evaluation.storybook import read_clip, read_pair
from lumiere.evaluation.tally import ATTRIBUTES, Tally, answers

Metric = Callable[[Tensor, Batch], dict[str, float]]
"""(clips [B, 3, T, H, W] in -1..1 that were made, true clips of the same captions) -> numbers."""

MetricName = Literal["movement", "storybook"]


def movement(made: Tensor, truth: Batch) -> dict[str, float]:
    """How much neighbouring frames differ, as a share of how much they do in the true clips: near 0 is a still, and far
    above 1 boils. Raises ValueError for stills."""
    if made.shape[2] < 2 or truth.clips.shape[2] < 2:
        raise ValueError("movement is of clips; these are of one frame")
    change, true_change = (clips.float().diff(dim=2).abs().mean() for clips in (made, truth.clips))
    return {"movement": float(change / true_change.clamp(min=1e-6))}


def storybook(made: Tensor, truth: Batch) -> dict[str, float]:
    """Share of clips in which the storybook's reader sees what the caption says, for each kind of word.

    Raises ValueError for clips that are not the storybook's, whose scenes nobody knows.
    """
    if not truth.scenes:
        raise ValueError("the metric storybook reads the storybook's own clips; what is in these is not known")
    tally = Tally()
    for clip, scene in zip(made, truth.scenes, strict=True):
        if scene.actors:
            read = read_pair if len(scene.actors) == 2 else read_clip
            tally.add(answers(scene.background, scene.actors, read(clip.float().cpu())))
    return {name: tally.share(name) for name in ATTRIBUTES if tally.total[name]}


def check_metrics(names: Sequence[MetricName], data: object) -> None:
    """Raise ValueError where clips of ``data`` cannot be measured so: before a run, not after its first part."""
    if "storybook" not in names:
        return
    if not isinstance(data, StorybookBatches):
        raise ValueError("the metric storybook reads the storybook's own clips, and these are others: leave it out")
    if data.settings.size < SIZE:
        raise ValueError(f"the metric storybook reads clips of {SIZE} pixels and more; these have {data.settings.size}")


METRICS: Mapping[MetricName, Metric] = {"movement": movement, "storybook": storybook}
"""What a recipe can ask for, by name."""
