"""Clips out of shards: one order for any number of ranks and readers, every clip once an epoch, one size a batch."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from concurrent.futures import wait
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from lumiere.data.buffers import Buffers
from lumiere.data.pack import PackSettings, pack
from lumiere.data.scan import Bucket
from lumiere.data.shards import ShardClips, ShardSettings, read_frames, read_index
from lumiere.data.store import read_bytes
from lumiere.media import read_clip
from lumiere.video import as_floats, from_uint8
from tests.media_samples import numbered_frames, write_video

SETTINGS = ShardSettings(pool=2, held_out_every=7, readers=2, batches_ahead=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos of five clips, every third one square."""
    place = tmp_path_factory.mktemp("shards")
    (place / "videos").mkdir()
    for number in range(10):
        width = 16 if number % 3 == 0 else 24
        frames = numbered_frames(20, width=width)
        frames[..., 1] = 20 * number
        write_video(place / "videos" / f"{number}.mkv", frames)
        (place / "videos" / f"{number}.json").write_text(json.dumps([f"video {number}", f"number {number}"]))
    buckets = (Bucket(height=16, width=24, frames=4), Bucket(height=16, width=16, frames=4))
    packing = PackSettings(buckets=buckets, min_side=8, workers=1, videos_per_shard=2)
    pack(place / "videos", place / "out", packing, progress=False)
    return place / "out"


def loader(folder: Path, **options: int) -> ShardClips:
    return ShardClips(folder, SETTINGS, **{"batch_size": 2, "seed": 3, **options})  # type: ignore[arg-type]


def keys(clips: ShardClips, steps: range) -> list[list[str]]:
    return [[clip.key for clip in clips.clips_of(step)] for step in steps]


def test_every_clip_comes_once_an_epoch_in_an_order_of_its_own(shards: Path) -> None:
    clips = loader(shards)
    count = clips.batches_per_epoch
    first, second = (keys(clips, range(epoch * count, (epoch + 1) * count)) for epoch in (0, 1))
    every = {clip.key for tar in shards.glob("*.tar") for clip in read_index(tar)}
    held_out = {clip.key for clip in clips.held_out}
    assert len(every) == 50 and held_out and held_out < every
    for epoch in (first, second):
        drawn = list(chain(*epoch))
        # An odd clip of each of the two sizes is left over.
        assert len(drawn) == len(set(drawn)) and set(drawn) <= every - held_out
        assert len(drawn) >= len(every - held_out) - 2
    assert first != second and keys(loader(shards), range(count)) == first
    assert keys(loader(shards, seed=4), range(count)) != first
    for step in range(count):
        assert len({clip.size for clip in clips.clips_of(step)}) == 1


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_order_is_the_same_for_any_number_of_ranks(shards: Path, ranks: int) -> None:
    alone, together = loader(shards), [loader(shards, stride=ranks) for _ in range(ranks)]
    for position in range(2 * ranks):
        one, other = alone.batch(position, 2), together[position % ranks].batch(position, 2)
        assert torch.equal(one.clips, other.clips) and one.captions == other.captions


def test_what_is_read_ahead_is_what_is_asked_for_next(shards: Path) -> None:
    clips = loader(shards, stride=3)
    clips.batch(4, 2)
    assert sorted(clips._ahead) == [7, 10]
    clips.batch(7, 2)
    assert sorted(clips._ahead) == [10, 13]


def test_frames_and_captions_are_the_clip_s_own(shards: Path) -> None:
    clips = loader(shards)
    for step in (0, 1, 2, 9):
        batch = clips.batch(step, 2)
        for clip, frames, caption in zip(clips.clips_of(step), batch.clips, batch.captions, strict=True):
            assert frames.shape == (3, 4, clip.height, clip.width) and caption in clip.captions
            number = int(caption.split()[1])
            green = frames[1, :, 12, 2].float()
            assert torch.allclose(green, torch.full_like(green, 20.0 * number), atol=8)
    said = {clips.batch(step, 2).captions[0].split()[0] for step in range(12)}
    assert said == {"video", "number"}
    assert clips.batch(0, 3, held_out=True).clips.shape[0] == 3


