"""The named protocol of super-resolution: how near its clips come to the truth, and do they still show their words?

True clips of held-out scenes are made small and large again, beside bicubic enlargement; then the base's clips of the
storybook protocol are made large and read by the reader that read them small.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lumiere.conditioning.text import TextStates
from lumiere.data.batches import StorybookBatches, StorybookSettings
from lumiere.evaluation.protocols import (
    Job,
    Model,
    evaluate_storybook,
    load_model,
    open_folder,
    reader_hash,
    run_settings,
    store_frames,
    stored_frames,
    storybook_jobs,
    tracked,
    weight_hashes,
)
from lumiere.evaluation.report import print_closeness, print_scores, write_clip_sheets, write_json
from lumiere.evaluation.storybook import read_clip
from lumiere.evaluation.tally import Tally, answers
from lumiere.pipeline import LumierePipeline
from lumiere.super_resolution import SuperResolutionStage
from lumiere.video import in_blocks, psnr_db, resize_clip, to_uint8

MIN_GAIN_DB = 3.0
"""How much nearer to the truth than bicubic enlargement the clips have to be."""
MAX_LOSS = 0.03
"""The share of the base's clips that may be read right no longer."""
SCENES_SEED = 2029
"""Of the held-out scenes that are made small and large again."""
NUM_SHOWN = 8


