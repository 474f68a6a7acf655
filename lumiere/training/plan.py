"""What a training run will take in memory, rank by rank, before anything is loaded: counted, not guessed.

The network is built on the meta device, and a forward and backward pass of it over the largest batch is counted tensor
by tensor; what optimiser and averages hold follows from the number of trained weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from rich.console import Group
from rich.table import Table

from lumiere.memory import gib, tensor_bytes
from lumiere.model.architectures import architecture
from lumiere.model.stunet import STUNet
from lumiere.model.weigh import FEW_FRAMES, on_meta, training_bytes, training_flops

HEADROOM = 0.9
"""Share of the memory that is planned with: allocators, kernels and libraries take the rest."""
H100_FLOPS = 989e12
"""Of dense bfloat16 products a second, by its data sheet."""
SHARE_REACHED = 0.4
"""What of that good training code reaches; an assumption, not measured here."""


@dataclass(frozen=True)
class Job:
    """What is trained, as far as memory is concerned."""

    config: Mapping[str, Any]
    """Of the Space-Time U-Net."""
    frames: int
    height: int
    width: int
    """Of the largest clips, in pixels."""
    batch_size: int
    spatial_factor: int = 1
    """Pixels on a side of one of the network's places: 8 for a VAE's latents, 2 for 2x2 blocks."""
    bf16: bool = True
    """Whether the network computes in bfloat16."""
    bf16_weights: bool = False
    """Whether its weights are kept in it, too, with fp32 copies of the trained ones in the optimiser."""
    emulates_bf16: bool = False
    """Whether the device has no bfloat16 arithmetic, so that none of it is done there."""
    checkpointing: bool = False
    chunk: int | None = None
    ranks: int = 1
    is_sharded: bool = False
    beside: int = 0
    """Frozen weights that stay on the device beside the network, such as a VAE's, in bytes."""

    @property
    def clip(self) -> tuple[int, int, int, int]:
        """The largest batch as the network sees it: clips, frames, rows, columns."""
        return (self.batch_size, self.frames, self.height // self.spatial_factor, self.width // self.spatial_factor)


@dataclass(frozen=True)
class Need:
    """The memory of one rank in bytes, by what takes it."""

    weights: int
    optimiser: int
    """Two moments, and fp32 copies of the trained weights where the network's are bfloat16."""
    average: int
    activations: int
    """The most that lives during a forward and backward pass, gradients included."""
    beside: int
    num_weights: int
    num_trained: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.optimiser + self.average + self.activations + self.beside


def need_of(job: Job, network: STUNet | None = None) -> Need:
    """What a rank needs for a job. ``network`` is the job's, on meta, if it was made before.

    In sharded training weights are gathered in parts, those of ``training.sharding``.
    """
    network = network or network_of(job)
    activations = training_bytes(network, job.clip, checkpointing=job.checkpointing, chunk=job.chunk)
    counts = [(weight.numel(), weight.requires_grad) for weight in network.parameters()]
    whole, trained = sum(count for count, _ in counts), sum(count for count, is_trained in counts if is_trained)
    share = job.ranks if job.is_sharded else 1
    kept = 2 if job.bf16_weights and not job.is_sharded else 4
    weights = whole * kept // share
    if job.is_sharded:
        own = 2 if job.bf16 else 4
        parts = [_count(one) for one in network.modules() if type(one).__name__ in STUNet._no_split_modules]
        # What is in no part is gathered all the time, and beside the part that computes the next one.
        gathered = (whole - sum(parts) + 2 * max(parts)) * own
        # Gradients stay whole only until their part is done.
        activations += gathered + max(parts) * own - trained * own * (share - 1) // share
    return Need(
        weights=weights,
        optimiser=trained * (12 if kept == 2 else 8) // share,
        average=trained * 4 // share,
        activations=activations,
        beside=job.beside,
        num_weights=whole,
        num_trained=trained,
    )


def flops_of(job: Job, network: STUNet | None = None) -> int:
    """The floating-point operations of one training pass of a job, layers that are computed again included."""
    return training_flops(network or network_of(job), job.clip, checkpointing=job.checkpointing)


def network_of(job: Job) -> STUNet:
    """The job's network on meta, in the number format that it computes in."""
    return on_meta(job.config, torch.bfloat16 if job.bf16 or job.bf16_weights else torch.float32)


def remedies(job: Job, available: int, network: STUNet) -> Iterator[tuple[str, Need]]:
    """What could be changed where a job does not fit, from what costs least, each with what it then needs; the changes
    add up, and end with the first that fits. ``network`` is the job's on meta."""
    changes: list[tuple[str, dict[str, Any], bool]] = [
        (
            "keep the weights in bfloat16 (loop.bf16_weights true)",
            {"bf16_weights": True},
            not job.bf16_weights and not job.emulates_bf16,
        ),
        ("gradient checkpointing (checkpointing true)", {"checkpointing": True}, not job.checkpointing),
        ("one clip a pass (loop.batch_size 1, more loop.accumulation)", {"batch_size": 1}, job.batch_size > 1),
        (
            f"{FEW_FRAMES} frames at once through the image layers (chunk_image_layers {FEW_FRAMES})",
            {"chunk": FEW_FRAMES},
            job.chunk is None or job.chunk > FEW_FRAMES,
        ),
        (
            "shards over the ranks (loop.sharding sharded)",
            {"is_sharded": True},
            job.ranks > 1 and not job.is_sharded,
        ),
    ]
    for name, change, is_new in changes:
        if is_new:
            job = replace(job, **change)
            need = need_of(job, network)
            yield name, need
            if need.total <= HEADROOM * available:
                return


def pass_seconds(flops: int) -> float:
    """How long a pass of so many operations takes on an H100, as far as can be planned."""
    return flops / (H100_FLOPS * SHARE_REACHED)


def report(
    job: Job, need: Need, available: int | None, flops: int | None = None, *, network: STUNet, passes: int | None = None
) -> Group:
    """The plan for a person: a table, whether it fits into ``available`` bytes, and what to change if not; and how long
    a pass of so many ``flops`` takes, and so many ``passes``. ``network`` is the job's on meta."""
    how = "sharded" if job.is_sharded else "each rank holds everything"
    table = Table("memory of one rank", f"{job.ranks} rank{'s' if job.ranks > 1 else ''}, {how}", show_header=True)
    for name, value in (
        (f"weights ({need.num_weights / 1e6:,.0f} M)", need.weights),
        (f"optimiser ({need.num_trained / 1e6:,.0f} M trained)", need.optimiser),
        ("running average", need.average),
        (
            f"a step of {job.batch_size} x {job.frames} frames of {job.width}x{job.height},"
            f" {'with' if job.checkpointing else 'without'} gradient checkpointing",
            need.activations,
        ),
        ("frozen networks beside it", need.beside),
        ("all", need.total),
    ):
        table.add_row(name, gib(value))
    lines = []
    if flops is not None:
        seconds = pass_seconds(flops)
        lines.append(
            f"A pass over {job.batch_size} is {flops / 1e12:,.1f} TFLOP, which takes {seconds:.2f} s at"
            f" {SHARE_REACHED:.0%} of an H100's {H100_FLOPS / 1e12:.0f} TFLOP/s"
            f" ({job.ranks * job.batch_size / seconds:,.1f} clips a second on {job.ranks})."
        )
        if passes is not None:
            lines.append(f"The run's {passes:,} passes on each rank take {passes * seconds / 3600:,.0f} hours.")
    if available is not None:
        if need.total <= HEADROOM * available:
            lines.append(f"It fits into {gib(available)}.")
        else:
            lines.append(f"It does not fit into {gib(available)} ({HEADROOM:.0%} of which is planned with). To change:")
            found = list(remedies(job, available, network))
            lines += [f"- {name}: {gib(one.total)}" for name, one in found]
            if not found or found[-1][1].total > HEADROOM * available:
                lines.append("- that is not enough: fewer frames, smaller pictures, or a larger device")
    return Group(table, *lines)


def _count(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@dataclass(frozen=True)
class Model:
    """What of a pipeline, or a super-resolution stage, counts: its Space-Time U-Net's configuration, and what stays
    frozen beside it."""

    config: Mapping[str, Any]
    spatial_factor: int
    text: int
    """Bytes of the text encoders' weights."""
    vae: int
    """Those of the VAE's."""

    @classmethod
    def in_folder(cls, folder: Path) -> Model:
        """That of a pipeline's folder, or a stage's, read off its configurations and file sizes; no weights are loaded.

        Raises ValueError when the folder holds no such pipeline.
        """
        config = STUNet.load_config(folder / "unet")
        if "temporal_settings" not in config:
            raise ValueError(f"{folder} holds no Space-Time U-Net (inflate it first: lumiere inflate)")
        index = json.loads((folder / "model_index.json").read_text())
        vae = folder / "vae" / "config.json"
        if vae.is_file():
            factor = 2 ** (len(json.loads(vae.read_text())["block_out_channels"]) - 1)
        else:
            factor = index.get("pixel_block_size") or 1
        return cls(
            config, factor, sum(_size(folder / f"text_encoder{end}") for end in ("", "_2")), _size(folder / "vae")
        )

    @classmethod
    def known(cls, name: str) -> Model:
        """That of a public model (``model.architectures``), inflated; frozen parts in bfloat16."""
        known = architecture(name)
        vae = 0
        if known.vae is not None:
            vae = tensor_bytes(on_meta(known.vae, torch.bfloat16, AutoencoderKL).parameters())
        text = torch.bfloat16.itemsize * known.text_parameters
        return cls(known.stunet, known.spatial_factor, text, vae)


def _size(folder: Path) -> int:
    """Bytes of a component's weights as they lie: those in full precision where there are variants."""
    files = sorted(folder.glob("*.safetensors"))
    return sum(path.stat().st_size for path in [path for path in files if ".fp16" not in path.name] or files)