def test_what_is_read_does_not_depend_on_what_was_read_before(shards: Path) -> None:
    one, other = loader(shards), loader(shards)
    for step in (0, 1, 2, 3):
        one.batch(step, 2)
    resumed = other.batch(4, 2)
    again = one.batch(4, 2)
    assert torch.equal(resumed.clips, again.clips) and resumed.captions == again.captions


def test_sizes_can_have_batches_of_their_own(shards: Path) -> None:
    settings = SETTINGS.model_copy(update={"batch_sizes": {"16x16x4": 3}})
    clips = ShardClips(shards, settings, batch_size=2, seed=0)
    found = {(clip.size, len(clips.clips_of(step))) for step in range(12) for clip in clips.clips_of(step)}
    assert found == {("16x16x4", 3), ("24x16x4", 2)}
    with pytest.raises(ValueError, match="names 9x9x9; the shards hold 16x16x4, 24x16x4"):
        ShardClips(shards, SETTINGS.model_copy(update={"batch_sizes": {"9x9x9": 3}}), batch_size=2, seed=0)


def test_shards_that_do_not_fit_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no shards"):
        loader(tmp_path)
    shutil.copytree(shards, tmp_path / "copy")
    tar = tmp_path / "copy" / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(ValueError, match=r"is not the index of shard-000001\.tar"):
        loader(tmp_path / "copy")
    tar.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="no index beside it"):
        loader(tmp_path / "copy")
    shutil.copytree(shards, tmp_path / "halfway")
    (tmp_path / "halfway" / ".writing-shard-000009.tar").write_bytes(b"half")
    assert len(loader(tmp_path / "halfway").clips()) == 50
    with pytest.raises(ValueError, match="enough for one batch"):
        loader(shards, batch_size=100)
    shutil.copytree(shards, tmp_path / "two")
    for suffix in (".tar", ".json"):
        shutil.copy(shards / f"shard-000000{suffix}", tmp_path / "two" / f"theirs{suffix}")
    with pytest.raises(ValueError, match=r"twice: in shard-000000\.tar and theirs\.tar"):
        loader(tmp_path / "two")
    many = np.iinfo(np.int32).max
    with pytest.raises(ValueError, match="held out"):
        ShardClips(shards, SETTINGS.model_copy(update={"held_out_every": int(many)}), batch_size=2, seed=0)


def test_an_index_that_is_broken_is_refused_by_name(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "copy")
    path = tmp_path / "copy" / "shard-000002.json"
    index = json.loads(path.read_text())
    first = index["clips"][0]
    for change, reason in (
        ({"video": [0, index["bytes"] + 1]}, "lies outside of its tar"),
        ({"captions": [" "]}, "has no caption"),
        ({"captions": []}, "has no caption"),
        ({"video": None}, "is broken"),
    ):
        path.write_text(json.dumps({**index, "clips": [{**first, **change}]}))
        with pytest.raises(ValueError, match=rf"shard-000002\.json.*{reason}"):
            loader(tmp_path / "copy")
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        loader(tmp_path / "copy")
    path.write_text("[]")
    with pytest.raises(ValueError, match="no index of a shard"):
        loader(tmp_path / "copy")


