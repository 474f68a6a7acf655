"""Plot the curves of training runs: training loss (smoothed) and held-out loss over steps.

python examples/plot_curves.py docs/curves.png runs/text_to_image runs/text_to_video
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SMOOTHING = 0.9


def smoothed(values: list[float]) -> list[float]:
    """A running mean that forgets a tenth at each value."""
    mean, result = values[0], []
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        result.append(mean)
    return result


def main(target: str, *runs: str) -> None:
    """Write one panel for each run."""
    figure, axes = plt.subplots(1, len(runs), figsize=(6 * len(runs), 3.6), squeeze=False)
    for axis, run in zip(axes[0], runs, strict=True):
        lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
        training = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        axis.plot([step for step, _ in training], smoothed([loss for _, loss in training]), label="training")
        for name in sorted({key for line in lines for key in line if key.startswith("held_out/loss")}):
            held_out = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*held_out, strict=True), marker="o", label=name.replace("_", " "))
        axis.set(title=Path(run).name, xlabel="steps", ylabel="loss", yscale="log")
        axis.legend()
    figure.tight_layout()
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
