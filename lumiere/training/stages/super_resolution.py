"""A super-resolution stage: first its image network on crops of stills, then its temporal layers on short windows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from pydantic import Field
from torch import Tensor, nn

from lumiere.codec import PixelBlocks
from lumiere.conditioning.text import freeze, text_encoder_for
from lumiere.config import Settings
from lumiere.data.batches import StorybookBatches, StorybookSettings
from lumiere.device import choose_placement
from lumiere.diffusion.schedulers import named_scheduler
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from lumiere.pipeline import LumierePipeline
from lumiere.super_resolution import SuperResolutionStage, low_res_schedule
from lumiere.training.noise import Polish, embedded_scheduler
from lumiere.training.stages.upscaling import UpscalingSettings, UpscalingStage, cropped


class SuperResolutionNetworkSettings(Settings):
    """The image U-Net of a stage, on blocks of pixels; text is attended to at the coarsest level only."""

    pixel_block_size: int = Field(default=4, ge=1)
    channels: tuple[int, ...] = (64, 96, 128)
    layers_per_block: int = Field(default=1, ge=1)
    num_heads: int = Field(default=4, ge=1)


class SuperResolutionSettings(UpscalingSettings):
    """A run of the stage: stills (``data.num_frames`` 1) train the image network, clips the temporal layers."""

    stage: Literal["super_resolution"]
    base: str | None = None
    """Pipeline folder whose text encoder the network hears, frozen; null is the one inside the package."""
    start_from: str | None = None
    """Folder of a trained stage to go on with; null for new random weights (stills only)."""
    scale: int = Field(default=4, ge=1)
    """How many times wider the clip becomes."""
    data: StorybookSettings = StorybookSettings(size=128, num_frames=1)
    network: SuperResolutionNetworkSettings = SuperResolutionNetworkSettings()
    temporal: TemporalSettings = TemporalSettings(halve_time=(True, False), hears_time_and_text=True)
    predicts_change: bool = True
    """Whether a new network says how the large clip differs from the small one's enlargement, or what noise hides."""
    window_frames: int = Field(default=16, ge=1)
    window_frames_overlap: int = Field(default=4, ge=0)
    """What the exported stage does when it is not told otherwise."""
    default_noise_level: int = Field(default=100, ge=0, lt=1000)
    default_back_projection: float = Field(default=0.0, ge=0, le=1)
    default_polish: Polish = ()
    default_steps: int = Field(default=6, ge=1)
    default_sampler: str = "ddim"


class SuperResolutionTraining(UpscalingStage):
    """Trains the image network or the temporal layers of a stage on storybook pictures and their small versions."""

    shown_noise_level = 0
    settings: SuperResolutionSettings

    def __init__(self, settings: SuperResolutionSettings) -> None:
        loop = settings.loop
        self.is_image = settings.data.num_frames == 1
        self.sheet_columns = 1 if self.is_image else 2
        torch.manual_seed(loop.seed)
        base = LumierePipeline.from_pretrained(settings.base)
        freeze(base.text_encoder)
        stage = _new_stage(settings, base) if settings.start_from is None else _told(settings)
        unet = stage.unet
        (unet.freeze_temporal if self.is_image else unet.freeze_image)()
        for name, weight in unet.named_parameters():
            # Added to the time embedding's bias, so one of the two is enough; and the C++ that torch 2.13 compiles
            # for two sums that are the same (their gradients) is not valid.
            if name == "class_embedding.linear_2.bias":
                weight.requires_grad_(False)
        _check_sizes(settings, stage)
        device = choose_placement(loop.device).device
        base.text_encoder.to(device)
        text = text_encoder_for(base.tokenizer, base.text_encoder)
        data = StorybookBatches(settings.data, seed=loop.seed, device=device)
        super().__init__(stage, data, text.encode, settings)

    def part(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """A random square of each clip, on the small picture's grid."""
        crop, scale = self.settings.crop, self.settings.scale
        if crop is None:
            return clips
        spare = (self.settings.data.size - crop) // scale + 1
        return cropped(clips, crop, torch.randint(spare, (len(clips), 2), generator=generator) * scale)

    def export(self, folder: Path) -> None:
        """The stage as a diffusers folder; in full precision between its parts, in bfloat16 after the last."""
        if self.is_image:
            self.stage.save_pretrained(folder)
        else:
            super().export(folder)


def _check_sizes(settings: SuperResolutionSettings, stage: SuperResolutionStage) -> None:
    """Refuse crops and clips that cannot be made small, or that the network cannot halve."""
    step = stage.unet.spatial_factor * stage.codec.spatial_factor
    for name, size in (("data.size", settings.data.size), ("crop", settings.crop or settings.data.size)):
        if size % step or size % settings.scale or size > settings.data.size:
            raise ValueError(
                f"{name} is {size}; it must be a multiple of {step} (the network's) and of {settings.scale}"
                f" (the scale), and no larger than data.size ({settings.data.size})"
            )
    if stage.config.scale != settings.scale:
        raise ValueError(f"scale is {settings.scale}; the stage in {settings.start_from} has {stage.config.scale}")
    if settings.data.num_frames > 1 and settings.start_from is None:
        raise ValueError("temporal layers are trained on a trained image network: set start_from (its folder)")


def _new_stage(settings: SuperResolutionSettings, base: LumierePipeline) -> SuperResolutionStage:
    """A stage with random image weights, and temporal layers that do nothing yet."""
    network = settings.network
    codec, deeper = PixelBlocks(network.pixel_block_size), len(network.channels) - 1
    unet = UNet2DConditionModel(
        sample_size=settings.data.size // codec.spatial_factor,
        in_channels=2 * codec.channels,
        out_channels=codec.channels,
        block_out_channels=network.channels,
        layers_per_block=network.layers_per_block,
        down_block_types=("DownBlock2D",) * deeper + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * deeper,
        cross_attention_dim=base.text_encoder.config.d_model,
        attention_head_dim=network.num_heads,
        norm_num_groups=math.gcd(32, *network.channels),
        class_embed_type="timestep",
        resnet_time_scale_shift="scale_shift",
    )
    if settings.predicts_change:
        # It begins with the enlargement as it is.
        for weight in unet.conv_out.parameters():
            nn.init.zeros_(weight)
    return SuperResolutionStage(
        unet=STUNet.from_image_unet(unet, temporal=settings.temporal),
        scheduler=named_scheduler(
            settings.default_sampler, embedded_scheduler("sample" if settings.predicts_change else "v_prediction")
        ),
        low_res_scheduler=low_res_schedule(),
        predicts_change=settings.predicts_change,
        scale=settings.scale,
        pixel_block_size=network.pixel_block_size,
        **_defaults(settings),
    )


def _told(settings: SuperResolutionSettings) -> SuperResolutionStage:
    """The trained stage to go on with, with the settings of this run."""
    stage = SuperResolutionStage.from_folder(str(settings.start_from))
    stage.register_to_config(**_defaults(settings))
    return stage


def _defaults(settings: SuperResolutionSettings) -> dict[str, Any]:
    """What the stage does when it is not told otherwise."""
    return {
        "noise_level": settings.default_noise_level,
        "back_projection": settings.default_back_projection,
        "polish": list(settings.default_polish),
        "window_frames": settings.window_frames,
        "window_frames_overlap": settings.window_frames_overlap,
        "default_steps": settings.default_steps,
    }