class Counted(MemoryFileSystem):
    """A store that says how many bytes of each file were fetched."""

    protocol = "counted"
    fetched: Counter[str] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("counted://", "memory://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        data = super().cat_file(path, start=start, end=end, **options)
        self.fetched[path.rpartition("/")[2]] += len(data)
        return data


def test_shards_in_a_store_are_read_by_ranges_and_give_the_same(shards: Path) -> None:
    fsspec.register_implementation("counted", Counted, clobber=True)
    memory = fsspec.filesystem("memory")
    for path in [*shards.glob("*.tar"), *shards.glob("shard-*.json")]:
        memory.pipe_file(f"/bucket/shards/{path.name}", path.read_bytes())
    local = loader(shards)
    for url in ("memory://bucket/shards", "counted://bucket/shards/"):
        remote = ShardClips(url, SETTINGS, batch_size=2, seed=3)
        assert keys(remote, range(8)) == keys(local, range(8))
        ours, theirs = remote.batch(3, 2), local.batch(3, 2)
        assert torch.equal(ours.clips, theirs.clips) and ours.captions == theirs.captions
        wait(remote._ahead.values())
    read = ShardClips("counted://bucket/shards", SETTINGS.model_copy(update={"batches_ahead": 0}), batch_size=2, seed=3)
    Counted.fetched.clear()
    read.batch(0, 2)
    clips = read.clips_of(0)
    assert sum(Counted.fetched.values()) == sum(clip.span[1] for clip in clips)
    with pytest.raises(ValueError, match="holds no shards"):
        ShardClips("memory://bucket/nowhere", SETTINGS, batch_size=2, seed=3)
    with pytest.raises(ValueError, match="nostore"):
        ShardClips("nostore://bucket", SETTINGS, batch_size=2, seed=3)
    memory.pipe_file("/bucket/shards/shard-000000.tar", b"cut")
    with pytest.raises(ValueError, match=r"is not the index of shard-000000\.tar: that has 3 bytes"):
        ShardClips("memory://bucket/shards", SETTINGS, batch_size=2, seed=3)


def test_decoded_clips_are_what_the_general_reader_gives(shards: Path, tmp_path: Path) -> None:
    for clip in (read_index(shards / "shard-000000.tar")[0], read_index(shards / "shard-000003.tar")[-1]):
        (tmp_path / "clip.mp4").write_bytes(read_bytes(clip.tar, clip.span))
        true, _ = read_clip(tmp_path / "clip.mp4", fps=clip.fps)
        decoded = read_frames([clip, clip])
        assert decoded.dtype == torch.uint8 and torch.equal(as_floats(decoded)[1], from_uint8(true))


def test_a_clip_that_is_not_as_its_index_says_is_refused_by_name(shards: Path) -> None:
    clip = read_index(shards / "shard-000001.tar")[0]
    for change, reason in (
        ({"frames": 3}, "has more frames; its index says 24x16x3"),
        ({"frames": 5}, "has 4 frames; its index says 24x16x5"),
        ({"width": 16}, "has frames of 24x16; its index says 16x16x4"),
        ({"span": (clip.span[0] + 4, clip.span[1])}, "cannot be decoded"),
        ({"span": (clip.span[0], clip.span[1] // 2)}, "cannot be decoded|has [0-3] frames|is damaged"),
    ):
        with pytest.raises(ValueError, match=rf"shard-000001\.tar: the clip {clip.key}.*({reason}).*pack again"):
            read_frames([replace(clip, **change)])


def test_memory_is_lent_again_when_nothing_holds_it() -> None:
    buffers = Buffers()
    one, other = buffers.bytes(2, 3), buffers.bytes(4)
    places = {one.data_ptr(), other.data_ptr()}
    assert one.shape == (2, 3) and other.shape == (4,) and len(places) == 2
    kept = one[1:].movedim(0, 1)
    kept.fill_(7)
    del one, other
    again = buffers.bytes(3)
    again.zero_()
    assert again.data_ptr() in places and again.data_ptr() != kept.data_ptr() and (kept == 7).all()
    # What is too small goes when more is wanted.
    del again
    larger = buffers.bytes(9)
    assert larger.shape == (9,) and not buffers._free
    del larger
    assert [len(piece) for piece in buffers._free] == [9]


@pytest.mark.slow
def test_memory_does_not_grow_over_ten_thousand_clips(shards: Path) -> None:
    clips = ShardClips(shards, SETTINGS, batch_size=4, seed=0)
    process, sizes = psutil.Process(), []
    for step in range(2500):
        clips.batch(step, 4)
        if step % 250 == 249:
            sizes.append(process.memory_info().rss)
    # The first thousand clips fill the allocator's own stores.
    assert max(sizes[1:]) - sizes[0] < 24 * 2**20, [size / 2**20 for size in sizes]
