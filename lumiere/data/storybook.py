"""The storybook: endless animated illustrations with exact captions, drawn in torch at any size.

A scene is a background and one or two actors; an actor is an object with a colour, a motion and a speed. Everything
that a caption says is known, so a clip can be read back and scored (``evaluation/storybook.py``). A fixed tenth of
the object x colour x motion x background combinations is held out: training never draws it.

Places are in half picture widths: x and y run from -1 to 1, y points down. Times are in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lumiere.data.drawing import BACKGROUNDS, COLOURS, draw
from lumiere.data.outlines import OUTLINES
from lumiere.video import FPS, between

OBJECTS = tuple(OUTLINES)
REPEATING_MOTIONS = ("bounce", "swing", "orbit", "spin", "pulse")
ONE_WAY_MOTIONS = ("slide right", "slide left", "rise", "fall", "grow")
TURNING_MOTIONS = ("spin", "swing")
"""Those in which the object turns: every other shows it upright."""
RESIZING_MOTIONS = ("pulse", "grow")
"""Those in which its size changes."""
OPEN_MOTIONS = ("orbit", "spin")
"""Those that go round one way or the other, which words leave open."""
MOTIONS = REPEATING_MOTIONS + ONE_WAY_MOTIONS
SPEEDS = ("slow", "fast")
PERIOD_S = {"slow": 2.5, "fast": 1.0}
"""One repetition; a spinning object takes twice as long for a full turn."""
TRAVEL_S = {"slow": 4.8, "fast": 1.6}
"""How long a one-way motion takes; then the object rests."""
RADIUS = 0.42
"""Middle to edge of a lone object: it fills about 0.4 of the picture's width."""
PAIR_RADIUS = 0.30
MARGIN = 0.1
"""How far around an object its region reaches, in picture heights."""


@dataclass(frozen=True)
class Actor:
    """One object and what it does; ``x``, ``y`` is where, ``phase`` (0..1) and ``turn`` (-1 or 1) say how it starts."""

    object: str
    colour: str
    motion: str
    speed: str
    x: float = 0.0
    y: float = 0.0
    radius: float = RADIUS
    reach: float = 0.52
    phase: float = 0.0
    turn: int = 1
    tempo: float = 1.0


@dataclass(frozen=True)
class Scene:
    """A background, its actors from back to front, and a drawing style; ``seed`` (0..1) places the scenery."""

    background: str
    actors: tuple[Actor, ...]
    style: str = "flat"
    seed: float = 0.0


def is_held_out(actor: Actor, background: str) -> bool:
    """Whether this object, colour, motion and background belong to the tenth that training never draws.

    For each object, colour and background exactly one motion is held out, so every pair of words is still seen.
    """
    place = OBJECTS.index(actor.object) + 3 * COLOUR_NAMES.index(actor.colour) + 7 * BACKGROUNDS.index(background)
    return MOTIONS.index(actor.motion) == place % len(MOTIONS)


COLOUR_NAMES = tuple(COLOURS)


def draw_scene(
    generator: torch.Generator,
    *,
    num_actors: int = 1,
    style: str = "flat",
    held_out: bool = False,
    motions: Sequence[str] = MOTIONS,
) -> Scene:
    """A random scene with one of ``motions``; with ``held_out`` from the held-out tenth, otherwise never from it."""
    while True:
        background = _choose(generator, BACKGROUNDS)
        actors = tuple(_draw_actor(generator, place, num_actors, motions) for place in range(num_actors))
        if len({(actor.object, actor.colour) for actor in actors}) < num_actors:
            continue
        if all(is_held_out(actor, background) == held_out for actor in actors):
            return Scene(background, actors, style, seed=_uniform(generator, 0, 1))


def place_actor(actor: Actor, generator: torch.Generator, *, place: int = 0, num_actors: int = 1) -> Actor:
    """The same object, colour, motion and speed, with a new place, size, phase and direction."""
    lone = num_actors == 1
    middle = 0.0 if lone else (-0.46, 0.46)[place]
    spread = 0.22 if lone else 0.06
    return Actor(
        object=actor.object,
        colour=actor.colour,
        motion=actor.motion,
        speed=actor.speed,
        x=middle + _uniform(generator, -spread, spread),
        y=_uniform(generator, -0.18, 0.22),
        radius=(RADIUS if lone else PAIR_RADIUS) * _uniform(generator, 0.93, 1.07),
        reach=0.52 if lone else 0.22,
        phase=_uniform(generator, 0, 1),
        turn=_choose(generator, (-1, 1)),
        tempo=_uniform(generator, 0.94, 1.06),
    )


