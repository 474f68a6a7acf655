"""What a Space-Time U-Net takes in memory: a pass, or a training step, counted on the meta device."""

from __future__ import annotations

from typing import Any

import torch

from lumiere.memory import num_operations, peak_bytes
from lumiere.model import image_unet
from lumiere.model.stunet import STUNet

WORDS = 77
"""States of text that are assumed; other lengths hardly count."""


FEW_FRAMES = 4
"""Frames at once through the image layers where memory is short."""


def on_meta(config: Any, dtype: torch.dtype, kind: Any = STUNet) -> Any:
    """A network of that configuration of a class of diffusers' models, without memory for its weights."""
    with torch.device("meta"):
        network = kind.from_config(config)
    for weight in (*network.parameters(), *network.buffers()):
        weight.data = weight.data.to(dtype)
    return network


def pass_bytes(stunet: STUNet, clip: tuple[int, int, int, int], *, chunk: int | None = None) -> int:
    """The memory of one pass without gradients over clips [B, T, H, W] (places, not pixels) of a network on meta.

    ``chunk`` frames go through the image layers at once; None: all.
    """
    stunet.eval().chunk_image_layers(chunk)
    with torch.no_grad():
        return peak_bytes(lambda: stunet(*_inputs(stunet, clip), **_conditions(stunet, clip[0])).sample)


def training_bytes(
    stunet: STUNet, clip: tuple[int, int, int, int], *, checkpointing: bool, chunk: int | None = None
) -> int:
    """The memory of one forward and backward pass, gradients included, over clips [B, T, H, W] of a network on meta."""
    stunet.chunk_image_layers(chunk)
    _checkpoint(stunet, checkpointing)
    peak = peak_bytes(lambda: _train(stunet, clip))
    stunet.zero_grad()
    return peak


def training_flops(stunet: STUNet, clip: tuple[int, int, int, int], *, checkpointing: bool) -> int:
    """The operations of one forward and backward pass; with checkpointing those that are done again, too."""
    stunet.chunk_image_layers(None)
    _checkpoint(stunet, checkpointing)
    count = num_operations(lambda: _train(stunet, clip))
    stunet.zero_grad()
    return count


def _checkpoint(stunet: STUNet, is_light: bool) -> None:
    (stunet.train().enable_gradient_checkpointing if is_light else stunet.train().disable_gradient_checkpointing)()


def _train(stunet: STUNet, clip: tuple[int, int, int, int]) -> None:
    stunet(*_inputs(stunet, clip), **_conditions(stunet, clip[0])).sample.float().square().mean().backward()


def _inputs(stunet: STUNet, clip: tuple[int, int, int, int]) -> tuple[torch.Tensor, int, torch.Tensor]:
    batch, frames, height, width = clip
    channels = stunet.config.in_channels + stunet.settings.conditioning_channels
    text = torch.empty(batch, WORDS, image_unet.encoder_width(stunet), dtype=stunet.dtype, device="meta")
    return torch.empty(batch, channels, frames, height, width, dtype=stunet.dtype, device="meta"), 500, text


def _conditions(stunet: STUNet, batch: int) -> dict[str, Any]:
    """What the family hears beside the text."""
    config, told = stunet.config, dict[str, Any]()
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        told["class_labels"] = torch.zeros(batch, dtype=torch.long, device="meta")
    if config.addition_embed_type == "text_time":
        sizes = 6
        pooled = config.projection_class_embeddings_input_dim - sizes * config.addition_time_embed_dim
        told["added_cond_kwargs"] = {
            "text_embeds": torch.empty(batch, pooled, dtype=stunet.dtype, device="meta"),
            "time_ids": torch.empty(batch, sizes, dtype=stunet.dtype, device="meta"),
        }
    return told
