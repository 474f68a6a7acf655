"""A folder of the user's own videos with captions in .txt files of the same name, as clips to train on.

Every file is read once at the start, so that what cannot be used is known, with the reason, before training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lumiere.config import Settings
from lumiere.data.batches import Batch
from lumiere.media import VIDEO_SUFFIXES, BrokenOff, VideoInfo, iterate_frames, probe, read_clip
from lumiere.video import FPS, from_uint8


class ClipFolderSettings(Settings):
    """How the videos of a folder become clips."""

    size: int = Field(default=32, ge=8)
    """Width and height in pixels: the middle of each picture is cut out and resized."""
    num_frames: int = Field(default=24, ge=1)
    """Frames of a clip, 16 a second; shorter videos are left out."""
    held_out_every: int = Field(default=5, ge=2)
    """Every n-th video, in the order of names, is kept from training, to measure on; at least one is."""
    cache_mb: int = Field(default=1024, ge=0)
    """Memory for resized videos; those beyond it are read again for every clip."""


@dataclass(frozen=True, kw_only=True)
class FolderEntry:
    """What became of one file of the folder."""

    path: Path
    caption: str = ""
    info: VideoInfo | None = None
    num_frames: int = 0  # at 16 a second
    is_held_out: bool = False
    dropped: str | None = None  # why it is not used
    note: str | None = None  # what is odd about a file that is used


@dataclass(frozen=True)
class FolderReport:
    """What is in a folder, what is used of it, and why the rest is not."""

    folder: Path
    entries: tuple[FolderEntry, ...]

    @property
    def kept(self) -> tuple[FolderEntry, ...]:
        """The videos that are used."""
        return tuple(entry for entry in self.entries if entry.dropped is None)

    @property
    def dropped(self) -> tuple[FolderEntry, ...]:
        """The files that are not."""
        return tuple(entry for entry in self.entries if entry.dropped is not None)

    def table(self) -> Table:
        """One row for each file, the ones that are left out last."""
        table = Table("file", "video", "frames", "use", "caption, or why it is left out", title=str(self.folder))
        for entry in self.kept + self.dropped:
            info = entry.info
            video = f"{info.width}x{info.height} {info.fps:.4g} fps {info.duration_s:.2f} s" if info else ""
            use = "left out" if entry.dropped else "held out" if entry.is_held_out else "train"
            text = entry.dropped or entry.caption + (f" (note: {entry.note})" if entry.note else "")
            name = entry.path.relative_to(self.folder).as_posix()
            table.add_row(name, video, str(entry.num_frames or ""), use, text, style="red" if entry.dropped else "")
        return table


class ClipFolder:
    """Clips and single frames of a folder's videos, drawn as a pure function of (seed, step).

    ``report`` says what is used. Raises ValueError when the folder is not there or fewer than two videos are usable.
    """

    def __init__(self, folder: str | Path, settings: ClipFolderSettings, *, seed: int) -> None:
        self.folder, self.settings, self.seed = Path(folder), settings, seed
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is no folder (give one that holds videos, each with a caption in a .txt file)")
        self._cache: dict[Path, np.ndarray] = {}
        self.report = FolderReport(self.folder, tuple(self._entries()))
        if len(self.report.kept) < 2:
            raise ValueError(_nothing_left(self.report))

    def captions(self) -> list[str]:
        """The captions of all videos that are used, held-out ones too."""
        return [entry.caption for entry in self.report.kept]

    def batch(self, step: int, count: int, *, held_out: bool = False) -> Batch:
        """``count`` clips [B, 3, T, H, W] of a step, each a random piece of its video."""
        return self._batch(step, count, held_out=held_out, num_frames=self.settings.num_frames)

    def frame_batch(self, step: int, count: int, *, held_out: bool = False) -> Batch:
        """``count`` single frames [B, 3, 1, H, W] of a step, each from a random moment of its video."""
        return self._batch(step, count, held_out=held_out, num_frames=1)

    def example(self, position: int, *, num_frames: int, held_out: bool = False) -> tuple[np.ndarray, str]:
        """The 8-bit frames [T, H, W, 3] and the caption at a place of the endless random order.

        Each pass over the videos visits all of them, in a new order.
        """
        entries = [entry for entry in self.report.kept if entry.is_held_out == held_out]
        round_index, place = divmod(position, len(entries))
        order = torch.randperm(len(entries), generator=_generator(self.seed, held_out, round_index, "order"))
        entry = entries[int(order[place])]
        latest = entry.num_frames - num_frames
        start = torch.randint(latest + 1, (), generator=_generator(self.seed, held_out, position, "start"))
        return self._frames(entry.path, int(start), num_frames), entry.caption

    def _batch(self, step: int, count: int, *, held_out: bool, num_frames: int) -> Batch:
        examples = [
            self.example(step * count + index, num_frames=num_frames, held_out=held_out) for index in range(count)
        ]
        return Batch(from_uint8(np.stack([frames for frames, _ in examples])), [caption for _, caption in examples])

    def _frames(self, path: Path, start: int, num_frames: int) -> np.ndarray:
        if path in self._cache:
            return self._cache[path][start : start + num_frames]
        size = (self.settings.size, self.settings.size)
        return read_clip(path, num_frames=num_frames, size=size, start_s=start / FPS)[0]

    def _entries(self) -> Iterator[FolderEntry]:
        """Yield an entry for each file, in the order of names."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and not _is_hidden(path, self.folder))
        videos = {path.with_suffix("") for path in files if _is_video(path)}
        belongings = {path for path in files if path.suffix in {".txt", ".json"} and path.with_suffix("") in videos}
        files = [path for path in files if path not in belongings]
        console = Console(stderr=True)
        shown = track(files, "reading videos", console=console, transient=True, disable=not console.is_terminal)
        entries = [self._entry(path) for path in shown]
        total = sum(entry.dropped is None for entry in entries)
        every = min(self.settings.held_out_every, max(total, 2))
        num_kept = 0
        for entry in entries:
            num_kept += entry.dropped is None
            yield replace(entry, is_held_out=entry.dropped is None and num_kept % every == 0)

    def _entry(self, path: Path) -> FolderEntry:
        """What one file is good for."""
        if not _is_video(path):
            return FolderEntry(path=path, dropped="caption without a video" if path.suffix == ".txt" else "not a video")
        info = None
        try:
            caption = read_caption(path.with_suffix(".txt"))
            info = probe(path)
            num_frames, note = self._read(path)
        except ValueError as error:
            return FolderEntry(path=path, info=info, dropped=str(error))
        if num_frames < self.settings.num_frames:
            self._cache.pop(path, None)
            needed = f"too short: {num_frames} frames at {FPS} fps, and {self.settings.num_frames} are needed"
            reason = f"{needed}; {note}" if note else needed
            return FolderEntry(path=path, caption=caption, info=info, num_frames=num_frames, dropped=reason)
        return FolderEntry(path=path, caption=caption, info=info, num_frames=num_frames, note=note)

    def _read(self, path: Path) -> tuple[int, str | None]:
        """Decode the whole video, keep it if there is room, and say how many frames it gave and where it broke off."""
        room = self.settings.cache_mb * 2**20 - sum(frames.nbytes for frames in self._cache.values())
        kept: list[np.ndarray] = []
        count, note = 0, None
        try:
            for frame in iterate_frames(path, size=(self.settings.size, self.settings.size)):
                count += 1
                if count * frame.nbytes <= room:
                    kept.append(frame)
        except BrokenOff as error:
            note = str(error)
        if len(kept) == count and kept:
            self._cache[path] = np.stack(kept)
        return count, note


def read_caption(path: Path) -> str:
    """The whole text of a caption file, its white space made single blanks. Raises ValueError when it says nothing."""
    if not path.is_file():
        raise ValueError(f"no caption: {path.name} is missing")
    try:
        caption = " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise ValueError(f"no caption: {path.name} is not UTF-8 text") from None
    if not caption:
        raise ValueError(f"no caption: {path.name} is empty")
    return caption


def _nothing_left(report: FolderReport) -> str:
    reasons = [f"{entry.path.name}: {entry.dropped}" for entry in report.dropped]
    shown = "; ".join(reasons[:5]) + (f"; and {len(reasons) - 5} more" if len(reasons) > 5 else "")
    return (
        f"{report.folder} has {len(report.kept)} usable videos, and at least 2 are needed: one is held out"
        f" to measure on ({shown or 'it holds no files'})"
    )


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _generator(*key: object) -> torch.Generator:
    """A generator that depends on the key alone, and differs from those of all other keys."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
