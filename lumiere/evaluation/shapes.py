"""Which object a patch of colour is and how it lies: a search over angles, then a fit of place, size and turn.

The fit is least squares in colour between a frame and the storybook's own outline, marks and edge, drawn over what
lies behind it. Frames are [N, 3, 32, 32] in 0..1; coordinates as in the storybook: -1..1, y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lumiere.data.outlines import OUTLINES
from lumiere.evaluation.mixtures import DARKEN, LIGHTEN, fill_share
from lumiere.evaluation.scenery import SIZE, blur

OBJECTS = tuple(OUTLINES)
SYMMETRY = {"ball": 2, "box": 4, "star": 5}
"""Turned by 1/n of a full turn these look the same; the others never do."""
EDGE = 0.065
"""Width of the dark edge of a flat drawing."""
SOFTEN_PX = 0.7
"""Frames are blurred by this before they are fitted, so that a soft picture is not held against its shape."""
RAMP = 2.4 * 2 / SIZE
"""How wide the drawn edges are made so that they look as soft as the blurred frames."""
GRAIN = 0.03
"""Squared RGB difference of one pixel that flaws of a frame make."""
PATCH = 20
"""Side of the patch in which coloured areas are compared after being brought to one place and size."""
PATCH_REACH = 2.2
"""Half a patch, in radii of the disc with the same area."""
ANGLES = 24
RADII = (0.14, 0.20, 0.28, 0.40, 0.56)
MIN_RADIUS, MAX_RADIUS = 0.09, 0.80


@dataclass(frozen=True)
class Sight:
    """Frames to be explained: softened [N, 3, H, W], what lies behind, the fill colour [N, 3], pixel weights."""

    frames: Tensor
    behind: Tensor
    colour: Tensor
    weight: Tensor

    def __getitem__(self, rows: Tensor) -> Sight:
        return Sight(self.frames[rows], self.behind[rows], self.colour[rows], self.weight[rows])


def join(sights: list[Sight]) -> Sight:
    """All frames of several sights as one."""
    columns = zip(*((one.frames, one.behind, one.colour, one.weight) for one in sights), strict=True)
    return Sight(*(torch.cat(column) for column in columns))


@dataclass(frozen=True)
class Fit:
    """For N frames: x, y, log of the radius and turn [N, 4], and how much of the difference to the page is left."""

    pose: Tensor
    residual: Tensor


def soften(frames: Tensor) -> Tensor:
    """The frames as they are compared with drawings."""
    return blur(frames, SOFTEN_PX)


def difference(sight: Sight) -> Tensor:
    """How much [N] of each frame an empty page leaves unexplained."""
    return (sight.weight * (sight.frames - sight.behind).square().sum(1)).sum((1, 2))


def shares_left(fits: list[Fit], sight: Sight) -> tuple[Tensor, Tensor]:
    """What each fit leaves [K, N], and of how much [N]: the difference to the page, and the grain of a frame.

    Grain counts because pale objects differ little from their page, while its flaws are as large as elsewhere.
    """
    residual = torch.stack([one.residual for one in fits])
    best = residual.argmin(0)
    radius = torch.stack([one.pose[:, 2] for one in fits])[best, torch.arange(len(best))].exp()
    area_px = 2 * (radius * SIZE / 2).square()
    return residual, difference(sight) + GRAIN * area_px


# Drawing an object's parts.


def parts(name: str, pose: Tensor, x: Tensor, y: Tensor, ramp: Tensor | float = RAMP) -> tuple[Tensor, Tensor, Tensor]:
    """How much fill, dark and light [N, ...] an object in poses [N, 4] puts at points x, y [N or 1, ...]."""
    shape = (-1,) + (1,) * (x.ndim - 1)
    middle_x, middle_y, log_radius, angle = (pose[:, index].view(shape) for index in range(4))
    radius, cos, sin = log_radius.exp(), angle.cos(), angle.sin()
    across, down = (x - middle_x) / radius, (y - middle_y) / radius
    across, down = cos * across + sin * down, cos * down - sin * across
    distance = OUTLINES[name](across, down) * radius
    whole, inner = _cover(distance, ramp), _cover(distance + EDGE, ramp)
    light = dark = torch.zeros_like(inner)
    if name == "ball":
        light = inner * _cover((down.abs() - 0.20) * radius, ramp)
    if name == "fish":
        dark = inner * _cover((torch.hypot(across + 0.62, down + 0.12) - 0.12) * radius, ramp)
    return inner - light - dark, whole - inner + dark, light


def _cover(distance: Tensor, ramp: Tensor | float) -> Tensor:
    return (0.5 - distance / ramp).clamp(0, 1)


@lru_cache(maxsize=1)
def _page() -> tuple[Tensor, Tensor]:
    place = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
    return place.view(1, 1, -1), place.view(1, -1, 1)


# The coarse search.


@dataclass(frozen=True)
class Bank:
    """Fill areas of every object, angle and size brought to one place and size, [K, PATCH * PATCH], and their origin.

    ``pose`` [K, 4] is what was drawn, ``middle`` [K, 2] its area's middle and ``reach`` [K] its area's radius.
    """

    patches: Tensor
    kind: Tensor
    pose: Tensor
    middle: Tensor
    reach: Tensor


@lru_cache(maxsize=1)
def bank() -> Bank:
    """All templates of the coarse search."""
    entries = []
    for kind, name in enumerate(OBJECTS):
        turns = torch.arange(0, ANGLES, 1) * 2 * math.pi / ANGLES
        order = SYMMETRY.get(name, 1)
        turns = turns[turns < 2 * math.pi / order - 1e-4] if order != 5 else torch.arange(5) * 2 * math.pi / 25
        for radius in RADII:
            pose = torch.zeros(len(turns), 4)
            pose[:, 2], pose[:, 3] = math.log(radius), turns
            fill = parts(name, pose, *_page())[0]
            middle, reach = _moments(fill)
            entries.append((_patches(fill, middle, reach), torch.full((len(turns),), kind), pose, middle, reach))
    return Bank(*(torch.cat(columns) for columns in zip(*entries, strict=True)))


def _moments(area: Tensor) -> tuple[Tensor, Tensor]:
    """The middle [N, 2] of soft areas [N, H, W] and the radius [N] of discs as large."""
    x, y = _page()
    total = area.sum((1, 2)).clamp(min=1e-6)
    middle = torch.stack([(area * x).sum((1, 2)), (area * y).sum((1, 2))], dim=1) / total[:, None]
    return middle, (total * (2 / SIZE) ** 2 / math.pi).sqrt()


def _patches(area: Tensor, middle: Tensor, reach: Tensor) -> Tensor:
    """Soft areas [N, H, W] brought to one place and size, without their mean and of length 1, [N, PATCH * PATCH]."""
    place = (torch.arange(PATCH) + 0.5) * 2 / PATCH - 1
    grid = torch.stack(torch.meshgrid(place, place, indexing="xy"), dim=-1)
    grid = middle[:, None, None] + PATCH_REACH * reach[:, None, None, None] * grid
    patch = F.grid_sample(area[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False).flatten(1)
    return F.normalize(patch - patch.mean(1, keepdim=True), dim=1)


def fill_area(sight: Sight) -> Tensor:
    """How much of each pixel [N, H, W] is the actor's fill colour, lone specks left out."""
    share = fill_share(sight.frames, sight.behind, sight.colour)
    share = torch.where(share > 0.15, share, 0 * share) * sight.weight
    crowd = (blur(share[:, None], 1.5)[:, 0] * 3).clamp(0, 1)
    return share * crowd


