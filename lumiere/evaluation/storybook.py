"""Reads storybook clips: which object, colour, background, motion and speed they show, or that it cannot be said.

Analytic, without a trained network: the storybook's own palettes, outlines and motions are fitted to the frames, at
32x32 whatever the clip's size. The reader was fixed before the first score of shipped weights and must not change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lumiere.data.drawing import BACKGROUNDS, COLOURS
from lumiere.data.storybook import Pose
from lumiere.evaluation.mixtures import read_colour, unexplained
from lumiere.evaluation.motions import MotionReading, Track, read_motion
from lumiere.evaluation.scenery import SIZE, behind, read_background
from lumiere.evaluation.shapes import (
    OBJECTS,
    SYMMETRY,
    Fit,
    Sight,
    better,
    fill_area,
    fit,
    fit_guesses,
    fit_objects,
    guess,
    join,
    shares_left,
    soften,
)

UNREADABLE = "unreadable"
COLOUR_NAMES = tuple(COLOURS)
STILLS_AT_ONCE = 32
"""Stills that are fitted together: enough to be fast, few enough for little memory."""
FRAMES_FOR_BACKGROUND = 8
FRAMES_FOR_COLOUR = 16
FRAMES_FOR_OBJECT = 10
CORE, OVERLAP = 0.15, 0.35
"""Beyond ``CORE`` of the middle there is one actor of two; within ``OVERLAP`` it may reach over to the other side."""
SAME_COLOUR = 0.2
GOOD_LEFT_IN_FRAME = 0.02
"""A frame of which the object leaves more is tried again from its neighbours' poses."""
MAX_LEFT_IN_FRAME = 0.45
"""Most that the object may leave in one frame to count as found there."""
MAX_LEFT = 0.18
"""Most of the difference to the empty page that a readable object may leave unexplained."""
MAX_BEHIND, MIN_KEPT = 0.05, 0.75
"""The object of a clip is in this share of its frames at most so far behind the best of the frame."""
MAX_LEFT_OF_ANYTHING = 0.6
"""Where even the best object leaves more than this there is no actor, and no colour of one."""
MIN_LEAD = 0.20
"""The second best object leaves more than the best one by at least this share of what it leaves itself."""
SLIGHT = 0.03
"""A share this small is left by noise; it is added before shares are compared."""


@dataclass(frozen=True)
class ActorReading:
    """What one actor is seen to be; each word can be "unreadable". ``left`` is the share that its shape leaves."""

    object: str = UNREADABLE
    colour: str = UNREADABLE
    motion: str = UNREADABLE
    speed: str = UNREADABLE
    left: float = 1.0
    track: Track | None = None
    measured: MotionReading | None = None


@dataclass(frozen=True)
class Reading:
    """What a frame or clip is seen to show; actors from left to right."""

    background: str
    actors: tuple[ActorReading, ...]


def read_still(picture: Tensor) -> Reading:
    """What one frame [3, H, W] in -1..1 shows: background, and the object and colour of one actor."""
    return read_stills(picture[None])[0]


def read_stills(pictures: Tensor) -> list[Reading]:
    """What frames [B, 3, H, W] in -1..1 show, each read by itself."""
    frames = canonical(pictures)
    return [reading for chunk in frames.split(STILLS_AT_ONCE) for reading in _read_some_stills(chunk)]


def canonical(pictures: Tensor) -> Tensor:
    """Square frames [N, 3, H, W] in -1..1 as the reader sees them: [N, 3, 32, 32] in 0..1, on the CPU."""
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] != pictures.shape[3]:
        raise ValueError(f"the reader needs square frames [N, 3, H, W]; got {list(pictures.shape)}")
    if pictures.shape[-1] < SIZE:
        raise ValueError(f"frames are {pictures.shape[-1]} pixels wide; the reader needs {SIZE} or more")
    frames = (pictures.detach().float().cpu().clamp(-1, 1) + 1) / 2
    return frames if frames.shape[-1] == SIZE else F.interpolate(frames, (SIZE, SIZE), mode="area")


