"""The recipe of a clip: everything that decided its pixels, as it is written into the clip's file."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

from lumiere.config import Settings, load_settings
from lumiere.device import installed_versions
from lumiere.media import read_recipe


class ClipRecipe(Settings):
    """What `lumiere generate` was asked for, with what, and on what."""

    prompt: str
    negative_prompt: str
    seed: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    timestep_shift: float = 1.0
    opening_frames: int = 0
    """Of how many frames the clip is whose first one was made first; 0: all frames were made at once."""
    super_resolution: bool = True
    """Whether what the base made was made larger, where the model can."""
    sampler: str | None = None
    """A name of `--sampler`; None for the scheduler of the model folder."""
    scale: int
    """How many times wider the file's pictures are than the network's."""

    styles: dict[str, float] = {}
    """Styles, by name, file or folder, and how much of each."""
    style_files: dict[str, str] = {}
    """SHA-256 of their weights."""

    model: str | None = None
    """The model folder; None for the one inside the package."""
    model_files: dict[str, str]
    """SHA-256 of its weights and configurations."""

    device: str
    dtype: str
    num_threads: int
    """Sums are split over the threads of a processor, so their last bits depend on how many there are."""
    processor: str
    versions: dict[str, str]


def load_clip_recipe(path: Path) -> ClipRecipe:
    """The recipe inside a clip's file, beside it, or in a JSON file.

    Raises ValueError when there is none, or it is not one of ours.
    """
    try:
        return load_settings(ClipRecipe, read_recipe(path))
    except ValueError as error:
        raise ValueError(f"{path}: no recipe of a clip of ours ({error})") from None


def file_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a model folder that decides what it makes, by its path in the folder."""
    files = sorted(path for kind in ("*.safetensors", "*.json", "*.model") for path in folder.rglob(kind))
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def check_same_model(recipe: ClipRecipe, found: Mapping[str, str], folder: Path) -> None:
    """Raise ValueError that names the files in which ``folder`` differs from the model the clip was made with."""
    names = sorted(set(found) | set(recipe.model_files))
    different = [name for name in names if found.get(name) != recipe.model_files.get(name)]
    if different:
        raise ValueError(
            f"{folder} is not the model that the clip was made with: {', '.join(different[:3])}"
            f"{f' and {len(different) - 3} more files' if len(different) > 3 else ''} differ"
            " (give its folder with --model; or write the prompt and seed instead of --like)"
        )


def check_same_styles(recipe: ClipRecipe, found: Mapping[str, str]) -> None:
    """Raise ValueError that names the style whose weights are not those that the clip was made with."""
    different = [name for name, value in recipe.style_files.items() if found.get(name) != value]
    if different:
        raise ValueError(
            f"style {different[0]!r} is not the one that the clip was made with: its weights differ (give its file with"
            " --style; or write the prompt and seed instead of --like)"
        )


def other_versions(recipe: ClipRecipe) -> list[str]:
    """What differs here from where the clip was made, in words; only without differences is a repeated clip exact."""
    here = {**installed_versions(), "processor": processor_name()}
    there = {**recipe.versions, "processor": recipe.processor}
    return [f"{name} {there[name]} there, {here.get(name)} here" for name in there if there[name] != here.get(name)]


def processor_name() -> str:
    """The machine's processor in its maker's words, where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
