"""The real sizes of image networks and of the Space-Time U-Nets made of them, without their weights.

    python -m benchmarks.model_sizes

prints the table of the README. Networks are built on the meta device, where tensors have a shape but no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings

FRAMES = 80


@dataclass(frozen=True)
class Backbone:
    """An image network at its real size, and the clip it is asked about: ``size`` on a side, ``words`` of text."""

    config: dict[str, Any]
    size: int
    words: int = 77


@dataclass(frozen=True)
class Size:
    """What a Space-Time U-Net counts, and the shapes [T, H, W, C] of its features on the way down for 80 frames."""

    num_frozen: int
    num_new: int
    shapes: list[tuple[int, int, int, int]]
    output: tuple[int, ...]


def _stable_diffusion() -> Backbone:
    return Backbone({"cross_attention_dim": 768, "sample_size": 64}, size=64)


def _deepfloyd(widths: tuple[int, int, int, int], text_width: int) -> Backbone:
    config = {
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": widths,
        "layers_per_block": 3,
        "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
        "act_fn": "gelu",
        "attention_head_dim": 64,
        "cross_attention_dim": text_width,
        "cross_attention_norm": "group_norm",
        "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type": "text",
        "resnet_time_scale_shift": "scale_shift",
    }
    return Backbone(config, size=64)


# The configurations that the published checkpoints carry (those of DeepFloyd IF as diffusers' convert_if.py makes
# them; the widths of IF-I-M as they are recalled: they fit the published size).
BACKBONES = {
    "Stable Diffusion 1.5": _stable_diffusion(),
    "DeepFloyd IF-I-M": _deepfloyd((192, 384, 576, 768), 768),
    "DeepFloyd IF-I-XL": _deepfloyd((704, 1408, 2112, 2816), 2816),
}


def measure(backbone: Backbone, settings: TemporalSettings | None = None) -> Size:
    """The size of the Space-Time U-Net of a backbone, and the shapes that a clip of 80 frames takes in it."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**backbone.config)
        stunet = STUNet.from_image_unet(unet, temporal=settings)
        shapes: list[tuple[int, int, int, int]] = []

        def note(_: nn.Module, __: object, clip: Tensor) -> None:
            channels, frames, height, width = clip.shape[1:]
            shapes.append((frames, height, width, channels))

        for block in stunet.temporal.down:
            block.register_forward_hook(note)
        clip = torch.empty(1, unet.config.in_channels, FRAMES, backbone.size, backbone.size)
        text = torch.empty(1, backbone.words, unet.config.encoder_hid_dim or unet.config.cross_attention_dim)
        with torch.no_grad():
            output = stunet(clip, torch.empty(1), text).sample
    num_new = sum(weight.numel() for weight in stunet.temporal_parameters())
    num_frozen = sum(weight.numel() for weight in stunet.image_parameters())
    return Size(num_frozen, num_new, shapes, tuple(output.shape))


def table() -> str:
    """The sizes of every backbone as a markdown table."""
    lines = [
        f"| image network | its weights, frozen | temporal weights, new | {FRAMES} frames on the way down (T×H×W, C) |",
        "|---|---:|---:|---|",
    ]
    for name, backbone in BACKBONES.items():
        size = measure(backbone)
        shapes = " → ".join(f"{t}×{h}×{w}, {c}" for t, h, w, c in size.shapes)
        share = size.num_new / size.num_frozen
        lines.append(
            f"| {name} | {size.num_frozen / 1e6:,.1f} M | {size.num_new / 1e6:,.1f} M ({share:.0%}) | {shapes} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
