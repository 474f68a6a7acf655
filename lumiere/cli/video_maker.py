"""Making the file of ``lumiere upscale``: the stages, the parts with their progress, the sound."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from lumiere.applications.upscale import Enlarge, upscale_frames
from lumiere.cli.clip_recipe import file_hashes
from lumiere.cli.loading import load_pipeline
from lumiere.cli.upscale import Upscale
from lumiere.conditioning.text import TextStates, text_encoder_for
from lumiere.device import Placement, choose_placement, installed_versions
from lumiere.media import VideoInfo, check_writable, iterate_frames, probe, write_like
from lumiere.pipeline import embedded_weights
from lumiere.super_resolution import SuperResolution, SuperResolutionStage


def upscale_file(wishes: Upscale, out: Path) -> None:
    """Make the video of the wishes larger and write it to ``out``.

    Raises ValueError, before the first part is begun, for whatever of it cannot be done.
    """
    info = probe(wishes.video)
    if not 0 <= wishes.overlap < wishes.part:
        raise ValueError(
            f"--overlap is {wishes.overlap}; it lies from 0 to {wishes.part - 1} (--part is {wishes.part})"
        )
    placement = choose_placement(wishes.device or "auto", wishes.dtype or "auto")
    stages, states = _stages(wishes, placement)
    check_writable(out, clip_shape=(info.num_frames, info.height * stages.scale, info.width * stages.scale))
    started = time.monotonic()
    multiple = max(_multiple(stage) for stage in stages.stages)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        enlarge = _enlarge(wishes, stages, states, info, progress)
        frames = upscale_frames(
            iterate_frames(wishes.video, fps=info.fps),
            enlarge,
            multiple=multiple,
            chunk=wishes.part,
            overlap=wishes.overlap,
        )
        write_like(frames, out, info, fps=info.fps, recipe=_recipe(wishes, placement))
    width, height = info.width * stages.scale, info.height * stages.scale
    print(f"wrote {out} ({width}x{height}; made in {time.monotonic() - started:.1f} s)", flush=True)


def _stages(wishes: Upscale, placement: Placement) -> tuple[SuperResolution, tuple[TextStates, TextStates] | None]:
    """The stages of the model, and what its text encoder says where the stages have none of their own."""
    folder = wishes.model or embedded_weights()
    if wishes.model is not None and not _is_whole_model(folder):
        stage = SuperResolutionStage.from_folder(folder, dtype=placement.dtype).to(placement.device)
        return SuperResolution.of(stage), None
    pipeline = load_pipeline(wishes.model, placement)
    if pipeline.super_resolution is None:
        raise ValueError(f"the model in {folder} has no super-resolution (give --model the folder of one that has)")
    encoder = text_encoder_for(pipeline.tokenizer, pipeline.text_encoder)
    told, not_told = (encoder.encode([text]) for text in (wishes.prompt, wishes.negative_prompt))
    return pipeline.super_resolution, (told, not_told)


def _is_whole_model(folder: Path) -> bool:
    index = folder / "model_index.json"
    return index.is_file() and '"LumierePipeline"' in index.read_text(encoding="utf-8")


def _multiple(stage: SuperResolutionStage) -> int:
    """What the sides of a small clip must be multiples of."""
    return max(1, stage.unet.spatial_factor * stage.codec.spatial_factor // stage.config.scale)


def _enlarge(
    wishes: Upscale,
    stages: SuperResolution,
    states: tuple[TextStates, TextStates] | None,
    info: VideoInfo,
    progress: Progress,
) -> Enlarge:
    """What makes one part larger and moves the bar on with each of its steps."""
    steps = sum(wishes.steps or stage.config.default_steps for stage in stages.stages)
    num_parts = max(1, -(-(info.num_frames - wishes.overlap) // (wishes.part - wishes.overlap)))
    task = progress.add_task(wishes.video.name[:40], total=steps * num_parts)
    options: dict[str, Any] = {
        "num_inference_steps": wishes.steps,
        "guidance_scale": wishes.guidance,
        "noise_level": wishes.noise_level,
        "on_step": lambda _: progress.advance(task),
    }
    for stage in stages.stages:
        stage.set_progress_bar_config(disable=True)

    def enlarge(clip: Tensor, first_frame: int) -> Tensor:
        return stages(
            clip,
            states=states,
            prompts=([wishes.prompt], [wishes.negative_prompt]),
            generator=[torch.Generator().manual_seed(wishes.seed)],
            first_frame=first_frame,
            **options,
        )

    return enlarge


def _recipe(wishes: Upscale, placement: Placement) -> dict[str, Any]:
    """Everything that decided the file's pixels."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(wishes).items()}
    return {
        **given,
        "device": str(placement.device),
        "dtype": placement.dtype_name,
        "model_files": file_hashes(wishes.model or embedded_weights()),
        "versions": installed_versions(),
    }
