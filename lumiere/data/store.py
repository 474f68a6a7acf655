"""Files on a disk, or in any store that fsspec knows (``s3://``, ``memory://``, ...): listed, and read in parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Found = TypeVar("Found")

Place = Path | str
"""A path on a disk, or a URL with a scheme."""


def as_place(path: str | Path) -> Place:
    """The URL as it is, anything else as a path."""
    return str(path).rstrip("/") if is_url(path) else Path(path)


def is_url(path: str | Path) -> bool:
    """Whether this is a URL with a scheme, and no path on a disk."""
    return isinstance(path, str) and "://" in path


def name_of(place: Place) -> str:
    """The last part of a place."""
    return place.rpartition("/")[2] if isinstance(place, str) else place.name


def with_suffix(place: Place, suffix: str) -> Place:
    """The same place with another ending of its name."""
    return place.rpartition(".")[0] + suffix if isinstance(place, str) else place.with_suffix(suffix)


def list_files(folder: Place, suffix: str) -> list[Place]:
    """The files of that ending in a folder, in the order of names; none where there is no such folder.

    Hidden ones are left out: those are being written.
    """
    if isinstance(folder, Path):
        found = folder.glob(f"*{suffix}") if folder.is_dir() else []
        return sorted(path for path in found if not path.name.startswith("."))

    def listed(store: Any, path: str) -> list[Place]:
        names = [str(one).rpartition("/")[2] for one in store.ls(path, detail=False)] if store.isdir(path) else []
        return [f"{folder}/{name}" for name in sorted(names) if name.endswith(suffix) and not name.startswith(".")]

    return _asked(folder, listed)


def is_file(place: Place) -> bool:
    """Whether a file is there."""
    return place.is_file() if isinstance(place, Path) else _asked(place, lambda store, path: bool(store.isfile(path)))


def num_bytes(place: Place) -> int:
    """How long a file is."""
    return place.stat().st_size if isinstance(place, Path) else _asked(place, lambda store, path: int(store.size(path)))


def read_bytes(place: Place, span: tuple[int, int] | None = None) -> bytes:
    """A file, or ``span`` (offset, length) of it: of a store only those bytes are fetched.

    Raises ValueError where the file ends before the span does.
    """
    if isinstance(place, Path):
        with place.open("rb") as file:
            file.seek(0 if span is None else span[0])
            data = file.read(-1 if span is None else span[1])
    else:
        start, end = (None, None) if span is None else (span[0], sum(span))
        data = _asked(place, lambda store, path: bytes(store.cat_file(path, start=start, end=end)))
    if span is not None and len(data) != span[1]:
        raise ValueError(
            f"{place} ends before byte {sum(span)}, up to which it is needed (it is cut off: fetch it again)"
        )
    return data


def _asked(url: str, question: Callable[[Any, str], Found]) -> Found:
    """What a store says. Raises ValueError where its library is missing or the store cannot be asked."""
    from fsspec.core import url_to_fs

    try:
        store, path = url_to_fs(url)
        return question(store, path)
    except ImportError as error:
        raise ValueError(f"{url} cannot be read: {error}") from None
    except Exception as error:  # Every store has its own: no credentials, no connection, no such bucket.
        raise ValueError(f"{url} cannot be read ({type(error).__name__}: {error})") from error
