"""Clips out of shards, in an order that is a pure function of (seed, position): nothing has to be stored to go on.

The order is shuffled twice: shards are drawn in a new order in each epoch, a few of them make a pool, and the clips of
a pool are mixed. So a store that reads whole tars fast and single clips slowly is read nearly in order, and neighbours
in a tar, which come of one video, do not follow each other. All clips of a batch are of one size.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lumiere.config import Settings
from lumiere.data import store
from lumiere.data.batches import Batch
from lumiere.data.buffers import Buffers
from lumiere.data.store import Place
from lumiere.media import decode_mp4

FORMAT = "lumiere-shards"


class ShardSettings(Settings):
    """How clips are drawn from shards."""

    pool: int = Field(default=8, ge=1)
    """Shards whose clips are mixed."""
    held_out_every: int = Field(default=50, ge=2)
    """Every n-th clip is kept from training, to measure on: by its own name, so whatever shards there are beside."""
    batch_sizes: dict[str, int] = Field(default_factory=dict)
    """Clips of a batch by size, such as {"128x128x80": 2}; of other sizes as many as the recipe's batch_size."""
    readers: int = Field(default=4, ge=1)
    """Threads that read ahead."""
    batches_ahead: int = Field(default=4, ge=0)
    """Batches that are read before they are asked for."""


@dataclass(frozen=True)
class ShardClip:
    """One clip of a shard: where its video lies in the tar, its captions, its size."""

    key: str
    tar: Place
    span: tuple[int, int]
    captions: tuple[str, ...]
    frames: int
    height: int
    width: int
    fps: float

    @property
    def size(self) -> str:
        """Width, height and frames, as ``batch_sizes`` names them."""
        return f"{self.width}x{self.height}x{self.frames}"


def read_index(tar: Place) -> list[ShardClip]:
    """The clips that a tar's index lists. Raises ValueError where there is none, a broken one, or another tar's."""
    index, path = load_index(tar), store.with_suffix(tar, ".json")
    try:
        clips = [
            ShardClip(
                key=one["key"],
                tar=tar,
                span=(one["video"][0], one["video"][1]),
                captions=tuple(one["captions"]),
                frames=one["frames"],
                height=one["height"],
                width=one["width"],
                fps=one["fps"],
            )
            for one in index["clips"]
        ]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is broken ({type(error).__name__}: {error}); pack again") from None
    for clip in clips:
        if sum(clip.span) > index["bytes"] or min(clip.span) < 0:
            raise ValueError(f"{path} is broken: the clip {clip.key} lies outside of its tar; pack again")
        if not any(caption.strip() for caption in clip.captions):
            raise ValueError(f"{path}: the clip {clip.key} has no caption; pack again")
    return clips


