"""Any super-resolution stage learns how the details of shards' clips move: its temporal layers, on short windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lumiere.conditioning.text import TextEncoder, freeze
from lumiere.data.cache import Cache
from lumiere.data.shards import ShardClips, ShardSettings
from lumiere.device import choose_placement
from lumiere.model.image_unet import encoder_width
from lumiere.pipeline import LumierePipeline
from lumiere.super_resolution import SuperResolutionStage
from lumiere.training.distributed import num_ranks
from lumiere.training.noise import Polish
from lumiere.training.stages.upscaling import UpscalingSettings, UpscalingStage, cropped


class SuperResolutionClipsSettings(UpscalingSettings):
    """A run of the stage ``super_resolution_clips``."""

    stage: Literal["super_resolution_clips"]
    model: str
    """Folder of a super-resolution stage: one of ours, or a published upscaler's (lumiere inflate writes what of its
    temporal layers is to be chosen)."""
    like: str | None = None
    """Public upscaler that ``model`` is an inflated copy of: by it plans are made while the folder is not there."""
    base: str | None = None
    """Pipeline folder whose text encoder a stage without one of its own hears; null is the one inside the package."""
    data: str
    """Folder of shards of large clips, or its URL."""
    shards: ShardSettings = ShardSettings()
    """How clips are drawn."""
    cache: str | None = None
    """Folder of what the text encoder says of these shards (lumiere data cache --latents false); null: it is asked."""
    scale: int | None = Field(default=None, ge=2)
    """How many times wider a clip becomes; null is the model's own."""
    num_frames: int = Field(default=8, ge=1)
    """Frames of the windows that are trained on, at random places of the clips."""
    checkpointing: bool = False
    """Forget what the layers computed, and compute it again for the gradients: less memory, a third more time."""
    chunk_image_layers: int | None = Field(default=None, ge=1)
    """At most so many frames at once through the image layers: less memory, the same clip; null: all."""
    window_frames: int | None = Field(default=None, ge=1)
    """Frames of the windows in which the exported stage works when it is not told otherwise; null: ``num_frames``."""
    window_frames_overlap: int = Field(default=2, ge=0)
    """Frames that two of them share."""
    window_px: int | None = Field(default=None, ge=8)
    """Their side in pixels of the large clip; null is the model's own."""
    window_px_overlap: int | None = Field(default=None, ge=0)
    """Pixels that two of them share; null is the model's own."""
    default_noise_level: int | None = Field(default=None, ge=0, lt=1000)
    """How much it noises the small clip; null is the model's own."""
    default_back_projection: float | None = Field(default=None, ge=0, le=1)
    """How far it moves the large clip to say what the small one does (0 to 1); null is the model's own."""
    default_polish: Polish | None = None
    """At which places in the noise schedule it looks at a finished clip again; null is the model's own."""
    default_steps: int | None = Field(default=None, ge=1)
    """Its denoising steps, also of the samples of training; null is the model's own."""


