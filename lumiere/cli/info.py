"""``lumiere info``: what is in a model, a weights file, a clip or a recipe, and what this machine can do."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

Facts = list[tuple[str, str]]
"""What is known, as (name, value) lines."""


@dataclass(frozen=True)
class Info:
    """Say what is in a model folder, a weights file, a clip or a recipe; without a path, what this machine can do."""

    path: Annotated[Positional[Path | None], arg(metavar="PATH", help_behavior_hint="")] = None
    """A folder, a .safetensors file, a clip, or a recipe (a file, or the name of a shipped one)."""

    def run(self) -> None:
        """Print the facts, one a line."""
        facts = about_machine() if self.path is None else about(self.path)
        width = max(len(name) for name, value in facts if value)
        for name, value in facts:
            print(f"{name:<{width}}  {value}".rstrip())


def about(path: Path) -> Facts:
    """What is at a path. Raises ValueError when it is nothing that we know."""
    if path.is_dir():
        return _about_folder(path)
    if path.suffix == ".safetensors":
        return _about_weights(path)
    if path.is_file():
        return _about_recipe(path) if path.suffix in (".yaml", ".yml") else _about_clip(path)
    if len(path.parts) > 1 or path.suffix:
        raise ValueError(f"{path} does not exist")
    return _about_recipe(path)


def about_machine() -> Facts:
    """Python, libraries, processor, cards, and what would be chosen here."""
    import torch

    from lumiere.cli.clip_recipe import processor_name
    from lumiere.device import choose_placement, installed_versions

    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("processor", f"{processor_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"),
        *((f"card {i}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB") for i, card in enumerate(cards)),
        ("computes on", str(choose_placement())),
        *installed_versions().items(),
    ]


def _about_folder(folder: Path) -> Facts:
    """A model folder and its components, a single network, a training run, or the frames of a clip."""
    if (folder / "model_index.json").is_file():
        index = _json(folder / "model_index.json")
        parts = {name: _component(folder / name, index[name][1]) for name in index if (folder / name).is_dir()}
        settings = {name: json.dumps(index[name]) for name in index if name[0] != "_" and name not in parts}
        return [("model", f"{index.get('_class_name')} in {folder}"), *parts.items(), *settings.items()]
    if (folder / "config.json").is_file():
        config = _json(folder / "config.json")
        facts = [("network", _component(folder, str(config.get("_class_name") or config.get("model_type"))))]
        shown = {name: value for name, value in config.items() if name[0] != "_" and value not in (None, [], {})}
        return facts + [(name, json.dumps(value)) for name, value in shown.items()]
    checkpoints = sorted(folder.glob("step-*/state.json"))
    if checkpoints:
        state = _json(checkpoints[-1])
        return [("training run", str(folder)), ("newest checkpoint", f"step {state['step']}"), *_flat(state)]
    if any(folder.glob("frame_*.png")):
        return _about_clip(folder)
    raise ValueError(f"{folder} holds no model_index.json, config.json, training checkpoint or frames of a clip")


def _about_weights(path: Path) -> Facts:
    """The tensors of a safetensors file, by the first part of their names."""
    groups: dict[str, int] = {}
    for name, (_, count) in _tensors(path).items():
        groups[name.split(".")[0]] = groups.get(name.split(".")[0], 0) + count
    facts = [("weights", _size_line(path.parent, [path]))]
    facts += list(_metadata(path).items())
    return facts + [(name, f"{count:,} parameters") for name, count in groups.items()]


def _about_recipe(name: Path) -> Facts:
    """The settings of a recipe and where it lies."""
    from lumiere.config import find_recipe

    path = find_recipe(name)
    return [("recipe", str(path)), *((line, "") for line in path.read_text(encoding="utf-8").splitlines())]


def _about_clip(path: Path) -> Facts:
    """The pictures of a clip and the recipe that it carries, if any."""
    from lumiere.media import probe, read_recipe

    facts: Facts = []
    if path.suffix != ".json":
        info = probe(path)
        facts = [
            ("clip", str(path)),
            ("pictures", f"{info.num_frames} frames of {info.width}x{info.height}, {info.fps:g} a second"),
            ("duration", f"{info.duration_s:.2f} s"),
            (
                "coded as",
                f"{info.codec} {info.pixel_format} in {info.format}{', with sound' if info.has_audio else ''}",
            ),
        ]
    try:
        return facts + _flat(read_recipe(path))
    except ValueError as error:
        if not facts:
            raise
        return [*facts, ("recipe", f"none ({error})")]


def _component(folder: Path, kind: str) -> str:
    # Super-resolution holds its networks in folders of its stages.
    files = sorted(folder.rglob("*.safetensors"))
    return f"{kind}{', ' + _size_line(folder, files) if files else ''}"


def _size_line(folder: Path, files: list[Path]) -> str:
    """Parameters, number formats and size of some weights files, read from their headers alone."""
    tensors = {(file, name): value for file in files for name, value in _tensors(file).items()}
    count = sum(count for _, count in tensors.values())
    dtypes = " and ".join(sorted({dtype for dtype, _ in tensors.values()}))
    size_mb = sum(file.stat().st_size for file in files) / 1e6
    return f"{count:,} parameters, {dtypes}, {size_mb:.1f} MB"


def _tensors(path: Path) -> dict[str, tuple[str, int]]:
    """(number format, number of values) of each tensor of a safetensors file, from its header."""
    from math import prod

    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return {name: (part.get_dtype(), prod(part.get_shape())) for name, part in slices.items()}


def _metadata(path: Path) -> dict[str, str]:
    with _opened(path) as file:
        return file.metadata() or {}


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error})") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def _flat(settings: dict[str, Any], prefix: str = "") -> Facts:
    """Nested settings as lines of dotted names."""
    facts: Facts = []
    for name, value in settings.items():
        if isinstance(value, dict):
            facts += _flat(value, f"{prefix}{name}.")
        else:
            facts.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)))
    return facts
