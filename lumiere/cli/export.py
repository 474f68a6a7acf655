"""``lumiere export``: what a run has learned, or a model holds, as files to use elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Export:
    """Write a pipeline, motion or style of a training run, also of one that is not finished, or a model's motion.

    `lumiere export runs/clips my-model` writes the whole pipeline with the newest checkpoint's averaged weights,
    `--weights raw` with those of the last step. `--what motion` writes the temporal weights alone, for
    `lumiere inflate --motion`; `--what lora` the style of a run of `lumiere train style`, for `--style`; its pipeline
    has the style in it. A run needs its model and data to be where they were.
    """

    source: Annotated[Positional[Path], arg(metavar="RUN_OR_FOLDER")]
    """The folder of a run; for motion also that of a pipeline or a Space-Time U-Net."""

    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """A new folder (pipeline), or a new .safetensors file."""

    what: Literal["pipeline", "motion", "lora"] = "pipeline"
    """What to write."""

    weights: Literal["ema", "raw"] | None = None
    """A run's averaged weights, or those of the last step (default: ema)."""

    def run(self) -> None:
        """Export, and say where it is."""
        from lumiere.training.export import export

        print(f"wrote {export(self.source, self.out, what=self.what, weights=self.weights)}")
