"""The base learns to be told part of the clip: <J, C, M>, with the masks of every application mixed."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lumiere.conditioning.frames import MaskMix, num_channels
from lumiere.conditioning.text import freeze
from lumiere.config import Settings
from lumiere.data.batches import Batch, StorybookBatches, StorybookSettings
from lumiere.device import choose_placement
from lumiere.model.inflate import add_clock, show_given_to_blocks, widen_input
from lumiere.pipeline import LumierePipeline
from lumiere.training.loop import LoopSettings
from lumiere.training.noise import NoiseSettings
from lumiere.training.stages.clips import ClipStage


class ConditionalSettings(Settings):
    """A run of the stage."""

    stage: Literal["conditional"]
    out: str
    """Folder of the run."""
    start_from: str | None
    """Pipeline folder of the text-to-video base; null is the one inside the package."""
    show_given_to_blocks: bool = False
    """Let every block that mixes frames see what is given, at its level's size, beside the first convolution."""
    add_clock: bool = False
    """Let every block that mixes frames hear when each frame is."""
    loop: LoopSettings
    data: StorybookSettings = StorybookSettings()
    given: MaskMix = MaskMix()
    """How often what of the clip is given."""
    noise: NoiseSettings = NoiseSettings(mean=2.2, std=1.5)
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    num_validation_clips: int = Field(default=16, ge=1)


class Conditional(ClipStage):
    """Trains the temporal layers and the second first convolution; everything pretrained stays frozen."""

    def __init__(self, settings: ConditionalSettings) -> None:
        settings.given.kinds()
        torch.manual_seed(settings.loop.seed)
        pipeline = LumierePipeline.from_pretrained(settings.start_from)
        if not pipeline.unet.settings.conditioning_channels:
            widen_input(pipeline.unet, num_channels(pipeline.codec))
        if settings.show_given_to_blocks and not pipeline.unet.settings.blocks_see_given:
            show_given_to_blocks(pipeline.unet)
        if settings.add_clock and not pipeline.unet.settings.hears_clock:
            add_clock(pipeline.unet)
        pipeline.unet.freeze_image()
        pipeline.unet.to(memory_format=torch.channels_last)
        freeze(pipeline.text_encoder)
        pipeline.register_to_config(num_frames=settings.data.num_frames)
        device = choose_placement(settings.loop.device).device
        self.books = StorybookBatches(settings.data, seed=settings.loop.seed, device=device)
        super().__init__(
            pipeline,
            self.books,
            loop=settings.loop,
            noise=settings.noise,
            caption_dropout=settings.caption_dropout,
            num_validation_clips=settings.num_validation_clips,
            mix=settings.given,
        )

    def objects(self, batch: Batch) -> Tensor:
        """Where the storybook drew the clips' objects."""
        return self.books.objects(batch)
