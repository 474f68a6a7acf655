"""Which motion a measured track is, and how fast: the storybook's own motions fitted to it, the best one kept.

Every motion is drawn over a grid of durations and phases by ``storybook.pose``; size of the movement and resting
place are solved for. A motion is named when it leaves little of what a still object would leave.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lumiere.data.storybook import (
    MOTIONS,
    PERIOD_S,
    RADIUS,
    REPEATING_MOTIONS,
    TRAVEL_S,
    Actor,
    Pose,
    frame_times,
    pose,
)

PLACE_ERROR = 0.05
RADIUS_ERROR = 0.025
ANGLE_ERROR = 0.12
"""What counts as one unit of difference in x and y, in radius, and in turn (radians)."""
MIN_MOVEMENT = 2.0
"""Mean squared difference to a still object, in those units, of something that moves."""
MAX_LEFT = 0.30
"""Most of that difference that a motion may leave to be named."""
MIN_LEAD = 0.15
"""The second best motion leaves more than the best one by at least this share of what it leaves itself."""
MIN_GAIN, MAX_GAIN = 0.5, 1.6
"""How large a movement may be beside the storybook's own."""
MIN_TRACKED = 0.7
"""Share of frames in which the object must have been found."""
SPEED_TOLERANCE = 1.4
"""A duration within this factor of a speed's own, and nearest to it, is that speed."""
PERIODS_S = (0.6, 4.2)
TRAVELS_S = (0.6, 5.4)
"""Durations that are tried; of a movement that lasts longer than the five seconds only the pace can be seen."""
DURATION_STEP = 1.03
NUM_PHASES = 16
REFINE = 4


@dataclass(frozen=True)
class Track:
    """An object's measured pose in each of T frames; ``weight`` [T] is 0 where it was not found.

    ``symmetry`` is how many turns of the object look the same; its angle is known only up to them.
    """

    pose: Pose
    weight: Tensor
    symmetry: int = 1


@dataclass(frozen=True)
class MotionReading:
    """The best explanation of a track; words are None when nothing explains it well enough.

    ``duration_s`` is the period or the time of travel, ``left`` the share of the movement that stays unexplained,
    ``movement`` the mean squared difference to a still object in units of measurement error.
    """

    motion: str | None
    speed: str | None
    duration_s: float
    left: float
    movement: float


def read_motion(track: Track, *, is_pair: bool = False) -> MotionReading:
    """What the track's object does."""
    num_frames = len(track.weight)
    total = track.weight.sum()
    if total < MIN_TRACKED * num_frames:
        return MotionReading(None, None, math.nan, 1.0, 0.0)
    still = float(_unexplained(track, *_one_still(num_frames))[0])
    movement = still / float(total)
    if movement < MIN_MOVEMENT:
        return MotionReading(None, None, math.nan, 1.0, movement)
    found = [(motion, *_best_duration(track, motion, is_pair=is_pair)) for motion in MOTIONS]
    found.sort(key=lambda one: one[2])
    (motion, duration, least), (_, _, second) = found[:2]
    left = least / still
    if left > MAX_LEFT or second - least < MIN_LEAD * second:
        return MotionReading(None, None, duration, left, movement)
    return MotionReading(motion, _speed(motion, duration), duration, left, movement)


def _speed(motion: str, duration_s: float) -> str | None:
    own = PERIOD_S if motion in REPEATING_MOTIONS else TRAVEL_S
    gaps = {speed: abs(math.log(duration_s / own[speed])) for speed in own}
    nearest = min(gaps, key=gaps.__getitem__)
    return nearest if gaps[nearest] <= math.log(SPEED_TOLERANCE) else None


@dataclass(frozen=True)
class Family:
    """One motion as it looks over a grid: durations [K], phases [K], direction [K] and poses [K, T]."""

    duration_s: Tensor
    phase: Tensor
    turn: Tensor
    poses: Pose


