"""Tiny random image U-Nets of every family that can be inflated, for tests.

Each has the shape of its family (blocks, embeddings, norms, resizers) and a few ten thousand weights. Zero-initialised
or constant parts are drawn at random too, so that a part that is skipped shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

TEXT_LENGTH = 5


def stable_diffusion(halvings: int = 2) -> UNet2DConditionModel:
    """Stable Diffusion 1.x: convolutional projections, the coarsest level without attention."""
    return _build(
        halvings,
        down=["CrossAttnDownBlock2D"] * halvings + ["DownBlock2D"],
        up=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * halvings,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=12,
        attention_head_dim=2,
    )


def stable_diffusion_2(halvings: int = 2) -> UNet2DConditionModel:
    """Stable Diffusion 2.x: linear projections, another number of heads at each level."""
    return _build(
        halvings,
        down=["CrossAttnDownBlock2D"] * halvings + ["DownBlock2D"],
        up=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * halvings,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=12,
        attention_head_dim=tuple(2 * (level + 1) for level in range(halvings + 1))[: halvings + 1],
        use_linear_projection=True,
    )


def stable_diffusion_xl(halvings: int = 2) -> UNet2DConditionModel:
    """SDXL: text_time added embedding, deeper transformers at the coarser levels."""
    return _build(
        halvings,
        down=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * halvings,
        up=["CrossAttnUpBlock2D"] * halvings + ["UpBlock2D"],
        in_channels=4,
        out_channels=4,
        cross_attention_dim=12,
        attention_head_dim=2,
        transformer_layers_per_block=tuple(range(1, halvings + 2)),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 + 6 * 4,
    )


def upscaler(halvings: int = 2, *, width: int = 12) -> UNet2DConditionModel:
    """The x4 upscaler: 7 input channels, the noise level of its picture as a class, text states of ``width``."""
    return _build(
        halvings,
        down=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * halvings,
        up=["CrossAttnUpBlock2D"] * halvings + ["UpBlock2D"],
        in_channels=7,
        out_channels=4,
        cross_attention_dim=width,
        attention_head_dim=2,
        use_linear_projection=True,
        num_class_embeds=10,
        only_cross_attention=(True,) * halvings + (False,),
    )


def deepfloyd_1(halvings: int = 2) -> UNet2DConditionModel:
    """DeepFloyd IF, stage I: resizing residual blocks, added-KV attention, projected text, learned variance."""
    return _build(
        halvings,
        down=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * halvings,
        up=["SimpleCrossAttnUpBlock2D"] * halvings + ["ResnetUpsampleBlock2D"],
        in_channels=3,
        out_channels=6,
        **_DEEPFLOYD,
    )


def deepfloyd_2(halvings: int = 2) -> UNet2DConditionModel:
    """DeepFloyd IF, stage II: six input channels, noise level as a class, attention to the text only."""
    return _build(
        halvings,
        down=["ResnetDownsampleBlock2D"] * halvings + ["SimpleCrossAttnDownBlock2D"],
        up=["SimpleCrossAttnUpBlock2D"] + ["ResnetUpsampleBlock2D"] * halvings,
        in_channels=6,
        out_channels=6,
        layers_per_block=(1, *(2,) * halvings),
        class_embed_type="timestep",
        only_cross_attention=True,
        time_embedding_act_fn="gelu",
        resnet_skip_time_act=True,
        resnet_out_scale_factor=1 / 0.7071,
        mid_block_scale_factor=1 / 0.7071,
        **_DEEPFLOYD,
    )


def embedded(halvings: int = 2) -> UNet2DConditionModel:
    """The shape of the embedded default: one layer a block, attention below the finest level, 2x2 pixel blocks."""
    return _build(
        halvings,
        down=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * halvings,
        up=["CrossAttnUpBlock2D"] * halvings + ["UpBlock2D"],
        in_channels=12,
        out_channels=12,
        cross_attention_dim=12,
        attention_head_dim=4,
        layers_per_block=1,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )


def video_upscaler(halvings: int = 2, *, width: int = 12) -> UNet2DConditionModel:
    """The shape of the embedded super-resolution stage: the small clip's 2x2 blocks beside the large one's."""
    return _build(
        halvings,
        down=["DownBlock2D"] * halvings + ["CrossAttnDownBlock2D"],
        up=["CrossAttnUpBlock2D"] + ["UpBlock2D"] * halvings,
        in_channels=24,
        out_channels=12,
        cross_attention_dim=width,
        attention_head_dim=4,
        layers_per_block=1,
        class_embed_type="timestep",
        resnet_time_scale_shift="scale_shift",
    )


FAMILIES: dict[str, Callable[[int], UNet2DConditionModel]] = {
    "sd1": stable_diffusion,
    "sd2": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
    "upscaler": upscaler,
    "if1": deepfloyd_1,
    "if2": deepfloyd_2,
    "embedded": embedded,
}


def conditions(unet: UNet2DConditionModel, batch: int, seed: int = 0) -> dict[str, Any]:
    """Random arguments that a call of ``unet`` with ``batch`` clips or images needs besides the sample."""
    generator = torch.Generator().manual_seed(seed)
    width = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
    inputs: dict[str, Any] = {
        "timestep": torch.randint(1000, (batch,), generator=generator),
        "encoder_hidden_states": torch.randn(batch, TEXT_LENGTH, width, generator=generator),
    }
    if unet.config.class_embed_type == "timestep" or unet.config.num_class_embeds:
        inputs["class_labels"] = torch.randint(10, (batch,), generator=generator)
    if unet.config.addition_embed_type == "text_time":
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, 6, generator=generator),
            "time_ids": torch.randint(64, (batch, 6), generator=generator).float(),
        }
    return inputs


def repeat_per_frame(inputs: dict[str, Any], frames: int) -> dict[str, Any]:
    """The arguments of B clips as those of their B*T frames, for the image network."""
    repeated: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            repeated[name] = value.repeat_interleave(frames, dim=0)
        else:
            repeated[name] = repeat_per_frame(value, frames)
    return repeated


_DEEPFLOYD: dict[str, Any] = {
    "act_fn": "gelu",
    "resnet_time_scale_shift": "scale_shift",
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "encoder_hid_dim": 10,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
    # The norm of the text has 32 groups, whatever the others have.
    "cross_attention_dim": 32,
    "cross_attention_norm": "group_norm",
    "attention_head_dim": 4,
}


def _build(halvings: int, *, down: list[str], up: list[str], **config: Any) -> UNet2DConditionModel:
    config.setdefault("layers_per_block", 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(halvings)
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=tuple(8 * (1 + min(level, 2)) for level in range(halvings + 1)),
            norm_num_groups=4,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            **config,
        )
        for name, weight in unet.named_parameters():
            if weight.ndim == 1:
                torch.nn.init.normal_(weight, mean=float("norm" in name and name.endswith("weight")), std=0.2)
    return unet.eval()
