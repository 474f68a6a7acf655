"""The model of a command: which folder, where it computes, said in one line."""

from __future__ import annotations

from pathlib import Path

from diffusers.utils import logging

from lumiere.device import Placement
from lumiere.pipeline import LumierePipeline, embedded_weights


def load_pipeline(folder: Path | None, placement: Placement) -> LumierePipeline:
    """The pipeline of a folder, None for the one inside the package; without diffusers' own progress bars."""
    logging.disable_progress_bar()
    pipeline = LumierePipeline.from_pretrained(folder or embedded_weights(), dtype=placement.dtype)
    pipeline.set_progress_bar_config(disable=True)
    print(f"{folder or 'the model inside the package'} on {placement}", flush=True)
    return pipeline.to(placement.device)