def guess(area: Tensor, kinds: tuple[int, ...] = tuple(range(len(OBJECTS)))) -> Tensor:
    """Three first poses [N, kinds, 3, 4] for each object: the best angle, the best that is no neighbour, and upright.

    Most objects stand upright, and a drawing that is not quite its object should still be tried so.
    """
    templates = bank()
    middle, reach = _moments(area)
    likeness = _patches(area, middle, reach) @ templates.patches.T
    guesses = []
    for kind in kinds:
        rows = (templates.kind == kind).nonzero()[:, 0]
        size_gap = (templates.reach[rows].log() - reach.clamp(min=1e-3).log()[:, None]).abs()
        score = likeness[:, rows] - (size_gap > size_gap.amin(1, keepdim=True) + 0.05).float()
        first = score.argmax(1)
        turn = templates.pose[rows, 3]
        order = SYMMETRY.get(OBJECTS[kind], 1)
        apart = 1 - torch.cos(order * (turn - turn[first][:, None]))
        second = (score - 10 * (apart < 0.25).float()).argmax(1)
        upright = (score - 10 * turn.abs()).argmax(1)
        picks = torch.stack([rows[first], rows[second], rows[upright]], dim=1)
        zoom = (reach[:, None] / templates.reach[picks]).clamp(0.2, 5)
        pose = templates.pose[picks].clone()
        pose[..., :2] = middle[:, None] - zoom[..., None] * templates.middle[picks]
        pose[..., 2] += zoom.log()
        guesses.append(pose)
    return torch.stack(guesses, dim=1)


