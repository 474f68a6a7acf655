"""Which colour an actor has: every pixel of a flat drawing is a mixture of fill, dark edge, light mark and page."""

from __future__ import annotations

import torch
from torch import Tensor

from lumiere.data.drawing import COLOURS

DARKEN = 0.38
"""The edge is the fill colour times this."""
LIGHTEN = 0.75
"""A light mark lies this far from the fill colour toward white."""
MIN_AREA_PX = 1.5
"""Least fill, in pixels of one frame, of a readable actor."""
MAX_AREA = 0.35
"""Most of the frame that fill can cover: the largest object covers a fifth."""
MAX_LEFT = 0.25
"""Most of the difference to the page that mixtures with a readable colour leave."""
MAX_RATIO = 0.75
"""The best colour leaves at most this share of what the second leaves."""
PURE = 0.75
"""Pixels with this share of fill tell the colour's exact value."""


def read_colour(frames: Tensor, page: Tensor, weight: Tensor) -> tuple[int, Tensor, bool]:
    """The index of the colour that explains the frames [N, 3, H, W] best, its measured value [3], and if it is clear.

    ``page`` is what lies behind, ``weight`` [N, H, W] says which pixels may speak.
    """
    known = torch.tensor(list(COLOURS.values()))
    total = (weight * (frames - page).square().sum(1)).sum().clamp(min=1e-6)
    left = torch.stack([(weight * unexplained(frames, page, fill)).sum() for fill in known]) / total
    best, second = left.topk(2, largest=False).indices.tolist()
    share = fill_share(frames, page, known[best].expand(len(frames), 3)) * weight
    is_clear = left[best] <= MAX_LEFT and left[best] <= MAX_RATIO * left[second]
    has_size = MIN_AREA_PX * len(frames) <= share.sum() <= MAX_AREA * share.numel()
    return best, _measured(frames, share, known[best]), bool(is_clear and has_size)


def _measured(frames: Tensor, share: Tensor, known: Tensor) -> Tensor:
    """The mean of nearly pure pixels, the colour's own value counting as a few of them."""
    pure = ((share - PURE) / (1 - PURE)).clamp(0, 1)
    own = 2.0
    return (own * known + (pure[:, None] * frames).sum((0, 2, 3))) / (own + pure.sum())


def fill_share(frames: Tensor, page: Tensor, colour: Tensor) -> Tensor:
    """How much of each pixel [N, H, W] is the fill ``colour`` [N, 3]; the rest is dark edge, light mark or page."""
    fill = colour[:, :, None, None]
    share, edge_share, plane = _shares(frames, page, fill)
    outside = (share.clamp(min=0) + edge_share.clamp(min=0) - 1).clamp(min=0)
    to_light, along = _to_segment(frames, fill, _light(fill))
    is_light = to_light < plane + (outside * (fill - page).norm(dim=1)).square()
    share = (share / (share + edge_share.clamp(min=0)).clamp(min=1)).clamp(0, 1)
    return torch.where(is_light, 1 - along, share)


def unexplained(frames: Tensor, page: Tensor, colour: Tensor) -> Tensor:
    """Squared distance [N, H, W] from each pixel to the nearest mixture of page, ``colour`` [3], edge and mark."""
    fill = colour.view(1, 3, 1, 1)
    share, edge_share, plane = _shares(frames, page, fill)
    inside = (share >= 0) & (edge_share >= 0) & (share + edge_share <= 1)
    edge = DARKEN * fill
    sides = [(page, fill), (page, edge), (fill, edge), (fill, _light(fill))]
    nearest = torch.stack([_to_segment(frames, *side)[0] for side in sides]).amin(0)
    return torch.where(inside, torch.minimum(plane, nearest), nearest)


def _light(fill: Tensor) -> Tensor:
    return fill + LIGHTEN * (1 - fill)


def _shares(frames: Tensor, page: Tensor, colour: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least-squares shares of fill and edge, which may be negative, and the squared distance to their plane."""
    fill, edge, seen = colour - page, DARKEN * colour - page, frames - page
    a, b, c = fill.square().sum(1) + 0.01, (fill * edge).sum(1), edge.square().sum(1) + 0.01
    p, q = (fill * seen).sum(1), (edge * seen).sum(1)
    determinant = (a * c - b * b).clamp(min=1e-4)
    share, edge_share = (c * p - b * q) / determinant, (a * q - b * p) / determinant
    return share, edge_share, (seen - share[:, None] * fill - edge_share[:, None] * edge).square().sum(1)


def _to_segment(frames: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distance [N, H, W] to the mixtures of two colours, and where on the way, 0..1, the nearest lies."""
    way = end - start
    along = (((frames - start) * way).sum(1) / way.square().sum(1).clamp(min=1e-6)).clamp(0, 1)
    return (frames - start - along[:, None] * way).square().sum(1), along
