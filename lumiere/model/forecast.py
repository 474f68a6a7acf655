"""What a given frame will look like at other moments: moved, turned and resized as the words say."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumiere.model.temporal import ChannelNorm
from lumiere.video import between, fold_time, frames_at, unfold_time

TRUST = 0.5
"""What M is where C is forecast (1: given, 0: nothing is known)."""
TOGETHER = 0.12
"""How far apart, in half pictures, the places may be that two maps of one thing's motion lead to."""
LEAST_SEEN, CLEARLY = 16, 0.75
"""Pixels of things that move, of all frames, that say which of two forecasts is true, and how wrong that may be where
whole frames say it, as a share of the other: where both end alike, as a loop does, chance is to choose."""
LEAST_LOOP, GOES_ON = 16, 4
"""Fewest frames after which the same picture given again is a loop, and for how many more it must go on as it did."""
CLOSED, EARLIER_IS_WORSE = 0.3, 0.5
"""How far a forecast may be from the picture that comes again, as a share of the farthest that it is ever, and how much
farther a later one may be for being nearer to the whole time."""
BLURRED, SHARP = 0.3, 0.6
"""Share of a pixel that a forecast one was in the given frame, from which on it is enlarged too far to be firm, and up
to which it is entirely."""


class Motion(NamedTuple):
    """Where what is seen at places of some frames was in a given one, in the W ways that words leave open.

    ``maps`` [B, W, T, h, w, 2, 3] are the affine maps of places, from (x, y, 1) in a frame, -1 to 1 over the picture,
    to (x, y) in the given one. ``seen`` [B, W, T, h, w] is the logit that it was seen there, with nothing in front.
    """

    maps: Tensor
    seen: Tensor


class Ahead(NamedTuple):
    """Frames as they are forecast from given ones, in the W ways that words leave open.

    ``shown`` [B, W, c, T, h, w] is <C, M>; where ``is_open`` [B, 1, T, h, w] less is given, and it counts. They are
    forecast from ``pictures``, <C, M> [B, c, N, h, w], by ``motion``, each from picture ``which`` [B, T].
    """

    shown: Tensor
    is_open: Tensor
    pictures: Tensor
    motion: Motion
    which: Tensor

    def narrowed(self, ways: Tensor) -> Ahead:
        """With ``ways`` [B, W] of these in their place."""
        rows = torch.arange(len(ways), device=ways.device)[:, None]
        motion = Motion(self.motion.maps[rows, ways], self.motion.seen[rows, ways])
        return self._replace(shown=self.shown[rows, ways], motion=motion)


