"""Numbers of training's samples: what they say of clips that are known, and that recipes can ask for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lumiere.data.batches import Batch, StorybookBatches, StorybookSettings
from lumiere.evaluation.samples import METRICS
from lumiere.training.run import train
from tests.tiny_pipeline import tiny_pipeline


def test_true_clips_are_right_and_move_as_they_do() -> None:
    batch = StorybookBatches(StorybookSettings(size=64, num_frames=80, motion_from_start=True), seed=3).batch(0, 2)
    assert METRICS["movement"](batch.clips, batch) == {"movement": 1.0}
    found = METRICS["storybook"](batch.clips, batch)
    assert found.keys() == {"object", "colour", "background", "motion", "speed"}
    assert set(found.values()) == {1.0}
    other = METRICS["storybook"](batch.clips.flip(0), batch)
    assert min(other.values()) == 0.0


def test_stills_do_not_move_and_noise_boils() -> None:
    clips = torch.linspace(-1, 1, 8).view(1, 1, 8, 1, 1).expand(2, 3, 8, 16, 16)
    truth = Batch(clips, ["", ""])
    assert METRICS["movement"](clips[:, :, :1].expand_as(clips), truth) == {"movement": 0.0}
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    assert METRICS["movement"](noise, truth)["movement"] > 3
    with pytest.raises(ValueError, match="one frame"):
        METRICS["movement"](clips[:, :, :1], truth)
    with pytest.raises(ValueError, match="not known"):
        METRICS["storybook"](clips, truth)


def test_a_recipe_asks_for_numbers_of_its_samples(tmp_path: Path) -> None:
    tiny_pipeline(default_steps=1).save_pretrained(tmp_path / "base")
    told = ["--start_from", str(tmp_path / "base"), "--out", str(tmp_path / "run"), "--loop.num_steps", "1"]
    train("conditional_smoke", [*told, "--samples.num_samples", "2", "--samples.metrics", "[movement]"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if "samples/movement" in line]
    # Other numbers may be asked for when the run goes on.
    more = ["--loop.num_steps", "2", "--samples.metrics", "[movement, storybook]"]
    with pytest.raises(ValueError, match="32 pixels and more; these have 16"):
        train("conditional_smoke", [*told, *more])
