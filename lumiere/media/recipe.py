"""The recipe of a clip, as JSON inside its file and beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from lumiere.media.container import opened_video
from lumiere.media.stills import PILLOW_ERRORS, frame_files, is_webp

PNG_KEY = "comment"
EXIF_DESCRIPTION = 0x010E


def recipe_json(recipe: dict[str, Any]) -> str:
    """The recipe as one line of plain ASCII, which every container's comment field keeps.

    Raises ValueError when something in it is not JSON.
    """
    try:
        return json.dumps(recipe, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the recipe holds something that is not JSON: {error}") from error


def beside(path: Path) -> Path:
    """Where the recipe of a file lies: clip.json beside clip.mp4, frames.json beside the folder frames."""
    return path.with_suffix(".json") if path.suffix and not path.is_dir() else path.with_name(path.name + ".json")


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The recipe that a clip was written with: from inside the file, else from the JSON beside it.

    A .json file is read itself. Raises ValueError when there is none.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.suffix == ".json":
        recipe = _parsed(path.read_text(encoding="utf-8", errors="replace"))
        if recipe is None:
            raise ValueError(f"{path} is not a recipe (a JSON object is needed)")
        return recipe
    recipe = _parsed(_comment(path))
    if recipe is None and beside(path).is_file():
        recipe = _parsed(beside(path).read_text(encoding="utf-8", errors="replace"))
    if recipe is None:
        raise ValueError(f"{path} carries no recipe, and there is none in {beside(path)}")
    return recipe


def _parsed(text: str | bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(text) if text else None
    except ValueError:  # some other program's comment
        return None
    return found if isinstance(found, dict) else None


def _comment(path: Path) -> str | bytes | None:
    """What a file's comment field says."""
    if path.is_dir():
        files = frame_files(path)
        return _picture_comment(files[0]) if files else None
    if is_webp(path) or path.suffix.lower() in {".gif", ".apng", ".png"}:
        return _picture_comment(path)
    with opened_video(path) as (container, _):
        return container.metadata.get("comment") or container.metadata.get("COMMENT")


def _picture_comment(path: Path) -> str | bytes | None:
    try:
        with Image.open(path) as image:
            return image.info.get("comment") or image.getexif().get(EXIF_DESCRIPTION)
    except PILLOW_ERRORS as error:
        raise ValueError(f"{path} cannot be opened as a picture: {error}") from error
