"""What is asked of edits of storybook clips, and what of it was done: cases, and measures of the clips that came back.

A measure is a pair (sum, count or sum of what it is compared with): over all cases the first is divided by the second,
which makes a share of cases, or the ratio of two means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lumiere.data.captions import brief_caption, caption, terse_caption
from lumiere.data.storybook import (
    COLOUR_NAMES,
    MOTIONS,
    OBJECTS,
    REPEATING_MOTIONS,
    Scene,
    draw_scene,
    frame_times,
    from_start,
    object_region,
    render,
    without_actors,
)
from lumiere.evaluation.storybook import UNREADABLE, read_clip
from lumiere.video import to_uint8

Measures = dict[str, tuple[float, float]]

NEAR = 0.2
"""A tenth of the picture, in half picture widths, as tracks are measured."""
MOST_FRAMES = 0.9
"""A path is kept when the object is near its place in so many of the frames where both are seen, and is seen in as
many."""


@dataclass(frozen=True)
class Bar:
    """From where to where a measure is good."""

    low: float = 0.0
    high: float = float("inf")

    def holds(self, value: float) -> bool:
        """Whether the value is good."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.high == float("inf"):
            return f"{self.low:g} or more"
        return f"{self.low:g} to {self.high:g}" if self.low else f"{self.high:g} or less"


BARS: dict[str, dict[str, Bar]] = {
    "animate": {
        "object kept": Bar(0.95),
        "colour kept": Bar(0.95),
        "background kept": Bar(0.95),
        "motion right": Bar(0.80),
        "first step over mean step": Bar(high=1.5),
    },
    "replace": {"new object there": Bar(0.85)},
    "remove": {"object gone": Bar(0.85)},
    "reconstruct": {"gradient across the border over true": Bar(0.9, 1.1)},
    "cinemagraph": {
        "pixels unchanged outside": Bar(1.0),
        "frame difference over true": Bar(0.5, 2.0),
        "second difference over true": Bar(high=1.5),
    },
    "loop": {
        "wrap over neighbours": Bar(0.5, 1.2),
        "wrap over a true loop's": Bar(0.5, 1.2),
        "motion over true": Bar(0.5),
    },
    "interpolate": {"path ends in place": Bar(0.85), "path ends as the true one": Bar(0.85)},
    "recolour": {"new colour there": Bar(0.85), "path kept": Bar(0.80)},
    "recolour_briefly": {"new colour there": Bar(0.85), "path kept": Bar(0.80)},
}
"""The edits, what is measured of each, and the bars. ``recolour`` is asked for by the clip's whole caption with another
colour, ``recolour_briefly`` by the object and its new colour alone."""


@dataclass(frozen=True)
class Case:
    """A scene that training never drew, its clip [1, 3, T, H, W], and the region [1, 1, T, H, W] around its object."""

    index: int
    scene: Scene
    clip: Tensor
    region: Tensor

    @property
    def new_object(self) -> str:
        """The object that is to be put in the old one's place."""
        place = OBJECTS.index(self.scene.actors[0].object)
        return OBJECTS[(place + 1 + self.index % (len(OBJECTS) - 1)) % len(OBJECTS)]

    @property
    def new_colour(self) -> str:
        """The colour that the object is to get instead of its own."""
        place = COLOUR_NAMES.index(self.scene.actors[0].colour)
        return COLOUR_NAMES[(place + 1 + self.index % (len(COLOUR_NAMES) - 1)) % len(COLOUR_NAMES)]

    @property
    def recoloured(self) -> Scene:
        """The scene with its object in the new colour."""
        return replace(self.scene, actors=(replace(self.scene.actors[0], colour=self.new_colour),))

    @property
    def still_region(self) -> Tensor:
        """The region [1, 1, H, W] that the object's whole path stays in, less the picture's rim."""
        region = self.region.amax(2)
        region[..., [0, -1], :] = 0
        region[..., [0, -1]] = 0
        return region

    def prompt(self, edit: str) -> str:
        """What is asked for."""
        scene = self.scene
        match edit:
            case "animate":
                return terse_caption(scene)
            case "replace":
                return caption(replace(scene, actors=(replace(scene.actors[0], object=self.new_object),)))
            case "recolour":
                return caption(self.recoloured)
            case "recolour_briefly":
                return brief_caption(self.recoloured)
            case "remove":
                return caption(without_actors(scene))
        return caption(scene)


def draw_case(index: int, edit: str, *, num_frames: int, size: tuple[int, int]) -> Case:
    """The case of that number for an edit: the same for every model. Loops are of motions that repeat.

    Motions begin with the clip, so that a first frame and the words say which way things go.
    """
    generator = torch.Generator().manual_seed(9_000_000 + index)
    motions = REPEATING_MOTIONS if edit == "loop" else MOTIONS
    scene = from_start(draw_scene(generator, held_out=True, motions=motions))
    times = frame_times(num_frames)
    clip, empty = render([scene], times, size=size), render([without_actors(scene)], times, size=size)
    return Case(index, scene, clip, object_region(clip, empty))


