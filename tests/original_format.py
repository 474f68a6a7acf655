"""A diffusers Stable Diffusion 1.x folder as the one file that such models were first published in, for tests.

The names are those of the original (latent diffusion) code; diffusers reads such files and writes none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_single_file(folder: Path, path: Path) -> Path:
    """Write the model in a diffusers folder as one safetensors file of the original names."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    weights = {f"model.diffusion_model.{name}": value for name, value in _unet(pipeline.unet)}
    weights |= {f"first_stage_model.{name}": value for name, value in _vae(pipeline.vae)}
    text = pipeline.text_encoder.state_dict()
    prefix = "" if any(name.startswith("text_model.") for name in text) else "text_model."
    weights |= {f"cond_stage_model.transformer.{prefix}{name}": value for name, value in text.items()}
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path


def _unet(unet: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    per_level = unet.config.layers_per_block
    outer = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for name, value in unet.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer in outer:
            yield f"{outer[layer]}.{kind}", value
            continue
        found = re.fullmatch(r"(down_blocks|up_blocks|mid_block)\.?(\d*)\.(\w+)\.(\d+)\.(.+)", name)
        assert found, name
        where, level, part, index, rest = found.groups()
        number = int(index)
        if part == "resnets":
            inner, _, kind = rest.rpartition(".")
            rest = f"{_RESNET[inner]}.{kind}"
        if where == "mid_block":
            place = f"middle_block.{1 if part == 'attentions' else 2 * number}"
        elif where == "down_blocks":
            first = (per_level + 1) * int(level) + 1
            place = f"input_blocks.{first + number}.{int(part == 'attentions')}"
            if part == "downsamplers":
                place, rest = f"input_blocks.{first + per_level}.0", rest.replace("conv", "op")
        else:
            first = (per_level + 1) * int(level)
            place = f"output_blocks.{first + number}.{int(part == 'attentions')}"
            if part == "upsamplers":
                has_attention = bool(getattr(unet.up_blocks[int(level)], "attentions", None))
                place = f"output_blocks.{first + per_level}.{1 + has_attention}"
        yield f"{place}.{rest}", value


def _vae(vae: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    levels = len(vae.config.block_out_channels)
    for name, value in vae.state_dict().items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            for ours, theirs in _VAE_ATTENTION.items():
                name = name.replace(f".{ours}.", f".{theirs}.")
            if value.ndim == 2:
                value = value[:, :, None, None]
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
        name = name.replace(".resnets.", ".block.").replace(".upsamplers.0.", ".upsample.")
        yield name, value
