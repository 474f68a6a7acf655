"""The base learns to be told part of the clip: <J, C, M>, with the masks of every application mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from lumiere.conditioning.frames import MaskMix, num_channels
from lumiere.conditioning.seams import check_seam_reach
from lumiere.conditioning.text import freeze
from lumiere.config import Settings
from lumiere.data.batches import Batch, StorybookSettings
from lumiere.data.captions import terse_caption
from lumiere.diffusion.sample import check_restarts
from lumiere.model.inflate import add_clock, add_given_words, attend_to_given, show_given_to_blocks, widen_input
from lumiere.pipeline import LumierePipeline
from lumiere.training.loop import LoopSettings
from lumiere.training.noise import NoiseSettings, Polish
from lumiere.training.stages.clips import ClipStage, SampleSettings, storybook
from lumiere.training.stages.text_to_image import take_image_network


class ConditionalSettings(Settings):
    """A run of the stage."""

    stage: Literal["conditional"]
    out: str
    """Folder of the run."""
    start_from: str | None
    """Pipeline folder of the text-to-video base; null is the one inside the package."""
    image: str | None = None
    """Folder of an exported image network of the same kind (stage text_to_image) that takes the place of the base's."""
    show_given_to_blocks: bool = False
    """Let every block that mixes frames see what is given, at its level's size, beside the first convolution."""
    add_clock: bool = False
    """Let every block that mixes frames hear when each frame is."""
    attend_to_given: bool = False
    """Let places of every frame attend to given frames."""
    words_of_given: int = Field(default=0, ge=0)
    """Say what is given to the image layers in so many states of text, too; 0: leave it as it is."""
    train_words: bool = False
    """Train those words, too. Left to the loss on clips, trained ones forgot which object is seen (LOG.md)."""
    loop: LoopSettings
    data: StorybookSettings = StorybookSettings()
    given: MaskMix = MaskMix()
    """How often what of the clip is given."""
    noise: NoiseSettings = NoiseSettings(mean=2.2, std=1.5)
    terse_share_of_given: float = Field(default=0.0, ge=0, le=1)
    """Share of the clips of which a whole frame is given whose caption then only says how the object moves."""
    other_colour_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the clips of which nothing is given that are noised with their object in another colour than the
    caption's, as when a clip is recoloured; half of their captions then name the object and its colour alone."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    default_guidance_scale: float | None = Field(default=None, ge=0)
    """How closely the exported pipeline follows prompts; null: as its base."""
    restarts: tuple[float, ...] | None = None
    """Strengths with which the exported pipeline makes a finished clip again; null: as its base."""
    polish: Polish | None = None
    """Places in the noise schedule at which the exported pipeline looks at a finished clip again; null: as its base."""
    seam_reach: float | None = None
    """How far the exported pipeline moves what is made to meet what is given; null: as its base."""
    num_validation_clips: int = Field(default=16, ge=1)
    samples: SampleSettings = SampleSettings()

    @field_validator("restarts")
    @classmethod
    def _strengths(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        check_restarts(value or ())
        return value

    @field_validator("seam_reach")
    @classmethod
    def _a_distance(cls, value: float | None) -> float | None:
        check_seam_reach(value or 0.0)
        return value


class Conditional(ClipStage):
    """Trains the temporal layers and the second first convolution; everything pretrained stays frozen."""

    def __init__(self, settings: ConditionalSettings) -> None:
        settings.given.kinds()
        self.terse_share, self.other_colour_share = settings.terse_share_of_given, settings.other_colour_share
        torch.manual_seed(settings.loop.seed)
        pipeline = LumierePipeline.from_pretrained(settings.start_from)
        if settings.image is not None:
            take_image_network(Path(settings.image), pipeline.unet, pipeline.text_encoder)
        if not pipeline.unet.settings.conditioning_channels:
            widen_input(pipeline.unet, num_channels(pipeline.codec))
        if settings.show_given_to_blocks and not pipeline.unet.settings.blocks_see_given:
            show_given_to_blocks(pipeline.unet)
        if settings.add_clock and not pipeline.unet.settings.hears_clock:
            add_clock(pipeline.unet)
        if settings.attend_to_given and not pipeline.unet.settings.attends_to_given:
            attend_to_given(pipeline.unet)
        if settings.words_of_given and not pipeline.unet.settings.words_of_given:
            add_given_words(pipeline.unet, settings.words_of_given)
        pipeline.unet.freeze_image()
        if pipeline.unet.temporal.words is not None and not settings.train_words:
            pipeline.unet.temporal.words.requires_grad_(False)
        pipeline.unet.to(memory_format=torch.channels_last)
        freeze(pipeline.text_encoder)
        pipeline.register_to_config(num_frames=settings.data.num_frames)
        of_pipeline = {"default_guidance_scale", "restarts", "polish", "seam_reach"}
        pipeline.register_to_config(**settings.model_dump(include=of_pipeline, exclude_none=True, mode="json"))
        self.books = storybook(settings.data, settings.loop)
        super().__init__(
            pipeline,
            self.books,
            loop=settings.loop,
            noise=settings.noise,
            caption_dropout=settings.caption_dropout,
            num_validation_clips=settings.num_validation_clips,
            samples=settings.samples,
            mix=settings.given,
        )

    def captions(self, batch: Batch, given: Tensor | None, position: int) -> list[str]:
        """Those of the clips, or where a whole frame is given in some only how the object moves."""
        if not self.terse_share or given is None:
            return batch.captions
        has_frame = given[:, self.codec.channels :].amin((1, 3, 4)).amax(1) > 0
        generator = torch.Generator().manual_seed(self.loop.seed * 1_000_003 + position * 2 + 4_000_000_037)
        is_terse = (torch.rand(len(has_frame), generator=generator) < self.terse_share) & has_frame
        return [
            terse_caption(scene, generator) if terse and scene.actors else whole
            for scene, terse, whole in zip(batch.scenes, is_terse.tolist(), batch.captions, strict=True)
        ]

    def noised_from(
        self, batch: Batch, clips: Tensor, given: Tensor | None, captions: list[str], position: int
    ) -> tuple[Tensor | None, list[str]]:
        """Of some clips of which nothing is given, the same in another colour, and captions that ask for their own."""
        if not self.other_colour_share or given is None:
            return None, captions
        others, said = self.books.in_other_colours(batch, self.other_colour_share, position)
        is_free = given[:, self.codec.channels :].flatten(1).amax(1) == 0
        captions = [new if free else old for new, old, free in zip(said, captions, is_free.tolist(), strict=True)]
        return torch.where(is_free.view(-1, 1, 1, 1, 1).to(clips.device), others, clips), captions

    def objects(self, batch: Batch) -> Tensor:
        """Where the storybook drew the clips' objects."""
        return self.books.objects(batch)
