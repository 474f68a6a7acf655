"""Videos packed into WebDataset tars for training: ``key.mp4`` and ``key.json`` of each clip, an index beside each tar.

Which clips lie in which tar, and every byte of it, depends on the videos and the settings alone, not on how many
processes or machines share the work. A tar that is there is whole, so packing that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from lumiere.data.scan import Bucket, Scanned, ScanSettings, Scene, scan_sources
from lumiere.data.scan_report import write as write_report
from lumiere.data.sources import SourceVideo, read_sources
from lumiere.data.workers import Failed, results
from lumiere.media import iterate_frames, probe, starts_with_key_frame, write_clip
from lumiere.progress import progress_bar

FORMAT = "lumiere-shards"
PLAN = "pack.json"
LATER = {"copying": "never", "detector": "own"}
"""Settings that folders of shards of version 0.1 do not name, and what they were packed with."""


class PackSettings(ScanSettings):
    """How videos become shards."""

    videos_per_shard: int = Field(default=64, ge=1)
    """Videos whose clips share a tar."""
    shard_timeout_s: float = Field(default=3600.0, gt=0)
    """Seconds after which a tar is given up."""
    copying: Literal["never", "where_possible", "only"] = "never"
    """Whether videos that are a clip as they are keep their bytes (``why_not_copied`` says which); "only" refuses
    the others, which are encoded anew else."""


@dataclass(frozen=True)
class Job:
    """One tar to be written, from these videos of which this is known."""

    number: int
    sources: tuple[SourceVideo, ...]
    scanned: tuple[Scanned, ...]
    folder: Path
    fps: float
    copying: str = "never"

    @property
    def tar(self) -> Path:
        """Where the tar will lie."""
        return self.folder / f"shard-{self.number:06d}.tar"

    @property
    def index(self) -> Path:
        """Where its index will lie."""
        return self.tar.with_suffix(".json")


def pack(
    path: str | Path,
    out: str | Path,
    settings: PackSettings | None = None,
    *,
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> list[Path]:
    """Scan the videos at ``path`` and pack their clips into ``out``; the tars of this ``part`` (i of n, from 0).

    Scanned is once, and kept as report.json and report.html in ``out``; tars that are there already are left. Raises
    ValueError for an ``out`` with shards of other videos or settings, when nothing can be packed, and, after all other
    tars were written, when one could not be.
    """
    settings, out = settings or PackSettings(), Path(out)
    number, count = part
    if not 0 <= number < count:
        raise ValueError(f"part {number} of {count}; parts are numbered from 0 to {count - 1}")
    sources = read_sources(path, video_column=settings.video_column, caption_column=settings.caption_column)
    scanned = _scanned(sources, settings, out, str(path), progress=progress)
    used = [pair for pair in zip(sources, scanned, strict=True) if pair[1].num_clips]
    if not used:
        reasons = "; ".join(f"{one.name}: {one.dropped}" for one in scanned[:5])
        raise ValueError(f"nothing of {path} can be packed ({reasons}; see {out / 'report.html'})")
    size = settings.videos_per_shard
    groups = [used[start : start + size] for start in range(0, len(used), size)]
    jobs = [
        Job(
            place,
            tuple(one for one, _ in group),
            tuple(other for _, other in group),
            out,
            settings.fps,
            settings.copying,
        )
        for place, group in enumerate(groups)
    ]
    own = [job for job in jobs if job.number % count == number]
    missing = [job for job in own if not is_whole(job.tar)]
    failed = []
    with progress_bar("shards", is_shown=progress) as bar:
        task = bar.add_task("packing", total=len(missing))
        workers = min(settings.num_workers, max(1, len(missing)))
        for place, answer in results(write_shard, missing, workers=workers, timeout_s=settings.shard_timeout_s):
            if isinstance(answer, Failed):
                failed.append(f"{missing[place].tar.name}: {answer.reason}")
            bar.advance(task)
    if failed:
        raise ValueError(f"{len(failed)} of {len(own)} tars could not be written ({'; '.join(failed[:3])})")
    return [job.tar for job in own]


def is_whole(tar: Path) -> bool:
    """Whether a tar is there with its index, and as long as that says."""
    index = tar.with_suffix(".json")
    if not (tar.is_file() and index.is_file()):
        return False
    return json.loads(index.read_text(encoding="utf-8"))["bytes"] == tar.stat().st_size


def write_shard(job: Job) -> int:
    """Write one tar and its index, each under another name first; the number of its clips."""
    aside = job.folder / f".writing-{job.tar.name}"
    try:
        return _write_shard(job, aside)
    finally:
        aside.unlink(missing_ok=True)


def _write_shard(job: Job, aside: Path) -> int:
    entries: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    with aside.open("wb") as file:
        for place, (facts, clip) in enumerate(_clips(job)):
            key = f"{job.number:06d}-{place:05d}"
            text = json.dumps(facts, ensure_ascii=False, sort_keys=True).encode()
            offsets = {}
            for suffix, data in ((".mp4", clip), (".json", text)):
                offsets[suffix] = [file.tell() + tarfile.BLOCKSIZE, len(data)]
                member = _member(f"{key}{suffix}", data)
                digest.update(member)
                file.write(member)
            entries.append({"key": key, "video": offsets[".mp4"], "facts": offsets[".json"], **facts})
        end = b"\0" * (2 * tarfile.BLOCKSIZE)
        digest.update(end)
        file.write(end)
        size = file.tell()
    index = {"format": FORMAT, "version": 1, "bytes": size, "sha256": digest.hexdigest(), "clips": entries}
    index_aside = job.folder / f".writing-{job.index.name}"
    index_aside.write_text(json.dumps(index, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(job.tar)
    index_aside.replace(job.index)
    return len(entries)


def _clips(job: Job) -> Iterator[tuple[dict[str, Any], bytes]]:
    """What is known of each clip of a job, and its MP4."""
    for source, scanned in zip(job.sources, job.scanned, strict=True):
        with source.on_disk() as path:
            is_copied = _is_copied(path, scanned, job)
            for bucket, start, frames in _windows(path, scanned, job.fps):
                if not frames.any():
                    continue  # Black throughout: a film's beginning or end, of which nothing is learned.
                facts = {
                    "captions": list(scanned.captions),
                    "source": scanned.name,
                    "start": start,
                    "fps": job.fps,
                    "frames": bucket.frames,
                    "height": bucket.height,
                    "width": bucket.width,
                }
                if is_copied:
                    yield {**facts, "copied": True}, path.read_bytes()
                else:
                    yield facts, _encoded(frames, job.fps)


def _windows(path: Path, scanned: Scanned, fps: float) -> Iterator[tuple[Bucket, int, np.ndarray]]:
    """The clips of a video in their order: where each goes, its first frame, its frames [T, H, W, 3].

    Read once for each size; scenes of one size follow each other, those of others are read in turn.
    """
    wanted = [(start, scene.bucket) for scene in scanned.scenes if scene.bucket for start in scene.clips]
    for bucket in dict.fromkeys(bucket for _, bucket in wanted):
        assert bucket is not None
        starts = iter([start for start, one in wanted if one == bucket])
        start = next(starts)
        kept: list[np.ndarray] = []
        for place, frame in enumerate(iterate_frames(path, fps=fps, size=(bucket.height, bucket.width))):
            if place < start:
                continue
            kept.append(frame)
            if len(kept) == bucket.frames:
                yield bucket, start, np.stack(kept)
                kept = []
                following = next(starts, None)
                if following is None:
                    break
                start = following


def _is_copied(path: Path, scanned: Scanned, job: Job) -> bool:
    """Whether a video keeps its bytes. Raises ValueError for one that does not, where all have to."""
    if job.copying == "never":
        return False
    why_not = why_not_copied(path, scanned, job.fps)
    if why_not is not None and job.copying == "only":
        raise ValueError(
            f"{scanned.name} cannot be copied: {why_not} (--copying where_possible encodes such videos anew)"
        )
    return why_not is None


def why_not_copied(path: Path, scanned: Scanned, fps: float) -> str | None:
    """Why a video is not, as it is, the one clip that comes of it; None where it is.

    It is when it is a whole MP4 (or MOV) without sound that begins with a key frame, and has the size, rate and length
    of its bucket, upright and in square pixels.
    """
    info = probe(path)
    (bucket, *others) = [scene.bucket for scene in scanned.scenes if scene.bucket for _ in scene.clips]
    assert bucket is not None
    rules = (
        (not others and len(scanned.scenes) == 1, f"{1 + len(others)} clips are cut from it"),
        ("mp4" in info.format.split(","), f"it is no MP4 but {info.format}"),
        (not info.has_audio, "it has sound"),
        (info.damage is None, f"it is damaged ({info.damage})"),
        (
            (info.width, info.height) == (bucket.width, bucket.height),
            f"it has {info.width}x{info.height} pixels, not {bucket.width}x{bucket.height}",
        ),
        (info.rotation == 0 and info.pixel_aspect == 1, "its pictures are turned, or their pixels not square"),
        (not info.has_alpha, "it is transparent"),
        (
            not info.is_variable_rate and abs(info.fps - fps) < 1e-3,
            f"it has {info.fps:.4g} frames a second, not {fps:g}",
        ),
        (info.num_frames == bucket.frames, f"it has {info.num_frames} frames, not {bucket.frames}"),
        (starts_with_key_frame(path), "it does not begin with a key frame"),
    )
    return next((why_not for is_so, why_not in rules if not is_so), None)


def _encoded(frames: np.ndarray, fps: float) -> bytes:
    """A clip as MP4, encoded by one thread, so that it is the same everywhere."""
    with tempfile.TemporaryDirectory(prefix="lumiere-") as place:
        path = Path(place) / "clip.mp4"
        write_clip(frames, path, fps=fps, threads=1)
        return path.read_bytes()


def _member(name: str, data: bytes) -> bytes:
    """A file as it lies in a tar: header, contents, padding; nothing in it depends on who writes it when."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o644, 0
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)


