"""How fast the Space-Time U-Net is here, against what this machine can do and against the naive way.

    python -m benchmarks.stunet [--network FOLDER] [--frames 80] [--batch 1] [--compile] [--out REPORT.json]

Prints, for one forward pass and one training step of the temporal layers: time, GFLOP/s, and the share of the
machine's own matrix product rate, measured in the same run, both in the number format that the machine does fast (bf16
or fp32). Then the same network done the naive way: fp32, a Conv1d on transposed clips for every convolution along time,
the library's own attention.
"""

from __future__ import annotations

import copy
import datetime
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from diffusers.models.attention_processor import AttnAddedKVProcessor2_0, AttnProcessor2_0
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lumiere.device import choose_placement
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalConv

SHIPPED = Path(__file__).parents[1] / "lumiere" / "weights" / "base" / "unet"
MATRIX_SIDE = 2048
WORDS = 24


@dataclass(frozen=True)
class Options:
    """What to measure."""

    network: Path = SHIPPED
    """Folder of a Space-Time U-Net."""
    frames: int = 80
    batch: int = 1
    repeats: int = 5
    """Runs of each kind; the fastest counts, as it was disturbed least."""
    compile: bool = False
    """Also compile the network (not the naive one)."""
    threads: int = 0
    """CPU threads; 0: torch's choice."""
    out: Path | None = None
    """Where to write the numbers as JSON."""


@dataclass(frozen=True)
class Timing:
    """One kind of run: what it does, how long it took, and how fast that is."""

    name: str
    seconds: float
    gflop: float
    share_of_matmul: float

    @property
    def gflop_per_s(self) -> float:
        """Billions of floating point operations a second."""
        return self.gflop / self.seconds


class NaiveTemporalConv(nn.Module):
    """A convolution along time as other code does it: every place becomes a sequence, by two transposing copies."""

    def __init__(self, conv: TemporalConv) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(conv.weight.detach().squeeze(-1)), nn.Parameter(conv.bias.detach())
        self.stride, self.padding = conv.stride[0], int(conv.padding[0])

    def forward(self, clip: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T / stride, H, W]."""
        batch, channels, frames, height, width = clip.shape
        rows = clip.permute(0, 3, 4, 1, 2).reshape(batch * height * width, channels, frames).contiguous()
        rows = F.conv1d(rows, self.weight, self.bias, stride=self.stride, padding=self.padding)
        return rows.view(batch, height, width, channels, -1).permute(0, 3, 4, 1, 2).contiguous()


def naive(stunet: STUNet) -> STUNet:
    """A copy of the network that computes the same the naive way."""
    network = copy.deepcopy(stunet).float()
    for parent in list(network.temporal.modules()):
        for name, child in parent.named_children():
            if isinstance(child, TemporalConv):
                setattr(parent, name, NaiveTemporalConv(child))
    is_added = any("Added" in type(processor).__name__ for processor in network.attn_processors.values())
    network.set_attn_processor(AttnAddedKVProcessor2_0() if is_added else AttnProcessor2_0())
    return network


def matmul_gflop_per_s(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """The rate of a large matrix product on this machine."""
    left, right = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device, dtype=dtype) for _ in range(2))
    return 2 * MATRIX_SIDE**3 / 1e9 / fastest(lambda: left @ right, repeats=4 * repeats, device=device)


def fastest(run: Callable[[], object], *, repeats: int, device: torch.device) -> float:
    """The seconds of the fastest of ``repeats`` runs, after one to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        _wait_for(device)
        started = time.perf_counter()
        run()
        _wait_for(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def measure(network: STUNet, options: Options, *, name: str, matmul: float) -> list[Timing]:
    """The forward pass and the training step of a network."""
    device, dtype = network.device, network.dtype
    config = network.config
    size = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]
    clip = torch.randn(options.batch, config.in_channels, options.frames, size, size, device=device, dtype=dtype)
    words = torch.randn(
        options.batch, WORDS, config.encoder_hid_dim or config.cross_attention_dim, device=device, dtype=dtype
    )
    call: Callable[..., object] = torch.compile(network) if options.compile and name != "naive" else network

    def forward() -> None:
        with torch.no_grad():
            call(clip, 500, words)

    def training_step() -> None:
        call(clip, 500, words).sample.float().square().mean().backward()  # type: ignore[attr-defined]
        network.zero_grad(set_to_none=True)

    timings = []
    for what, run, mode in (("forward", forward, False), ("training step", training_step, True)):
        network.train(mode)
        seconds = fastest(run, repeats=options.repeats, device=device)
        gflop = count_gflop(network, lambda: network(clip, 500, words).sample, backward=mode)
        timings.append(Timing(f"{name}: {what}", seconds, gflop, gflop / seconds / matmul))
    return timings


def count_gflop(network: nn.Module, predict: Callable[[], Tensor], *, backward: bool) -> float:
    """The operations of one pass; those of frozen weights' gradients do not come up, as they are not computed."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        prediction = predict()
        if backward:
            prediction.float().square().mean().backward()
    network.zero_grad(set_to_none=True)
    return counter.get_total_flops() / 1e9


def network_name(network: Path) -> str:
    """What a report calls the network: no path of this machine."""
    return "the shipped base" if network == SHIPPED else network.name


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(options: Options) -> None:
    """Measure, print, and write the report if asked."""
    if options.threads:
        torch.set_num_threads(options.threads)
    placement = choose_placement()
    device, dtype = placement.device, placement.dtype
    network = STUNet.from_pretrained(options.network, dtype=dtype).to(device)
    matmul = matmul_gflop_per_s(device, dtype, options.repeats)
    ours = measure(network, options, name=f"{placement.dtype_name}, channels-last", matmul=matmul)
    slow = measure(naive(network), options, name="naive", matmul=matmul)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    product = f"{placement.dtype_name} matrix product {matmul:,.0f} GFLOP/s"
    print(f"{options.batch} x {options.frames} frames on {where}; {product}")
    for timing in (*ours, *slow):
        print(
            f"{timing.name:36s} {timing.seconds * 1e3:9.1f} ms {timing.gflop:9.1f} GFLOP"
            f" {timing.gflop_per_s:9.1f} GFLOP/s  {timing.share_of_matmul:6.1%} of the matrix product"
        )
    for fast, naively in zip(ours, slow, strict=True):
        print(f"{fast.name.split(': ')[1]}: {naively.seconds / fast.seconds:.1f} times as fast as the naive way")
    if options.out:
        report = {
            "date": datetime.date.today().isoformat(),
            "machine": platform.processor() or platform.machine(),
            "where": where,
            "torch": torch.__version__,
            "dtype": placement.dtype_name,
            "matmul_gflop_per_s": matmul,
            "options": asdict(options) | {"network": network_name(options.network), "out": None},
            "timings": [asdict(timing) | {"gflop_per_s": timing.gflop_per_s} for timing in (*ours, *slow)],
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