class Forecast(nn.Module):
    """Say from a given frame, words and time what other frames look like, before anything is made.

    Layers that mix frames at each place by itself carry along what is given, and hardly turn or resize it (LOG.md). So
    a small network of its own says for each place of a frame by which affine map what is there has moved since the
    given frame, and the given frame, moved so, is shown as <C, M> of all frames of which less is given, with M =
    ``TRUST``.
    Words leave things open, such as which way round a thing spins: there are ``WAYS`` forecasts, and the one that
    the noisy clip is more like is shown. It also says which pixels of a picture are the thing that moves, so that a
    clip can be made to show that as it was given (``carry``), without what lay beside it.

    ``picture_channels`` of <C, M> are C, the rest M: n x n channels where C are blocks of n x n pixels, which are moved
    as pixels. Source: motion as maps of layers (Wang and Adelson, 1994), forecast for a video model as in
    Motion-I2V (Shi et al., arXiv 2401.15977).
    """

    WAYS, TOLD = 2, 256
    FINE, MIDDLE, COARSE = 32, 64, 128
    WAVES, PERIOD_FRAMES = 32, 160

    def __init__(self, channels: int, picture_channels: int, *, text_width: int) -> None:
        super().__init__()
        self.picture_channels = picture_channels
        self.block = math.isqrt(channels - picture_channels)
        self.ways = nn.Parameter(torch.randn(self.WAYS, self.TOLD))
        self.read = nn.Linear(text_width, self.TOLD)
        self.clock = nn.Linear(4 * self.WAVES, self.TOLD)
        self.whole = nn.Linear(self.COARSE, self.TOLD)
        self.think = nn.Sequential(
            *(nn.SiLU(), nn.Linear(self.TOLD, self.TOLD), nn.SiLU(), nn.Linear(self.TOLD, self.TOLD), nn.SiLU())
        )
        # Two channels more say where a place is.
        self.look_fine = nn.Sequential(_conv(channels + 2, self.FINE), Seen(self.FINE))
        self.look_middle = nn.Sequential(_conv(self.FINE, self.MIDDLE, stride=2), Seen(self.MIDDLE))
        self.look_coarse = nn.Sequential(
            _conv(self.MIDDLE, self.COARSE, stride=2), Seen(self.COARSE), Seen(self.COARSE)
        )
        self.coarse = nn.ModuleList(Seen(self.COARSE, self.TOLD) for _ in range(3))
        self.to_middle = _conv(self.COARSE + self.MIDDLE, self.MIDDLE)
        self.middle = nn.ModuleList(Seen(self.MIDDLE, self.TOLD) for _ in range(2))
        self.to_fine = _conv(self.MIDDLE + self.FINE, self.FINE)
        self.fine = nn.ModuleList(Seen(self.FINE, self.TOLD) for _ in range(1))
        self.whose = nn.ModuleList(
            (_conv(self.COARSE + self.MIDDLE, self.MIDDLE), _conv(self.MIDDLE + self.FINE, self.FINE), Seen(self.FINE))
        )
        self.whose_norm = ChannelNorm(self.FINE)
        self.whose_say = nn.Linear(self.FINE, self.block**2)
        self.say_norm = ChannelNorm(self.FINE)
        self.say = nn.Linear(self.FINE, 7)
        nn.init.normal_(self.say.weight, std=0.01)
        nn.init.zeros_(self.say.bias)

    # How much there is to look at follows from what is given, which compiled code could not know.
    @torch.compiler.disable
    def forward(self, given: Tensor, text: Tensor) -> Ahead | None:
        """What <C, M> [B, c, T, h, w] will look like, told the mean states of texts [B, D].

        Forecasts are made from the nearest frame in which all is given that is given anywhere. None where nothing can
        be said: nothing is given, or nowhere more than elsewhere.
        """
        share = given[:, self.picture_channels :]
        is_whole = whole_frames(share)
        sources = _nearest(is_whole)
        times = torch.arange(given.shape[2], dtype=torch.float32, device=given.device).repeat(len(given), 1)
        pictures, which = given, sources
        if given.device.type != "meta":
            # Only what is seen from is looked at, where that can be known.
            if not bool(is_whole.any()):
                return None
            needed, which = sources.unique(return_inverse=True)
            pictures = given[:, :, needed]
            times = self._paced(times, given, text, is_whole)
        motion = self.motion(pictures, text, which, times.gather(1, sources), times)
        is_later = (is_whole.any(1, keepdim=True) & ~is_whole)[:, None, :, None, None]
        is_open = is_later & (share.amax(1, keepdim=True) == 0)
        ahead = Ahead(self.moved(pictures, motion, which), is_open, pictures, motion, which)
        if given.device.type == "meta":
            return ahead
        ahead = self._as_whole_frames_show(ahead, given, text, times, is_whole)
        is_seen = is_later & (share.amin(1, keepdim=True) > 0)
        return ahead.narrowed(self._likelier(ahead, given, is_seen)) if bool(is_seen.any()) else ahead

    def shown(self, given: Tensor, noisy: Tensor, ahead: Ahead) -> Tensor:
        """<C, M> [B, c, T, h, w] of noisy clips [B, C, T, h, w], with forecasts of frames of which less is given."""
        forecast = _chosen(ahead.shown, self._first_is_likelier(ahead.shown, noisy))
        return torch.where(ahead.is_open, forecast, given)

    def carry(self, ahead: Ahead) -> Callable[[Tensor], Tensor]:
        """What makes clean clips [B, C, T, h, w] show the thing that moves as it is forecast, wherever that is firm.

        Of two forecasts the one that they show already, as far as it is firm.
        """
        colours = ahead.shown[:, :, : self.picture_channels]
        firm = self.firm(ahead) * ahead.is_open[:, None]
        # Colours are blocks of each colour in turn, so that a pixel's share comes once for each.
        share = firm.repeat(1, 1, self.picture_channels // firm.shape[2], 1, 1, 1)

        def carried(clean: Tensor) -> Tensor:
            seen, counts = colours.to(clean), share.to(clean)
            wrong = (counts * (seen - clean[:, None]).square()).sum((2, 3, 4, 5))
            wrong = wrong / counts.sum((2, 3, 4, 5)).clamp(min=1)
            is_first = wrong[:, 0] <= wrong[:, 1]
            return torch.lerp(clean, _chosen(seen, is_first), _chosen(counts, is_first))

        return carried

    def motion(self, pictures: Tensor, text: Tensor, which: Tensor, sources: Tensor, numbers: Tensor) -> Motion:
        """How things have moved from pictures, <C, M> [B, c, N, h, w], told texts [B, D], in T frames [B, T] with
        ``numbers``, each seen from picture ``which``, of number ``sources``."""
        count, frames = pictures.shape[2], numbers.shape[1]
        fine, middle, coarse = self._looked_at(pictures)
        whole = self.whole(coarse.mean((2, 3))).view(-1, count, self.TOLD)
        whole = whole.gather(1, which[..., None].expand(-1, -1, self.TOLD))
        told = self.read(text)[:, None] + whole + self.clock(self._waves(sources, numbers).to(text.dtype))
        told = self.think(told[:, None] + self.ways[None, :, None]).flatten(0, 2)

        def each(features: Tensor) -> Tensor:
            """Features of pictures for every way and frame, [B*W*T, C, h, w]."""
            chosen = frames_at(unfold_time(features, count), which)
            return fold_time(chosen[:, None].expand(-1, self.WAYS, *chosen.shape[1:]).flatten(0, 1))

        hidden = each(coarse)
        for layer in self.coarse:
            hidden = layer(hidden, told)
        hidden = self.to_middle(torch.cat((_twice(hidden, middle), each(middle)), dim=1))
        for layer in self.middle:
            hidden = layer(hidden, told)
        hidden = self.to_fine(torch.cat((_twice(hidden, fine), each(fine)), dim=1))
        for layer in self.fine:
            hidden = layer(hidden, told)
        said = self.say(F.silu(self.say_norm(hidden.permute(0, 2, 3, 1)))).float()
        said = said.view(len(pictures), self.WAYS, frames, *said.shape[1:])
        return Motion(said[..., :6].unflatten(-1, (2, 3)) + torch.eye(2, 3).to(said), said[..., 6])

    def whose_pixels(self, pictures: Tensor) -> Tensor:
        """The logits [B, m, N, h, w] of pixels of pictures, <C, M> [B, c, N, h, w], being those of what moves."""
        to_middle, to_fine, last = self.whose
        fine, middle, coarse = self._looked_at(pictures)
        hidden = to_middle(torch.cat((_twice(coarse, middle), middle), dim=1))
        hidden = last(to_fine(torch.cat((_twice(hidden, fine), fine), dim=1)))
        said = self.whose_say(F.silu(self.whose_norm(hidden.permute(0, 2, 3, 1)))).float()
        return unfold_time(said.permute(0, 3, 1, 2), pictures.shape[2])

    def moved(self, pictures: Tensor, motion: Motion, which: Tensor) -> Tensor:
        """Pictures, <C, M> [B, c, N, h, w], as <C, M> [B, W, c, T, h, w] of frames that are seen from picture ``which``
        [B, T]."""
        seen = self._seen_from(pictures, motion, which)
        colours, share = seen.tensor_split((seen.shape[1] - 1,), dim=1)
        is_seen = (motion.seen.flatten(0, 2)[:, None] > 0).to(share)
        known = (share > 0.5) & (F.interpolate(is_seen, scale_factor=float(self.block)) > 0)
        colours = torch.where(known, colours / share.clamp(min=0.5), torch.zeros_like(colours))
        shown = F.pixel_unshuffle(torch.cat((colours, TRUST * known.to(colours)), dim=1), self.block)
        return shown.view(*motion.seen.shape[:3], *shown.shape[1:]).transpose(2, 3).to(pictures.dtype)

    def firm(self, ahead: Ahead) -> Tensor:
        """How far, 0..1, each pixel of forecast places [B, W, m, T, h, w] shows the thing that moves, as sharp as it
        was given."""
        maps = ahead.motion.maps.flatten(0, 2)
        mine = self.whose_pixels(ahead.pictures).sigmoid()
        seen = F.pixel_unshuffle(self._seen_from(mine, ahead.motion, ahead.which), self.block)
        known = ahead.shown[:, :, self.picture_channels :].transpose(2, 3).flatten(0, 2) > 0
        enlarged = torch.linalg.det(maps[..., :2])[:, None].abs()
        firm = seen * ((enlarged - BLURRED) / (SHARP - BLURRED)).clamp(0, 1) * known
        firm = firm * _move_together(maps, firm.mean(1))[:, None]
        return firm.view(*ahead.motion.seen.shape[:3], *firm.shape[1:]).transpose(2, 3)

    def _seen_from(self, pictures: Tensor, motion: Motion, which: Tensor) -> Tensor:
        """The pixels [B*W*T, c, H, W] that pictures [B, c * m, N, h, w] have where places of frames were in picture
        ``which`` [B, T]."""
        batch, ways, frames, height, width = motion.seen.shape
        block = self.block
        pixels = F.pixel_shuffle(fold_time(frames_at(pictures, which)).float(), block)
        pixels = pixels.view(batch, 1, frames, *pixels.shape[1:]).expand(-1, ways, -1, -1, -1, -1).flatten(0, 2)
        points = centres(height * block, width * block, like=motion.maps)
        places = points.view(height, block, width, block, 3).transpose(1, 2)
        # [..., h, w, 2, 3] times [h, w, pixels of a place, 3]
        found = torch.einsum("bhwck,hwijk->bhiwjc", motion.maps.flatten(0, 2), places).flatten(1, 2).flatten(2, 3)
        return F.grid_sample(pixels, found, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _paced(self, times: Tensor, given: Tensor, text: Tensor, is_whole: Tensor) -> Tensor:
        """The times [B, T] of frames of <C, M>, in frames of the motion that is told: where the same picture is given
        twice, as a loop's is, slowed down so that things are back where they were when it comes again."""
        for row in range(len(given)):
            wholes = torch.nonzero(is_whole[row]).flatten().tolist()
            for first, last in pairwise(wholes):
                picture, count = given[row : row + 1, :, first : first + 1], last - first
                if count >= LEAST_LOOP and torch.equal(picture, given[row : row + 1, :, last : last + 1]):
                    closed = self._closing(picture, text[row : row + 1], times[row, first], count)
                    late = (torch.arange(times.shape[1], device=times.device) - first).clamp(0, count)
                    times[row] -= late * (1 - closed / count)
        return times

    def _closing(self, picture: Tensor, text: Tensor, start: Tensor, count: int) -> float:
        """After how many frames, half of ``count`` to all of them, a picture <C, M> [1, c, 1, h, w] of time ``start``
        is forecast to come again and to go on as it did; ``count`` where it never is.

        Of several times the latest that is about as good. Going on counts: half-way a pendulum is where it was, too;
        but nothing is asked of times after ``count``, which may be longer than clips were when this was learned.
        """
        moments = torch.arange(2 * count + 1, device=picture.device) / 2
        which = torch.zeros(1, len(moments), dtype=torch.long, device=picture.device)
        motion = self.motion(picture, text, which, start.expand(which.shape), (start + moments)[None])
        seen = self.moved(picture, motion, which).float().transpose(2, 3)[0].transpose(0, 1).flatten(1)
        off = torch.full((1 + GOES_ON, len(seen)), torch.nan, device=seen.device)
        for later in range(1 + GOES_ON):
            off[later, : len(seen) - 2 * later] = (seen[2 * later :] - seen[2 * later]).abs().mean(1)
        off = off.nanmean(0)
        off = off / off.amax().clamp(min=1e-6)
        worse = off + EARLIER_IS_WORSE * torch.linspace(1, 0, len(off), device=off.device)
        best = count + int(worse[count:].argmin())
        return best / 2 if float(off[best]) < CLOSED else float(count)

    def _looked_at(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of every picture [B*N, C, h, w], and of half and of a quarter as many places each way."""
        grid = centres(pictures.shape[-2], pictures.shape[-1], like=pictures)[..., :2].permute(2, 0, 1)
        flat = fold_time(pictures)
        fine = self.look_fine(torch.cat((flat, grid.expand(len(flat), -1, -1, -1)), dim=1))
        middle = self.look_middle(fine)
        return fine, middle, self.look_coarse(middle)

    def _as_whole_frames_show(
        self, ahead: Ahead, given: Tensor, text: Tensor, times: Tensor, is_whole: Tensor
    ) -> Ahead:
        """The forecasts, both the one by which the first whole frame of <C, M> becomes the later ones, where that is
        clear: each is forecast from its nearest, and none of them alone says which way round things go."""
        first = is_whole.int().argmax(1, keepdim=True)
        is_later = is_whole & (torch.arange(given.shape[2], device=given.device) > first)
        at = torch.nonzero(is_later.any(0)).flatten()
        if not len(at):
            return ahead
        picture, which = frames_at(given, first), torch.zeros_like(first).expand(-1, len(at))
        motion = self.motion(picture, text, which, times.gather(1, first).expand(which.shape), times[:, at])
        is_seen = is_later[:, None, at, None, None]
        later = Ahead(self.moved(picture, motion, which), is_seen, picture, motion, which)
        return ahead.narrowed(self._likelier(later, given[:, :, at], is_seen, clearly=CLEARLY))

    def _likelier(self, ahead: Ahead, given: Tensor, is_seen: Tensor, *, clearly: float = 1.0) -> Tensor:
        """Which forecasts [B, W] frames of <C, M> [B, c, T, h, w] show where these are given (``is_seen`` says where).

        One alone where enough of what moves is, or was to be, in them, and it is ``clearly`` less wrong; else each.
        """
        colours = self.picture_channels // self.block**2
        counts = self.firm(ahead).amax(1).repeat(1, colours, 1, 1, 1) * is_seen
        wrong = (ahead.shown - given[:, None])[:, :, : self.picture_channels].square() * counts[:, None]
        wrong = wrong.float().flatten(2).sum(2)
        least, likelier = wrong.min(1, keepdim=True)
        is_told = counts.float().flatten(1).sum(1, keepdim=True) >= LEAST_SEEN * colours
        is_told &= least <= clearly * wrong.amax(1, keepdim=True)
        return torch.where(is_told, likelier, torch.arange(self.WAYS, device=given.device))

    def _first_is_likelier(self, shown: Tensor, noisy: Tensor) -> Tensor:
        """Whether the first of two forecasts [B, W, c, T, h, w] is nearer to the noisy clips, [B].

        How strong the clip is in them is estimated from what the two have in common.
        """
        one, other = shown[:, :, : self.picture_channels].float().flatten(2).unbind(1)
        seen, middle = noisy.float().flatten(1), (one + other) / 2
        strength = ((seen * middle).sum(1) / middle.square().sum(1).clamp(min=1e-6)).clamp(min=0)
        return ((seen - strength[:, None] * middle) * (one - other)).sum(1) >= 0

    def _waves(self, sources: Tensor, numbers: Tensor) -> Tensor:
        """Sines and cosines [B, T, 4 * WAVES] of the times of frames and of those that they are seen from."""
        times = torch.stack((sources, numbers), dim=-1).float() * (2 * math.pi / self.PERIOD_FRAMES)
        angles = times[..., None] * torch.arange(1, self.WAVES + 1, device=times.device)
        return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(2)


class Seen(nn.Module):
    """A 3 x 3 convolution of normalised features [B, C, h, w], scaled and shifted as told [B, D]; added to them."""

    def __init__(self, channels: int, told_width: int = 0) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.hear = nn.Linear(told_width, 2 * channels) if told_width else None
        self.conv = _conv(channels, channels)

    def forward(self, features: Tensor, told: Tensor | None = None) -> Tensor:
        """The same shape."""
        normed = self.norm(features.permute(0, 2, 3, 1))
        if self.hear is not None:
            scale, shift = self.hear(told)[:, None, None].chunk(2, dim=-1)
            normed = torch.addcmul(shift, normed, 1 + scale)
        return features + self.conv(F.silu(normed).permute(0, 3, 1, 2))


def _move_together(maps: Tensor, weight: Tensor) -> Tensor:
    """At which places [N, h, w] affine maps [N, h, w, 2, 3] lead to where their frame's mean one does, by ``weight``.

    Between a thing that moves and what stays, maps pass from the one to the other, and some lead into the thing from
    where nothing of it is: crumbs. The mean is taken anew three times, of those that are ever nearer to it.
    """
    points = centres(*weight.shape[1:], like=maps)[..., None]
    kept, off = weight, torch.zeros_like(weight)
    for most in (4 * TOGETHER, 2 * TOGETHER, TOGETHER):
        mean = (kept[..., None, None] * maps).sum((1, 2)) / kept.sum((1, 2)).clamp(min=1e-6)[:, None, None]
        off = ((maps - mean[:, None, None]) @ points).squeeze(-1).norm(dim=-1)
        kept = weight * (off < most)
    return off < TOGETHER


def whole_frames(share: Tensor) -> Tensor:
    """Which frames [B, T] hold all that is given in any, of which ``share`` [B, m, T, h, w] says how much of places is,
    and that without a hole: what a picture fills, with or without bars beside it. None where nothing is given."""
    most = share.amax(2, keepdim=True)
    holds_all = (share >= most).flatten(3).all(3).all(1) & (most.flatten(1).amax(1) > 0)[:, None]
    is_there = share.amax(1) > 0
    rows, columns = (between(is_there.any(axis)) for axis in (-1, -2))
    return holds_all & (is_there == (rows[..., :, None] & columns[..., None, :])).flatten(2).all(2)


def _chosen(ways: Tensor, is_first: Tensor) -> Tensor:
    """Of two ways [B, 2, ...] the first where ``is_first`` [B], else the second, [B, ...]."""
    return torch.where(is_first.view(-1, *[1] * (ways.ndim - 2)), ways[:, 0], ways[:, 1])


def _conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


def _twice(features: Tensor, like: Tensor) -> Tensor:
    """Features as many places high and wide as ``like``."""
    return F.interpolate(features, size=like.shape[-2:], mode="nearest")


def _nearest(is_there: Tensor) -> Tensor:
    """For each frame the number [B, T] of the nearest that ``is_there`` [B, T], of two the earlier; 0 if none is."""
    numbers = torch.arange(is_there.shape[1], device=is_there.device)
    distances = (numbers[:, None] - numbers).abs().expand(len(is_there), -1, -1)
    return distances.masked_fill(~is_there[:, None], 2 * len(numbers)).argmin(2)


def centres(height: int, width: int, *, like: Tensor) -> Tensor:
    """(x, y, 1) of the middles of places [height, width, 3], from -1 to 1 over the picture."""
    y, x = (
        (torch.arange(size, device=like.device, dtype=torch.float32) + 0.5) * (2 / size) - 1 for size in (height, width)
    )
    x, y = x.expand(height, -1), y[:, None].expand(-1, width)
    return torch.stack((x, y, torch.ones_like(x)), dim=-1).to(like.dtype)
