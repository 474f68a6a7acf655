"""A video of any length and size made larger: frames in, frames out, a part of the video in memory at a time.

A part is a clip of its own, windows and all; parts overlap, and where they do their frames are faded into each other.
Every frame has the noise of its place in the video, so two parts begin their overlap from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lumiere.video import from_uint8, to_uint8

Enlarge = Callable[[Tensor, int], Tensor]
"""(clip [1, 3, T, h, w] in -1..1, the place of its first frame) -> the larger clip [1, 3, T, H, W]."""


def upscale_frames(
    frames: Iterable[np.ndarray], enlarge: Enlarge, *, multiple: int, chunk: int, overlap: int
) -> Iterator[np.ndarray]:
    """The larger frames [H, W, 3] of frames [h, w, 3], both 8-bit, in parts of ``chunk`` frames.

    Sides are filled up to multiples of ``multiple`` by repeating the border, and what that added is cut off again.
    Raises ValueError when ``overlap`` is not smaller than ``chunk``.
    """
    if not 0 <= overlap < chunk:
        raise ValueError(f"parts of {chunk} frames overlap by {overlap}; it lies from 0 to {chunk - 1}")
    tail: Tensor | None = None
    for first, part, is_last in _parts(frames, chunk, overlap):
        small = from_uint8(np.stack(part))[None]
        height, width = small.shape[-2:]
        filled = F.pad(small[0].transpose(0, 1), (0, -width % multiple, 0, -height % multiple), mode="replicate")
        large = enlarge(filled.transpose(0, 1)[None], first)
        scale = large.shape[-1] // filled.shape[-1]
        large = large[..., : height * scale, : width * scale]
        if tail is not None:
            large[:, :, : tail.shape[2]] = faded(tail, large[:, :, : tail.shape[2]])
        keep = large.shape[2] if is_last else large.shape[2] - overlap
        tail = large[:, :, keep:].clone()
        done = to_uint8(large[0, :, :keep])
        # Not held while the next part is made.
        del large
        yield from done
        del done


def frames_at_once(need: Callable[[int], int], *, free: int, least: int, most: int) -> int:
    """The most frames, from ``least`` to ``most``, of which a part needs at most ``free`` bytes.

    Raises ValueError with the numbers, and the way out, when not even ``least`` fit.
    """
    for frames in range(most, least - 1, -1):
        if need(frames) <= free:
            return frames
    raise ValueError(
        f"parts of {least} frames of this size need about {need(least) / 2**30:.1f} GiB of memory and"
        f" {free / 2**30:.1f} GiB can be used (make the video smaller first, give --window fewer pixels, or close other"
        " programs)"
    )


def faded(before: Tensor, after: Tensor) -> Tensor:
    """From the one clip [B, C, T, H, W] to the other, in even steps that start and end between frames."""
    count = before.shape[2]
    share = ((torch.arange(count) + 1) / (count + 1)).view(-1, 1, 1).to(before)
    return torch.lerp(before, after, share)


def _parts(frames: Iterable[np.ndarray], chunk: int, overlap: int) -> Iterator[tuple[int, list[np.ndarray], bool]]:
    """(place of its first frame, frames, whether it is the last) of each part; no part holds only known frames."""
    iterator = iter(frames)
    part, first = list(islice(iterator, chunk)), 0
    while part:
        more = list(islice(iterator, chunk - overlap))
        yield first, part, not more
        if not more:
            return
        first += len(part) - overlap
        part = part[len(part) - overlap :] + more