def _read_some_stills(frames: Tensor) -> list[Reading]:
    names, colours, sights = [], [], []
    for frame in frames.split(1):
        background, cast, is_known = read_background(frame)
        frame = frame - cast
        page, foreign = behind(frame, background)
        colour, fill, is_clear = read_colour(frame, page, foreign)
        names.append(BACKGROUNDS[background] if is_known else UNREADABLE)
        colours.append(COLOUR_NAMES[colour] if is_clear else UNREADABLE)
        sights.append(_sight(frame, page, fill, torch.ones_like(foreign)))
    sight = join(sights)
    residual, total = shares_left(fit_objects(sight), sight)
    actors = [_still_actor(colour, row) for colour, row in zip(colours, (residual / total).T, strict=True)]
    return [Reading(name, (actor,)) for name, actor in zip(names, actors, strict=True)]


def _still_actor(colour: str, left: Tensor) -> ActorReading:
    if colour == UNREADABLE or float(left.min()) > MAX_LEFT_OF_ANYTHING:
        return ActorReading(left=float(left.min()))
    return ActorReading(choose_object(left), colour, left=float(left.min()))


def _sight(frames: Tensor, page: Tensor, fill: Tensor, weight: Tensor) -> Sight:
    return Sight(soften(frames), soften(page), fill.expand(len(frames), 3), weight)


def choose_object(left: Tensor) -> str:
    """The object that leaves the least of the difference to the empty page, or "unreadable"; ``left`` is [8]."""
    best, second = left.topk(2, largest=False).indices.tolist()
    lead = (left[second] - left[best]) / (left[second] + SLIGHT)
    is_readable = left[best] <= MAX_LEFT and lead >= MIN_LEAD
    return OBJECTS[best] if is_readable else UNREADABLE


# Clips.


def read_clip(clip: Tensor) -> Reading:
    """What a clip [3, T, H, W] in -1..1 with one actor shows."""
    frames, page, foreign, name = _read_page(clip)
    return Reading(name, (_read_actor(frames, page, foreign, torch.ones_like(foreign)),))


def _read_page(clip: Tensor) -> tuple[Tensor, Tensor, Tensor, str]:
    """The frames [T, 3, 32, 32], what lies behind, how foreign each pixel is [T, 32, 32], and the background."""
    if clip.ndim != 4 or clip.shape[0] != 3:
        raise ValueError(f"a clip to read has shape [3, T, H, W]; got {list(clip.shape)}")
    frames = canonical(clip.transpose(0, 1))
    background, cast, is_known = read_background(_some(frames, FRAMES_FOR_BACKGROUND))
    frames = frames - cast
    page, foreign = behind(frames, background)
    return frames, page, foreign, BACKGROUNDS[background] if is_known else UNREADABLE


def read_pair(clip: Tensor) -> Reading:
    """What a clip [3, T, H, W] in -1..1 with two actors, one to the left and one to the right, shows."""
    frames, page, foreign, name = _read_page(clip)
    sides = _middle_distance(frames)
    colours = [read_colour(*_for_colour(frames, page, foreign * (side > CORE))) for side in sides]
    actors = []
    for index, side in enumerate(sides):
        weight = _own_pixels(frames, page, colours[index][1], colours[1 - index][1], side)
        actors.append(_read_actor(frames, page, foreign, weight * torch.ones_like(foreign), is_pair=True))
    return Reading(name, tuple(actors))


def _middle_distance(frames: Tensor) -> tuple[Tensor, Tensor]:
    """How far [1, 1, W] each column lies in the left half, and in the right one; negative in the other."""
    width = frames.shape[-1]
    x = ((torch.arange(width) + 0.5) * 2 / width - 1).view(1, 1, -1)
    return -x, x


