"""Real-size text-to-image networks as video networks: one denoising step, beside diffusers' own UNetMotionModel.

    python -m benchmarks.backbones [--frames 16] [--size 256] [--dtype bf16] [--train] [--out REPORT.json]

The image network has the shape of Stable Diffusion 1.5 and random weights. Each network runs in a process of its own,
so that its peak memory is its own; both see the same latents of ``frames`` frames of ``size`` x ``size`` pixels.
Printed are time, GFLOP/s, the peak of the memory beside the plan's, and how it falls when fewer frames go through the
image layers at once; then the plans of larger clips of public models.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from lumiere.backbones import known_clip_memory
from lumiere.memory import gib, tensor_bytes
from lumiere.model.architectures import architecture
from lumiere.model.stunet import STUNet
from lumiere.model.weigh import on_meta, pass_bytes

WORDS = 77
PLANNED = (("sd15", 16, 512), ("sd15", 80, 512), ("sdxl", 80, 1024), ("if_xl", 80, 64))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """What to measure."""

    frames: int = 16
    size: int = 256
    """Height and width in pixels; latents are an eighth of that."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    chunks: tuple[int, ...] = (4,)
    """Frames that go through the image layers at once, beside all of them."""
    train: bool = False
    """Also one training step of the new layers, with gradient checkpointing."""
    repeats: int = 2
    """Runs of each kind; the fastest counts, as it was disturbed least."""
    out: Path | None = None
    """Where to write the numbers as JSON."""


@dataclass(frozen=True)
class Found:
    """One network's step."""

    name: str
    parameters: int
    new_parameters: int
    seconds: float
    gflop: float
    peak_gib: float
    planned_gib: float | None = None
    """What the meta device says of weights and a pass; the peak also holds interpreter and libraries."""
    training_seconds: float | None = None

    def __str__(self) -> str:
        line = (
            f"{self.name}: {self.parameters / 1e6:.0f} M parameters ({self.new_parameters / 1e6:.0f} M for motion),"
            f" {self.seconds:.1f} s a step, {self.gflop / self.seconds:.0f} GFLOP/s, peak {self.peak_gib:.1f} GiB"
        )
        if self.planned_gib is not None:
            line += f" (planned {self.planned_gib:.1f})"
        return line if self.training_seconds is None else f"{line}, training step {self.training_seconds:.1f} s"


def ours(chunk: int | None) -> torch.nn.Module:
    """The inflated network with random weights."""
    from diffusers import UNet2DConditionModel

    stunet = STUNet.from_image_unet(UNet2DConditionModel(**architecture("sd15").unet))
    stunet.chunk_image_layers(chunk)
    return stunet


def theirs() -> torch.nn.Module:
    """diffusers' motion network of the same image network, with random motion modules."""
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    return UNetMotionModel.from_unet2d(UNet2DConditionModel(**architecture("sd15").unet), MotionAdapter())


def measure(name: str, chunk: int | None, options: Options) -> Found:
    """One network's numbers."""
    torch.manual_seed(0)
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), DTYPES[options.dtype]
    # Made in its number format at once: in fp32 first, its weights would be the peak.
    torch.set_default_dtype(dtype)
    is_theirs = name == "diffusers UNetMotionModel"
    network = (theirs() if is_theirs else ours(chunk)).to(device)
    torch.set_default_dtype(torch.float32)
    is_new = [("temporal." in key or "motion_modules" in key) for key, _ in network.named_parameters()]
    counts = [weight.numel() for weight in network.parameters()]
    for weight, new in zip(network.parameters(), is_new, strict=True):
        weight.requires_grad_(new)
    network.eval()
    side = options.size // 8
    clip = torch.randn(1, 4, options.frames, side, side).to(device, DTYPES[options.dtype])
    # Theirs wants the text once for each frame.
    text = torch.randn(1, WORDS, 768).to(clip).repeat(options.frames if is_theirs else 1, 1, 1)

    def forward() -> torch.Tensor:
        return network(clip, 500, text).sample

    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            forward()
        seconds = min(_timed(forward, device) for _ in range(options.repeats))
    peak = _peak_gib(device)
    training = None
    if options.train:
        network.train()
        network.enable_gradient_checkpointing()
        training = _timed(lambda: forward().float().square().mean().backward(), device)
    planned = None
    if isinstance(network, STUNet):
        meta = on_meta(network.config, network.dtype)
        planned = pass_bytes(meta, (1, options.frames, side, side), chunk=chunk) + tensor_bytes(network.parameters())
    new = sum(count for count, is_one in zip(counts, is_new, strict=True) if is_one)
    return Found(
        name,
        sum(counts),
        new,
        seconds,
        counter.get_total_flops() / 1e9,
        peak,
        None if planned is None else planned / 2**30,
        training,
    )


def _timed(run: Any, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.monotonic()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - started


def _peak_gib(device: torch.device) -> float:
    """The most memory that this process, or on a GPU its tensors, ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(options: Options) -> list[Found]:
    """Measure, print and write."""
    kinds: list[tuple[str, int | None]] = [("Space-Time U-Net", None), ("diffusers UNetMotionModel", None)]
    kinds += [(f"Space-Time U-Net, {chunk} frames at once", chunk) for chunk in options.chunks]
    found = []
    context = multiprocessing.get_context("spawn")
    for name, chunk in kinds:
        # A process of its own for each, whose end its errors reach, too.
        with ProcessPoolExecutor(1, mp_context=context) as alone:
            found.append(alone.submit(measure, name, chunk, options).result())
        print(found[-1], flush=True)
    print(f"time over diffusers': {found[0].seconds / found[1].seconds:.2f}")
    plans = []
    for name, frames, size in PLANNED:
        plan = known_clip_memory(name, frames, size, size)
        print(
            f"plan: {name}, {frames} frames of {size}x{size}: {gib(plan.whole)} (a pass {gib(plan.step)}, in parts"
            f" {gib(plan.step_in_parts)}), one component at a time and in parts {gib(plan.offloaded)}"
        )
        plans.append({"model": name, "frames": frames, "size": size, "whole": plan.whole, "offloaded": plan.offloaded})
    if options.out is not None:
        machine = {"processor": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        report = {
            "options": asdict(options) | {"out": None},
            "machine": machine,
            "found": [asdict(one) for one in found],
            "plans": plans,
        }
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main(tyro.cli(Options))
