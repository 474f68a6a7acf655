"""What a run has learned, or a model holds, as files to use elsewhere: a pipeline or a super-resolution stage, its
motion alone, a style."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lumiere.applications.stylization import apply_style
from lumiere.config import load_settings
from lumiere.data.folder import ClipFolder
from lumiere.model.stunet import STUNet
from lumiere.pipeline import LumierePipeline
from lumiere.training.checkpoint import checkpoints, read_tensors
from lumiere.training.run import stage_classes, stage_name
from lumiere.training.stages.clips import ClipStage
from lumiere.training.stages.finetune_clips import FinetuneClips, FinetuneSettings
from lumiere.training.stages.style import STYLE_FILE, StyleTraining
from lumiere.training.stages.upscaling import UpscalingStage

What = Literal["pipeline", "motion", "lora"]
Weights = Literal["ema", "raw"]


def export(source: str | Path, out: str | Path, *, what: What = "pipeline", weights: Weights | None = None) -> Path:
    """Write ``what`` of a run or a model to ``out``, which is a new folder (pipeline) or .safetensors file.

    Of a run (the folder that ``lumiere train`` wrote) the newest checkpoint's weights are taken: averaged ("ema", also
    where ``weights`` is None), or as the last step left them ("raw"). A run needs its model and data to be where they
    were; of one of super-resolution the ``pipeline`` is the stage that makes clips larger. A model is the folder of a
    pipeline or of a Space-Time U-Net. ``motion`` is the temporal weights alone, for ``lumiere inflate --motion``;
    ``lora`` the style that a run of ``style`` has learned, whose ``pipeline`` is its model with the whole style in it.
    Raises ValueError for what is not there to be exported.
    """
    source, out = Path(source), Path(out)
    _check_out(out, what)
    write = _of_run(source, what, weights or "ema") if (source / "recipe.yaml").is_file() else None
    if write is None:
        write = _of_model(source, what, weights)
    aside = out.parent / f".writing-{out.name}"
    _remove(aside)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(aside)
        if out.is_dir():
            out.rmdir()
        aside.rename(out)
    finally:
        _remove(aside)
    return out


def _check_out(out: Path, what: What) -> None:
    """Refuse a place where something is, and a name that says another kind of thing."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} exists already; give a new name, so that nothing is overwritten")
    is_file = out.suffix == ".safetensors"
    if is_file != (what != "pipeline"):
        needed = "a folder" if what == "pipeline" else "one file, whose name ends in .safetensors"
        raise ValueError(f"{out}: --what {what} writes {needed}")


def _of_model(source: Path, what: What, weights: Weights | None) -> Callable[[Path], object]:
    """What writes a part of the model in a folder."""
    is_pipeline = (source / "model_index.json").is_file()
    if not is_pipeline and not (source / "config.json").is_file():
        raise ValueError(
            f"{source} is neither a run (recipe.yaml) nor a model (model_index.json, or a network's config.json)"
        )
    if weights is not None:
        raise ValueError(f"weights has no effect: {source} is a model, and only runs hold averaged and raw ones")
    if what == "lora":
        raise ValueError(f"{source} is a model and holds no style; give the folder of a run of `lumiere train style`")
    if what == "pipeline":
        cure = "copy the folder" if is_pipeline else "lumiere inflate makes one of a text-to-image model"
        raise ValueError(f"{source} is a {'pipeline already' if is_pipeline else 'network, no pipeline'} ({cure})")
    return STUNet.from_pretrained(source / "unet" if is_pipeline else source).save_motion


def _of_run(run: Path, what: What, weights: Weights) -> Callable[[Path], object]:
    """What writes a part of what a run has learned."""
    name = stage_name(run / "recipe.yaml")
    is_style = name == "style"
    if what == "motion" and is_style:
        raise ValueError(f"{run} is a run of style, which changes no temporal weights; export --what lora, or pipeline")
    if what == "lora" and not is_style:
        raise ValueError(f"{run} is a run of {name}, which learns no style; export --what pipeline, or motion")
    newest = _newest(run / "motion" if name == "finetune_clips" else run)
    stage = _finetuned(run) if name == "finetune_clips" else _stage_of(run)
    _put(stage, read_tensors(newest, "weights" if weights == "raw" else "ema"), newest)
    if what == "motion":
        return stage.unet.save_motion
    if not isinstance(stage, StyleTraining):
        return stage.export
    return _style_file(stage) if what == "lora" else _styled(run, stage)


def _newest(folder: Path) -> Path:
    found = checkpoints(folder)
    if not found:
        raise ValueError(f"{folder} holds no checkpoint yet (lumiere train writes one every save_every steps)")
    return found[-1]


def _stage_of(run: Path) -> ClipStage | UpscalingStage:
    """The stage of a run as it was before its first step. Raises ValueError for one that trains neither a base's
    pipeline nor super-resolution."""
    recipe = run / "recipe.yaml"
    settings_class, made_by = stage_classes(recipe)
    stage_class: Any = made_by
    if not issubclass(stage_class, ClipStage | UpscalingStage):
        raise ValueError(
            f"{run} trains no pipeline of a base and no super-resolution; when it is finished, what it has learned lies"
            f" in {run / 'export'}"
        )
    stage: ClipStage | UpscalingStage = stage_class(load_settings(settings_class, recipe))
    return stage


def _finetuned(run: Path) -> FinetuneClips:
    """The same of the second part of fine-tuning."""
    settings = load_settings(FinetuneSettings, run / "recipe.yaml")
    clips = ClipFolder(settings.data, settings.clips, seed=settings.motion.seed)
    model = settings.model if settings.image is None else str(run / "image" / "export")
    return FinetuneClips(settings, "motion", model=model, clips=clips)


@torch.no_grad()
def _put(stage: ClipStage | UpscalingStage, tensors: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Give a stage the weights of a checkpoint."""
    named = {name: weight for name, weight in stage.named_parameters() if weight.requires_grad}
    odd = [
        name
        for name in sorted({*named, *tensors})
        if name not in named or name not in tensors or named[name].shape != tensors[name].shape
    ]
    if odd:
        raise ValueError(f"{checkpoint} holds other weights than the run's recipe describes ({', '.join(odd[:3])})")
    for name, weight in named.items():
        weight.copy_(tensors[name])


def _style_file(stage: StyleTraining) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as folder:
            stage.export(Path(folder))
            (Path(folder) / STYLE_FILE).rename(file)

    return write


def _styled(run: Path, stage: StyleTraining) -> Callable[[Path], object]:
    """What writes the run's model with the style in it."""
    model = load_settings(stage_classes(run / "recipe.yaml")[0], run / "recipe.yaml").model

    def write(folder: Path) -> None:
        pipeline = LumierePipeline.from_pretrained(model)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as place:
            stage.export(Path(place))
            apply_style(pipeline, Path(place) / STYLE_FILE, 1.0)
        pipeline.save_pretrained(folder)

    return write


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
