"""How far to noise a clip that is to be made anew (SDEdit): what changes as asked, and what stays, at each strength.

    python -m benchmarks.claims.video_to_video

recolours clips of held-out scenes that `lumiere evaluate edits` does not score, by a prompt in which only the new
colour differs from what the clip shows, and counts at each strength the clips whose object is read in the new colour,
and those whose object stays on its path. Writes docs/video_to_video.json, docs/video_to_video.png (the plot) and
docs/video_to_video_sheet.png (a few frames of one clip at each strength).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from benchmarks.claims.report import write_claim
from lumiere import LumierePipeline
from lumiere.applications.video_to_video import edit
from lumiere.device import choose_placement
from lumiere.evaluation.edit_protocol import NUM_SCENES
from lumiere.evaluation.edits import BARS, Measures, draw_case, measures, summarise
from lumiere.progress import progress_bar
from lumiere.video import contact_sheet

NUM_SHOWN = 10


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: Path | None = None
    """Folder of a pipeline; none: the one inside the package."""
    edit: Literal["recolour", "recolour_briefly"] = "recolour"
    """By the clip's whole caption with another colour, or by the object and its new colour alone."""
    strengths: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
    num_scenes: int = 16
    shown: int = 2
    """Which of the scenes the sheet shows."""
    out: Path = Path("docs/video_to_video")
    """Files to write, without their endings."""


def draw(figure: Figure, report: dict[str, Any]) -> None:
    """Both measures by strength, and their bars."""
    axis = figure.subplots()
    for name, bar in BARS[report["edit"]].items():
        line = axis.plot(report["strengths"], [row[name] for row in report["measures"]], marker="o", label=name)[0]
        axis.axhline(bar.low, color=line.get_color(), linestyle=":", linewidth=1)
    axis.set(xlabel="strength", ylabel=f"share of {report['num_scenes']} clips", ylim=(0, 1.03))
    axis.legend()


def main(options: Options) -> dict[str, Any]:
    """Measure, print and write the report."""
    placement = choose_placement()
    pipeline = LumierePipeline.from_pretrained(options.model, dtype=placement.dtype).to(placement.device)
    pipeline.set_progress_bar_config(disable=True)
    size, frames = pipeline.default_size, int(pipeline.config.num_frames)
    numbers = range(NUM_SCENES, NUM_SCENES + options.num_scenes)
    cases = [draw_case(number, options.edit, num_frames=frames, size=size) for number in numbers]
    found: list[dict[str, float]] = []
    shown: list[Tensor] = [cases[options.shown].clip]
    with progress_bar("clips") as progress:
        for strength in options.strengths:
            rows: list[Measures] = []
            for place, case in enumerate(progress.track(cases, description=f"strength {strength}")):
                generator = torch.Generator().manual_seed(case.index)
                call: dict[str, Any] = {"generator": generator, "super_resolution": False}
                made = edit(pipeline, case.clip, case.prompt(options.edit), strength=strength, **call)
                rows.append(measures(options.edit, case, made))
                if place == options.shown:
                    shown.append(made)
            found.append(summarise(rows))
            print(strength, *(f"{name} {value:.2f}" for name, value in found[-1].items()), sep="  ", flush=True)
    report = {
        "edit": options.edit,
        "steps": pipeline.config.default_steps,
        "prompt shown": cases[options.shown].prompt(options.edit),
        "num_scenes": options.num_scenes,
        "strengths": list(options.strengths),
        "measures": found,
    }
    write_claim(options.out, report, lambda figure: draw(figure, report), size=(6, 3.5))
    step = max(1, frames // NUM_SHOWN)
    rows_shown = torch.cat([clip[0, :, ::step] for clip in shown], dim=1)
    sheet = contact_sheet(rows_shown, columns=shown[0][:, :, ::step].shape[2], scale=2)
    Image.fromarray(sheet).save(options.out.with_name(f"{options.out.name}_sheet.png"))
    return report


if __name__ == "__main__":
    main(tyro.cli(Options))
