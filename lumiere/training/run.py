"""From a recipe to a finished run: which stage, which settings, which folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lumiere.config import find_recipe, load_settings, to_yaml
from lumiere.training.changes import check_changes
from lumiere.training.distributed import barrier, is_first, num_ranks, process_group
from lumiere.training.loop import Stage, Trainer


def train(recipe: str | Path, overrides: Sequence[str] = (), *, accept_changes: bool = False) -> Path:
    """Train what a recipe describes, going on where an earlier run of it stopped; returns the exported folder.

    Of several processes that torchrun started, each calls it. Raises ValueError when the recipe or an override is no
    valid setting, and when the recipe has changed since an earlier run of it and that is not accepted.
    """
    path = find_recipe(recipe)
    settings_class, prepare = _stage(path)
    settings = load_settings(settings_class, path, overrides)
    out = Path(settings.out)
    with process_group():
        console = Console(quiet=not is_first())
        for line in check_changes(settings, out, ranks=num_ranks(), accept=accept_changes):
            console.print(f"changed since the last checkpoint: {line}")
        # The ranks that have not looked yet must see the checkpoints that were there.
        barrier()
        run = prepare(settings)
        out.mkdir(parents=True, exist_ok=True)
        if is_first():
            (out / "recipe.yaml").write_text(to_yaml(settings))
        return run()


def settings_of(recipe: Path) -> type[Any]:
    """The class of a recipe's settings. Raises ValueError for an unknown stage."""
    return _stage(recipe)[0]


def _trainer(make_stage: Callable[[Any], Stage], settings: Any) -> Callable[[], Path]:
    """What trains the one stage of a recipe."""
    facts = {"recipe": settings.model_dump(mode="json")}
    return Trainer(make_stage(settings), settings.loop, Path(settings.out), facts=facts).run


def _stage(path: Path) -> tuple[type[Any], Callable[[Any], Callable[[], Path]]]:
    """The settings of a recipe's stage, and what makes its run of them; networks are imported only when needed."""
    if stage_name(path) == "finetune_clips":
        from lumiere.training.finetune import FineTuning
        from lumiere.training.stages.finetune_clips import FinetuneSettings

        return FinetuneSettings, lambda settings: FineTuning(settings).run
    settings_class, stage_class = stage_classes(path)
    return settings_class, partial(_trainer, stage_class)


def stage_classes(path: Path) -> tuple[type[Any], type[Any]]:
    """The settings and the stage of a recipe that trains one stage. Raises ValueError for a stage that is not known."""
    match stage_name(path):
        case "text_to_image":
            from lumiere.training.stages.text_to_image import TextToImage, TextToImageSettings

            return TextToImageSettings, TextToImage
        case "text_to_video":
            from lumiere.training.stages.text_to_video import TextToVideo, TextToVideoSettings

            return TextToVideoSettings, TextToVideo
        case "conditional":
            from lumiere.training.stages.conditional import Conditional, ConditionalSettings

            return ConditionalSettings, Conditional
        case "given_words":
            from lumiere.training.stages.given_words import GivenWordsSettings, GivenWordsTraining

            return GivenWordsSettings, GivenWordsTraining
        case "given_frames":
            from lumiere.training.stages.given_frames import GivenFramesSettings, GivenFramesTraining

            return GivenFramesSettings, GivenFramesTraining
        case "forecast":
            from lumiere.training.stages.forecast import ForecastSettings, ForecastTraining

            return ForecastSettings, ForecastTraining
        case "opening":
            from lumiere.training.stages.opening import OpeningSettings, OpeningTraining

            return OpeningSettings, OpeningTraining
        case "clips":
            from lumiere.training.stages.motion import MotionSettings, MotionTraining

            return MotionSettings, MotionTraining
        case "super_resolution":
            from lumiere.training.stages.super_resolution import SuperResolutionSettings, SuperResolutionTraining

            return SuperResolutionSettings, SuperResolutionTraining
        case "super_resolution_clips":
            from lumiere.training.stages.super_resolution_clips import (
                SuperResolutionClipsSettings,
                SuperResolutionClipsTraining,
            )

            return SuperResolutionClipsSettings, SuperResolutionClipsTraining
        case "style":
            from lumiere.training.stages.style import StyleSettings, StyleTraining

            return StyleSettings, StyleTraining
    known = (
        "text_to_image, text_to_video, given_words, given_frames, forecast, opening, conditional, clips,"
        " finetune_clips, super_resolution, super_resolution_clips, style"
    )
    raise ValueError(f"{path}: stage is {stage_name(path)!r}; known are {known}")


def stage_name(path: Path) -> Any:
    """The stage that a recipe names."""
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("stage")