def from_start(scene: Scene) -> Scene:
    """The same scene with motions that begin with the clip and keep their speed's own pace.

    The words then say where everything is at each moment, but for place, size and direction.
    """
    return replace(scene, actors=tuple(replace(actor, phase=0.0, tempo=1.0) for actor in scene.actors))


def without_actors(scene: Scene) -> Scene:
    """What is left when the actors are taken away."""
    return replace(scene, actors=())


def _draw_actor(generator: torch.Generator, place: int, num_actors: int, motions: Sequence[str]) -> Actor:
    kind = Actor(
        object=_choose(generator, OBJECTS),
        colour=_choose(generator, COLOUR_NAMES),
        motion=_choose(generator, motions),
        speed=_choose(generator, SPEEDS),
    )
    return place_actor(kind, generator, place=place, num_actors=num_actors)


@dataclass(frozen=True)
class Pose:
    """Where an actor is at some times [T]: middle x and y, scale (1 is its own radius) and turn in radians."""

    x: Tensor
    y: Tensor
    scale: Tensor
    angle: Tensor


def pose(actor: Actor, times_s: Tensor) -> Pose:
    """The actor's pose at ``times_s`` [T]."""
    still = torch.zeros_like(times_s)
    x, y, scale, angle = still + actor.x, still + actor.y, still + 1, still
    cycle = 2 * math.pi * (times_s / (PERIOD_S[actor.speed] * actor.tempo) + actor.phase)
    travel = (times_s / (TRAVEL_S[actor.speed] * actor.tempo)).clamp(0, 1)
    reach = actor.reach
    match actor.motion:
        case "bounce":
            y = 0.55 - (1.05 if reach > 0.4 else 0.8) * torch.sin(cycle / 2).abs()
        case "swing":
            angle = 0.85 * torch.sin(cycle) * min(1.0, reach / 0.5 + 0.2)
            x, y = actor.x + 0.80 * reach / 0.52 * torch.sin(angle), -0.55 + 0.85 * torch.cos(angle)
            angle = -angle
        case "orbit":
            x = actor.x * 0.3 + (0 if reach > 0.4 else actor.x * 0.7) + reach * torch.cos(actor.turn * cycle)
            y = actor.y * 0.2 + reach * torch.sin(actor.turn * cycle)
        case "spin":
            angle = actor.turn * cycle / 2
        case "pulse":
            scale = 1 + 0.38 * torch.sin(cycle)
        case "slide right":
            x = actor.x * 0.1 + (0 if reach > 0.4 else actor.x * 0.9) + reach * 1.1 * (2 * travel - 1)
        case "slide left":
            x = actor.x * 0.1 + (0 if reach > 0.4 else actor.x * 0.9) - reach * 1.1 * (2 * travel - 1)
        case "rise":
            y = -0.58 * (2 * travel - 1)
        case "fall":
            y = 0.58 * (2 * travel - 1)
        case "grow":
            scale = 0.45 + 0.85 * travel
        case _:
            raise ValueError(f"motion is {actor.motion!r}; known are {', '.join(MOTIONS)}")
    return Pose(x, y, scale, angle)