def _own_pixels(frames: Tensor, page: Tensor, own: Tensor, other: Tensor, side: Tensor) -> Tensor:
    """Which pixels [T, H, W] may speak for an actor: those of its side, and of another colour not the other's."""
    if (own - other).norm() < SAME_COLOUR:
        return (side > 0).float()
    is_other = unexplained(frames, page, other) < 0.5 * unexplained(frames, page, own) - 0.01
    return (side > -OVERLAP).float() * (1 - is_other.float())


def _some(frames: Tensor, count: int) -> Tensor:
    """About ``count`` of the frames, evenly spaced."""
    return frames[:: max(1, len(frames) // count)]


def _for_colour(frames: Tensor, page: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _some(frames, FRAMES_FOR_COLOUR), _some(page, FRAMES_FOR_COLOUR), _some(weight, FRAMES_FOR_COLOUR)


def _read_actor(
    frames: Tensor, page: Tensor, foreign: Tensor, weight: Tensor, *, is_pair: bool = False
) -> ActorReading:
    """What the one actor does that is seen where ``weight`` [T, H, W] is not 0."""
    colour, fill, is_clear = read_colour(*_for_colour(frames, page, foreign * weight))
    if not is_clear:
        return ActorReading()
    sight = _sight(frames, page, fill, weight)
    rows = _telling_frames(sight)
    chosen = sight[rows]
    residual, total = shares_left(fit_objects(chosen), chosen)
    left = residual.sum(1) / total.sum()
    if float(left.min()) > MAX_LEFT_OF_ANYTHING:
        return ActorReading(left=float(left.min()))
    track = track_object(int(left.argmin()), sight)
    measured = read_motion(track, is_pair=is_pair)
    return ActorReading(
        object=choose_object(left) if _is_one_object(residual / total) else UNREADABLE,
        colour=COLOUR_NAMES[colour],
        motion=measured.motion or UNREADABLE,
        speed=measured.speed or UNREADABLE,
        left=float(left.min()),
        track=track,
        measured=measured,
    )


def _is_one_object(left: Tensor) -> bool:
    """Whether one object is the best or near the best, by the shares [8, N] that they leave, in most frames."""
    is_near_best = left[left.sum(1).argmin()] <= left.amin(0) + MAX_BEHIND
    return float(is_near_best.float().mean()) >= MIN_KEPT


def _telling_frames(sight: Sight) -> Tensor:
    """The frames that show most of the actor, one from each stretch of the clip."""
    area = fill_area(sight)
    inside = area.sum((1, 2)) - 3 * (area[:, [0, -1]].sum((1, 2)) + area[:, :, [0, -1]].sum((1, 2)))
    stretches = torch.arange(len(inside)).tensor_split(min(FRAMES_FOR_OBJECT, len(inside)))
    return torch.stack([rows[inside[rows].argmax()] for rows in stretches])


def track_object(kind: int, sight: Sight) -> Track:
    """The object's pose in every frame, from a search in each and then from its neighbours' poses."""
    name = OBJECTS[kind]
    found = fit_guesses(name, guess(fill_area(sight), (kind,))[:, 0, :2], sight, num_steps=4)
    total = shares_left([found], sight)[1]
    for shift in (1, -1):
        rows = (found.residual > GOOD_LEFT_IN_FRAME * total).nonzero()[:, 0]
        if len(rows):
            again = fit(name, found.pose.roll(shift, 0)[rows], sight[rows], num_steps=3)
            poses = found.pose.index_copy(0, rows, again.pose)
            found = better(found, Fit(poses, found.residual.index_copy(0, rows, again.residual)))
    share = found.residual / total
    x, y, log_radius, angle = found.pose.T
    is_found = (share < MAX_LEFT_IN_FRAME).float()
    return Track(Pose(x, y, log_radius.exp(), angle), is_found, SYMMETRY.get(name, 1))
