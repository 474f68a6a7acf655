"""Attention to given frames: places of every frame look up in the given ones what things look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumiere.model.temporal import ChannelNorm, attend, grid_positions, silent_linear
from lumiere.video import fold_time, frames_at, unfold_time

HIDDEN = -10000.0
"""Added to the score of a place of which nothing is given."""


class Ends(NamedTuple):
    """The first and the last given frame of B clips: pictures [B, C, N, H, W] that are zero where they are not given,
    which share of each place is given [B, 1, N, H, W], and whether anything is given [B] (1 or 0). N is 1 where all
    clips begin and end with the same frame, else 2."""

    pictures: Tensor
    share: Tensor
    is_given: Tensor


class GivenFrames(nn.Module):
    """Let places of every frame attend to the given places of a clip's first and last given frame.

    To layers that mix frames at each place by itself, or over a few frames, a lone given frame is far from most others;
    and words say of it what a text encoder would, not an outline. So the frozen image network looks at it, without
    noise, and on the way up, behind the first image layer of each level, every place of every frame attends to what
    that same layer made of the given places; it also sees what lies there at its own place. It starts silent, and is
    silent where nothing is given.

    ``widths`` are the channels of the image network's levels, finest first; ``picture_channels`` of <C, M> are C, the
    rest M. Source: ReferenceNet (Hu et al., arXiv 2311.17117), with the image network itself in the copy's place.
    """

    WIDTH, HEADS = 128, 4

    def __init__(self, picture_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.picture_channels = picture_channels
        self.ask = nn.ModuleList(Ask(width, self.WIDTH, self.HEADS) for width in widths)

    def ends(self, given: Tensor) -> Ends:
        """The first and the last frame of which something is given, of <C, M> [B, c, T, H, W]."""
        is_given = given[:, self.picture_channels :].amax((1, 3, 4)) > 0
        frames = _first_and_last(given, is_given)
        share = frames[:, self.picture_channels :].mean(1, keepdim=True)
        return Ends(frames[:, : self.picture_channels], share, is_given.any(1).to(given.dtype))

    def forward(self, level: int, clip: Tensor, features: Tensor, ends: Ends) -> Tensor:
        """Features [B, C, T, H, W] of a level (0: the finest), changed by what they find in the features
        [B, C, N, H, W] of ``ends`` there."""
        count, size = features.shape[2], (clip.shape[-2], clip.shape[-1])
        share = unfold_time(F.adaptive_avg_pool2d(fold_time(ends.share), size), count)
        return self.ask[level](clip, features, share, ends.is_given)


class Ask(nn.Module):
    """Every place of a feature clip attends to places of given frames; what it finds changes it, at first by nothing.

    Queries and keys begin as the same projection, so that places begin by finding those that are like them.
    """

    def __init__(self, channels: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.width, self.num_heads = width, num_heads
        self.norm = ChannelNorm(channels)
        self.given_norm = ChannelNorm(channels)
        self.query = nn.Linear(channels, width, bias=False)
        self.key = nn.Linear(channels, width, bias=False)
        self.value = nn.Linear(channels, width)
        self.query_position = nn.Linear(width, width, bias=False)
        self.key_position = nn.Linear(width, width, bias=False)
        nn.init.orthogonal_(self.query.weight, gain=1.5)
        nn.init.orthogonal_(self.query_position.weight, gain=0.7)
        self.key.load_state_dict(self.query.state_dict())
        self.key_position.load_state_dict(self.query_position.state_dict())
        self.use = nn.Sequential(
            nn.Linear(channels + 2 * width, 2 * width), nn.SiLU(), silent_linear(2 * width, channels)
        )

    def forward(self, clip: Tensor, given: Tensor, share: Tensor, is_given: Tensor) -> Tensor:
        """Features [B, C, T, H, W] and given ones [B, C, N, H, W], of which ``share`` [B, 1, N, H, W] is given ->
        features [B, C, T, H, W]; unchanged where ``is_given`` [B] is 0."""
        batch, _, frames, height, width = clip.shape
        normed = self.norm(clip.permute(0, 2, 3, 4, 1))
        seen = self.given_norm(given.permute(0, 2, 3, 4, 1))
        share = share.permute(0, 2, 3, 4, 1).to(seen.dtype)
        grid = grid_positions(1, height, width, self.width, like=normed).view(height, width, -1)
        query, key = self.query(normed) + self.query_position(grid), self.key(seen) + self.key_position(grid)
        value = self.value(seen)
        hidden = torch.where(share > 0, share.clamp(min=1e-3).log(), torch.full_like(share, HIDDEN))
        found = attend(self._heads(query), self._heads(key), self._heads(value), hidden.reshape(batch, 1, 1, -1))
        found = found.transpose(1, 2).reshape(batch, frames, height, width, self.width)
        # The mean over the given frames of what lies at the place itself.
        here = (value * share).sum(1, keepdim=True) / share.sum(1, keepdim=True).clamp(min=1e-3)
        change = self.use(torch.cat((normed, found, here.expand_as(found)), dim=-1))
        return clip + (change * is_given.view(-1, 1, 1, 1, 1)).permute(0, 4, 1, 2, 3)

    def _heads(self, places: Tensor) -> Tensor:
        """[B, T, H, W, width] -> [B, heads, T*H*W, width / heads]."""
        return places.flatten(1, 3).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _first_and_last(given: Tensor, is_given: Tensor) -> Tensor:
    """<C, M> [B, C, T, H, W] of the first and the last frame of which ``is_given`` [B, T], [B, C, 2, H, W].

    Only one frame of each where all clips begin and end with the same: attention to it twice would find nothing else.
    """
    if given.shape[2] == 1:
        return given
    counts = is_given.to(torch.int32)
    first = counts.argmax(1)
    last = is_given.shape[1] - 1 - counts.flip(1).argmax(1)
    last = torch.where(is_given.any(1), last, first)
    can_look = given.device.type != "meta" and not torch.compiler.is_compiling()
    both = first[:, None] if can_look and bool((first == last).all()) else torch.stack((first, last), 1)
    return frames_at(given, both)
