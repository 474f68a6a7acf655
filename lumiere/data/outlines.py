"""Outlines of the storybook's objects as signed distances: negative inside, about 1 from middle to edge.

Formulas after Inigo Quilez, "2D distance functions"; y points down, as in pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Outline = Callable[[Tensor, Tensor], Tensor]


def ball(x: Tensor, y: Tensor) -> Tensor:
    """A circle."""
    return torch.hypot(x, y) - 0.92


def box(x: Tensor, y: Tensor) -> Tensor:
    """A square with slightly rounded corners."""
    across, down = x.abs() - 0.70, y.abs() - 0.70
    outside = torch.hypot(across.clamp(min=0), down.clamp(min=0))
    return outside + torch.maximum(across, down).clamp(max=0) - 0.08


def star(x: Tensor, y: Tensor) -> Tensor:
    """A five-pointed star, one point up."""
    return _star(x, -y, points=5, outer=1.12, inner=0.50)


def heart(x: Tensor, y: Tensor) -> Tensor:
    """A heart, point down."""
    size = 1.62
    x, y = x.abs() / size, 0.53 - y / size
    upper = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    edge = (x + y).clamp(min=0) * 0.5
    lower = torch.minimum(x.square() + (y - 1).square(), (x - edge).square() + (y - edge).square())
    lower = lower.sqrt() * torch.sign(x - y)
    return torch.where(x + y > 1, upper, lower) * size


def moon(x: Tensor, y: Tensor) -> Tensor:
    """A crescent, open to the right."""
    whole = torch.hypot(x + 0.12, y) - 0.98
    bite = torch.hypot(x - 0.42, y) - 0.80
    return torch.maximum(whole, -bite)


def tree(x: Tensor, y: Tensor) -> Tensor:
    """A fir: two stacked triangles on a trunk."""
    top = _triangle(x, y + 1.1, half_width=0.62, height=0.95)
    bottom = _triangle(x, y + 0.55, half_width=0.88, height=1.15)
    trunk = torch.maximum(x.abs() - 0.20, (y - 0.75).abs() - 0.30)
    return torch.minimum(torch.minimum(top, bottom), trunk)


def fish(x: Tensor, y: Tensor) -> Tensor:
    """A fish that looks to the left: an oval and a wide tail."""
    body = (torch.hypot((x + 0.22) / 0.88, y / 0.60) - 1) * 0.62
    tail = _triangle(y, x - 0.30, half_width=0.66, height=0.78)
    return torch.minimum(body, tail)


def mushroom(x: Tensor, y: Tensor) -> Tensor:
    """A mushroom: a dome on a stem."""
    dome = torch.maximum((torch.hypot(x / 1.05, (y + 0.02) / 0.92) - 1) * 0.95, y - 0.06)
    stem = torch.maximum(x.abs() - 0.34, (y - 0.45).abs() - 0.50)
    return torch.minimum(dome, stem)


OUTLINES: dict[str, Outline] = {
    "ball": ball,
    "box": box,
    "star": star,
    "heart": heart,
    "moon": moon,
    "tree": tree,
    "fish": fish,
    "mushroom": mushroom,
}


def _triangle(x: Tensor, y: Tensor, *, half_width: float, height: float) -> Tensor:
    """An isosceles triangle with its tip at the origin, opening toward +y."""
    length = math.hypot(half_width, height)
    side = (x.abs() * height - y * half_width) / length
    return torch.maximum(side, y - height)


def _star(x: Tensor, y: Tensor, *, points: int, outer: float, inner: float) -> Tensor:
    """A star with straight edges between ``outer`` tips and ``inner`` notches, one tip toward +y."""
    sector = math.pi / points
    angle = torch.atan2(x, y)
    folded = (angle - torch.round(angle / (2 * sector)) * 2 * sector).abs()
    radius = torch.hypot(x, y)
    along, across = radius * torch.cos(folded), radius * torch.sin(folded)
    notch_along, notch_across = inner * math.cos(sector), inner * math.sin(sector)
    edge_along, edge_across = notch_along - outer, notch_across
    length = math.hypot(edge_along, edge_across)
    return ((along - outer) * edge_across - across * edge_along) / length
