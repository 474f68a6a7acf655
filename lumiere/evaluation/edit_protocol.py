"""The named protocol of edits: held-out scenes are edited in every way, and what came back is measured.

As the others: everything that a score depends on is stored with it, and an interrupted evaluation is gone on with.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumiere.applications.cinemagraph import cinemagraph
from lumiere.applications.image_to_video import animate
from lumiere.applications.inpainting import inpaint
from lumiere.applications.known_frames import interpolate, loop
from lumiere.applications.video_to_video import edit as recolour
from lumiere.evaluation.edits import BARS, Case, border_region, draw_case, measures, summarise
from lumiere.evaluation.protocols import (
    Model,
    load_model,
    open_folder,
    reader_hash,
    run_settings,
    store_frames,
    stored_frames,
    tracked,
)
from lumiere.evaluation.report import print_bars, write_clip_sheets, write_json
from lumiere.pipeline import LumierePipeline
from lumiere.strengths import EDIT_STRENGTH
from lumiere.video import to_uint8

NUM_SCENES = 64
FROM_NOISED = ("recolour", "recolour_briefly")
"""The edits that start from a noised clip."""


def evaluate_edits(
    model: Model,
    *,
    out: str | Path,
    edits: Sequence[str] = tuple(BARS),
    num_scenes: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    strength: float = EDIT_STRENGTH,
    progress: bool = True,
) -> dict[str, Any]:
    """Edit held-out scenes, measure, print a table and return the report.

    ``model`` is a pipeline, or the folder of one. ``out`` gets report.json, contact sheets and the clips, by edit.
    ``num_scenes`` None is all 64; ``strength`` is that of recolouring, which starts from a noised clip.
    Raises ValueError for an unknown edit, a base that was never told of given frames,
    and when ``out`` holds clips of other settings.
    """
    pipeline, count = load_model(model), NUM_SCENES if num_scenes is None else num_scenes
    unknown = [name for name in edits if name not in BARS]
    if unknown:
        raise ValueError(f"edit is {unknown[0]!r}; known are {', '.join(BARS)}")
    if not 1 <= count <= NUM_SCENES:
        raise ValueError(f"num_scenes is {count}; it is 1 to {NUM_SCENES}")
    if not pipeline.unet.settings.conditioning_channels:
        raise ValueError("this base was never told of given frames, so it edits nothing (lumiere train conditional)")
    frames = int(pipeline.config.num_frames)
    settings = run_settings(pipeline, steps=steps, guidance=guidance, num_frames=frames) | {"num_scenes": count}
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}; it lies above 0 and up to 1")
    folder = Path(out)
    found: dict[str, Any] = {}
    for edit in edits:
        cases = [draw_case(index, edit, num_frames=frames, size=pipeline.default_size) for index in range(count)]
        told = settings | {"strength": strength} if edit in FROM_NOISED else settings
        own = open_folder(folder / edit, told)
        for case in tracked(cases, count, f"{edit}: making", progress):
            _make(pipeline, case, edit, own / "clips" / f"{case.index:03}.npz", told)
        made = [stored_frames(own / "clips" / f"{case.index:03}.npz") for case in cases]
        pairs = tracked(zip(cases, made, strict=True), count, f"{edit}: measuring", progress)
        rows = [measures(edit, case, clip[None]) for case, clip in pairs]
        found[edit] = {"summary": summarise(rows), "cases": rows}
        titles = [f"{case.index:03}: {case.prompt(edit)}" for case in cases]
        write_clip_sheets(own / "sheets", [to_uint8(clip) for clip in made], titles)
    print_bars(f"Edits of {count} held-out scenes", {edit: found[edit]["summary"] for edit in edits}, BARS)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    report = {"protocol": "edits", "date": now, "reader": reader_hash(), "settings": settings, "edits": found}
    write_json(folder / "report.json", report)
    return report


def _make(pipeline: LumierePipeline, case: Case, edit: str, path: Path, settings: dict[str, Any]) -> None:
    """Edit one scene, unless that was done before; 8-bit frames are stored."""
    if path.is_file():
        return
    options = {
        "num_inference_steps": settings["steps"],
        "guidance_scale": settings["guidance"],
        "generator": torch.Generator().manual_seed(case.index),
        "super_resolution": False,
    }
    store_frames(path, to_uint8(_edited(pipeline, case, edit, options, settings.get("strength", 1.0))[0]))


def _edited(pipeline: LumierePipeline, case: Case, edit: str, options: dict[str, Any], strength: float) -> Tensor:
    prompt, first, frames = case.prompt(edit), case.clip[:, :, 0], case.clip.shape[2]
    match edit:
        case "animate":
            return animate(pipeline, first, prompt, num_frames=frames, **options)
        case "replace" | "remove":
            return inpaint(pipeline, case.clip, case.region, prompt, **options)
        case "reconstruct":
            return inpaint(pipeline, case.clip, border_region(case), prompt, **options)
        case "cinemagraph":
            return cinemagraph(pipeline, first, case.still_region, prompt, num_frames=frames, **options)
        case "recolour" | "recolour_briefly":
            return recolour(pipeline, case.clip, prompt, strength=strength, **options)
        case "loop":
            return loop(pipeline, first, prompt, num_frames=frames, **options)
    return interpolate(pipeline, first, case.clip[:, :, -1], prompt, num_frames=frames, **options)
