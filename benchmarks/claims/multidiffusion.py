"""Figure 14 of the paper: without MultiDiffusion the clip jumps at the borders of the windows, with it it does not.

    python -m benchmarks.claims.multidiffusion --stage runs/super_resolution/export

makes held-out storybook clips large, in short windows, in four ways: windows side by side, each a clip of its own;
windows that overlap, each a clip of its own, cut in the middle of the overlaps and joined; MultiDiffusion, the mean of
overlapping predictions at every step; and the same with windows that count less toward their borders. Shown is the mean
difference between neighbouring frames along time, and the seam ratio: that difference at the borders of windows over
elsewhere, divided by the same ratio of the true clips (1: no seam), for several levels of noise on the small clip and
for no small clip at all. Writes docs/multidiffusion.json and docs/multidiffusion.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.claims.report import write_claim
from lumiere import LumierePipeline, SuperResolutionStage
from lumiere.conditioning.text import text_encoder_for
from lumiere.data.batches import StorybookBatches, StorybookSettings
from lumiere.device import choose_placement
from lumiere.diffusion.denoiser import Window
from lumiere.diffusion.multidiffusion import Windowed, clip_windows
from lumiere.video import resize_clip

WAYS = ("side by side", "overlapping, cut", "MultiDiffusion", "MultiDiffusion, tapered")
NO_CLIP = "none"


@dataclass(frozen=True)
class Options:
    """What to compare."""

    stage: Path | None = None
    """Folder of a super-resolution stage; none: the one inside the package."""
    num_clips: int = 8
    num_frames: int = 80
    size: int = 128
    """Width and height of the true clips in pixels."""
    window: int = 16
    overlap: int = 8
    levels: tuple[int, ...] = (0, 100, 200, 300, 400, 500)
    """Timesteps, of 1000, to which the small clip is noised."""
    steps: int = 8
    out: Path = Path("docs/multidiffusion")
    """Files to write, without their endings."""


def cut_borders(windows: Sequence[Window]) -> list[int]:
    """The first frames that are taken from the second, third, ... window: in the middle of each overlap."""
    return [(before[0].stop + after[0].start + 1) // 2 for before, after in pairwise(windows)]


def differences(clips: Tensor) -> Tensor:
    """The mean absolute difference [T - 1] between neighbouring frames of clips [B, 3, T, H, W]."""
    return (clips[:, :, 1:] - clips[:, :, :-1]).abs().mean((0, 1, 3, 4))


def seam_ratio(made: Tensor, truth: Tensor, borders: Sequence[int]) -> float:
    """How much larger the steps into the frames ``borders`` are than the others, in units of the true clips'."""
    ratios = []
    for clips in (made, truth):
        steps = differences(clips)
        is_border = torch.zeros(len(steps), dtype=torch.bool)
        is_border[[border - 1 for border in borders]] = True
        ratios.append(float(steps[is_border].mean() / steps[~is_border].mean()))
    return ratios[0] / ratios[1]


def borders_of(windows: Sequence[Window], way: str) -> list[int]:
    """The frames before which a way of windowing could leave a seam."""
    if way.startswith("MultiDiffusion"):
        ends = {window[0].start for window in windows} | {window[0].stop for window in windows}
        return sorted(ends - {0, max(window[0].stop for window in windows)})
    return cut_borders(windows)


def enlarged(
    stage: SuperResolutionStage, small: Tensor, states: Any, way: str, options: Options, level: int, seed: int
) -> tuple[Tensor, list[int]]:
    """The large clip [1, 3, T, H, W] of a small one, made in one of the ways, and where its seams would be."""
    overlap = 0 if way == "side by side" else options.overlap
    stage.register_to_config(window_frames=options.window, window_frames_overlap=overlap)
    stage.merge = partial(Windowed, is_tapered=way.endswith("tapered"))

    def made(first: int, last: int) -> Tensor:
        return stage(
            small[:, :, first:last],
            states=states,
            num_inference_steps=options.steps,
            noise_level=level,
            # The small clip would mend seams that windows leave, and a look would smooth them.
            back_projection=0.0,
            polish=[],
            generator=[torch.Generator().manual_seed(seed)],
            first_frame=first,
        )

    windows = clip_windows(small.shape, frames=options.window, frames_overlap=overlap)
    borders = borders_of(windows, way)
    if way.startswith("MultiDiffusion"):
        return made(0, small.shape[2]), borders
    return joined([made(window[0].start, window[0].stop) for window in windows], windows), borders


