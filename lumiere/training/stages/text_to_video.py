"""The base: temporal layers learn motion on a frozen image network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from pydantic import Field, field_validator
from transformers import AutoTokenizer, T5EncoderModel

from lumiere.conditioning.text import freeze
from lumiere.config import Settings
from lumiere.data.batches import StorybookBatches, StorybookSettings
from lumiere.device import choose_placement
from lumiere.diffusion.schedulers import named_scheduler
from lumiere.model.inflate import (
    add_clock,
    add_noise_level_shifts,
    add_space_time_layers,
    add_time_halving,
    widen_kernels,
)
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from lumiere.pipeline import LumierePipeline, check_guidance_interval
from lumiere.training.loop import LoopSettings
from lumiere.training.noise import NoiseSettings, embedded_scheduler
from lumiere.training.stages.clips import ClipStage, SampleSettings


class TextToVideoSettings(Settings):
    """A run of the stage."""

    stage: Literal["text_to_video"]
    out: str
    """Folder of the run."""
    image: str | None = None
    """Folder of the trained image network to inflate: unet, text_encoder, tokenizer."""
    start_from: str | None = None
    """Instead: pipeline folder whose networks training goes on with."""
    add_space_time_layers: int = Field(default=0, ge=0)
    """Layers that the attention blocks of the networks of ``start_from`` are given before training goes on."""
    add_noise_level_shifts: bool = False
    """Whether the frozen image layers of the networks of ``start_from`` learn to be told another noise level."""
    add_clock: bool = False
    """Whether the blocks of the networks of ``start_from`` that mix frames are to hear when each frame is."""
    add_time_halving: bool = False
    """Whether the networks of ``start_from``, trained on every N-th frame, are to halve time from now on."""
    widen_kernels: int | None = Field(default=None, ge=1)
    """Frames that the temporal convolutions of the blocks of the networks of ``start_from`` are to see at once."""
    loop: LoopSettings
    pixel_block_size: int = Field(default=2, ge=1)
    data: StorybookSettings = StorybookSettings()
    temporal: TemporalSettings = TemporalSettings(hears_time_and_text=True)
    noise: NoiseSettings = NoiseSettings(mean=2.2, std=1.5)
    """Eighty nearly equal frames hide less behind the same noise than stills: where an object goes is decided where a
    still would show nothing yet, and the image network already knows the rest."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    num_validation_clips: int = Field(default=16, ge=1)
    samples: SampleSettings = SampleSettings()
    default_steps: int = Field(default=16, ge=1)
    """What the exported pipeline does when it is not told otherwise."""
    default_sampler: str = "euler"
    default_timestep_shift: float = Field(default=5.0, gt=0)
    """Samplers look where training looked: this puts half of the steps above five sixths of the schedule."""
    default_guidance_scale: float = Field(default=3.0, ge=1)
    default_guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The part of the noise schedule, 0 (clean) to 1 (noise), in which the exported pipeline guides."""

    @field_validator("default_guidance_interval")
    @classmethod
    def _part_of_the_schedule(cls, value: tuple[float, float]) -> tuple[float, float]:
        check_guidance_interval(*value)
        return value


GROWTH: dict[str, tuple[str, Callable[[STUNet, int], object]]] = {
    "add_space_time_layers": ("space_time_layers", add_space_time_layers),
    "add_noise_level_shifts": ("shifts_noise_level", lambda stunet, _: add_noise_level_shifts(stunet)),
    "add_clock": ("hears_clock", lambda stunet, _: add_clock(stunet)),
    "add_time_halving": ("halve_time", lambda stunet, _: add_time_halving(stunet)),
    "widen_kernels": ("block_kernel_frames", widen_kernels),
}
"""What trained networks can be given more of: the setting that new ones get it by, and what gives so much of it."""


class TextToVideo(ClipStage):
    """Trains the temporal layers of an inflated image network; everything pretrained stays frozen."""

    def __init__(self, settings: TextToVideoSettings) -> None:
        if (settings.image is None) == (settings.start_from is None):
            raise ValueError("set either image (a trained image network, to be inflated) or start_from (a pipeline)")
        grows = [name for name in GROWTH if getattr(settings, name)]
        if settings.image is not None and grows:
            raise ValueError(
                f"{' and '.join(grows)} is for start_from; new networks get"
                f" {' and '.join(f'temporal.{GROWTH[name][0]}' for name in grows)}"
            )
        torch.manual_seed(settings.loop.seed)
        if settings.start_from is not None:
            pipeline = LumierePipeline.from_pretrained(settings.start_from)
            pipeline.use_scheduler(settings.default_sampler).register_to_config(**_defaults(settings))
            for name in grows:
                GROWTH[name][1](pipeline.unet, getattr(settings, name))
            pipeline.unet.freeze_image()
            freeze(pipeline.text_encoder)
        else:
            pipeline = _inflated(Path(str(settings.image)), settings)
        pipeline.unet.to(memory_format=torch.channels_last)
        device = choose_placement(settings.loop.device).device
        super().__init__(
            pipeline,
            StorybookBatches(settings.data, seed=settings.loop.seed, device=device),
            loop=settings.loop,
            noise=settings.noise,
            caption_dropout=settings.caption_dropout,
            num_validation_clips=settings.num_validation_clips,
            samples=settings.samples,
        )


def _inflated(image: Path, settings: TextToVideoSettings) -> LumierePipeline:
    """The pipeline of a trained image network with new temporal layers."""
    for part in ("unet", "text_encoder", "tokenizer"):
        if not (image / part).is_dir():
            raise ValueError(f"{image} has no folder {part!r}; train text_to_image first, or set --image FOLDER")
    unet = UNet2DConditionModel.from_pretrained(image / "unet")
    text_encoder = T5EncoderModel.from_pretrained(image / "text_encoder")
    freeze(text_encoder)
    return LumierePipeline(
        unet=STUNet.from_image_unet(unet, temporal=settings.temporal),
        scheduler=named_scheduler(settings.default_sampler, embedded_scheduler()),
        text_encoder=text_encoder,
        tokenizer=AutoTokenizer.from_pretrained(image / "tokenizer"),
        pixel_block_size=settings.pixel_block_size,
        **_defaults(settings),
    )


def _defaults(settings: TextToVideoSettings) -> dict[str, Any]:
    """What the pipeline makes when it is not told otherwise."""
    return {
        "num_frames": settings.data.num_frames,
        "default_steps": settings.default_steps,
        "timestep_shift": settings.default_timestep_shift,
        "default_guidance_scale": settings.default_guidance_scale,
        "guidance_interval": list(settings.default_guidance_interval),
    }
