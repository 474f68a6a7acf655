"""From a recipe to a finished run: which stage, which settings, which folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lumiere.config import Settings, find_recipe, load_settings, to_yaml
from lumiere.training.loop import Stage, Trainer


def train(recipe: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Train what a recipe describes, going on where an earlier run of it stopped; returns the exported folder.

    Raises ValueError when the recipe or an override is no valid setting.
    """
    path = find_recipe(recipe)
    settings, stage = _stage(path, overrides)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.yaml").write_text(to_yaml(settings))
    return Trainer(stage, settings.loop, out, facts={"recipe": settings.model_dump(mode="json")}).run()


def _stage(path: Path, overrides: Sequence[str]) -> tuple[Any, Stage]:
    """The settings and the stage that a recipe names."""
    name = (yaml.safe_load(path.read_text()) or {}).get("stage")
    settings_class, make = _stage_class(name, path)
    settings = load_settings(settings_class, path, overrides)
    return settings, make(settings)


def _stage_class(name: Any, path: Path) -> tuple[type[Settings], Any]:
    """The settings and the class of a stage; networks are imported only when needed."""
    match name:
        case "text_to_image":
            from lumiere.training.stages.text_to_image import TextToImage, TextToImageSettings

            return TextToImageSettings, TextToImage
        case "text_to_video":
            from lumiere.training.stages.text_to_video import TextToVideo, TextToVideoSettings

            return TextToVideoSettings, TextToVideo
    raise ValueError(f"{path}: stage is {name!r}; known are text_to_image, text_to_video")
