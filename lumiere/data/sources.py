"""Where videos and their captions lie: a folder, a manifest, or WebDataset tars; read without opening any video.

Every video gets a name that is its own, and the order is that of names (of a manifest: its own), so that whatever is
computed from it is the same everywhere.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lumiere.config import did_you_mean
from lumiere.media import VIDEO_SUFFIXES

VIDEO_COLUMNS = ("video", "path", "file", "filename", "file_name", "video_path")
CAPTION_COLUMNS = ("caption", "captions", "text", "prompt")
MANIFESTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
TARS = (".tar",)


@dataclass(frozen=True)
class SourceVideo:
    """A video and its captions: a file, or ``span`` (offset, length in bytes) of a tar.

    ``problem`` says why it cannot be used, where that is known before any picture is read.
    """

    name: str
    path: Path
    captions: tuple[str, ...] = ()
    span: tuple[int, int] | None = None
    problem: str | None = None

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """The video as a file of its own, for as long as the context lasts."""
        if self.span is None:
            yield self.path
            return
        offset, length = self.span
        handle, name = tempfile.mkstemp(suffix=Path(self.name).suffix, prefix="lumiere-")
        try:
            with os.fdopen(handle, "wb") as copy, self.path.open("rb") as tar:
                tar.seek(offset)
                copy.write(tar.read(length))
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


def read_sources(
    path: str | Path, *, video_column: str | None = None, caption_column: str | None = None
) -> list[SourceVideo]:
    """The videos at ``path``: a folder (videos with .txt or .json captions, or WebDataset tars), a manifest, or a tar.

    A manifest is a CSV, TSV, JSON-lines or Parquet file with a column of paths (relative to it) and one of captions;
    the columns may be named. Raises ValueError when nothing there can be read; videos with a problem are listed.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist (give a folder of videos, a manifest, or a WebDataset tar)")
    if path.is_dir():
        tars = sorted(one for one in path.iterdir() if one.suffix in TARS)
        found = [video for tar in tars for video in _tar_videos(tar)] if tars else list(_folder_videos(path))
    elif path.suffix.lower() in TARS:
        found = list(_tar_videos(path))
    elif path.suffix.lower() in MANIFESTS:
        found = list(_manifest_videos(path, _rows(path), video_column, caption_column))
    else:
        raise ValueError(f"{path} is neither a folder nor one of {', '.join((*MANIFESTS, *TARS))}")
    if not found:
        raise ValueError(f"{path} holds no videos ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return _with_names_of_their_own(found)


def read_captions(data: bytes, *, name: str) -> tuple[str, ...]:
    """The captions in a .txt file (one) or a .json file (``caption``, ``captions``, or a list of them).

    Raises ValueError when it says nothing, or is no UTF-8.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None
    if not name.endswith(".json"):
        return _said([text], name)
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON ({error})") from None
    if isinstance(found, Mapping):
        columns = [column for column in CAPTION_COLUMNS if column in found]
        if not columns:
            raise ValueError(f"{name} names no caption (needed is one of {', '.join(CAPTION_COLUMNS)})")
        found = found[columns[0]]
    return _said(found if isinstance(found, list) else [found], name)


def _said(texts: Iterable[Any], name: str) -> tuple[str, ...]:
    said = tuple(" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip())
    if not said:
        raise ValueError(f"{name} holds no caption")
    return said


def _folder_videos(folder: Path) -> Iterator[SourceVideo]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder))
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    taken = {path.with_suffix("") for path in videos}
    for path in files:
        name = path.relative_to(folder).as_posix()
        if path in videos:
            yield _captioned(SourceVideo(name, path), [path.with_suffix(suffix) for suffix in (".txt", ".json")])
        elif path.suffix in (".txt", ".json") and path.with_suffix("") not in taken:
            yield SourceVideo(name, path, problem="a caption without a video")
        elif path.suffix not in (".txt", ".json"):
            yield SourceVideo(name, path, problem="not a video")


def _captioned(video: SourceVideo, places: Sequence[Path]) -> SourceVideo:
    found = [place for place in places if place.is_file()]
    if not found:
        return replace(video, problem=f"no caption: {places[0].name} is missing")
    try:
        return replace(video, captions=read_captions(found[0].read_bytes(), name=found[0].name))
    except (ValueError, OSError) as error:
        return replace(video, problem=f"no caption: {error}")


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a manifest."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet_rows(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    if kind in (".csv", ".tsv"):
        return _table_rows(path, text, delimiter="\t" if kind == ".tsv" else ",")
    rows = []
    # Not splitlines: it also ends a line at characters that a caption may hold, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: not an object with columns")
            rows.append(row)
    return rows


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError(
            f'{path}: Parquet needs pyarrow (pip install "lumiere[parquet]"), or write it as CSV'
        ) from None
    try:
        return list(parquet.read_table(path).to_pylist())
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error})") from None


def _table_rows(path: Path, text: str, *, delimiter: str) -> list[dict[str, Any]]:
    """The rows of a CSV or TSV file; captions in quotes may hold line breaks."""
    reader: csv.DictReader[Any] = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[dict[str, Any]] = []
    try:
        for row in reader:
            more = row.get(None)  # What stands behind the last column.
            if more:
                columns = len(row) - 1
                raise ValueError(
                    f"{path}, line {reader.line_num}: {columns + len(more)} values for {columns} columns"
                    " (put captions that hold the separator in quotes)"
                )
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    return rows


def _manifest_videos(
    path: Path, rows: Sequence[Mapping[str, Any]], video_column: str | None, caption_column: str | None
) -> Iterator[SourceVideo]:
    if not rows:
        raise ValueError(f"{path} has no rows")
    videos = _column(path, rows, video_column, VIDEO_COLUMNS, "video")
    captions = _column(path, rows, caption_column, CAPTION_COLUMNS, "caption")
    for number, row in enumerate(rows, start=1):
        given = row.get(videos)
        if not isinstance(given, str) or not given.strip():
            yield SourceVideo(f"row {number}", path, problem=f"column {videos!r} is empty")
            continue
        place = Path(given) if Path(given).is_absolute() else path.parent / given
        said = row.get(captions)
        try:
            texts = _said(said if isinstance(said, list) else [said], f"column {captions!r}")
        except ValueError as error:
            yield SourceVideo(given, place, problem=f"no caption: {error}")
            continue
        yield SourceVideo(given, place, texts, problem=None if place.is_file() else "no such file")


def _column(path: Path, rows: Sequence[Mapping[str, Any]], wanted: str | None, known: Sequence[str], what: str) -> str:
    there = list(rows[0])
    if wanted is not None:
        if wanted not in there:
            raise ValueError(f"{path} has no column {wanted!r}{did_you_mean(wanted, there)}; it has {', '.join(there)}")
        return wanted
    found = [name for name in known if name in there]
    if not found:
        near = [name for name in there for one in known if did_you_mean(name, [one])]
        hint = f"; did you mean {near[0]!r}? Say so with --{what}_column {near[0]}" if near else ""
        raise ValueError(
            f"{path} has no column of {what}s: it has {', '.join(there)}, and looked for are {', '.join(known)}{hint}"
        )
    return found[0]


def _tar_videos(path: Path) -> Iterator[SourceVideo]:
    """The videos of a WebDataset tar, in its order: members that share a name up to the first dot belong together."""
    groups: dict[str, dict[str, tarfile.TarInfo]] = {}
    texts: dict[str, bytes] = {}
    broken = None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, _, extension = member.name.rpartition("/")[2].partition(".")
                key = f"{member.name.rpartition('/')[0]}/{key}".lstrip("/")
                if f".{extension}" in groups.setdefault(key, {}):
                    broken = f"{member.name} is there twice"
                groups[key][f".{extension}"] = member
                if extension in ("txt", "json"):
                    file = tar.extractfile(member)
                    texts[member.name] = b"" if file is None else file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        broken = f"the tar is damaged: {error}"
    if broken is None and not _ends_whole(path, groups):
        broken = "the tar is cut off"
    for key, members in groups.items():
        name = f"{path.name}/{key}"
        video = next((members[one] for one in members if one.lower() in VIDEO_SUFFIXES), None)
        if video is None:
            yield SourceVideo(name, path, problem="no video of that name in the tar")
            continue
        span = (video.offset_data, video.size)
        if sum(span) > path.stat().st_size:
            yield SourceVideo(name, path, problem="cut off: the tar ends before the video does")
            continue
        source = SourceVideo(f"{name}{Path(video.name).suffix}", path, span=span)
        said = next((members[one] for one in (".txt", ".json") if one in members), None)
        if said is None:
            yield replace(source, problem=f"no caption: {key}.txt or {key}.json is missing")
            continue
        try:
            yield replace(source, captions=read_captions(texts.get(said.name, b""), name=said.name))
        except ValueError as error:
            yield replace(source, problem=f"no caption: {error}")
    if broken is not None:
        yield SourceVideo(path.name, path, problem=broken)


def _ends_whole(path: Path, groups: Mapping[str, Mapping[str, tarfile.TarInfo]]) -> bool:
    """Whether a tar is at least as long as its members say."""
    ends = [member.offset_data + member.size for members in groups.values() for member in members.values()]
    return path.stat().st_size >= max(ends, default=0)


def _with_names_of_their_own(videos: Sequence[SourceVideo]) -> list[SourceVideo]:
    """The same, those whose name was there before marked."""
    seen: dict[str, int] = {}
    found = []
    for place, video in enumerate(videos):
        if video.name in seen and video.problem is None:
            video = replace(video, problem=f"the name is there twice (first as number {seen[video.name] + 1})")
        seen.setdefault(video.name, place)
        found.append(video)
    return found


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
