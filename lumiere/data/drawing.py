"""How the storybook is drawn: backgrounds whose scenery moves by itself, actors over them, and five styles.

Colours are 0..1 until the last line; coordinates as in ``storybook``. All functions draw a whole batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lumiere.data.outlines import OUTLINES

COLOURS = {
    "red": (0.88, 0.12, 0.14),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (1.00, 0.90, 0.16),
    "green": (0.10, 0.62, 0.18),
    "cyan": (0.10, 0.84, 0.88),
    "blue": (0.12, 0.26, 0.88),
    "purple": (0.52, 0.14, 0.72),
    "pink": (1.00, 0.50, 0.76),
}
STYLES = ("flat", "line", "neon", "watercolour", "mosaic")


@dataclass(frozen=True)
class Page:
    """The coordinates of every pixel, x and y [1, 1, H, W]; times and seeds [B, T, 1, 1]; one pixel's width."""

    x: Tensor
    y: Tensor
    time_s: Tensor
    seed: Tensor
    pixel: float


def draw(
    backgrounds: Sequence[str],
    seeds: Tensor,
    actors: Sequence[dict[str, Any]],
    times_s: Tensor,
    *,
    style: str,
    height: int,
    width: int,
) -> Tensor:
    """The clips [B, 3, T, H, W] in -1..1; ``actors`` hold names [B] and poses [B, T], back to front.

    Raises ValueError when the style, a background or an object is unknown.
    """
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; known are {', '.join(STYLES)}")
    page = _page(times_s, seeds, height, width)
    picture = STYLE_SCENERY[style](_scenery(backgrounds, page), page)
    distances = [_distance(actor, page) for actor in actors]
    colours = [torch.tensor([COLOURS[name] for name in actor["colour"]], device=times_s.device) for actor in actors]
    for actor, distance, colour in zip(actors, distances, colours, strict=True):
        paint = STYLE_ACTORS[style]
        picture = paint(picture, distance, colour[:, None, None, None], _marks(actor, page), page)
    picture = STYLE_PAGES[style](picture, page)
    return picture.clamp(0, 1).permute(0, 4, 1, 2, 3) * 2 - 1


def _page(times_s: Tensor, seeds: Tensor, height: int, width: int) -> Page:
    unit = 2 / min(height, width)
    x = (torch.arange(width, device=times_s.device) + 0.5 - width / 2) * unit
    y = (torch.arange(height, device=times_s.device) + 0.5 - height / 2) * unit
    return Page(x.view(1, 1, 1, -1), y.view(1, 1, -1, 1), times_s[..., None, None], seeds.view(-1, 1, 1, 1), unit)


def _cover(distance: Tensor, pixel: float) -> Tensor:
    """How much of each pixel lies inside, 0..1, as a layer [..., 1]."""
    return (0.5 - distance / pixel).clamp(0, 1).unsqueeze(-1)


