"""Making the file of ``lumiere upscale``: the stages, the parts with their progress, the sound."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from lumiere.applications.upscale import Enlarge, frames_at_once, upscale_frames
from lumiere.cli.clip_recipe import file_hashes
from lumiere.cli.loading import load_pipeline
from lumiere.cli.upscale import Upscale
from lumiere.conditioning.text import TextStates
from lumiere.device import Placement, choose_placement, free_bytes, installed_versions
from lumiere.diffusion.back_projection import check_back_projection
from lumiere.media import VideoInfo, check_writable, iterate_frames, probe, write_like
from lumiere.pipeline import embedded_weights
from lumiere.progress import progress_bar
from lumiere.super_resolution import SuperResolution, SuperResolutionStage

MOST_FRAMES = 80
"""Frames of a part where memory allows more: a part cannot be interrupted."""
WHOLE_PICTURE_PX = 512
"""A picture up to this side goes through the network in one piece."""


def upscale_file(wishes: Upscale, out: Path) -> None:
    """Make the video of the wishes larger and write it to ``out``.

    Raises ValueError, before the first part is begun, for whatever of it cannot be done.
    """
    info = probe(wishes.video)
    most = wishes.part or MOST_FRAMES
    if not 0 <= wishes.overlap < most:
        raise ValueError(
            f"--overlap is {wishes.overlap}; it lies from 0 to {most - 1} (a part has {most} frames at most)"
        )
    if wishes.back_projection is not None:
        check_back_projection(wishes.back_projection)
    placement = choose_placement(wishes.device or "auto", wishes.dtype or "auto")
    stages, states = _stages(wishes, placement)
    _set_windows(stages, wishes.window, info)
    part = _part(stages, wishes, info, placement)
    check_writable(out, clip_shape=(info.num_frames, info.height * stages.scale, info.width * stages.scale))
    started = time.monotonic()
    multiple = max(_multiple(stage) for stage in stages.stages)
    with progress_bar("steps") as progress:
        enlarge = _enlarge(wishes, stages, states, info, part, progress)
        frames = upscale_frames(
            iterate_frames(wishes.video, fps=info.fps),
            enlarge,
            multiple=multiple,
            chunk=part,
            overlap=wishes.overlap,
        )
        write_like(frames, out, info, fps=info.fps, recipe=_recipe(wishes, placement, part))
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
    told, not_told = (pipeline.text.encode([text]) for text in (wishes.prompt, wishes.negative_prompt))
    return pipeline.super_resolution, (told, not_told)


def _set_windows(stages: SuperResolution, wanted: int | None, info: VideoInfo) -> None:
    """Let large pictures go through the network in square windows, where asked for or where they are too large."""
    height, width = info.height, info.width
    for stage in stages.stages:
        height, width = stage.output_size(height, width)
        side = wanted
        if side is None and stage.config.window_px is None and max(height, width) > WHOLE_PICTURE_PX:
            side = WHOLE_PICTURE_PX
        if side is not None:
            step = stage.unet.spatial_factor * stage.codec.spatial_factor
            side = max(step, side // step * step)
            stage.register_to_config(window_px=side, window_px_overlap=side // 4 // step * step)


def _part(stages: SuperResolution, wishes: Upscale, info: VideoInfo, placement: Placement) -> int:
    """How many frames are in memory at a time: as asked for, or as fit in half of what is free."""

    def need(frames: int) -> int:
        return stages.memory_bytes(frames, info.height, info.width)

    least = min(info.num_frames, max(wishes.overlap + 1, *(stage.unet.temporal_factor for stage in stages.stages)))
    free = free_bytes(placement.device)
    if wishes.part is not None:
        return frames_at_once(need, free=free, least=wishes.part, most=wishes.part)
    return frames_at_once(need, free=free // 2, least=least, most=max(least, MOST_FRAMES))


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
    part: int,
    progress: Progress,
) -> Enlarge:
    """What makes one part larger and moves the bar on with each of its steps."""
    num_parts = max(1, -(-(info.num_frames - wishes.overlap) // (part - wishes.overlap)))
    task = progress.add_task(wishes.video.name[:40], total=stages.steps_of(wishes.steps) * num_parts)
    options: dict[str, Any] = {
        "num_inference_steps": wishes.steps,
        "guidance_scale": wishes.guidance,
        "noise_level": wishes.noise_level,
        "back_projection": wishes.back_projection,
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


def _recipe(wishes: Upscale, placement: Placement, part: int) -> dict[str, Any]:
    """Everything that decided the file's pixels."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(wishes).items()}
    return {
        **given,
        "part": part,
        "device": str(placement.device),
        "dtype": placement.dtype_name,
        "model_files": file_hashes(wishes.model or embedded_weights()),
        "versions": installed_versions(),
    }
