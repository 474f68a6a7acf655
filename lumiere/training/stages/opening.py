"""Drawing clips' first frames alone: the frozen image network learns what clips begin with, by changes of low rank.

A first frame is a still, so a hundred of them are met for a clip's cost; and nothing in one has turned yet or is half
out of sight, which is what image networks find hard. Parts of it may be given, as of a clip that is inpainted.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Literal

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import Field
from torch import Tensor

from lumiere.conditioning.frames import MaskMix
from lumiere.config import Settings
from lumiere.data.batches import Batch, StorybookSettings
from lumiere.model.inflate import add_opening
from lumiere.model.stunet import STUNet
from lumiere.model.style import LowRank, image_layers
from lumiere.training.loop import LoopSettings
from lumiere.training.noise import NoiseSettings
from lumiere.training.stages.clips import ClipStage, SampleSettings, storybook
from lumiere.training.stages.given_words import frozen_pipeline
from lumiere.training.stages.style import add_low_rank


class OpeningSettings(Settings):
    """A run of the stage."""

    stage: Literal["opening"]
    out: str
    """Folder of the run."""
    start_from: str | None
    """Pipeline folder; null is the one inside the package."""
    loop: LoopSettings
    data: StorybookSettings = StorybookSettings(num_frames=1, motion_from_start=True, first_moment=True)
    """Stills, the first frames of clips."""
    rank: int = Field(default=16, ge=1)
    """How much of each layer can change. A base that draws openings with changes of this rank goes on with them."""
    given: MaskMix = MaskMix(first_frame=0, several_frames=0, cinemagraph=0)
    """How often what of the frame is given; never all of it."""
    noise: NoiseSettings = NoiseSettings()
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    opening_frames: int | None = Field(default=1, ge=0)
    """Of how many frames the clip is whose first one the exported pipeline makes first, 1: a still, so drawn; null: as
    its base."""
    num_validation_clips: int = Field(default=64, ge=1)
    samples: SampleSettings = SampleSettings(num_samples=16)


class OpeningTraining(ClipStage):
    """Trains only what changes the image network for first frames."""

    def __init__(self, settings: OpeningSettings) -> None:
        if settings.data.num_frames != 1:
            raise ValueError(f"data.num_frames is {settings.data.num_frames}; it is 1: first frames are stills")
        shares = settings.given.kinds()
        whole = [
            f"{name} {shares[name]:g}" for name in ("first_frame", "several_frames", "cinemagraph") if shares[name]
        ]
        if whole:
            raise ValueError(
                f"given has {', '.join(whole)}; a lone first frame is then given whole: set these shares to 0"
            )
        self.settings = settings
        pipeline = frozen_pipeline(settings.start_from, seed=settings.loop.seed)
        _add_changes(pipeline.unet, settings.rank)
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.register_to_config(num_frames=1)
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

    def shardable(self) -> None:
        """None: the few weights are read out of the network by their names."""

    def objects(self, batch: Batch) -> Tensor:
        """Where the storybook drew the objects; in scenes without one, where it drew that of another one.

        So the shape of what is given does not say that there is a thing in the middle of it: words alone do.
        """
        rows = [row for row, scene in enumerate(batch.scenes) if scene.actors]
        others = cycle(rows)
        which = [row if scene.actors else next(others, row) for row, scene in enumerate(batch.scenes)]
        return self.books.objects(batch)[which]

    def export(self, folder: Path) -> None:
        """The pipeline that was begun from, in bfloat16, that draws first frames by what was learned."""
        weights = get_peft_model_state_dict(self.unet)
        pipeline = frozen_pipeline(self.settings.start_from, seed=self.settings.loop.seed)
        unet = add_opening(pipeline.unet, self.settings.rank)
        changes = {
            name: LowRank(weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"])
            for name in image_layers(unet)
        }
        assert unet.temporal.opening is not None
        unet.temporal.opening.take(unet, changes)
        if self.settings.opening_frames is not None:
            pipeline.register_to_config(opening_frames=self.settings.opening_frames)
        pipeline.to(torch.bfloat16).save_pretrained(folder)


def _add_changes(unet: STUNet, rank: int) -> None:
    """Let the image layers be changed by matrices of a rank: those that the network draws openings with, or new ones
    that change nothing yet."""
    opening = unet.temporal.opening
    learned = opening.changes(unet) if opening is not None and unet.settings.opening_rank == rank else {}
    add_low_rank(unet, list(image_layers(unet)), rank=rank)
    weights = {f"{name}.lora_A.weight": change.down for name, change in learned.items()}
    weights |= {f"{name}.lora_B.weight": change.up for name, change in learned.items()}
    if weights:
        set_peft_model_state_dict(unet, {name: weight.detach().clone() for name, weight in weights.items()})
