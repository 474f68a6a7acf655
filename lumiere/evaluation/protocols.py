"""The named, fixed protocols: clips or stills of the committed prompts are made, read, counted and reported.

Everything that a score depends on is stored with it. A folder of an evaluation that was interrupted is gone on with
by the same call; a folder of other settings is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lumiere.device import choose_placement, installed_versions
from lumiere.diffusion.denoiser import Conditioned
from lumiere.diffusion.objective import Objective
from lumiere.evaluation.prompts import NUM_ONE_OBJECT, Prompt, load_prompts
from lumiere.evaluation.report import print_scores, print_wrong_words, write_clip_sheets, write_json, write_still_sheet
from lumiere.evaluation.storybook import ActorReading, Reading, read_clip, read_pair, read_stills
from lumiere.evaluation.tally import Answer, Tally, answers
from lumiere.evaluation.wrong_words import WrongWord, as_dict, summarise, wrong_word_losses
from lumiere.pipeline import LumierePipeline
from lumiere.progress import progress_bar
from lumiere.video import from_uint8, to_uint8

CLIP_BARS = {"object": 0.90, "colour": 0.95, "background": 0.95, "motion": 0.85, "speed": 0.75}
STILL_BARS = {"object": 0.95, "colour": 0.97}
STILL_ATTRIBUTES = ("object", "colour", "background")
ONE_PAIR_FOR = 4
"""A shortened evaluation takes one two-object prompt for so many one-object prompts, as the full list does."""

Model = LumierePipeline | str | Path


@dataclass(frozen=True)
class Job:
    """One clip to be made and read: its prompt's place in the list and the seed of its noise."""

    index: int
    prompt: Prompt
    seed: int

    @property
    def file_name(self) -> str:
        """Where its frames are kept."""
        return f"{self.index:03}-{self.seed}.npz"


