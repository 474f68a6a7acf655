"""Public text-to-image networks and upscalers by name, as their published configurations describe them: no weights.

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
_DEEPFLOYD_ANY: dict[str, Any] = {
    "out_channels": 6,
    "act_fn": "gelu",
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "attention_head_dim": 64,
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "cross_attention_norm": "group_norm",
    "resnet_time_scale_shift": "scale_shift",
}
_DEEPFLOYD: dict[str, Any] = {
    **_DEEPFLOYD_ANY,
    "sample_size": 64,
    "in_channels": 3,
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
}
_VAE_OF_UPSCALER: dict[str, Any] = {
    **_VAE,
    "block_out_channels": (128, 256, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}


@dataclass(frozen=True)
class Architecture:
    """An image network's configuration, and that of the VAE whose latents it draws; None where it draws pixels."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any] | None = None
    text_parameters: int = 0
    """Weights of its text encoders."""
    halves_time: bool = True
    """Whether it is inflated with time halved as often as space; upscalers work on windows of a few frames."""

    @property
    def stunet(self) -> dict[str, Any]:
        """The configuration of it inflated."""
        still = {} if self.halves_time else {"halve_time": (False,) * (len(self.unet["block_out_channels"]) - 1)}
        return {**self.unet, "temporal_settings": still}

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
    "sd_x4": Architecture(
        {
            "sample_size": 128,
            "in_channels": 7,
            "out_channels": 4,
            "block_out_channels": (256, 512, 512, 1024),
            "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
            "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 1024,
            "num_class_embeds": 1000,
            "only_cross_attention": (True, True, True, False),
            "use_linear_projection": True,
        },
        _VAE_OF_UPSCALER,
        text_parameters=340_387_840,
        halves_time=False,
    ),
    # From memory, as its configuration was not at hand: this has 1.13 billion weights, and 1.2 billion are announced.
    "if_2_l": Architecture(
        {
            **_DEEPFLOYD_ANY,
            "sample_size": 256,
            "in_channels": 6,
            "down_block_types": (*("ResnetDownsampleBlock2D",) * 3, *("SimpleCrossAttnDownBlock2D",) * 2),
            "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 2, *("ResnetUpsampleBlock2D",) * 3),
            "block_out_channels": (160, 320, 640, 960, 1280),
            "layers_per_block": (2, 2, 3, 5, 5),
            "cross_attention_dim": 1280,
            "class_embed_type": "timestep",
            "only_cross_attention": True,
            "time_embedding_act_fn": "gelu",
            "resnet_skip_time_act": True,
            "resnet_out_scale_factor": 2**0.5,
            "mid_block_scale_factor": 2**0.5,
        },
        text_parameters=4_762_310_656,
        halves_time=False,
    ),
}


def architecture(name: str) -> Architecture:
    """The architecture of that name. Raises ValueError that lists the known ones."""
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture is {name!r}; known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
