"""Making the clips of ``lumiere generate``: the model and its settings, the progress bar, the files."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.progress import Progress

from lumiere.cli.clip_recipe import (
    ClipRecipe,
    check_same_model,
    check_same_styles,
    file_hashes,
    other_versions,
    processor_name,
)
from lumiere.cli.generate import CLEAR_WIDTH_PX
from lumiere.cli.loading import load_pipeline
from lumiere.cli.styles import put_on
from lumiere.device import choose_placement, installed_versions
from lumiere.diffusion.sample import num_restart_steps
from lumiere.diffusion.schedulers import takes_timesteps
from lumiere.media import check_writable, write_clip
from lumiere.pipeline import LumierePipeline, embedded_weights
from lumiere.progress import progress_bar
from lumiere.video import FPS, to_uint8

Wishes = dict[str, Any]
"""Fields of a ClipRecipe that were asked for."""


def make_clips(
    wishes: Wishes, jobs: Sequence[tuple[str, int]], paths: Sequence[Path], *, like: ClipRecipe | None
) -> None:
    """Make the clip of each (prompt, seed) and write it to its path; what the wishes leave open, ``like`` says.

    Raises ValueError, before the first clip is begun, for whatever of it cannot be done.
    """
    for path in paths:
        check_writable(path)
    wishes = {**(repeated_wishes(like) if like else {}), **wishes}
    placement = choose_placement(wishes.get("device", "auto"), wishes.get("dtype", "auto"))
    if like:
        torch.set_num_threads(like.num_threads)
    model = Path(wishes["model"]) if "model" in wishes else None
    pipeline = load_pipeline(model, placement)
    folder = model or embedded_weights()
    if "sampler" in wishes:
        pipeline.use_scheduler(wishes["sampler"])
    style_files = put_on(pipeline, wishes.get("styles", {}))
    wishes = {
        **model_wishes(pipeline, wishes),
        **wishes,
        "device": str(placement.device),
        "dtype": placement.dtype_name,
    }
    facts: Wishes = {
        "model_files": file_hashes(folder),
        "style_files": style_files,
        "num_threads": torch.get_num_threads(),
        "processor": processor_name(),
        "versions": installed_versions(),
    }
    recipes = [ClipRecipe(prompt=prompt, seed=seed, **wishes, **facts) for prompt, seed in jobs]
    if like:
        _compare(like, recipes[0], folder)
    for recipe, path in zip(recipes, paths, strict=True):
        size = pipeline.frame_size(super_resolution=recipe.super_resolution)
        check_writable(path, clip_shape=(recipe.num_frames, *size), scale=recipe.scale)
    _make_and_write(pipeline, recipes, paths)


def repeated_wishes(like: ClipRecipe) -> Wishes:
    """What to ask for to make a clip again, but its prompt and seed."""
    facts = {"prompt", "seed", "model_files", "style_files", "num_threads", "processor", "versions"}
    return like.model_dump(exclude=facts, exclude_none=True)


def model_wishes(pipeline: LumierePipeline, wishes: Wishes) -> Wishes:
    """What is asked for when nothing is said: the model's own settings, and pictures that are large enough to see."""
    size = pipeline.frame_size(super_resolution=wishes.get("super_resolution", True))
    return {
        "negative_prompt": "",
        "num_frames": pipeline.config.num_frames,
        "num_inference_steps": pipeline.config.default_steps,
        "guidance_scale": pipeline.config.default_guidance_scale,
        "timestep_shift": pipeline.config.timestep_shift if takes_timesteps(pipeline.scheduler) else 1.0,
        "opening_frames": pipeline.config.opening_frames,
        "scale": -(-CLEAR_WIDTH_PX // max(1, min(size))),
    }


def _compare(like: ClipRecipe, recipe: ClipRecipe, folder: Path) -> None:
    """Refuse another model than the repeated clip's, and say what else differs."""
    check_same_model(like, recipe.model_files, folder)
    if like.styles == recipe.styles:
        check_same_styles(like, recipe.style_files)
    differences = other_versions(like)
    if differences:
        warnings.warn(f"the clip may differ in small ways: {'; '.join(differences)}", stacklevel=2)


def _make_and_write(pipeline: LumierePipeline, recipes: Sequence[ClipRecipe], paths: Sequence[Path]) -> None:
    """Each clip in turn, with a bar that shows the time left. One at a time: in a batch the last bits would differ."""
    for recipe, path in zip(recipes, paths, strict=True):
        start = time.monotonic()
        with progress_bar("steps") as progress:
            frames = _frames(pipeline, recipe, progress)
        write_clip(frames, path, recipe=recipe.model_dump(mode="json"), scale=recipe.scale, smooth=True)
        print(_report(path, frames, scale=recipe.scale, seconds=time.monotonic() - start), flush=True)


def _frames(pipeline: LumierePipeline, recipe: ClipRecipe, progress: Progress) -> np.ndarray:
    """The 8-bit frames [T, H, W, 3] of a recipe."""
    steps = recipe.num_inference_steps
    total = num_steps(pipeline, steps) + num_late_steps(pipeline, recipe.super_resolution)
    task = progress.add_task(escape(f"{recipe.prompt[:40]} (seed {recipe.seed})"), total=total)

    def advance(*_: object) -> dict[str, torch.Tensor]:
        progress.advance(task)
        return {}

    (clips,) = pipeline(
        recipe.prompt,
        num_frames=recipe.num_frames,
        num_inference_steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
        timestep_shift=recipe.timestep_shift,
        opening_frames=recipe.opening_frames,
        negative_prompt=recipe.negative_prompt or None,
        generator=torch.Generator().manual_seed(recipe.seed),
        output_type="pt",
        return_dict=False,
        super_resolution=recipe.super_resolution,
        callback_on_step_end=advance,
        on_super_resolution_step=advance,
    )
    return to_uint8(clips[0].transpose(0, 1) * 2 - 1)


def num_steps(pipeline: LumierePipeline, steps: int) -> int:
    """The steps that noise takes to a clip, with those that make it again."""
    return steps + num_restart_steps(steps, pipeline.config.restarts)


def num_late_steps(pipeline: LumierePipeline, super_resolution: bool) -> int:
    """The steps after the base's: looks that polish its clip, and super-resolution's."""
    enlarges = super_resolution and pipeline.super_resolution is not None
    return len(pipeline.config.polish) + (pipeline.super_resolution.num_steps if enlarges else 0)


def _report(path: Path, frames: np.ndarray, *, scale: int, seconds: float) -> str:
    count, height, width, _ = frames.shape
    shown = f", shown at {width * scale}x{height * scale}" if scale > 1 else ""
    return f"wrote {path} ({count} frames of {width}x{height}, {count / FPS:.1f} s{shown}; made in {seconds:.1f} s)"