def evaluate_storybook(
    model: Model,
    *,
    out: str | Path,
    num_seeds: int = 2,
    num_prompts: int | None = None,
    num_pairs: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Make, read and count clips of the held-out prompts; prints the tables and returns the report.

    ``model`` is a pipeline, or the folder of one; its base is run as ``lumiere generate`` runs it. ``out`` gets
    report.json, the contact sheets and the clips. ``num_prompts`` takes the first of the one-object prompts, None all,
    and ``num_pairs`` the first of the two-object ones, None a quarter as many. ``steps`` and ``guidance`` None are the
    model's own. Raises ValueError when ``out`` holds clips of other settings.
    """
    pipeline = load_model(model)
    jobs = storybook_jobs(num_prompts=num_prompts, num_pairs=num_pairs, num_seeds=num_seeds)
    settings = _settings(pipeline, jobs, steps=steps, guidance=guidance, num_frames=pipeline.config.num_frames)
    folder = open_folder(Path(out), settings)
    _make(pipeline, jobs, folder, settings, batch=batch, progress=progress)
    readings = [
        (read_pair if len(job.prompt.actors) == 2 else read_clip)(clip)
        for job, clip in tracked(_stored(jobs, folder), len(jobs), "reading", progress)
    ]
    found = [answers(job.prompt.background, job.prompt.actors, seen) for job, seen in zip(jobs, readings, strict=True)]
    alone, together = Tally(), Tally()
    for job, words in zip(jobs, found, strict=True):
        (alone if len(job.prompt.actors) == 1 else together).add(words)
    print_scores(f"{alone.total['object']} clips of one object", alone, CLIP_BARS)
    if together.total:
        print_scores(f"Apart: {together.total['background']} clips of two objects", together, {})
    report = _report("storybook", settings, jobs, readings, found)
    report |= {"one_object": alone.as_dict(), "two_objects": together.as_dict(), "bars": CLIP_BARS}
    write_json(folder / "report.json", report)
    frames = [to_uint8(clip) for _, clip in _stored(jobs, folder)]
    write_clip_sheets(folder / "sheets", frames, [_title(job, words) for job, words in zip(jobs, found, strict=True)])
    return report


def evaluate_stills(
    model: Model,
    *,
    out: str | Path,
    num_seeds: int = 2,
    num_prompts: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 32,
    progress: bool = True,
) -> dict[str, Any]:
    """The same for clips of one frame, which are the image network's stills: object, colour and background."""
    pipeline = load_model(model)
    jobs = _jobs(_chosen_prompts(num_prompts)[0], num_seeds)
    settings = _settings(pipeline, jobs, steps=steps, guidance=guidance, num_frames=1)
    folder = open_folder(Path(out), settings)
    _make(pipeline, jobs, folder, settings, batch=batch, progress=progress)
    stills = torch.cat([clip.transpose(0, 1) for _, clip in _stored(jobs, folder)])
    readings = read_stills(stills)
    tally, found = Tally(), []
    for job, seen in zip(jobs, readings, strict=True):
        words = answers(job.prompt.background, job.prompt.actors, seen)
        found.append([answer for answer in words if answer.attribute in STILL_ATTRIBUTES])
        tally.add(found[-1])
    print_scores(f"{len(jobs)} stills", tally, STILL_BARS)
    report = _report("stills", settings, jobs, readings, found) | {"stills": tally.as_dict(), "bars": STILL_BARS}
    write_json(folder / "report.json", report)
    pictures = list(to_uint8(stills.transpose(0, 1)))
    write_still_sheet(folder / "stills.png", pictures, [all(one.is_right for one in words) for words in found])
    return report


def evaluate_wrong_words(
    model: Model,
    *,
    out: str | Path | None = None,
    num_clips: int = 64,
    num_frames: int | None = None,
    progress: bool = True,
) -> dict[str, WrongWord]:
    """What one wrong word of the caption costs in held-out loss; prints the table, and writes it below ``out``."""
    pipeline = load_model(model)
    frames = pipeline.config.num_frames if num_frames is None else num_frames
    losses = wrong_word_losses(
        _loss_measure(pipeline), num_clips=num_clips, num_frames=frames, size=pipeline.default_size
    )
    rows = list(tracked(losses, num_clips, "losses", progress))
    found = summarise(rows)
    print_wrong_words(found)
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        facts = {"weights": weight_hashes(pipeline), "versions": installed_versions(), "num_clips": num_clips}
        write_json(Path(out) / "wrong_words.json", facts | {"ratios": as_dict(found), "losses": rows})
    return found


def load_model(model: Model) -> LumierePipeline:
    """The pipeline, its own progress bars switched off; a folder's is placed where this machine is fast."""
    pipeline = model if isinstance(model, LumierePipeline) else _placed(model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _placed(folder: str | Path) -> LumierePipeline:
    placement = choose_placement()
    return LumierePipeline.from_pretrained(folder, dtype=placement.dtype).to(placement.device)


def _loss_measure(pipeline: LumierePipeline) -> Callable[[Tensor, str, int, Tensor], float]:
    """The network's loss on one clip with a caption, noise and place in the schedule."""
    objective = Objective.from_scheduler(pipeline.scheduler)
    device, dtype = pipeline.device, pipeline.unet.dtype

    @torch.no_grad()
    def measure(clip: Tensor, text: str, seed: int, level: Tensor) -> float:
        clean = pipeline.codec.encode(clip)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
        timestep = (level * objective.num_timesteps).long().clamp(max=objective.num_timesteps - 1)
        states = pipeline.read([text], *clip.shape[-2:])
        told = Conditioned(pipeline.unet, states.to(device, dtype))
        loss = objective.loss(told, clean.to(device), noise=noise.to(device), timestep=timestep.to(device))
        return float(loss)

    return measure


def _chosen_prompts(num_prompts: int | None, num_pairs: int | None = None) -> tuple[list[Prompt], list[Prompt]]:
    """The first one-object and two-object prompts."""
    every = load_prompts()
    alone, together = every[:NUM_ONE_OBJECT], every[NUM_ONE_OBJECT:]
    count = len(alone) if num_prompts is None else num_prompts
    if not 1 <= count <= len(alone):
        raise ValueError(f"num_prompts is {count}; the list has {len(alone)} one-object prompts (None: all)")
    pairs = count // ONE_PAIR_FOR if num_pairs is None else num_pairs
    if not 0 <= pairs <= len(together):
        raise ValueError(f"num_pairs is {pairs}; the list has {len(together)} prompts of two objects")
    return alone[:count], together[:pairs]


def storybook_jobs(*, num_prompts: int | None, num_pairs: int | None, num_seeds: int) -> list[Job]:
    """The clips of the storybook protocol: one-object prompts first."""
    one, two = _chosen_prompts(num_prompts, num_pairs)
    return _jobs(one + two, num_seeds)


def _jobs(prompts: Sequence[Prompt], num_seeds: int) -> list[Job]:
    """Every prompt with each of its own seeds; no two clips share their noise."""
    if num_seeds < 1:
        raise ValueError(f"num_seeds is {num_seeds}; it is 1 or more")
    place = {prompt.text: index for index, prompt in enumerate(load_prompts())}
    return [
        Job(place[prompt.text], prompt, 1000 * place[prompt.text] + turn)
        for prompt in prompts
        for turn in range(num_seeds)
    ]


def _settings(
    pipeline: LumierePipeline, jobs: Sequence[Job], *, steps: int | None, guidance: float | None, num_frames: int
) -> dict[str, Any]:
    """Everything that the clips depend on."""
    return {
        "prompts": {str(job.index): job.prompt.text for job in jobs},
        "seeds": [job.seed for job in jobs],
        **run_settings(pipeline, steps=steps, guidance=guidance, num_frames=num_frames),
    }


def run_settings(
    pipeline: LumierePipeline, *, steps: int | None, guidance: float | None, num_frames: int
) -> dict[str, Any]:
    """Everything of the base and of its machine that the base's clips depend on."""
    return {
        "num_frames": num_frames,
        "size": list(pipeline.default_size),
        "steps": pipeline.config.default_steps if steps is None else steps,
        "guidance": pipeline.config.default_guidance_scale if guidance is None else guidance,
        "guidance_interval": list(pipeline.config.guidance_interval),
        "guidance_rescale": pipeline.config.guidance_rescale,
        "timestep_shift": pipeline.config.timestep_shift,
        "restarts": list(pipeline.config.restarts),
        "polish": list(pipeline.config.polish),
        "seam_reach": pipeline.config.seam_reach,
        "carry_given": pipeline.config.carry_given,
        "opening_frames": pipeline.config.opening_frames,
        "scheduler": type(pipeline.scheduler).__name__,
        "scheduler_settings": json.loads(pipeline.scheduler.to_json_string()),
        "weights": {part: value for part, value in weight_hashes(pipeline).items() if part != "super_resolution"},
        "device": pipeline.device.type,
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "versions": installed_versions(),
    }


def weight_hashes(pipeline: LumierePipeline) -> dict[str, str]:
    """The SHA-256 of each network's weights as they are in memory."""
    found = {}
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            digest = hashlib.sha256()
            for key, weight in sorted(part.state_dict().items()):
                digest.update(key.encode())
                digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
            found[name] = digest.hexdigest()
    return found


def reader_hash() -> str:
    """The SHA-256 of the reader's source and of the storybook that it knows: equal hashes, comparable scores."""
    digest = hashlib.sha256()
    for package, names in {
        "lumiere.evaluation": ("storybook", "scenery", "mixtures", "shapes", "motions"),
        "lumiere.data": ("storybook", "drawing", "outlines"),
    }.items():
        for name in names:
            digest.update(resources.files(package).joinpath(f"{name}.py").read_bytes())
    return digest.hexdigest()


def open_folder(folder: Path, settings: dict[str, Any]) -> Path:
    """The evaluation's folder, new or of the very same settings."""
    path = folder / "settings.json"
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(key for key in earlier.keys() | settings.keys() if earlier.get(key) != settings.get(key))
        if differing:
            raise ValueError(
                f"{folder} holds an evaluation with other settings ({', '.join(differing)} differ);"
                " give another folder, or delete this one"
            )
        return folder
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    write_json(path, settings)
    return folder


def _make(
    pipeline: LumierePipeline,
    jobs: Sequence[Job],
    folder: Path,
    settings: dict[str, Any],
    *,
    batch: int | None,
    progress: bool,
) -> None:
    """Make the clips that are not there yet, ``batch`` at a time: on a CPU one clip fills all cores."""
    batch = batch or (1 if pipeline.device.type == "cpu" else 16)
    missing = [job for job in jobs if not (folder / "clips" / job.file_name).is_file()]
    groups = [missing[first : first + batch] for first in range(0, len(missing), batch)]
    for group in tracked(groups, len(groups), f"making {len(missing)} of {len(jobs)}", progress):
        output: Any = pipeline(
            [job.prompt.text for job in group],
            num_frames=settings["num_frames"],
            num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance"],
            generator=[torch.Generator().manual_seed(job.seed) for job in group],
            super_resolution=False,
            output_type="pt",
        )
        clips = output.frames.transpose(1, 2) * 2 - 1
        for job, frames in zip(group, to_uint8(clips), strict=True):
            store_frames(folder / "clips" / job.file_name, frames)


def store_frames(path: Path, frames: np.ndarray) -> None:
    """Write frames under a temporary name first, so that an interrupted evaluation has only whole clips."""
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, frames=frames)
    unfinished.replace(path)


def stored_frames(path: Path) -> Tensor:
    """The clip [3, T, H, W] of a file of ``store_frames``, in -1..1."""
    with np.load(path) as file:
        return from_uint8(file["frames"])


def _stored(jobs: Sequence[Job], folder: Path) -> Iterable[tuple[Job, Tensor]]:
    """Each job's clip [3, T, H, W], read from its file."""
    for job in jobs:
        yield job, stored_frames(folder / "clips" / job.file_name)


def tracked(items: Iterable[Any], count: int, what: str, progress: bool) -> Iterable[Any]:
    """The items, with a progress bar that shows the time left."""
    with progress_bar(is_shown=progress) as bar:
        yield from bar.track(items, total=count, description=what)


def _report(
    protocol: str,
    settings: dict[str, Any],
    jobs: Sequence[Job],
    readings: Sequence[Reading],
    found: Sequence[Sequence[Answer]],
) -> dict[str, Any]:
    """Settings, reader and every single reading."""
    clips = [
        {
            "prompt": job.index,
            "text": job.prompt.text,
            "seed": job.seed,
            "answers": [asdict(answer) for answer in words],
            "measured": [_measured(actor) for actor in seen.actors],
        }
        for job, seen, words in zip(jobs, readings, found, strict=True)
    ]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"protocol": protocol, "date": now, "reader": reader_hash(), "settings": settings, "clips": clips}


def _measured(actor: ActorReading) -> dict[str, float | None]:
    """The numbers behind an actor's reading; None for what could not be measured."""
    facts = {"shape_left": actor.left}
    if actor.measured is not None:
        motion = actor.measured
        facts |= {"duration_s": motion.duration_s, "motion_left": motion.left, "movement": motion.movement}
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in facts.items()}


def _title(job: Job, words: Sequence[Answer]) -> str:
    wrong = [f"{one.attribute} as {one.read}" for one in words if not one.is_right]
    text = f"{job.index:03} seed {job.seed}: {job.prompt.text}"
    return f"{text}   MISREAD {', '.join(wrong)}" if wrong else text
