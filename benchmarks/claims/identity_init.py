"""Appendix B of the paper: does temporal resizing that starts as identity train better than a standard start?

    python -m benchmarks.claims.identity_init --image runs/text_to_image/export

trains the temporal layers of the embedded base twice for each seed, the same in everything (data, noise, captions,
all other weights) but the start of the convolutions that halve and double time, and writes the training losses to
docs/identity_init.json and their plot to docs/identity_init.png.

Expected from the paper: the identity start is lower from the first step on. ``--image`` is any folder with unet,
text_encoder and tokenizer, such as an exported text_to_image run or the shipped base.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from matplotlib.figure import Figure

from benchmarks.claims.report import write_claim
from lumiere.config import find_recipe, load_settings
from lumiere.training.loop import Trainer
from lumiere.training.stages.text_to_video import TextToVideo, TextToVideoSettings

STARTS: tuple[Literal["identity", "standard"], ...] = ("identity", "standard")
SHIPPED = Path(__file__).parents[2] / "lumiere" / "weights" / "base"


@dataclass(frozen=True)
class Options:
    """What to compare."""

    image: Path = SHIPPED
    """Folder of the image network: unet, text_encoder, tokenizer."""
    num_steps: int = 300
    seeds: tuple[int, ...] = (0, 1)
    recipe: str = "text_to_video_short"
    out: Path = Path("docs/identity_init")
    """Files to write, without their endings."""
    overrides: tuple[str, ...] = field(default_factory=tuple)
    """Settings of the recipe to change, as in training: loop.batch_size=1."""


def training_losses(options: Options, start: Literal["identity", "standard"], seed: int) -> list[float]:
    """The training loss of every step of one run."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = [
            f"image={options.image}",
            f"out={folder}",
            f"temporal.resize_init={start}",
            f"loop.num_steps={options.num_steps}",
            f"loop.seed={seed}",
            "loop.log_every=1",
            "loop.decay_steps=0",
            f"loop.validate_every={options.num_steps + 1}",
            f"loop.save_every={options.num_steps + 1}",
        ]
        settings = load_settings(TextToVideoSettings, find_recipe(options.recipe), [*options.overrides, *fixed])
        Trainer(TextToVideo(settings), settings.loop, Path(folder), facts={}).run()
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def smoothed(losses: Sequence[float], window: int) -> list[float]:
    """The mean of each ``window`` neighbouring steps (fewer at the ends)."""
    values = torch.tensor(losses, dtype=torch.float64)
    half = window // 2
    return [float(values[max(0, i - half) : i + half + 1].mean()) for i in range(len(losses))]


def compare(options: Options) -> dict[str, object]:
    """The report: every loss of every run, and the mean over the last half of the steps for each start."""
    losses = {start: [training_losses(options, start, seed) for seed in options.seeds] for start in STARTS}
    half = options.num_steps // 2
    late = {start: float(torch.tensor(runs)[:, half:].mean()) for start, runs in losses.items()}
    return {
        "claim": "Lumiere, appendix B: identity initialisation of the temporal resizing lowers the training loss",
        "recipe": options.recipe,
        "num_steps": options.num_steps,
        "seeds": list(options.seeds),
        "loss_of_last_half": late,
        "losses": losses,
    }


def plot(report: dict[str, object], figure: Figure) -> None:
    """The training losses as a picture: thin each step, thick their running mean over the seeds."""
    axes = figure.add_subplot()
    losses: dict[str, list[list[float]]] = report["losses"]  # type: ignore[assignment]
    for start, colour in zip(STARTS, ("tab:blue", "tab:orange"), strict=True):
        for run in losses[start]:
            axes.plot(run, color=colour, alpha=0.2, linewidth=0.6)
        mean = torch.tensor(losses[start], dtype=torch.float64).mean(0).tolist()
        axes.plot(smoothed(mean, max(1, len(mean) // 15)), color=colour, linewidth=2, label=f"{start} start")
    axes.set(xlabel="step", ylabel="training loss", yscale="log", title="Start of the temporal resizing")
    axes.legend()


def main(options: Options) -> None:
    """Compare, write the report and the plot, and print the verdict."""
    report = compare(options)
    write_claim(options.out, report, partial(plot, report), size=(7, 4))
    late: dict[str, float] = report["loss_of_last_half"]  # type: ignore[assignment]
    print(
        f"training loss over the last half: identity {late['identity']:.4f}, standard {late['standard']:.4f}"
        f" ({late['standard'] / late['identity']:.2f} times)"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