def evaluate_super_resolution(
    model: Model,
    *,
    out: str | Path,
    num_clips: int = 64,
    num_frames: int = 16,
    steps: int | None = None,
    num_prompts: int = 64,
    progress: bool = True,
) -> dict[str, Any]:
    """Make clips larger, measure and read them; prints the tables and returns the report.

    ``num_clips`` true clips of ``num_frames`` frames, made small and not noised, are made large again in ``steps``
    (None: the stages' own); then the base's clips of the first ``num_prompts`` prompts, one seed each (0: none), as
    they are below ``out``/base or are made there. ``out`` gets report.json, contact sheets and the clips. Raises
    ValueError for a model without super-resolution, and when ``out`` holds clips of other settings.
    """
    pipeline = load_model(model)
    if pipeline.super_resolution is None:
        raise ValueError("this model has no super-resolution (train one with `lumiere train super_resolution`)")
    if num_clips < 1 or num_frames < 1:
        raise ValueError(f"num_clips is {num_clips} and num_frames {num_frames}; both are 1 or more")
    frames = int(pipeline.config.num_frames)
    settings = run_settings(pipeline, steps=None, guidance=None, num_frames=frames) | {
        "weights": weight_hashes(pipeline),
        "super_resolution": [_own_settings(stage) for stage in pipeline.super_resolution.stages],
        "super_resolution_steps": steps,
        "true_clips": [num_clips, num_frames],
    }
    folder = open_folder(Path(out), settings)
    closeness = _closeness(pipeline, folder, num_clips=num_clips, num_frames=num_frames, steps=steps, progress=progress)
    report = {"protocol": "super_resolution", "reader": reader_hash(), "settings": settings, "closeness": closeness}
    print_closeness(closeness, MIN_GAIN_DB)
    if num_prompts:
        report |= _read_large(pipeline, folder, num_prompts=num_prompts, steps=steps, progress=progress)
    report["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / "report.json", report)
    return report


def _closeness(
    pipeline: LumierePipeline, folder: Path, *, num_clips: int, num_frames: int, steps: int | None, progress: bool
) -> dict[str, Any]:
    """PSNR of true clips made small and large again, and of bicubic enlargement; a sheet of the first of them."""
    size, large = pipeline.default_size, pipeline.frame_size()
    if large[0] != large[1]:
        raise ValueError(f"the storybook draws squares; this model makes {large[1]}x{large[0]}")
    data = StorybookBatches(StorybookSettings(size=large[0], num_frames=num_frames), seed=SCENES_SEED)
    made_db, bicubic_db, rows, seconds = [], [], [], 0.0
    for index in tracked(range(num_clips), num_clips, "making true clips large again", progress):
        batch = data.batch(index, 1, held_out=True)
        small = resize_clip(batch.clips, size)
        started = time.perf_counter()
        made = _enlarged(pipeline, small, batch.captions[0], seed=index, steps=steps, noise_level=0)
        seconds += time.perf_counter() - started
        bicubic = resize_clip(small, large).clamp(-1, 1)
        made_db.append(float(psnr_db(made, batch.clips)))
        bicubic_db.append(float(psnr_db(bicubic, batch.clips)))
        if index < NUM_SHOWN:
            kinds = (in_blocks(small, pipeline.super_resolution.scale), bicubic, made, batch.clips)
            rows.append(torch.cat([clip[0, :, num_frames // 2] for clip in kinds], -1))
    _write_sheet(folder / "true_clips.png", rows)
    gains = np.subtract(made_db, bicubic_db)
    return {
        "psnr_db": float(np.mean(made_db)),
        "bicubic_psnr_db": float(np.mean(bicubic_db)),
        "gain_db": float(gains.mean()),
        "least_gain_db": float(gains.min()),
        "seconds_a_clip": seconds / num_clips,
        "clips": [{"psnr_db": one, "bicubic_psnr_db": other} for one, other in zip(made_db, bicubic_db, strict=True)],
    }


def _read_large(
    pipeline: LumierePipeline, folder: Path, *, num_prompts: int, steps: int | None, progress: bool
) -> dict[str, Any]:
    """What the reader says of the base's clips, small and made large."""
    asked = {"num_prompts": num_prompts, "num_pairs": 0, "num_seeds": 1}
    small = evaluate_storybook(pipeline, out=folder / "base", progress=progress, **asked)["one_object"]
    jobs, tally, clips = storybook_jobs(**asked), Tally(), []
    for job in tracked(jobs, len(jobs), "making the base's clips large", progress):
        _make_large(pipeline, job, folder, steps=steps)
        clips.append(stored_frames(folder / "clips" / job.file_name))
        tally.add(answers(job.prompt.background, job.prompt.actors, read_clip(clips[-1])))
    bars = {name: found["share"] - MAX_LOSS for name, found in small.items()}
    print_scores(f"The same {len(jobs)} clips, made large", tally, bars)
    write_clip_sheets(folder / "sheets", [to_uint8(clip) for clip in clips], [job.prompt.text for job in jobs])
    return {"small": small, "large": tally.as_dict(), "bars": bars}


def _make_large(pipeline: LumierePipeline, job: Job, folder: Path, *, steps: int | None) -> None:
    """Make one of the base's stored clips large, unless that was done before; 8-bit frames are stored."""
    path = folder / "clips" / job.file_name
    if not path.is_file():
        small = stored_frames(folder / "base" / "clips" / job.file_name)[None]
        store_frames(path, to_uint8(_enlarged(pipeline, small, job.prompt.text, seed=job.seed, steps=steps)[0]))


def _enlarged(pipeline: LumierePipeline, small: Tensor, text: str, **options: Any) -> Tensor:
    """The large clip [1, 3, T, H, W] of a small one, with its caption; ``seed`` and ``steps`` beside a stage's own."""
    encoder = pipeline.text
    states: tuple[TextStates, TextStates] = (encoder.encode([text]), encoder.encode([""]))
    return pipeline.super_resolution(
        small,
        states=states,
        prompts=([text], [""]),
        generator=[torch.Generator().manual_seed(options.pop("seed"))],
        num_inference_steps=options.pop("steps"),
        **options,
    )


def _own_settings(stage: SuperResolutionStage) -> dict[str, Any]:
    """What a stage does when it is not told otherwise, wherever it was loaded from."""
    return {name: value for name, value in json.loads(stage.to_json_string()).items() if not name.startswith("_")}


def _write_sheet(path: Path, rows: Sequence[Tensor]) -> None:
    """Rows of pictures [3, H, W'], one below the other: small, bicubic, made large, true."""
    Image.fromarray(to_uint8(torch.cat(list(rows), dim=1)[:, None])[0]).save(path)
