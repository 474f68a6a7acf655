"""The walk-through in short: folder, report, shards, two ranks, a kill, one rank, export, clip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from examples.walkthrough import Walk
from lumiere.cli.generate import CLEAR_WIDTH_PX
from lumiere.data.batches import StorybookBatches, StorybookSettings
from lumiere.media import probe, write_clip
from lumiere.video import to_uint8


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_folder_of_videos_becomes_a_model_through_a_kill(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    batch = StorybookBatches(StorybookSettings(size=32, num_frames=20), seed=1).batch(0, 10)
    for index, (clip, caption) in enumerate(zip(batch.clips, batch.captions, strict=True)):
        write_clip(to_uint8(clip[None])[0], videos / f"{index}.mp4")
        (videos / f"{index}.txt").write_text(caption)
    walk = Walk(videos, tmp_path / "out", steps=24, size=32, frames=16)
    transcript = walk.run().read_text()
    assert "(killed)" in transcript and "going on from" in transcript
    lines = [json.loads(line) for line in (tmp_path / "out" / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == sorted(set(steps)) and max(steps) >= 20
    state = json.loads((tmp_path / "out" / "run" / "step-0000024" / "state.json").read_text())
    assert state["position"] == 2 * 24
    motion = load_file(tmp_path / "out" / "motion.safetensors")
    whole = load_file(tmp_path / "out" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert motion and all(
        torch.equal(weight.bfloat16(), whole[f"temporal.{name.removeprefix('temporal.')}"])
        for name, weight in motion.items()
    )
    info = probe(tmp_path / "out" / "clip.mp4")
    # Small clips are written enlarged, because players blur small pictures.
    assert (info.width, info.height, info.num_frames) == (CLEAR_WIDTH_PX, CLEAR_WIDTH_PX, 16)
