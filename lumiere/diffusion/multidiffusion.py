"""MultiDiffusion: windows over a clip that its network cannot hold at once, and a Denoiser that merges them.

At each step every window is denoised by itself, and the clip taken that is nearest to all of them: per value, the mean
of the predictions that cover it. Source: Bar-Tal et al., arXiv 2302.08113; along time: Lumiere, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from lumiere.diffusion.denoiser import Window


class WindowDenoiser(Protocol):
    """A Denoiser that is told which part of the clip it sees, so that it takes that part of what lies beside it."""

    def __call__(self, noisy: Tensor, timestep: Tensor, where: Window) -> Tensor:
        """The prediction [B, C, t, h, w] for that window [B, C, t, h, w] of noisy clips."""


def temporal_windows(num_frames: int, window: int, overlap: int) -> list[slice]:
    """Windows of ``window`` frames that cover a clip, each sharing at least ``overlap`` frames with the one before.

    Ascending, all of the same length; where the stride does not come out even the last one is shifted back. A clip
    that is not longer than ``window`` is one window. Raises ValueError when ``overlap`` is not smaller than ``window``.
    """
    return _windows(num_frames, window, overlap, unit="frames")


def spatial_windows(height: int, width: int, window: int, overlap: int) -> list[tuple[slice, slice]]:
    """The same along height and width: (rows, columns) of square windows, row by row."""
    rows, columns = (_windows(size, window, overlap, unit="pixels") for size in (height, width))
    return list(product(rows, columns))


def clip_windows(
    shape: Sequence[int],
    *,
    frames: int | None = None,
    frames_overlap: int = 0,
    side: int | None = None,
    side_overlap: int = 0,
) -> list[Window]:
    """Windows over time, height and width of a clip [..., T, H, W]; an axis whose window is None is not cut.

    Sizes are those of ``shape``: places of the network's space, which may be blocks of pixels.
    """
    num_frames, height, width = shape[-3:]
    times = [slice(0, num_frames)] if frames is None else temporal_windows(num_frames, frames, frames_overlap)
    places = [(slice(0, height), slice(0, width))]
    if side is not None:
        places = spatial_windows(height, width, side, side_overlap)
    return [(time, *place) for time, place in product(times, places)]


class Windowed:
    """A Denoiser for clips longer or larger than its network can hold: the mean of overlapping windows' predictions.

    It wraps the denoiser, not the scheduler, which takes one step with the merged prediction of the whole clip: that
    is right for stochastic and multistep schedulers too. One window at a time goes through the network, and its
    prediction is added in place, so the memory is one window's and one clip more. The mean is taken in fp32.
    Limits on the clean clip belong around it (``Clipped(Windowed(...))``): clipping each window first would not merge
    what the network said.

    With ``is_tapered`` it is a weighted mean: a window counts the less, the nearer a place lies to its borders. That is
    the clip nearest to all predictions when they are weighted so, and where a window begins or ends nothing jumps.
    """

    def __init__(self, denoiser: WindowDenoiser, windows: Sequence[Window], *, is_tapered: bool = False) -> None:
        if not windows:
            raise ValueError("no windows; give those of clip_windows")
        self.denoiser, self.windows, self.is_tapered = denoiser, list(windows), is_tapered

    def __call__(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """The prediction [B, C, T, H, W] for noisy clips; raises ValueError when the windows leave a place out."""
        weights = [self._weight(window).to(noisy.device) for window in self.windows]
        covered = self._coverage(noisy, weights)
        total = None
        for window, weight in zip(self.windows, weights, strict=True):
            part = self.denoiser(noisy[(..., *window)], timestep, window).float()
            if len(self.windows) == 1:
                return part
            if total is None:
                total = torch.zeros((*part.shape[:2], *noisy.shape[2:]), device=part.device)
            total[(..., *window)] += part * weight if self.is_tapered else part
        assert total is not None
        return total.div_(covered)

    def _weight(self, window: Window) -> Tensor:
        """How much each place [t, h, w] of a window counts: a number, or less toward its borders."""
        if not self.is_tapered:
            return torch.ones((), dtype=torch.int16)
        frames, rows, columns = (_taper(part.stop - part.start) for part in window)
        return frames[:, None, None] * rows[:, None] * columns

    def _coverage(self, noisy: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """How much the windows count together at each place [T, H, W]."""
        covered = torch.zeros(noisy.shape[2:], dtype=weights[0].dtype, device=noisy.device)
        for window, weight in zip(self.windows, weights, strict=True):
            covered[window] += weight
        if not bool(covered.all()):
            raise ValueError(
                f"the windows leave {int((covered == 0).sum())} of {covered.numel()} places of the clip"
                f" {list(noisy.shape)} uncovered; make them with clip_windows for this very shape"
            )
        return covered


def _taper(size: int) -> Tensor:
    """Weights [size] that rise from nothing at a window's borders to its middle, slowly at both ends (Hann)."""
    return torch.sin(math.pi * (torch.arange(size) + 0.5) / size).square()


def _windows(size: int, window: int, overlap: int, *, unit: str) -> list[slice]:
    if size < 1 or window < 1:
        raise ValueError(f"{size} {unit} in windows of {window}; both are 1 or more")
    if not 0 <= overlap < window:
        raise ValueError(
            f"windows of {window} {unit} overlap by {overlap}; an overlap lies from 0 to {window - 1}, or the windows"
            " would not move on (a quarter to half of the window is usual)"
        )
    if size <= window:
        return [slice(0, size)]
    starts = [*range(0, size - window, window - overlap), size - window]
    return [slice(start, start + window) for start in starts]