def joined(parts: Sequence[Tensor], windows: Sequence[Window]) -> Tensor:
    """One clip of the clips of overlapping windows, each frame of the one whose middle is nearest."""
    borders = [0, *cut_borders(windows), windows[-1][0].stop]
    kept = [
        part[:, :, first - window[0].start : last - window[0].start]
        for part, window, (first, last) in zip(parts, windows, pairwise(borders), strict=True)
    ]
    return torch.cat(kept, dim=2)


def compare(options: Options) -> dict[str, Any]:
    """The report: seam ratios by way and level, and the differences along time of every way."""
    placement = choose_placement()
    pipeline = LumierePipeline.from_pretrained(dtype=placement.dtype)
    stage = (
        pipeline.super_resolution.stages[0]
        if options.stage is None
        else SuperResolutionStage.from_folder(options.stage, dtype=placement.dtype)
    )
    stage.to(placement.device).set_progress_bar_config(disable=True)
    encoder = text_encoder_for(pipeline.tokenizer, pipeline.text_encoder)
    data = StorybookBatches(StorybookSettings(size=options.size, num_frames=options.num_frames), seed=11)
    batch = data.batch(0, options.num_clips, held_out=True)
    size = options.size // stage.config.scale
    small = resize_clip(batch.clips, (size, size))
    rows: dict[str, dict[str, Any]] = {}
    for level in (*options.levels, None):
        timestep = stage.low_res_scheduler.config.num_train_timesteps - 1 if level is None else level
        row: dict[str, Any] = {}
        for way in WAYS:
            made, borders = [], []
            for index, caption in enumerate(batch.captions):
                states = (encoder.encode([caption]), encoder.encode([""]))
                clip, borders = enlarged(stage, small[index : index + 1], states, way, options, timestep, index)
                made.append(clip)
            clips = torch.cat(made)
            row[way] = {
                "seam_ratio": seam_ratio(clips, batch.clips, borders),
                "borders": borders,
                "differences": differences(clips).tolist(),
            }
            print(f"level {NO_CLIP if level is None else level}: {way}: seam ratio {row[way]['seam_ratio']:.3f}")
        rows[NO_CLIP if level is None else str(level)] = row
    return {
        "claim": "Lumiere, figure 14: MultiDiffusion removes the jumps at the borders of temporal windows",
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "true_differences": differences(batch.clips).tolist(),
        "levels": rows,
    }


def plot(report: dict[str, Any], figure: Figure) -> None:
    """Two pictures: differences along time at the highest level of noise, and seam ratios by level."""
    left, right = figure.subplots(1, 2)
    levels = report["levels"]
    shown = list(levels)[-2]
    for way in WAYS:
        left.plot(range(1, len(levels[shown][way]["differences"]) + 1), levels[shown][way]["differences"], label=way)
        right.plot(list(levels), [levels[level][way]["seam_ratio"] for level in levels], marker="o", label=way)
    truth = report["true_differences"]
    left.plot(range(1, len(truth) + 1), truth, color="black", linewidth=0.8, label="true clips")
    left.set(
        xlabel="frame", ylabel="mean difference to the frame before", title=f"small clip noised to {shown} of 1000"
    )
    right.axhline(1, color="black", linewidth=0.8)
    right.set(xlabel="level of noise on the small clip (of 1000)", ylabel="seam ratio", title="1: no seam")
    left.legend()
    right.legend()


def main(options: Options) -> None:
    """Compare, write the report and the plot."""
    report = compare(options)
    write_claim(options.out, report, partial(plot, report), size=(11, 4))


if __name__ == "__main__":
    main(tyro.cli(Options))