def render(scenes: Sequence[Scene], times_s: Tensor, *, size: int | tuple[int, int]) -> Tensor:
    """The clips [B, 3, T, H, W] in -1..1 of the scenes at ``times_s``, [T] or a row for each scene [B, T].

    Scenes of one call have the same number of actors and one style. Drawn on the device of ``times_s``.
    """
    counts, styles = {len(scene.actors) for scene in scenes}, {scene.style for scene in scenes}
    if len(counts) != 1 or len(styles) != 1:
        raise ValueError(f"scenes of one call share style and number of actors; got {styles} and {counts}")
    times = times_s.expand(len(scenes), -1) if times_s.ndim == 1 else times_s
    height, width = (size, size) if isinstance(size, int) else size
    actors = []
    for place in range(counts.pop()):
        members = [scene.actors[place] for scene in scenes]
        poses = [pose(actor, row) for actor, row in zip(members, times, strict=True)]
        actors.append(
            {
                "object": [actor.object for actor in members],
                "colour": [actor.colour for actor in members],
                "x": torch.stack([one.x for one in poses]),
                "y": torch.stack([one.y for one in poses]),
                "scale": torch.stack([one.scale * a.radius for one, a in zip(poses, members, strict=True)]),
                "angle": torch.stack([one.angle for one in poses]),
            }
        )
    seeds = torch.tensor([scene.seed for scene in scenes], device=times.device)
    backgrounds = [scene.background for scene in scenes]
    return draw(backgrounds, seeds, actors, times, style=styles.pop(), height=height, width=width)


HULL = 1.3
"""How far an object reaches from its middle at most, in its radii, with a margin."""


def motion_between(
    scenes: Sequence[Scene], from_s: Tensor, to_s: Tensor, *, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """How actors have moved from times ``from_s`` [B] to ``to_s`` [B, T], at every place of a grid of ``size``.

    The affine maps [B, T, h, w, 2, 3] from (x, y, 1) at the later time, in -1..1 over the picture, to where it was; and
    whether an actor is near there, [B, T, h, w]. Where none is, things have stayed. Pictures are squares.
    """
    height, width = size
    if height != width:
        raise ValueError(f"places are {height} x {width}; maps are of square pictures")
    middles = (torch.arange(width, device=to_s.device) + 0.5) * (2 / width) - 1
    maps = torch.eye(2, 3, device=to_s.device).expand(len(scenes), to_s.shape[1], height, width, 2, 3).clone()
    is_near = torch.zeros(len(scenes), to_s.shape[1], height, width, dtype=torch.bool, device=to_s.device)
    for row, scene in enumerate(scenes):
        for actor in scene.actors:
            then, now = pose(actor, from_s[row : row + 1]), pose(actor, to_s[row])
            ratio, angle = then.scale / now.scale, then.angle - now.angle
            cos, sin = ratio * angle.cos(), ratio * angle.sin()
            x, y = then.x - cos * now.x + sin * now.y, then.y - sin * now.x - cos * now.y
            of_actor = torch.stack((torch.stack((cos, -sin, x), -1), torch.stack((sin, cos, y), -1)), -2)
            far = torch.hypot(middles - now.x[:, None, None], middles[:, None] - now.y[:, None, None])
            near = far < HULL * actor.radius * now.scale[:, None, None]
            maps[row] = torch.where(near[..., None, None], of_actor[:, None, None], maps[row])
            is_near[row] |= near
    return maps, is_near


def object_pixels(clip: Tensor, empty: Tensor) -> Tensor:
    """True [B, 1, T, H, W] where a clip differs from the same one without its actors."""
    return (clip - empty).abs().amax(1, keepdim=True) > 0.02


def object_region(clip: Tensor, empty: Tensor) -> Tensor:
    """A box [B, 1, T, H, W] of 1 in each frame around all that differs from the clip without it, and a margin."""
    differs = object_pixels(clip, empty)
    margin = max(1, round(MARGIN * clip.shape[-2]))
    rows, columns = (_span(differs.any(axis), margin) for axis in (-1, -2))
    return (rows[..., :, None] & columns[..., None, :]).to(clip)


def _span(is_there: Tensor, margin: int) -> Tensor:
    """All places [..., N] between the first and the last that is true, and ``margin`` beyond both."""
    wide = F.max_pool1d(is_there.float().flatten(0, -2), 2 * margin + 1, stride=1, padding=margin).view(is_there.shape)
    return between(wide > 0)


def frame_times(num_frames: int = 80, *, start_s: float = 0.0) -> Tensor:
    """The times [T] in seconds of ``num_frames`` frames at the clip's rate."""
    return start_s + torch.arange(num_frames) / FPS


def _choose(generator: torch.Generator, options: Sequence):  # type: ignore[type-arg,no-untyped-def]
    return options[int(torch.randint(len(options), (), generator=generator))]


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
