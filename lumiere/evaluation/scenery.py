"""Which background a frame shows, which of its pixels are background, and what lies behind the rest.

Each background is known by its palette: the colours that its rows ever take, collected from the storybook's own
drawing. A row, not a place: hills and waves of a generated clip need not match any that the storybook would draw.
Frames here are [N, 3, 32, 32] in 0..1, the reader's canonical size.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lumiere.data.drawing import BACKGROUNDS, draw

SIZE = 32
"""Every frame is read at this size: what is larger is averaged down, so a score does not depend on resolution."""
COLOURS_PER_ROW = 12
COMMON_SHARE = 0.06
OUT_OF_REACH = 10.0
MAX_CAST = 0.12
"""The most that all colours of a readable page may be off in one channel."""
FAR = 0.30
"""A colour this far (Euclid, 0..1 RGB) from the palette is fully foreign; further counts no more."""
NEAR = 0.10
"""A colour this near to the palette may well be background."""
MIN_NEAR_SHARE = 0.6
"""Share of a readable frame that is near the palette: the largest object covers a fifth."""
MIN_ADVANTAGE = 0.85
"""The best palette's mean distance is at most this share of the second's."""


@lru_cache(maxsize=1)
def palettes() -> tuple[Tensor, Tensor]:
    """The colours [6, 32, K, 3] of each row of each background, as far apart as possible, and which are common.

    Sky, hills and water are common; stars, flakes and half-covered pixels are rare.
    """
    num_seeds, num_times = 24, 5
    seeds = torch.linspace(0, 1, num_seeds + 1)[:-1]
    times = torch.linspace(0, 5, num_times) + torch.linspace(0, 2.2, num_seeds)[:, None]
    rows = []
    for name in BACKGROUNDS:
        pages = draw([name] * num_seeds, seeds, [], times, style="flat", height=SIZE, width=SIZE)
        rows.append((pages / 2 + 0.5).permute(3, 0, 2, 4, 1).flatten(1, 3))
    pixels = torch.stack(rows).flatten(0, 1)
    colours = _farthest_points(pixels, COLOURS_PER_ROW)
    nearest = torch.cdist(pixels, colours).argmin(-1)
    share = F.one_hot(nearest, COLOURS_PER_ROW).float().mean(1)
    shape = (len(BACKGROUNDS), SIZE)
    return colours.unflatten(0, shape), (share >= COMMON_SHARE).unflatten(0, shape)


def _farthest_points(colours: Tensor, count: int) -> Tensor:
    """``count`` of the colours [R, P, 3], each the farthest from those before it, [R, count, 3]."""
    chosen = [colours.median(dim=1).values]
    nearest = (colours - chosen[0][:, None]).norm(dim=-1)
    for _ in range(count - 1):
        row, farthest = torch.arange(len(colours)), nearest.argmax(dim=1)
        chosen.append(colours[row, farthest])
        nearest = torch.minimum(nearest, (colours - chosen[-1][:, None]).norm(dim=-1))
    return torch.stack(chosen, dim=1)


def palette_distance(frames: Tensor, background: int, *, only_common: bool = False) -> Tensor:
    """How far [N, 32, 32] each pixel is from the nearest colour of its row."""
    colours, is_common = (table[background] for table in palettes())
    if only_common:
        colours = torch.where(is_common[..., None], colours, colours + OUT_OF_REACH)
    pixels = frames.permute(2, 0, 3, 1).flatten(1, 2)
    return torch.cdist(pixels, colours).amin(-1).unflatten(1, (len(frames), SIZE)).transpose(0, 1)


def colour_cast(frames: Tensor, background: int) -> Tensor:
    """By how much [3, 1, 1] all page colours are off: the median difference to the nearest colours of the palette.

    A generated page may be a little lighter, or more saturated, than any drawn one and still be the same page.
    """
    colours, is_common = (table[background] for table in palettes())
    colours = torch.where(is_common[..., None], colours, colours + OUT_OF_REACH)
    pixels = frames.permute(2, 0, 3, 1).flatten(1, 2)
    cast = torch.zeros(3)
    for _ in range(3):
        nearest = torch.cdist(pixels - cast, colours).argmin(-1)
        there = colours.gather(1, nearest[..., None].expand(-1, -1, 3))
        cast = (pixels - there).flatten(0, 1).median(0).values.clamp(-MAX_CAST, MAX_CAST)
    return cast.view(3, 1, 1)


def read_background(frames: Tensor) -> tuple[int, Tensor, bool]:
    """The background that fits all frames together best, its colour cast, and whether it can be called readable."""
    frames = blur(frames, 0.7)
    casts = [colour_cast(frames, index) for index in range(len(BACKGROUNDS))]
    distances = torch.stack(
        [palette_distance(frames - cast, index, only_common=True) for index, cast in enumerate(casts)]
    )
    cost = distances.clamp(max=FAR).mean(dim=(1, 2, 3))
    best, second = cost.topk(2, largest=False).indices.tolist()
    near_share = float((distances[best] < NEAR).float().mean())
    is_readable = near_share >= MIN_NEAR_SHARE and float(cost[best] / cost[second]) <= MIN_ADVANTAGE
    return best, casts[best], is_readable


def behind(frames: Tensor, background: int) -> tuple[Tensor, Tensor]:
    """What the page looks like without its actors [N, 3, 32, 32], and how foreign each pixel is [N, 32, 32], 0..1.

    Background pixels stay; the rest is filled in from those nearby, and far from any of them from the row's colour.
    """
    distance = palette_distance(frames, background)
    is_page = torch.exp(-(distance / (0.6 * NEAR)).square()).unsqueeze(1)
    usual = palettes()[0][background][:, 0].T[None, :, :, None]
    weight, total = 0.01 + 0 * is_page, 0.01 * usual + 0 * frames
    for width, share in ((1.2, 1.0), (3.0, 0.1)):
        weight = weight + share * blur(is_page, width)
        total = total + share * blur(is_page * frames, width)
    filled = is_page * frames + (1 - is_page) * total / weight
    return filled, ((distance - 0.5 * NEAR) / (FAR - 0.5 * NEAR)).clamp(0, 1)


def blur(pictures: Tensor, width: float) -> Tensor:
    """Gaussian blur of pictures [N, C, H, W] by ``width`` pixels, edges repeated."""
    reach = max(1, round(2.5 * width))
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets / width).square())
    kernel = kernel / kernel.sum()
    channels = pictures.shape[1]
    padded = F.pad(pictures, (reach, reach, reach, reach), mode="replicate")
    padded = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(padded, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
