"""A trained pipeline learns the videos of a folder: first what they look like, then how they move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from lumiere.conditioning.frames import MaskMix
from lumiere.conditioning.words import add_words
from lumiere.config import Settings
from lumiere.data.folder import ClipFolder, ClipFolderSettings
from lumiere.model.stunet import STUNet
from lumiere.pipeline import LumierePipeline
from lumiere.training.loop import LoopSettings
from lumiere.training.noise import NoiseSettings
from lumiere.training.stages.clips import ClipStage, check_divisible

Part = Literal["image", "motion"]


class FinetuneSettings(Settings):
    """A run of both parts."""

    stage: Literal["finetune_clips"]
    out: str
    """Folder of the run."""
    data: str
    """Folder of videos, each with its caption in a .txt file of the same name."""
    model: str | None = None
    """Folder of the pipeline to start from; null is the one inside the package."""
    clips: ClipFolderSettings = ClipFolderSettings()
    image: LoopSettings | None
    """Training of the image network and the text encoder on single frames; null when they know such pictures."""
    motion: LoopSettings
    """Training of the temporal layers on clips, everything else frozen."""
    image_noise: NoiseSettings = NoiseSettings(mean=0.1, std=1.2)
    motion_noise: NoiseSettings = NoiseSettings(mean=0.6, std=1.2)
    """A quarter of a base clip's frames hides more behind the same noise, so the shift is smaller."""
    given: MaskMix = MaskMix()
    """How often what of the clips is given while the motion is trained, for bases that can be told."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    num_validation_clips: int = Field(default=32, ge=1)
    """Pieces of held-out videos, each at its own noise level."""


class FinetuneClips(ClipStage):
    """One part of fine-tuning a pipeline on a folder: the image network with the text encoder, or the motion."""

    def __init__(self, settings: FinetuneSettings, part: Part, *, model: str | None, clips: ClipFolder) -> None:
        loop = settings.motion if part == "motion" or settings.image is None else settings.image
        settings.given.kinds()
        torch.manual_seed(loop.seed)
        pipeline = LumierePipeline.from_pretrained(model)
        # It hears the text encoder, which changes, and knows no other pictures than those it was trained on.
        pipeline.register_modules(super_resolution=None)
        check_folder(pipeline, settings.clips)
        generator = torch.Generator().manual_seed(loop.seed)
        tokenizer, self.new_words = add_words(
            pipeline.tokenizer, pipeline.text_encoder, clips.captions(), generator=generator
        )
        pipeline.register_modules(tokenizer=tokenizer)
        size, num_frames = settings.clips.size, settings.clips.num_frames if part == "motion" else 1
        # Forecasts and first frames were learned from another world; what to make of forecasts is learned here.
        pipeline.register_to_config(num_frames=num_frames, height=size, width=size, carry_given=False, opening_frames=0)
        self.part = part
        _train_only(part, pipeline)
        super().__init__(
            pipeline,
            _Stills(clips) if part == "image" else clips,
            loop=loop,
            noise=settings.image_noise if part == "image" else settings.motion_noise,
            caption_dropout=settings.caption_dropout,
            num_validation_clips=settings.num_validation_clips,
            mix=settings.given if part == "motion" and pipeline.unet.settings.conditioning_channels else None,
        )

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the U-Net and the text encoder; only the part's own are trainable."""
        for name, module in (("unet", self.unet), ("text_encoder", self.pipeline.text_encoder)):
            yield from ((f"{name}.{key}", weight) for key, weight in module.named_parameters())

    def shardable(self) -> STUNet | None:
        """The U-Net; None where the text encoder is trained with it."""
        return self.unet if self.part == "motion" else None

    def export(self, folder: Path) -> None:
        """The whole pipeline as a diffusers folder; in full precision between the parts, in bfloat16 at the end."""
        if self.part == "image":
            self.pipeline.save_pretrained(folder)
        else:
            super().export(folder)


class _Stills:
    """The single frames of a folder, where a stage asks for clips."""

    def __init__(self, clips: ClipFolder) -> None:
        self.batch = clips.frame_batch


def _train_only(part: Part, pipeline: LumierePipeline) -> None:
    """Let gradients reach the weights of one part and no others."""
    (pipeline.unet.freeze_temporal if part == "image" else pipeline.unet.freeze_image)()
    pipeline.text_encoder.requires_grad_(part == "image")


def check_folder(pipeline: LumierePipeline, clips: ClipFolderSettings) -> None:
    """Refuse clips of a folder whose frames or pixels the network cannot halve as often as it does."""
    check_divisible("clips.num_frames", clips.num_frames, pipeline.unet.temporal_factor)
    check_divisible("clips.size", clips.size, pipeline.unet.spatial_factor * pipeline.codec.spatial_factor)