def _colour(rgb: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(rgb, device=like.device)


def _blend(below: Tensor, cover: Tensor, rgb: Tensor) -> Tensor:
    return below + cover * (rgb - below)


# The scenery of each background.


def _gradient(page: Page, top: Sequence[float], bottom: Sequence[float]) -> Tensor:
    place = ((page.y + 1) / 2).clamp(0, 1).unsqueeze(-1)
    upper, lower = _colour(top, page.y), _colour(bottom, page.y)
    shape = torch.broadcast_shapes(page.time_s.shape, page.seed.shape, page.x.shape, page.y.shape)
    return (upper + place * (lower - upper)).expand(*shape, 3)


def _hills(page: Page, level: float, height: float, frequency: float, shift: float = 0.0) -> Tensor:
    return level + height * torch.sin(frequency * page.x + 2 * math.pi * (page.seed + shift)) - page.y


def _sea(page: Page) -> Tensor:
    sky = _gradient(page, (0.80, 0.90, 0.97), (0.93, 0.96, 0.97))
    swell = 2 * math.pi * (page.time_s / 2.5 + page.seed)
    far = 0.18 + 0.05 * torch.sin(5.0 * page.x + swell) - page.y
    near = 0.58 + 0.07 * torch.sin(4.0 * page.x - 1.3 * swell) - page.y
    water = _blend(sky, _cover(far, page.pixel), _colour((0.42, 0.68, 0.80), page.y))
    return _blend(water, _cover(near, page.pixel), _colour((0.27, 0.54, 0.70), page.y))


def _snow(page: Page) -> Tensor:
    picture = _gradient(page, (0.62, 0.68, 0.78), (0.78, 0.82, 0.88))
    picture = _blend(picture, _cover(_hills(page, 0.55, 0.08, 2.2), page.pixel), _colour((0.96, 0.97, 0.99), page.y))
    flakes = None
    for index in range(9):
        place = torch.frac(page.seed * 7.3 + index * 0.618034)
        x = 2.2 * torch.frac(place + 0.04 * torch.sin(page.time_s + index)) - 1.1
        y = 2.4 * torch.frac(index * 0.37 + page.seed * 3.1 + page.time_s * (0.13 + 0.02 * (index % 3))) - 1.2
        flake = torch.hypot(page.x - x, page.y - y) - 0.065
        flakes = flake if flakes is None else torch.minimum(flakes, flake)
    assert flakes is not None
    return _blend(picture, _cover(flakes, page.pixel), _colour((1.0, 1.0, 1.0), page.y))


def _meadow(page: Page) -> Tensor:
    picture = _gradient(page, (0.66, 0.84, 0.97), (0.86, 0.94, 0.98))
    clouds = None
    for index, (height, width) in enumerate(((-0.72, 0.30), (-0.45, 0.22))):
        x = 3.0 * torch.frac(page.seed + 0.5 * index + page.time_s * 0.03) - 1.5
        cloud = (torch.hypot((page.x - x) / width, (page.y - height) / 0.13) - 1) * 0.13
        clouds = cloud if clouds is None else torch.minimum(clouds, cloud)
    assert clouds is not None
    picture = _blend(picture, _cover(clouds, page.pixel), _colour((1.0, 1.0, 1.0), page.y))
    back, front = _hills(page, 0.38, 0.12, 2.4), _hills(page, 0.66, 0.10, 3.1, 0.4)
    picture = _blend(picture, _cover(back, page.pixel), _colour((0.68, 0.83, 0.52), page.y))
    return _blend(picture, _cover(front, page.pixel), _colour((0.54, 0.74, 0.42), page.y))


def _night(page: Page) -> Tensor:
    picture = _gradient(page, (0.05, 0.06, 0.17), (0.13, 0.14, 0.32))
    for index in range(8):
        x = 2 * torch.frac(page.seed * 5.7 + index * 0.618034) - 1
        y = 1.3 * torch.frac(page.seed * 2.9 + index * 0.754878) - 0.97
        shine = 0.55 + 0.45 * torch.sin(2 * math.pi * (page.time_s / 2.2 + index * 0.3))
        light = _cover(torch.hypot(page.x - x, page.y - y) - 0.05, page.pixel) * shine.unsqueeze(-1)
        picture = _blend(picture, light, _colour((0.97, 0.95, 0.75), page.y))
    return _blend(picture, _cover(_hills(page, 0.60, 0.10, 2.6), page.pixel), _colour((0.03, 0.04, 0.10), page.y))


def _desert(page: Page) -> Tensor:
    picture = _gradient(page, (0.99, 0.93, 0.78), (0.98, 0.86, 0.66))
    back, front = _hills(page, 0.32, 0.13, 1.9), _hills(page, 0.64, 0.11, 2.7, 0.3)
    picture = _blend(picture, _cover(back, page.pixel), _colour((0.90, 0.75, 0.50), page.y))
    return _blend(picture, _cover(front, page.pixel), _colour((0.80, 0.62, 0.38), page.y))


def _dusk(page: Page) -> Tensor:
    picture = _gradient(page, (0.44, 0.33, 0.52), (0.93, 0.62, 0.52))
    x = 1.2 * page.seed - 0.6
    sun = torch.hypot(page.x - x, page.y - 0.42 - 0.012 * page.time_s) - 0.24
    picture = _blend(picture, _cover(sun, page.pixel), _colour((1.0, 0.83, 0.62), page.y))
    return _blend(picture, _cover(_hills(page, 0.56, 0.09, 2.3), page.pixel), _colour((0.28, 0.19, 0.33), page.y))


SCENERY: dict[str, Callable[[Page], Tensor]] = {
    "sea": _sea,
    "snow": _snow,
    "meadow": _meadow,
    "night": _night,
    "desert": _desert,
    "dusk": _dusk,
}
BACKGROUNDS = tuple(SCENERY)


def _scenery(backgrounds: Sequence[str], page: Page) -> Tensor:
    shape = torch.broadcast_shapes(page.time_s.shape, page.seed.shape, page.x.shape, page.y.shape)
    picture = torch.empty(*shape, 3, device=page.x.device)
    for name in dict.fromkeys(backgrounds):
        if name not in SCENERY:
            raise ValueError(f"background is {name!r}; known are {', '.join(BACKGROUNDS)}")
        rows = torch.tensor([index for index, other in enumerate(backgrounds) if other == name], device=page.x.device)
        part = Page(page.x, page.y, page.time_s[rows], page.seed[rows], page.pixel)
        picture[rows] = SCENERY[name](part)
    return picture


# Actors.


def _local(actor: dict[str, Any], page: Page) -> tuple[Tensor, Tensor, Tensor]:
    """Each pixel in the actor's own upright coordinates, in units of its radius, and the radius."""
    scale = actor["scale"][..., None, None]
    x, y = page.x - actor["x"][..., None, None], page.y - actor["y"][..., None, None]
    cos, sin = torch.cos(actor["angle"])[..., None, None], torch.sin(actor["angle"])[..., None, None]
    return (cos * x + sin * y) / scale, (cos * y - sin * x) / scale, scale


def _distance(actor: dict[str, Any], page: Page) -> Tensor:
    """The signed distance [B, T, H, W] to the actor's outline."""
    x, y, scale = _local(actor, page)
    distance = torch.empty_like(x)
    for name in dict.fromkeys(actor["object"]):
        if name not in OUTLINES:
            raise ValueError(f"object is {name!r}; known are {', '.join(OUTLINES)}")
        rows = torch.tensor([index for index, other in enumerate(actor["object"]) if other == name], device=x.device)
        distance[rows] = OUTLINES[name](x[rows], y[rows])
    return distance * scale


def _marks(actor: dict[str, Any], page: Page) -> tuple[Tensor, Tensor]:
    """Signed distances to the light and the dark marks: a ball's stripe, which shows its turning, and a fish's eye."""
    x, y, scale = _local(actor, page)
    far = torch.full_like(x[:1], 9.0)
    light = [(y[row].abs() - 0.20) if name == "ball" else far[0] for row, name in enumerate(actor["object"])]
    dark = [
        torch.hypot(x[row] + 0.62, y[row] + 0.12) - 0.12 if name == "fish" else far[0]
        for row, name in enumerate(actor["object"])
    ]
    return torch.stack(light) * scale, torch.stack(dark) * scale


def _flat_actor(below: Tensor, distance: Tensor, colour: Tensor, marks: tuple[Tensor, Tensor], page: Page) -> Tensor:
    light, dark = marks
    outline = colour * 0.38
    fill = _blend(colour.expand(*distance.shape, 3), _cover(light, page.pixel), 0.25 * colour + 0.75)
    fill = _blend(fill, _cover(dark, page.pixel), outline)
    below = _blend(below, _cover(distance, page.pixel), outline.expand_as(fill))
    return _blend(below, _cover(distance + 0.065, page.pixel), fill)


def _line_actor(below: Tensor, distance: Tensor, colour: Tensor, marks: tuple[Tensor, Tensor], page: Page) -> Tensor:
    light, dark = marks
    paper = _colour((0.98, 0.97, 0.94), distance)
    stroke = torch.minimum(distance.abs(), torch.maximum(distance, light.abs()))
    stroke = torch.minimum(stroke, torch.maximum(distance, dark)) - 0.03
    below = _blend(below, _cover(distance, page.pixel), (0.80 * paper + 0.20 * colour).expand(*distance.shape, 3))
    return _blend(below, _cover(stroke, page.pixel), (0.75 * colour).expand(*distance.shape, 3))


def _neon_actor(below: Tensor, distance: Tensor, colour: Tensor, marks: tuple[Tensor, Tensor], page: Page) -> Tensor:
    light, _ = marks
    tube = torch.minimum(distance.abs(), torch.maximum(distance, light.abs()))
    glow = torch.exp(-tube / 0.09).unsqueeze(-1)
    below = _blend(below, 0.75 * _cover(distance, page.pixel), 0.12 * colour.expand(*distance.shape, 3))
    return below + glow * (0.85 * colour + 0.10) + _cover(tube - 0.025, page.pixel) * 0.5


def _watercolour_actor(
    below: Tensor, distance: Tensor, colour: Tensor, marks: tuple[Tensor, Tensor], page: Page
) -> Tensor:
    light, dark = marks
    wobble = 0.025 * torch.sin(9 * page.x + 40 * page.seed) * torch.sin(11 * page.y - 31 * page.seed)
    wash = torch.sigmoid(-(distance + wobble) / 0.035).unsqueeze(-1)
    rim = torch.exp(-((distance + 0.05 + wobble) / 0.06).square()).unsqueeze(-1) * wash
    pale = 0.65 * colour + 0.35
    fill = pale - 0.30 * rim * (1.05 - colour)
    fill = _blend(fill, 0.7 * torch.sigmoid(-light / 0.04).unsqueeze(-1), torch.ones_like(fill))
    fill = _blend(fill, torch.sigmoid(-dark / 0.03).unsqueeze(-1), 0.5 * colour.expand_as(fill))
    return _blend(below, 0.92 * wash, fill)


STYLE_ACTORS = {
    "flat": _flat_actor,
    "line": _line_actor,
    "neon": _neon_actor,
    "watercolour": _watercolour_actor,
    "mosaic": _flat_actor,
}


# The scenery of each style, drawn before the actors, and a last pass over the finished page.


def _edges(picture: Tensor) -> Tensor:
    """How strongly each pixel [B, T, H, W, 3] differs from the one above and to its left, as a layer [..., 1]."""
    light = picture.mean(-1, keepdim=True)
    down = F.pad(light.diff(dim=2).abs(), (0, 0, 0, 0, 1, 0))
    across = F.pad(light.diff(dim=3).abs(), (0, 0, 1, 0))
    return (down + across).clamp(0, 1)


def _same(picture: Tensor, page: Page) -> Tensor:
    return picture


def _line_scenery(picture: Tensor, page: Page) -> Tensor:
    paper = 0.90 * _colour((0.98, 0.97, 0.94), picture) + 0.10 * picture
    return _blend(paper, (5 * _edges(picture)).clamp(0, 0.6), _colour((0.45, 0.42, 0.48), picture))


def _neon_scenery(picture: Tensor, page: Page) -> Tensor:
    return 0.03 + 0.10 * picture + (3 * _edges(picture)).clamp(0, 0.5) * picture


def _watercolour_scenery(picture: Tensor, page: Page) -> Tensor:
    grain = torch.sin(23 * page.x + 17 * page.y) * torch.sin(19 * page.x - 29 * page.y)
    return 0.70 * picture + 0.28 + 0.02 * grain.unsqueeze(-1)


def _mosaic_page(picture: Tensor, page: Page) -> Tensor:
    batch, frames, height, width, _ = picture.shape
    tile = max(2, round(0.125 / page.pixel))
    folded = picture.reshape(batch * frames, height, width, 3).permute(0, 3, 1, 2)
    small = F.avg_pool2d(folded, tile, ceil_mode=True)
    tiles = F.interpolate(small, scale_factor=tile, mode="nearest")[..., :height, :width]
    row = torch.arange(height, device=picture.device) % tile == tile - 1
    column = torch.arange(width, device=picture.device) % tile == tile - 1
    grout = (row[:, None] | column[None, :]) & (tile > 2)
    tiles = tiles.permute(0, 2, 3, 1).reshape(picture.shape)
    return torch.where(grout[..., None], tiles * 0.55 + 0.10, tiles)


STYLE_SCENERY = {
    "flat": _same,
    "line": _line_scenery,
    "neon": _neon_scenery,
    "watercolour": _watercolour_scenery,
    "mosaic": _same,
}
STYLE_PAGES = {"flat": _same, "line": _same, "neon": _same, "watercolour": _same, "mosaic": _mosaic_page}
