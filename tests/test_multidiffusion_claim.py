"""The comparison of ways to join windows: its measures on clips whose seams are known, and a small run of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.claims.multidiffusion import WAYS, Options, borders_of, joined, main, seam_ratio
from lumiere.diffusion.multidiffusion import clip_windows
from tests.test_super_resolution import stage


def ramp(frames: int, jumps: tuple[int, ...] = (), height: float = 0.0) -> Tensor:
    """A clip that brightens by 1 a frame, and by ``height`` more into the frames ``jumps``."""
    steps = torch.ones(frames)
    steps[list(jumps)] += height
    return steps.cumsum(0).view(1, 1, -1, 1, 1).expand(2, 3, -1, 4, 4)


def test_seam_ratio_is_1_without_seams_and_tells_their_height() -> None:
    truth = ramp(12)
    assert seam_ratio(truth, truth, [4, 8]) == pytest.approx(1)
    assert seam_ratio(ramp(12, (4, 8), 0.5), truth, [4, 8]) == pytest.approx(1.5)
    jumpy = ramp(12, (4, 8), 0.5)
    assert seam_ratio(jumpy, jumpy, [4, 8]) == pytest.approx(1)


def test_cut_takes_each_frame_from_the_nearest_window() -> None:
    windows = clip_windows((14, 2, 2), frames=6, frames_overlap=2)
    made = joined([torch.full((1, 1, 6, 2, 2), float(window[0].start)) for window in windows], windows)
    assert made[0, 0, :, 0, 0].tolist() == [0] * 5 + [4] * 4 + [8] * 5
    assert borders_of(windows, "overlapping, cut") == [5, 9]
    assert borders_of(windows, "MultiDiffusion") == borders_of(windows, "MultiDiffusion, tapered") == [4, 6, 8, 10]
    apart = clip_windows((12, 2, 2), frames=6)
    assert borders_of(apart, "side by side") == [6]


def test_a_small_run_writes_report_and_plot(tmp_path: Path) -> None:
    # Text states of the width of the model inside the package, which the comparison takes its encoder from.
    made = stage(width=128)
    made.save_pretrained(tmp_path / "stage")
    main(
        Options(
            stage=tmp_path / "stage",
            num_clips=1,
            num_frames=12,
            size=32,
            window=4,
            overlap=2,
            levels=(0, 300),
            steps=1,
            out=tmp_path / "plot",
        )
    )
    report = json.loads((tmp_path / "plot.json").read_text())
    assert set(report["levels"]) == {"0", "300", "none"} and set(report["levels"]["0"]) == set(WAYS)
    assert (tmp_path / "plot.png").stat().st_size > 5000