def _scanned(
    sources: Sequence[SourceVideo], settings: PackSettings, out: Path, origin: str, *, progress: bool
) -> list[Scanned]:
    """What is known of the videos: found out once for a folder of shards, and kept there."""
    told = settings.model_dump(mode="json", exclude={"workers", "timeout_s", "shard_timeout_s"})
    # Folders that were packed before there was a choice stay what they are.
    told = {name: value for name, value in told.items() if name not in LATER or value != LATER[name]}
    plan = {
        "format": FORMAT,
        "settings": told,
        "videos": [[source.name, list(source.captions), source.problem] for source in sources],
    }
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    path = out / PLAN
    if path.is_file():
        kept: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept.get("digest") != digest:
            raise ValueError(
                f"{out} holds shards of other videos, captions or settings (see its {PLAN}); pack into a new folder"
            )
        return [_from_dict(one) for one in kept["scanned"]]
    if out.is_dir() and any(out.glob("*.tar")):
        raise ValueError(f"{out} holds tars that were not packed here; pack into a new folder")
    scanned = list(scan_sources(sources, settings, progress=progress))
    write_report(out, scanned, settings, origin)
    kept = {"digest": digest, "settings": plan["settings"], "scanned": [_as_dict(one) for one in scanned]}
    aside = out / f".writing-{PLAN}"
    aside.write_text(json.dumps(kept, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(path)
    return [_from_dict(one) for one in kept["scanned"]]


def _as_dict(scanned: Scanned) -> dict[str, Any]:
    scenes = [
        [scene.start, scene.frames, None if scene.bucket is None else scene.bucket.model_dump()]
        for scene in scanned.scenes
    ]
    return {"name": scanned.name, "captions": list(scanned.captions), "dropped": scanned.dropped, "scenes": scenes}


def _from_dict(kept: Mapping[str, Any]) -> Scanned:
    scenes = tuple(
        Scene(start, frames, None if bucket is None else Bucket(**bucket)) for start, frames, bucket in kept["scenes"]
    )
    return Scanned(kept["name"], tuple(kept["captions"]), dropped=kept["dropped"], scenes=scenes)
