"""A style: low-rank changes of the image network, learned from a handful of stills; never from clips.

Lumiere borrows the weights of StyleDrop (Sohn et al., arXiv 2306.00983), which learns a style from a few pictures by
changing few weights; here they are a LoRA (Hu et al., arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from pydantic import Field
from safetensors.torch import save_file

from lumiere.config import Settings
from lumiere.data.stills import StillFolder, StillFolderSettings
from lumiere.model.stunet import STUNet
from lumiere.model.style import image_layers
from lumiere.pipeline import LumierePipeline
from lumiere.training.loop import LoopSettings
from lumiere.training.noise import NoiseSettings
from lumiere.training.stages.clips import ClipStage

ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
STYLE_FILE = "style.safetensors"


class StyleSettings(Settings):
    """A run of the stage."""

    stage: Literal["style"]
    out: str
    """Folder of the run; the finished style is export/style.safetensors in it."""
    data: str
    """Folder of pictures in one style, each with its caption in a .txt file of the same name."""
    model: str | None = None
    """Folder of the pipeline whose image network learns the style; null is the one inside the package."""
    stills: StillFolderSettings = StillFolderSettings()
    rank: int = Field(default=8, ge=1)
    """How much of each weight can change."""
    layers: Literal["all", "attention"] = "all"
    """Which layers change: all convolutions and linear layers, or the projections of attention only (enough for large
    networks, and what most tools read)."""
    loop: LoopSettings
    noise: NoiseSettings = NoiseSettings()
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)


class StyleTraining(ClipStage):
    """Trains a LoRA on the image network of a pipeline; a still is a clip of one frame."""

    def __init__(self, settings: StyleSettings) -> None:
        torch.manual_seed(settings.loop.seed)
        pipeline = LumierePipeline.from_pretrained(settings.model)
        stills = StillFolder(settings.data, settings.stills, size=pipeline.default_size, seed=settings.loop.seed)
        pipeline.unet.requires_grad_(False)
        pipeline.text_encoder.requires_grad_(False)
        add_low_rank(pipeline.unet, changed_layers(pipeline.unet, settings.layers), rank=settings.rank)
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.register_to_config(num_frames=1)
        super().__init__(
            pipeline,
            stills,
            loop=settings.loop,
            noise=settings.noise,
            caption_dropout=settings.caption_dropout,
            num_validation_clips=max(16, len(stills)),
        )

    def shardable(self) -> None:
        """None: a style's few weights are read out of the network by their names."""

    def export(self, folder: Path) -> None:
        """The style as one file, with the names that diffusers gives a LoRA."""
        folder.mkdir(parents=True, exist_ok=True)
        changes = get_peft_model_state_dict(self.unet)
        weights = {f"unet.{name}": weight.to(torch.bfloat16).contiguous() for name, weight in changes.items()}
        aside = folder / f".writing-{STYLE_FILE}"
        save_file(weights, aside, metadata={"format": "pt"})
        aside.replace(folder / STYLE_FILE)


def add_low_rank(unet: STUNet, layers: Sequence[str], *, rank: int) -> None:
    """Let layers be changed by new matrices of low rank, which alone are trained; at first by nothing."""
    # With alpha equal to the rank the change is up @ down as it is, for every tool that reads it.
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers)), unet)


def changed_layers(unet: STUNet, which: Literal["all", "attention"]) -> list[str]:
    """The names of the image network's layers that a style changes."""
    layers = list(image_layers(unet))
    return layers if which == "all" else [name for name in layers if name.endswith(ATTENTION)]