def load_index(tar: Place) -> Mapping[str, Any]:
    """The index beside a tar as it is written. Raises ValueError where there is none, or one of another tar."""
    path = store.with_suffix(tar, ".json")
    if not store.is_file(path):
        raise ValueError(f"{tar} has no index beside it ({store.name_of(path)}); lumiere data pack writes both")
    try:
        index = json.loads(store.read_bytes(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path} is no index of a shard (lumiere data pack writes one)")
    there = store.num_bytes(tar)
    if index.get("bytes") != there:
        raise ValueError(
            f"{path} is not the index of {store.name_of(tar)}: that has {there} bytes, and it says {index.get('bytes')}"
            " (pack again: the tar is cut off or was changed)"
        )
    return index


def read_frames(clips: Sequence[ShardClip], buffers: Buffers | None = None) -> Tensor:
    """Clips of one size [B, 3, T, H, W], decoded, of 8-bit pixels: ``video.as_floats`` makes them -1..1.

    Raises ValueError for one that is not as its index says.
    """
    first = clips[0]
    memory = (buffers or Buffers()).bytes(len(clips), first.frames, first.height, first.width, 3)
    for clip, pixels in zip(clips, memory.numpy(), strict=True):
        try:
            _decode(clip, pixels)
        except ValueError as error:
            raise ValueError(f"{clip.tar}: {error}; its index says {clip.size} (pack again)") from error
    return memory.movedim(-1, 1)


def _decode(clip: ShardClip, pixels: np.ndarray) -> None:
    """Fill ``pixels`` [T, H, W, 3] with the pictures of a clip."""
    name, count = f"the clip {clip.key}", 0
    for picture in decode_mp4(store.read_bytes(clip.tar, clip.span), name=name):
        if picture.shape != pixels.shape[1:]:
            raise ValueError(f"{name} has frames of {picture.shape[1]}x{picture.shape[0]}")
        if count == len(pixels):
            raise ValueError(f"{name} has more frames")
        pixels[count] = picture
        count += 1
    if count != len(pixels):
        raise ValueError(f"{name} has {count} frames")


class ShardClips:
    """Batches of the clips in a folder of shards (or a URL of one), as a pure function of (seed, position).

    ``read`` is what becomes of a clip, [C, T, h, w]; None: its frames, decoded (``read_frames``). Those stay of 8 bits
    until ``Batch.on`` the device: as floats they are four times the bytes, and writing them took as long as decoding.

    A position counts the batches of all processes that train together, so the order is the same for any number of
    them; each asks for every ``stride``-th one, and those are what is read ahead for it. Raises ValueError when there
    are no shards, an index does not match its tar, or too few clips are there.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: ShardSettings | None = None,
        *,
        batch_size: int,
        seed: int,
        stride: int = 1,
        read: Callable[[ShardClip], Tensor] | None = None,
    ) -> None:
        self.settings, self.batch_size, self.seed = settings or ShardSettings(), batch_size, seed
        self.stride = stride
        self._read_clip = read
        tars = store.list_files(store.as_place(folder), ".tar")
        if not tars:
            raise ValueError(f"{folder} holds no shards (*.tar); lumiere data pack writes them")
        every = [read_index(tar) for tar in tars]
        _check_keys([clip for clips in every for clip in clips])
        self.shards = [[clip for clip in clips if not self._is_held_out(clip)] for clips in every]
        self.held_out = [clip for clips in every for clip in clips if self._is_held_out(clip)]
        total = sum(len(clips) for clips in self.shards)
        if not self.held_out or not total:
            raise ValueError(
                f"{folder} holds {total + len(self.held_out)} clips, of which {len(self.held_out)} would be held out;"
                f" at least one is needed on each side (lower held_out_every, {self.settings.held_out_every})"
            )
        unknown = set(self.settings.batch_sizes) - {clip.size for clips in every for clip in clips}
        if unknown:
            sizes = sorted({clip.size for clips in every for clip in clips})
            raise ValueError(f"batch_sizes names {min(unknown)}; the shards hold {', '.join(sizes)}")
        counts = Counter(clip.size for clips in self.shards for clip in clips)
        self.batches_per_epoch = sum(count // self._batch_size_of(size) for size, count in counts.items())
        if not self.batches_per_epoch:
            raise ValueError(
                f"no size of clips has enough for one batch: there are {_listed(counts)}"
                f" (lower batch_size, {batch_size})"
            )
        self._buffers = Buffers()
        self._pool = ThreadPoolExecutor(self.settings.readers)
        self._ahead: dict[int, Future[Batch]] = {}

    def clips_of(self, position: int) -> list[ShardClip]:
        """The clips of the batch at a position."""
        epoch, place = divmod(position, self.batches_per_epoch)
        return list(_batches_of_epoch(self, epoch)[place])

    def batch(self, position: int, count: int, *, held_out: bool = False) -> Batch:
        """The clips [B, 3, T, H, W] at a position, with one of each one's captions; the next are read ahead.

        ``count`` is only followed for held-out clips: how many make a training batch is the settings' to say.
        """
        if held_out:
            # Of the size that most of them have: those of a batch are of one.
            size = Counter(clip.size for clip in self.held_out).most_common(1)[0][0]
            own = [clip for clip in self.held_out if clip.size == size]
            return self._read([own[(position * count + place) % len(own)] for place in range(count)], position)
        asked = self._ahead.pop(position, None) or self._pool.submit(self._read_position, position)
        wanted = range(position + self.stride, position + self.stride * (self.settings.batches_ahead + 1), self.stride)
        self._ahead = {one: future for one, future in self._ahead.items() if one in wanted}
        for one in wanted:
            if one not in self._ahead:
                self._ahead[one] = self._pool.submit(self._read_position, one)
        return asked.result()

    def clips(self) -> list[ShardClip]:
        """All clips, the held-out ones first."""
        return [*self.held_out, *(clip for clips in self.shards for clip in clips)]

    def captions(self) -> list[str]:
        """All captions, held-out clips' too."""
        return [caption for clip in self.clips() for caption in clip.captions]

    def _read_position(self, position: int) -> Batch:
        return self._read(self.clips_of(position), position)

    def _read(self, clips: Sequence[ShardClip], position: int) -> Batch:
        if self._read_clip is None:
            frames = read_frames(clips, self._buffers)
        else:
            frames = torch.stack([self._read_clip(clip) for clip in clips])
        numbers = [_number(self.seed, "caption", position, clip.key) for clip in clips]
        captions = [clip.captions[number % len(clip.captions)] for clip, number in zip(clips, numbers, strict=True)]
        return Batch(frames, captions)

    def _order(self, epoch: int) -> Iterator[list[ShardClip]]:
        """The pools of an epoch, each with its clips mixed."""
        shuffled = np.random.default_rng(_number(self.seed, "shards", epoch)).permutation(len(self.shards))
        for start in range(0, len(shuffled), self.settings.pool):
            pool = [clip for place in shuffled[start : start + self.settings.pool] for clip in self.shards[place]]
            order = np.random.default_rng(_number(self.seed, "clips", epoch, start)).permutation(len(pool))
            yield [pool[place] for place in order]

    def _batch_size_of(self, size: str) -> int:
        return self.settings.batch_sizes.get(size, self.batch_size)

    def _is_held_out(self, clip: ShardClip) -> bool:
        return _number("held out", clip.key) % self.settings.held_out_every == 0


@lru_cache(maxsize=2)
def _batches_of_epoch(clips: ShardClips, epoch: int) -> Sequence[Sequence[ShardClip]]:
    """The batches of an epoch: clips of one size, in the order of pools; what is left over at the end is left out."""
    waiting: dict[str, list[ShardClip]] = defaultdict(list)
    batches = []
    for pool in clips._order(epoch):
        for clip in pool:
            kept = waiting[clip.size]
            kept.append(clip)
            if len(kept) == clips._batch_size_of(clip.size):
                batches.append(tuple(kept))
                waiting[clip.size] = []
    assert len(batches) == clips.batches_per_epoch
    return batches


def _check_keys(clips: Sequence[ShardClip]) -> None:
    """Raise ValueError for a key that two clips have: by it they are held out, and found in a cache."""
    seen: dict[str, ShardClip] = {}
    for clip in clips:
        other = seen.setdefault(clip.key, clip)
        if other is not clip:
            raise ValueError(
                f"the key {clip.key} is there twice: in {store.name_of(other.tar)} and {store.name_of(clip.tar)} (pack"
                " all videos into one folder, instead of putting together shards of several)"
            )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} of {size}" for size, count in counts.items())


def _number(*key: object) -> int:
    """A number that depends on the key alone, and looks random."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1
