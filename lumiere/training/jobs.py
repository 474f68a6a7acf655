"""From a recipe to what of it counts for memory, for the stages that train on clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lumiere.config import find_recipe, load_settings
from lumiere.data import store
from lumiere.data.shards import read_index
from lumiere.device import choose_placement, free_bytes, multiplies_bf16
from lumiere.pipeline import embedded_weights
from lumiere.training.loop import LoopSettings
from lumiere.training.plan import Job, Model, flops_of, need_of, network_of, report
from lumiere.training.run import settings_of
from lumiere.training.stages.conditional import ConditionalSettings
from lumiere.training.stages.finetune_clips import FinetuneSettings
from lumiere.training.stages.motion import MotionSettings
from lumiere.training.stages.super_resolution_clips import SuperResolutionClipsSettings
from lumiere.training.stages.text_to_video import TextToVideoSettings


def job_of(settings: Any, *, ranks: int = 1) -> Job:
    """What a recipe of clips trains, as far as memory is concerned; nothing is loaded.

    Raises ValueError for a stage that trains on stills or small parts, and where the model is not there.
    """
    match settings:
        case MotionSettings():
            model = _model(settings.model, like=settings.like)
            frames, height, width, batch = _largest(settings)
            more: dict[str, Any] = {"checkpointing": settings.checkpointing, "chunk": settings.chunk_image_layers}
        case SuperResolutionClipsSettings():
            model = _model(settings.model, like=settings.like)
            frames, height, width, batch = _windows(settings)
            more = {"checkpointing": settings.checkpointing, "chunk": settings.chunk_image_layers}
        case FinetuneSettings():
            model, side, batch = _model(settings.model), settings.clips.size, settings.motion.batch_size
            frames, height, width, more = settings.clips.num_frames, side, side, {}
        case ConditionalSettings() | TextToVideoSettings():
            if isinstance(settings, TextToVideoSettings) and settings.start_from is None:
                raise ValueError("a plan needs networks that are there: give start_from, a pipeline's folder")
            model, side, batch = _model(settings.start_from), settings.data.size, settings.loop.batch_size
            frames, height, width, more = settings.data.num_frames, side, side, {}
        case _:
            raise ValueError(
                f"stage is {settings.stage}; plans are made for those that train on clips: clips, finetune_clips,"
                " super_resolution_clips, conditional, text_to_video (the others fit any machine that the embedded"
                " weights fit)"
            )
    loop: LoopSettings = settings.motion if isinstance(settings, FinetuneSettings) else settings.loop
    return Job(
        config=model.config,
        frames=frames,
        height=height,
        width=width,
        batch_size=batch,
        spatial_factor=model.spatial_factor,
        bf16=loop.bf16,
        bf16_weights=loop.bf16_weights,
        ranks=ranks,
        is_sharded=loop.sharding == "sharded",
        # With a cache text encoders stay away.
        beside=model.vae + (0 if getattr(settings, "cache", None) is not None else model.text),
        **more,
    )


def _model(folder: str | None, like: str | None = None) -> Model:
    """The model in a folder (None: the embedded one), or while it is not there the public one that it is like."""
    path = embedded_weights() if folder is None else Path(folder)
    if not path.is_dir():
        if like is None:
            raise ValueError(f"{path}: no such folder (lumiere inflate makes one of a text-to-image model)")
        return Model.known(like)
    return Model.in_folder(path)


def _largest(settings: MotionSettings) -> tuple[int, int, int, int]:
    """Frames, height, width and batch of the largest clips: of the shards if they are there, else as is planned."""
    batches, usual = settings.shards.batch_sizes, settings.loop.batch_size
    sizes = _sizes_of(settings.data)
    if not sizes and settings.planned_size is not None:
        width, height, frames = (int(part) for part in settings.planned_size.split("x"))
        sizes = {(frames, height, width)}
    if not sizes:
        sizes = {(settings.clips.num_frames, settings.clips.size, settings.clips.size)}
    every = [(*size, batches.get(f"{size[2]}x{size[1]}x{size[0]}", usual)) for size in sizes]
    return max(every, key=math.prod)


def _windows(settings: SuperResolutionClipsSettings) -> tuple[int, int, int, int]:
    """The same of the windows that super-resolution is trained on."""
    batch = max([settings.loop.batch_size, *settings.shards.batch_sizes.values()])
    crop = settings.crop
    if crop is not None:
        return settings.num_frames, crop, crop, batch
    sizes = _sizes_of(settings.data)
    if not sizes:
        raise ValueError(f"crop is null, and {settings.data} holds no shards yet that would say how large pictures are")
    height, width = max(((height, width) for _, height, width in sizes), key=math.prod)
    return settings.num_frames, height, width, batch


def _sizes_of(data: str) -> set[tuple[int, int, int]]:
    """Frames, height and width of the clips in shards; none while they are not there."""
    place = store.as_place(data)
    tars = store.list_files(place, ".tar") if not isinstance(place, Path) or place.is_dir() else []
    return {(clip.frames, clip.height, clip.width) for tar in tars for clip in read_index(tar)}


def print_plan(
    recipe: str | Path, overrides: Sequence[str], *, ranks: int = 1, memory_gib: float | None = None
) -> None:
    """Say what each of ``ranks`` processes will need to train a recipe, beside a device's memory (None: this one's).

    Raises ValueError for a recipe that no plan is made for, and for no ranks or no memory.
    """
    if ranks < 1 or (memory_gib is not None and memory_gib <= 0):
        raise ValueError(f"a plan is made for {ranks} ranks with {memory_gib} GiB each; both are more than nothing")
    path = find_recipe(recipe)
    settings = load_settings(settings_of(path), path, overrides)
    job = job_of(settings, ranks=ranks)
    loop = settings.motion if isinstance(settings, FinetuneSettings) else settings.loop
    if memory_gib is None:
        free = free_bytes(choose_placement(loop.device).device)
        if not multiplies_bf16(loop.device):
            # As training itself chooses.
            job = replace(job, bf16=False, bf16_weights=False, emulates_bf16=True)
    else:
        free = int(memory_gib * 2**30)
    network = network_of(job)
    need = need_of(job, network)
    # This, too.
    if loop.sharding == "auto" and ranks > 1 and need.weights + need.optimiser + need.average > free / 2:
        job = replace(job, is_sharded=True)
        need = need_of(job, network)
    passes = loop.num_steps * loop.accumulation
    Console().print(report(job, need, free, flops_of(job, network), network=network, passes=passes))