# The fit.

STEPS = torch.tensor([0.02, 0.02, 0.04, 0.06])
"""How far each of x, y, log radius and angle is moved to see what it changes."""


def draw_over(name: str, pose: Tensor, sight: Sight) -> Tensor:
    """The frames [N, 3, H, W] that the object in ``pose`` [N, 4] would give."""
    fill, dark, light = (part.unsqueeze(1) for part in parts(name, pose, *_page()))
    colour = sight.colour[:, :, None, None]
    tint = colour * (fill + DARKEN * dark + (1 - LIGHTEN) * light) + LIGHTEN * light
    return sight.behind * (1 - fill - dark - light) + tint


def fit(name: str, pose: Tensor, sight: Sight, *, num_steps: int = 5) -> Fit:
    """The pose near ``pose`` [N, 4] that explains each frame best, by Levenberg-Marquardt steps."""
    root = sight.weight.sqrt().unsqueeze(1)
    seen = sight.frames * root

    def wrong(at: Tensor, view: Sight = sight) -> Tensor:
        return (seen - draw_over(name, at, view) * root).flatten(1)

    damping = torch.full((len(pose),), 0.03)
    error = wrong(pose)
    for _ in range(num_steps):
        slopes = torch.stack([(error - wrong(pose + step)) / step.sum() for step in torch.diag(STEPS)], dim=1)
        normal = slopes @ slopes.transpose(1, 2)
        scale = torch.diagonal(normal, dim1=1, dim2=2).clamp(min=1e-4)
        move = torch.linalg.solve(normal + torch.diag_embed(scale * damping[:, None] + 1e-3), slopes @ error[..., None])
        trial = pose + move[..., 0].clamp(-0.3, 0.3)
        trial[:, 2] = trial[:, 2].clamp(math.log(MIN_RADIUS), math.log(MAX_RADIUS))
        trial_error = wrong(trial)
        is_better = trial_error.square().sum(1) < error.square().sum(1)
        pose = torch.where(is_better[:, None], trial, pose)
        error = torch.where(is_better[:, None], trial_error, error)
        damping = torch.where(is_better, damping * 0.3, damping * 8)
    return Fit(pose, error.square().sum(1))


def better(first: Fit, second: Fit) -> Fit:
    """Frame by frame the fit that leaves less."""
    is_first = first.residual <= second.residual
    return Fit(torch.where(is_first[:, None], first.pose, second.pose), torch.minimum(first.residual, second.residual))


def fit_guesses(name: str, guesses: Tensor, sight: Sight, *, num_steps: int = 5) -> Fit:
    """The best fit from several first poses [N, G, 4]."""
    count = guesses.shape[1]
    rows = torch.arange(len(guesses)).repeat_interleave(count)
    found = fit(name, guesses.flatten(0, 1), sight[rows], num_steps=num_steps)
    best = found.residual.view(-1, count).argmin(1) + torch.arange(len(guesses)) * count
    return Fit(found.pose[best], found.residual[best])


def fit_objects(sight: Sight, *, num_steps: int = 5) -> list[Fit]:
    """The best fit of every object to every frame."""
    guesses = guess(fill_area(sight))
    return [fit_guesses(name, guesses[:, kind], sight, num_steps=num_steps) for kind, name in enumerate(OBJECTS)]