class SuperResolutionClipsTraining(UpscalingStage):
    """Trains the temporal layers of a super-resolution stage on the user's own clips; all that was pretrained stays."""

    settings: SuperResolutionClipsSettings

    def __init__(self, settings: SuperResolutionClipsSettings) -> None:
        torch.manual_seed(settings.loop.seed)
        stage = _told(settings)
        text = _text_of(stage, settings)
        shards = ShardClips(
            settings.data,
            settings.shards,
            batch_size=settings.loop.batch_size,
            seed=settings.loop.seed,
            stride=num_ranks(),
        )
        _check_sizes(settings, stage, shards)
        for part in (stage.text_encoder, stage.vae):
            if part is not None:
                freeze(part)
        stage.unet.freeze_image()
        if settings.checkpointing:
            stage.unet.enable_gradient_checkpointing()
        stage.unet.chunk_image_layers(settings.chunk_image_layers)
        cache = None if settings.cache is None else Cache(settings.cache, shards.clips(), text=text)
        # With a cache it need not be on the device.
        self._aside: Any = None if cache is None else stage.text_encoder
        self.stage = stage
        self._put_back(False)
        super().__init__(stage, shards, text.encode if cache is None else cache.text, settings)
        width, heard = self.read([""]).states.shape[-1], encoder_width(self.unet)
        if width != heard:
            raise ValueError(
                f"the network hears states of {heard}, and the text encoder's have {width}: it was trained with another"
                " one (base: the folder of a pipeline that has it)"
            )

    def part(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """A random window of each clip's frames and picture, on the small picture's grid."""
        settings, scale = self.settings, self.stage.config.scale
        count, _, length, *sides = clips.shape
        firsts = torch.randint(length - settings.num_frames + 1, (count,), generator=generator).tolist()
        windows = torch.stack(
            [clip[:, first : first + settings.num_frames] for clip, first in zip(clips, firsts, strict=True)]
        )
        if settings.crop is None:
            return windows
        spare = [(side - settings.crop) // scale + 1 for side in sides]
        corners = torch.stack([torch.randint(most, (count,), generator=generator) for most in spare], dim=1)
        return cropped(windows, settings.crop, corners * scale)

    def export(self, folder: Path) -> None:
        """The stage as a diffusers folder, with its text encoder, in bfloat16."""
        self._put_back(True)
        try:
            super().export(folder)
        finally:
            self._put_back(False)

    def _shown_part(self, clips: Tensor) -> Tensor:
        return self.part(clips, torch.Generator().manual_seed(1))

    def _put_back(self, is_there: bool) -> None:
        """Give the stage the text encoder that training does without, or take it out of it."""
        if self._aside is not None:
            self.stage.register_modules(text_encoder=self._aside if is_there else None)


def _told(settings: SuperResolutionClipsSettings) -> SuperResolutionStage:
    """The stage to train, with the settings of this run. Raises ValueError for a scale that it cannot have."""
    stage = SuperResolutionStage.from_folder(settings.model)
    wishes = {
        "scale": settings.scale,
        "noise_level": settings.default_noise_level,
        "back_projection": settings.default_back_projection,
        "polish": settings.default_polish,
        "window_frames": settings.window_frames or settings.num_frames,
        "window_frames_overlap": settings.window_frames_overlap,
        "window_px": settings.window_px,
        "window_px_overlap": settings.window_px_overlap,
        "default_steps": settings.default_steps,
    }
    stage.register_to_config(**{name: value for name, value in wishes.items() if value is not None})
    if stage.config.upsampling == "none" and stage.config.scale != stage.codec.spatial_factor:
        raise ValueError(
            f"scale is {stage.config.scale}; this stage sees the small clip beside latents of its size, so its scale is"
            f" {stage.codec.spatial_factor}"
        )
    return stage


def _text_of(stage: SuperResolutionStage, settings: SuperResolutionClipsSettings) -> TextEncoder:
    """What reads captions, on the device where it will be asked: the stage's own, or the base's."""
    if stage.text is not None:
        if settings.base is not None:
            raise ValueError(f"base has no effect: the stage in {settings.model} has a text encoder of its own")
        return stage.text
    base = LumierePipeline.from_pretrained(settings.base)
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(base, name) is not None:
            freeze(getattr(base, name))
            if settings.cache is None:
                getattr(base, name).to(choose_placement(settings.loop.device).device)
    return base.text


def _check_sizes(settings: SuperResolutionClipsSettings, stage: SuperResolutionStage, shards: ShardClips) -> None:
    """Refuse windows that the network cannot halve, and shards whose clips are smaller than they."""
    unet, scale, crop = stage.unet, stage.config.scale, settings.crop
    step = unet.spatial_factor * stage.codec.spatial_factor
    if settings.num_frames % unet.temporal_factor:
        raise ValueError(
            f"num_frames is {settings.num_frames}; this network needs a multiple of {unet.temporal_factor}"
        )
    known = unet.config.num_class_embeds
    if known is not None and settings.max_noise_level >= known:
        raise ValueError(f"max_noise_level is {settings.max_noise_level}; this network knows {known} levels, from 0")
    for clip in shards.clips():
        rows, columns = (clip.height, clip.width) if crop is None else (crop, crop)
        if any(side % step or side % scale for side in (rows, columns)):
            raise ValueError(
                f"trained on are pictures of {columns}x{rows}; their sides must be multiples of {step} (the network's)"
                f" and of {scale} (the scale): set crop"
            )
        if clip.frames < settings.num_frames or clip.height < rows or clip.width < columns:
            raise ValueError(
                f"{settings.data} holds clips of {clip.size} (width, height, frames); windows of {columns}x{rows} and"
                f" {settings.num_frames} frames do not fit into them (smaller crop or num_frames, or pack again)"
            )