def _family(motion: str, grid: list[tuple[float, float, int]], num_frames: int, *, is_pair: bool) -> Family:
    times = frame_times(num_frames)
    own = (PERIOD_S if motion in REPEATING_MOTIONS else TRAVEL_S)["slow"]
    reach = 0.22 if is_pair else 0.52
    one = [
        pose(Actor("ball", "red", motion, "slow", phase=phase, turn=turn, reach=reach, tempo=duration / own), times)
        for duration, phase, turn in grid
    ]
    columns = [torch.stack([getattr(row, name) for row in one]) for name in ("x", "y", "scale", "angle")]
    duration, phase, turn = torch.tensor(grid).T
    return Family(duration, phase, turn, Pose(*columns))


@lru_cache(maxsize=64)
def _coarse(motion: str, num_frames: int, is_pair: bool) -> Family:
    low, high = PERIODS_S if motion in REPEATING_MOTIONS else TRAVELS_S
    count = math.ceil(math.log(high / low) / math.log(DURATION_STEP))
    durations = [low * DURATION_STEP**step for step in range(count + 1)]
    phases = [0.0]
    if motion in REPEATING_MOTIONS and motion != "spin":
        phases = [step / NUM_PHASES for step in range(NUM_PHASES)]
    turns = (1, -1) if motion in ("orbit", "spin") else (1,)
    grid = [(duration, phase, turn) for duration in durations for phase in phases for turn in turns]
    return _family(motion, grid, num_frames, is_pair=is_pair)


@lru_cache(maxsize=8)
def _one_still(num_frames: int) -> tuple[Pose, str]:
    row = torch.zeros(1, num_frames)
    return Pose(row, row, row, row), "still"


def _best_duration(track: Track, motion: str, *, is_pair: bool) -> tuple[float, float]:
    """The duration that leaves least, and what it leaves: first over the grid, then between its points."""
    num_frames = len(track.weight)
    family = _coarse(motion, num_frames, is_pair)
    left = _unexplained(track, family.poses, motion)
    best = int(left.argmin())
    duration, phase, turn = (float(column[best]) for column in (family.duration_s, family.phase, family.turn))
    fine = [step / REFINE for step in range(1 - REFINE, REFINE)]
    phases = [phase + step / NUM_PHASES for step in fine] if motion in REPEATING_MOTIONS else [0.0]
    grid = [(duration * DURATION_STEP**step, near, int(turn)) for step in fine for near in phases]
    refined = _family(motion, grid, num_frames, is_pair=is_pair)
    left = _unexplained(track, refined.poses, motion)
    best = int(left.argmin())
    return float(refined.duration_s[best]), float(left[best])


def _unexplained(track: Track, poses: Pose, motion: str) -> Tensor:
    """The weighted squared difference [K] between the track and each pose [K, T], in units of measurement error."""
    weight = track.weight / track.weight.sum()
    seen = torch.stack([track.pose.x / PLACE_ERROR, track.pose.y / PLACE_ERROR, track.pose.scale / RADIUS_ERROR])
    drawn = torch.stack([poses.x / PLACE_ERROR, poses.y / PLACE_ERROR, poses.scale * (RADIUS / RADIUS_ERROR)], dim=1)
    seen = seen - (seen * weight).sum(-1, keepdim=True)
    drawn = drawn - (drawn * weight).sum(-1, keepdim=True)
    common, own = (drawn * seen * weight).sum((1, 2)), (drawn.square() * weight).sum((1, 2))
    gain = torch.where(own > 1e-6, common / own.clamp(min=1e-6), torch.ones_like(own)).clamp(MIN_GAIN, MAX_GAIN)
    place = (seen.square() * weight).sum() - 2 * gain * common + gain.square() * own
    size = gain[:, None] if motion == "swing" else 1.0
    gap = track.symmetry * (track.pose.angle - size * poses.angle)
    agreement = torch.hypot((gap.cos() * weight).sum(-1), (gap.sin() * weight).sum(-1))
    turning = 2 * (1 - agreement) / track.symmetry**2 / ANGLE_ERROR**2
    return (place + turning) * track.weight.sum()
