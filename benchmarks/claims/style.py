"""The paper's style weights: what blending in more of a style gives, and what it costs in motion.

    python -m benchmarks.claims.style

makes clips of held-out prompts with each style at strengths from 0 to 1 and measures three things: the share of frames
that a small classifier takes for the style (trained here, on true stills of all styles; its accuracy on others is
printed), whether the motion is read right (beside what the reader, made for flat drawings, reads of true clips in that
style), and how much moves: the mean difference of neighbouring frames over that of true clips in the style. The paper
says that full weights often cost motion and that the middle keeps both. Writes docs/style.json and docs/style.png.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.claims.report import write_claim
from lumiere import LumierePipeline
from lumiere.applications.stylization import apply_style, embedded_styles, remove_style
from lumiere.data.drawing import STYLES
from lumiere.data.storybook import Scene, draw_scene, frame_times, from_start, render
from lumiere.device import choose_placement
from lumiere.evaluation.prompts import Prompt, load_prompts
from lumiere.evaluation.storybook import read_clip
from lumiere.progress import progress_bar
from lumiere.video import resize_clip

SIZE, DRAWN_SIZE = 32, 128
MEASURES = ("style", "motion right", "motion amount")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: Path | None = None
    """Folder of a pipeline; none: the one inside the package."""
    styles: tuple[str, ...] = tuple(embedded_styles())
    """Names of drawing styles whose files are inside the package."""
    strengths: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)
    num_prompts: int = 4
    num_true: int = 24
    """True clips of each style that the reader is tried on."""
    classifier_steps: int = 300
    out: Path = Path("docs/style")
    """Files to write, without their endings."""


class StyleClassifier(nn.Module):
    """Frames [B, 3, 32, 32] in -1..1 -> scores [B, styles]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], len(STYLES))

    def forward(self, frames: Tensor) -> Tensor:
        """The scores."""
        for layer in self.layers:
            frames = F.gelu(layer(frames))
        return self.head(frames.mean((2, 3)))


def drawn(scenes: list[Scene], times_s: Tensor) -> Tensor:
    """Clips [B, 3, T, 32, 32] of scenes, drawn as large as finished clips and made small, as the styles' stills are."""
    return resize_clip(render(scenes, times_s, size=DRAWN_SIZE), (SIZE, SIZE)).clamp(-1, 1)


def true_stills(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Stills [B, 3, 32, 32] of random scenes and moments, and the number of each one's style [B]."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(count) % len(STYLES)
    stills = [
        drawn([draw_scene(generator, style=STYLES[kind])], torch.rand(1, generator=generator) * 5)[0, :, 0]
        for kind in kinds.tolist()
    ]
    return torch.stack(stills), kinds


def trained_classifier(steps: int) -> tuple[StyleClassifier, float]:
    """A classifier trained on true stills, and its accuracy on others."""
    torch.manual_seed(0)
    classifier = StyleClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.01)
    with progress_bar("steps") as progress:
        for step in progress.track(range(steps), description="classifier"):
            stills, kinds = true_stills(40, seed=1_000_000 + step)
            # Networks draw a little softer and noisier than the storybook: that is no style.
            stills = stills + 0.1 * torch.rand(()) * torch.randn_like(stills)
            loss = F.cross_entropy(classifier(stills), kinds)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    stills, kinds = true_stills(400, seed=5)
    with torch.no_grad():
        return classifier.eval(), float((classifier(stills).argmax(1) == kinds).float().mean())


def true_clips(style: str, count: int) -> tuple[list[Scene], Tensor]:
    """Held-out scenes in a style and their clips [B, 3, 80, 32, 32]."""
    generator = torch.Generator().manual_seed(77)
    scenes = [from_start(draw_scene(generator, held_out=True)) for _ in range(count)]
    return scenes, torch.cat([drawn([replace(scene, style=style)], frame_times()) for scene in scenes])


def made_clip(pipeline: LumierePipeline, prompt: Prompt, seed: int) -> Tensor:
    """The base's clip [3, T, H, W] of a prompt, in -1..1."""
    generator = torch.Generator().manual_seed(seed)
    output: Any = pipeline(prompt.text, generator=generator, super_resolution=False, output_type="pt")
    return output.frames[0].transpose(0, 1) * 2 - 1


@torch.no_grad()
def measured(clips: list[Tensor], prompts: list[Prompt], style: str, classifier: nn.Module, pace: float) -> Any:
    """The three measures of clips [3, T, H, W]."""
    kind = STYLES.index(style)
    taken = [float((classifier(clip.transpose(0, 1)).argmax(1) == kind).float().mean()) for clip in clips]
    right = [
        read_clip(clip).actors[0].motion == prompt.actors[0].motion for clip, prompt in zip(clips, prompts, strict=True)
    ]
    amount = sum(float(clip.diff(dim=1).abs().mean()) for clip in clips) / len(clips) / pace
    return {"style": sum(taken) / len(taken), "motion right": sum(right) / len(right), "motion amount": amount}


def draw(figure: Figure, report: dict[str, Any]) -> None:
    """One plot for each measure, one line for each style."""
    for axis, measure in zip(figure.subplots(1, 3), MEASURES, strict=True):
        for style, found in report["styles"].items():
            rows = found["strengths"]
            axis.plot([row["strength"] for row in rows], [row[measure] for row in rows], marker="o", label=style)
        axis.set(xlabel="strength of the style", title=measure, ylim=(0, None))
    figure.axes[0].legend()


def main(options: Options) -> dict[str, Any]:
    """Measure, print and write the report."""
    classifier, accuracy = trained_classifier(options.classifier_steps)
    print(f"classifier: {accuracy:.1%} of 400 other true stills right")
    placement = choose_placement()
    pipeline = LumierePipeline.from_pretrained(options.model, dtype=placement.dtype).to(placement.device)
    pipeline.set_progress_bar_config(disable=True)
    prompts = load_prompts()[: options.num_prompts]
    report: dict[str, Any] = {"classifier_accuracy": accuracy, "num_prompts": len(prompts), "styles": {}}
    plain = [made_clip(pipeline, prompt, seed) for seed, prompt in enumerate(prompts)]
    for style in options.styles:
        scenes, clips = true_clips(style, options.num_true)
        pace = float(clips.diff(dim=2).abs().mean())
        readable = sum(
            read_clip(clip).actors[0].motion == scene.actors[0].motion
            for clip, scene in zip(clips, scenes, strict=True)
        )
        rows = []
        for strength in options.strengths:
            made = plain
            if strength:
                apply_style(pipeline, style, strength)
                made = [made_clip(pipeline, prompt, seed) for seed, prompt in enumerate(prompts)]
                remove_style(pipeline)
            rows.append({"strength": strength, **measured(made, prompts, style, classifier, pace)})
            print(style, *(f"{name} {value:.2f}" for name, value in rows[-1].items()), sep="  ", flush=True)
        report["styles"][style] = {"motion right of true clips": readable / len(scenes), "strengths": rows}
        print(f"{style}: the reader reads the motion of {readable} of {len(scenes)} true clips in it")
    write_claim(options.out, report, lambda figure: draw(figure, report), size=(11, 3.5))
    return report


if __name__ == "__main__":
    main(tyro.cli(Options))