def border_region(case: Case) -> Tensor:
    """A box [1, 1, T, H, W] to be made again: the middle half of the picture, the same in all frames."""
    region = torch.zeros_like(case.region)
    height, width = region.shape[-2:]
    region[..., height // 4 : height - height // 4, width // 4 : width - width // 4] = 1
    return region


def measures(edit: str, case: Case, made: Tensor) -> Measures:
    """What of an edit was done in the clip [1, 3, T, H, W] that was made."""
    match edit:
        case "animate":
            return _animated(case, made)
        case "replace":
            seen = read_clip(made[0]).actors[0]
            return {"new object there": _one(seen.object == case.new_object)}
        case "remove":
            seen = read_clip(made[0]).actors[0]
            return {"object gone": _one(seen.object == UNREADABLE and seen.colour == UNREADABLE)}
        case "reconstruct":
            region = border_region(case)
            return {"gradient across the border over true": (_across(made, region), _across(case.clip, region))}
        case "cinemagraph":
            return _cinemagraph(case, made)
        case "loop":
            wrap, steps = float((made[:, :, 0] - made[:, :, -1]).abs().mean()), float(differences(made))
            # A true loop goes on as it began, and what bounces, swings or pulses is fastest there.
            true, true_first = float(differences(case.clip)), float(differences(case.clip[:, :, :2]))
            return {
                "wrap over neighbours": (wrap, steps),
                "wrap over a true loop's": (wrap, steps * true_first / max(true, 1e-12)),
                "motion over true": (steps, true),
            }
        case "recolour" | "recolour_briefly":
            colour = read_clip(made[0]).actors[0].colour
            return {"new colour there": _one(colour == case.new_colour), "path kept": _one(_keeps_path(case, made))}
        case "interpolate":
            # What is fast is farther from its last place one frame before in true clips, too.
            last, beside = _comes_near(case, made, (-1, -2))
            return {"path ends in place": _one(last), "path ends as the true one": _one(beside)}
    raise ValueError(f"edit is {edit!r}; known are {', '.join(BARS)}")


def summarise(rows: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """Each measure over all cases."""
    return {name: sum(row[name][0] for row in rows) / max(sum(row[name][1] for row in rows), 1e-12) for name in rows[0]}


def differences(clip: Tensor, *, order: int = 1, region: Tensor | None = None) -> Tensor:
    """The mean absolute difference along time of a clip [1, 3, T, H, W], of its first or second ``order``."""
    found = clip.diff(n=order, dim=2).abs()
    if region is None:
        return found.mean()
    inside = region[:, :, None].expand_as(found) > 0
    return found[inside].mean()


def _one(is_right: bool) -> tuple[float, float]:
    return float(is_right), 1.0


def _animated(case: Case, made: Tensor) -> Measures:
    actor, seen = case.scene.actors[0], read_clip(made[0])
    read = seen.actors[0]
    steps = made.diff(dim=2).abs().mean((0, 1, 3, 4))
    return {
        "object kept": _one(read.object == actor.object),
        "colour kept": _one(read.colour == actor.colour),
        "background kept": _one(seen.background == case.scene.background),
        "motion right": _one(read.motion == actor.motion),
        "first step over mean step": (float(steps[0]), float(steps.mean())),
    }


def _cinemagraph(case: Case, made: Tensor) -> Measures:
    region = case.still_region
    outside = (region[:, :, None] == 0).expand_as(made)
    still = case.clip[:, :, :1].expand_as(made)
    # In 8 bits, as an encoder gets them, and as the clips are stored.
    of_made, of_still = (torch.from_numpy(to_uint8(clip)).movedim(-1, 1)[outside] for clip in (made, still))
    return {
        "pixels unchanged outside": _one(torch.equal(of_made, of_still)),
        "frame difference over true": _over_true(case, made, region, order=1),
        "second difference over true": _over_true(case, made, region, order=2),
    }


def _over_true(case: Case, made: Tensor, region: Tensor, *, order: int) -> tuple[float, float]:
    of_made, of_true = (differences(clip, order=order, region=region) for clip in (made, case.clip))
    return float(of_made), float(of_true)


def _across(clip: Tensor, region: Tensor) -> float:
    """The mean absolute difference of neighbouring pixels of which one is inside the region and one is not."""
    found = []
    for axis in (-1, -2):
        is_border = region.diff(dim=axis) != 0
        steps = clip.diff(dim=axis).abs()
        found.append(steps[is_border.expand_as(steps)])
    return float(torch.cat(found).mean())


def _comes_near(case: Case, made: Tensor, frames: Sequence[int]) -> list[bool]:
    """Whether the object is, one frame before the last, which was given, near its true place in each of ``frames``."""
    tracks = [read_clip(clip[0]).actors[0].track for clip in (made, case.clip)]
    if any(track is None or not bool(track.weight[-2]) for track in tracks):
        return [False] * len(frames)
    (x, y), (true_x, true_y) = ((track.pose.x, track.pose.y) for track in tracks if track is not None)
    return [bool(torch.hypot(x[-2] - true_x[frame], y[-2] - true_y[frame]) <= NEAR) for frame in frames]


def _keeps_path(case: Case, made: Tensor) -> bool:
    """Whether the object is where the source's is, in nearly all frames."""
    tracks = [read_clip(clip[0]).actors[0].track for clip in (made, case.clip)]
    if any(track is None for track in tracks):
        return False
    found, true = (track for track in tracks if track is not None)
    both = (found.weight > 0) & (true.weight > 0)
    near = torch.hypot(found.pose.x - true.pose.x, found.pose.y - true.pose.y) <= NEAR
    seen_enough = int(both.sum()) >= MOST_FRAMES * int((true.weight > 0).sum())
    return seen_enough and float(near[both].float().mean()) >= MOST_FRAMES
