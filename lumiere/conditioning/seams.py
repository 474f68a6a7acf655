"""Made pixels meet given ones without a seam: beside what is given they are moved, evenly, until differences go on.

What a network makes next to given pixels lies a little off them, evenly over a wall or a sky. Once the given pixels are
in their places that shows: as an edge around a region, as a jump after a first frame. It can be known there, and what
is off by so much at one place is off by about as much beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lumiere.codec import Codec, PixelBlocks
from lumiere.conditioning.frames import Conditioning, encoded_mask

TOLERANCE = 0.15
"""Difference of neighbours, in -1..1, from which on they are thought to show different things."""
LEAST = 0.1
"""Likeness that counts as none."""
NUM_ITERATIONS = 160
"""Enough to carry a shift through eighty frames."""
AXES = (2, 3, 4)
"""Time, height, width."""


def check_seam_reach(reach: float) -> None:
    """Raise ValueError unless this is a distance."""
    if not 0 <= reach < float("inf"):
        raise ValueError(f"seam_reach is {reach}; it is a distance in pixels and frames (0 leaves seams as they are)")


def seam_remover(given: Conditioning, codec: Codec, *, reach: float) -> Callable[[Tensor], Tensor] | None:
    """What takes the seams off clips [B, C, T, h, w] in the network's space that hold what is given; None for reach 0.

    Blocks of pixels are put back together for it, latents are not decoded.
    """
    check_seam_reach(reach)
    if reach == 0:
        return None
    if isinstance(codec, PixelBlocks):
        return lambda clip: codec.encode(without_seams(codec.decode(clip), given.mask, reach=reach))
    mask = encoded_mask(given.mask, codec)
    return lambda clip: without_seams(clip, mask, reach=reach)


def without_seams(clip: Tensor, mask: Tensor, *, reach: float) -> Tensor:
    """The clip [B, C, T, H, W] with what was made (``mask`` [B, 1, T, H, W] is 0) moved to meet what was given (1).

    Across a seam a clip should change as it does beside it. By how much it does not is made up for by a shift that
    varies as little as it can (a membrane) and fades over about ``reach`` pixels and frames. Neighbours that show
    different things do not share it, so it ends at outlines, and nothing is carried to where something moved. Given
    values stay as they are, bit for bit. The cost: some 160 passes over the clip, a fraction of a network's.

    Source: the membrane is that of seamless cloning, Pérez et al., "Poisson Image Editing" (2003), here along time,
    too; as nothing is cloned, how the clip should change across the seam is taken from beside it.
    """
    is_made = (mask <= 0).to(clip).float()
    steps = [clip.float().diff(dim=axis) for axis in AXES]
    links = [_likeness(step) for step in steps]
    missing = [_missing(*along, is_made) for along in zip(AXES, steps, links, strict=True)]
    shift = _membrane(missing, links, is_made, fading=1 / reach**2)
    return torch.where(is_made > 0, clip + shift.to(clip), clip)


def _likeness(steps: Tensor) -> Tensor:
    """How much neighbours that differ by ``steps`` [B, C, ...] show the same: 1 down to 0, [B, 1, ...].

    0 from about twice the tolerance on: what nothing else holds would follow the weakest of links.
    """
    likeness = torch.exp(-steps.square().mean(1, keepdim=True) / (2 * TOLERANCE**2))
    return (likeness - LEAST).clamp(min=0) / (1 - LEAST)


def _missing(axis: int, steps: Tensor, links: Tensor, is_made: Tensor) -> Tensor:
    """What ``steps`` along an axis lack to be as they should: nothing but across a seam.

    There they should be as the steps before and behind, where those lie within one thing; and none where none does.
    """
    is_seam = (is_made.diff(dim=axis) != 0).to(steps)
    weight = links * (1 - is_seam)
    beside = _sum_beside(weight * steps, axis) / _sum_beside(weight, axis).clamp(min=1e-3)
    return (beside - steps) * is_seam


def _sum_beside(values: Tensor, axis: int) -> Tensor:
    """At each place the sum of the one before and the one behind along an axis."""
    out, count = torch.zeros_like(values), values.shape[axis] - 1
    if count > 0:
        out.narrow(axis, 0, count).add_(values.narrow(axis, 1, count))
        out.narrow(axis, 1, count).add_(values.narrow(axis, 0, count))
    return out


def _membrane(missing: Sequence[Tensor], links: Sequence[Tensor], is_free: Tensor, *, fading: float) -> Tensor:
    """The shift [B, C, T, H, W], 0 where not ``is_free``, whose steps are nearest to what is ``missing``.

    The least sum of links x (step - missing)^2 and fading x shift^2, by conjugate gradients: each clip and channel by
    itself and in a fixed number of steps, so that a clip comes out the same in any batch.
    """

    def gathered(flows: Sequence[Tensor], out: Tensor) -> Tensor:
        """``out`` plus the flow along each axis that comes in at each place, less what goes out."""
        for axis, flow in zip(AXES, flows, strict=True):
            out.narrow(axis, 0, flow.shape[axis]).sub_(flow)
            out.narrow(axis, 1, flow.shape[axis]).add_(flow)
        return out

    def pull(shift: Tensor) -> Tensor:
        flows = [link * shift.diff(dim=axis) for axis, link in zip(AXES, links, strict=True)]
        return gathered(flows, fading * shift) * is_free

    def product(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum(AXES, keepdim=True)

    diagonal = torch.full_like(is_free, fading)
    for axis, link in zip(AXES, links, strict=True):
        diagonal.narrow(axis, 0, link.shape[axis]).add_(link)
        diagonal.narrow(axis, 1, link.shape[axis]).add_(link)
    start = torch.zeros(len(is_free), missing[0].shape[1], *is_free.shape[2:], device=is_free.device)
    left = gathered([link * lack for link, lack in zip(links, missing, strict=True)], start) * is_free
    shift, direction = torch.zeros_like(left), left / diagonal
    power = product(left, direction)
    for _ in range(NUM_ITERATIONS):
        pulled = pull(direction)
        length = power / product(direction, pulled).clamp(min=1e-30)
        shift += length * direction
        left -= length * pulled
        eased = left / diagonal
        last, power = power, product(left, eased)
        direction = eased + power / last.clamp(min=1e-30) * direction
    return shift
