"""Public text-to-image networks by name, as their published configurations describe them: shapes, no weights.

For planning memory and for measuring with random weights. Keys that are not named are diffusers' own defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_STABLE_DIFFUSION: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_DEEPFLOYD: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 6,
    "act_fn": "gelu",
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
    "attention_head_dim": 64,
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "cross_attention_norm": "group_norm",
    "resnet_time_scale_shift": "scale_shift",
}


@dataclass(frozen=True)
class Architecture:
    """An image network's configuration, and that of the VAE whose latents it draws; None where it draws pixels."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any] | None = None
    text_parameters: int = 0
    """Weights of its text encoders."""

    @property
    def spatial_factor(self) -> int:
        """Pixels on a side of one of the network's places."""
        return 1 if self.vae is None else 2 ** (len(self.vae["block_out_channels"]) - 1)


ARCHITECTURES: Mapping[str, Architecture] = {
    "sd15": Architecture(
        {**_STABLE_DIFFUSION, "cross_attention_dim": 768, "attention_head_dim": 8}, _VAE, text_parameters=123_060_480
    ),
    "sdxl": Architecture(
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        _VAE,
        text_parameters=817_720_320,
    ),
    "if_xl": Architecture(
        {
            **_DEEPFLOYD,
            "block_out_channels": (704, 1408, 2112, 2816),
            "layers_per_block": 3,
            "cross_attention_dim": 2816,
        },
        text_parameters=4_762_310_656,
    ),
    # Nobody's: the widths of DeepFloyd IF I L at the size of the paper's base.
    "pixel_128": Architecture(
        {
            **_DEEPFLOYD,
            "sample_size": 128,
            "block_out_channels": (320, 640, 960, 1280),
            "layers_per_block": 3,
            "cross_attention_dim": 1280,
        },
        text_parameters=4_762_310_656,
    ),
}


def architecture(name: str) -> Architecture:
    """The architecture of that name. Raises ValueError that lists the known ones."""
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture is {name!r}; known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
