"""The paper's sizes: does super-resolution's memory stay the same however long the clip, and however large the picture?

    python -m benchmarks.super_resolution [--frames 16 80 320] [--sizes 1024] [--out REPORT.json]

Each case runs in a process of its own: a video of random frames goes through ``upscale_frames`` in parts, as
``lumiere upscale`` sends it, through a stage of the size printed, with random weights, in two steps. Prints peak
memory above that of the loaded network, what the stage's own estimate said, and seconds. Frames that come out are
dropped, as they would be written to disk.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import UNet2DConditionModel

from lumiere import STUNet, SuperResolutionStage
from lumiere.applications.upscale import upscale_frames
from lumiere.conditioning.text import TextStates
from lumiere.device import Placement, choose_placement
from lumiere.model.temporal import TemporalSettings
from lumiere.super_resolution import low_res_schedule
from lumiere.training.noise import embedded_scheduler


@dataclass(frozen=True)
class Options:
    """What to measure."""

    frames: tuple[int, ...] = (16, 80, 320)
    sizes: tuple[int, ...] = (1024,)
    """Width and height of the large picture in pixels."""
    scale: int = 8
    part: int = 16
    """Frames in memory at a time."""
    overlap: int = 4
    window: int = 512
    """Side in pixels of what goes through the network at once; 0: the whole picture."""
    channels: tuple[int, ...] = (32, 64, 96)
    pixel_block: int = 8
    steps: int = 2
    back_projection: float = 1.0
    """As the stage inside the package does it; 0 leaves it out."""
    out: Path | None = None
    """Where to write the numbers as JSON."""


def random_stage(options: Options, placement: Placement) -> SuperResolutionStage:
    """A stage with random weights, of the options' size."""
    deeper = len(options.channels) - 1
    per_block = 3 * options.pixel_block**2
    unet = UNet2DConditionModel(
        sample_size=options.window // options.pixel_block or None,
        in_channels=2 * per_block,
        out_channels=per_block,
        block_out_channels=options.channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * deeper + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * deeper,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=16,
        num_class_embeds=1000,
    )
    halve_time = (True, *(False,) * (deeper - 1))
    stage = SuperResolutionStage(
        unet=STUNet.from_image_unet(unet, temporal=TemporalSettings(halve_time=halve_time)),
        scheduler=embedded_scheduler(),
        low_res_scheduler=low_res_schedule(),
        scale=options.scale,
        pixel_block_size=options.pixel_block,
        window_frames=8,
        window_frames_overlap=2,
        window_px=options.window or None,
        window_px_overlap=options.window // 4,
        back_projection=options.back_projection,
    )
    stage.set_progress_bar_config(disable=True)
    return stage.to(placement.device, placement.dtype)


def random_frames(count: int, side: int) -> Iterator[np.ndarray]:
    """Noise, one frame at a time."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield generator.integers(0, 256, (side, side, 3), dtype=np.uint8)


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of the card, or of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(options: Options, num_frames: int, size: int) -> dict[str, Any]:
    """One case; to be run in a fresh process, because a process's peak never falls."""
    placement = choose_placement()
    stage = random_stage(options, placement)
    side = size // options.scale
    states = (TextStates(torch.zeros(1, 8, 32)), TextStates(torch.zeros(1, 8, 32)))

    def enlarge(clip: torch.Tensor, first_frame: int) -> torch.Tensor:
        return stage(
            clip,
            states=states,
            num_inference_steps=options.steps,
            generator=[torch.Generator().manual_seed(0)],
            first_frame=first_frame,
        )

    before, started = peak_bytes(placement.device), time.perf_counter()
    frames = upscale_frames(
        random_frames(num_frames, side), enlarge, multiple=1, chunk=options.part, overlap=options.overlap
    )
    count = sum(1 for _ in frames)
    assert count == num_frames, count
    return {
        "frames": num_frames,
        "size": size,
        "parameters_m": round(sum(weight.numel() for weight in stage.unet.parameters()) / 1e6, 2),
        "placement": str(placement),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gib": round((peak_bytes(placement.device) - before) / 2**30, 3),
        "estimate_gib": round(stage.memory_bytes(min(num_frames, options.part), side, side) / 2**30, 3),
    }


def main(options: Options) -> None:
    """Every case in its own process; prints a table and writes the numbers."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for size in options.sizes:
        for frames in options.frames:
            with context.Pool(1) as pool:
                row = pool.apply(measure, (options, frames, size))
            rows.append(row)
            print(
                f"{row['frames']:4} frames of {size}x{size}: peak {row['peak_gib']:.2f} GiB (estimate"
                f" {row['estimate_gib']:.2f}), {row['seconds']:.0f} s, {row['parameters_m']} M parameters",
                flush=True,
            )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"options": {**asdict(options), "out": None}, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
