"""Places learn to attend to given frames: of two pictures of one scene one is given, and the other is drawn.

Pictures take a hundredth of a clip's time, so scenes are met a hundred times as often as in training on clips, which
comes after (the stage ``conditional``) and teaches the layers that mix frames to make use of it. The image network may
learn beside: then what it draws by words alone, and what by another picture, fit one another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lumiere.conditioning.frames import MaskMix, first_frame, random_conditioning
from lumiere.config import Settings
from lumiere.data.batches import Batch, StorybookSettings
from lumiere.data.captions import terse_caption
from lumiere.model.inflate import attend_to_given
from lumiere.training.loop import LoopSettings
from lumiere.training.noise import NoiseSettings, draw_noise, even_timesteps, noise_shares, with_source
from lumiere.training.stages.clips import ClipStage, storybook, write_columns
from lumiere.training.stages.given_words import pipeline_for_pairs
from lumiere.video import channels_last

NUM_SHOWN = 8
SHOWN_AT = 0.8
"""Share of the schedule at which predictions are shown: places and colours are left, outlines hardly."""


class GivenFramesSettings(Settings):
    """A run of the stage."""

    stage: Literal["given_frames"]
    out: str
    """Folder of the run."""
    start_from: str | None
    """Pipeline folder whose image network is led; null is the one inside the package."""
    image: str | None = None
    """Folder of an exported image network of the same kind (stage text_to_image) that takes the place of the base's."""
    loop: LoopSettings
    data: StorybookSettings = StorybookSettings(num_frames=2, any_moments=True)
    """Clips of two frames: the first is given, in whole or in part, the second is drawn."""
    given: MaskMix = MaskMix(
        nothing=0,
        first_frame=0.7,
        several_frames=0,
        outside_boxes=0.1,
        outside_blobs=0.1,
        outside_objects=0.0,
        inside_boxes=0.1,
        cinemagraph=0,
    )
    """How much of the first frame is given."""
    noise: NoiseSettings = NoiseSettings(mean=0.6, std=1.3)
    train_image: bool = False
    """Train the image network, too."""
    untold_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the second pictures that are drawn by their whole captions alone, for an image network that learns."""
    doubt: float = Field(default=1.0, ge=1)
    """As in the stage text_to_image, and so the next two; other colours are those of pictures drawn by words alone."""
    doubt_share: float = Field(default=0.5, ge=0, le=1)
    other_colour_share: float = Field(default=0.0, ge=0, le=1)
    terse_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the captions that only say how the object moves."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    num_validation_clips: int = Field(default=64, ge=1)


class GivenFramesTraining(ClipStage):
    """Trains the attention to given frames and, if asked to, the image network; everything else stays as it is."""

    def __init__(self, settings: GivenFramesSettings) -> None:
        settings.given.kinds()
        self.settings = settings
        pipeline = pipeline_for_pairs(settings.start_from, settings.data, seed=settings.loop.seed, image=settings.image)
        if not pipeline.unet.settings.attends_to_given:
            attend_to_given(pipeline.unet)
        assert pipeline.unet.temporal.frames is not None
        pipeline.unet.temporal.frames.requires_grad_(True)
        if settings.train_image:
            for weight in pipeline.unet.image_parameters():
                weight.requires_grad_(True)
        pipeline.unet.to(memory_format=torch.channels_last)
        self.books = storybook(settings.data, settings.loop)
        super().__init__(
            pipeline,
            self.books,
            loop=settings.loop,
            noise=settings.noise,
            caption_dropout=settings.caption_dropout,
            num_validation_clips=settings.num_validation_clips,
            mix=settings.given,
        )

    def shardable(self) -> None:
        """None: the words of the given picture are asked for without the network's forward pass."""

    def losses(self, position: int, count: int) -> Tensor:
        """Denoising loss [B] of the second pictures of the scenes at a position: first those that are drawn by words
        alone, then those of whose first pictures some is given."""
        settings, place = self.settings, {"seed": self.loop.seed, "step": position}
        batch = self.data.batch(position, count).on(self.device)
        clean = self.encoded(batch.clips[:, :, 1:])
        noise, timesteps, luck = draw_noise(
            tuple(clean.shape), self.objective.num_timesteps, self.noise, seed=self.loop.seed, step=position
        )
        noise = noise * noise_shares(count, settings.doubt, settings.doubt_share, **place).view(-1, 1, 1, 1, 1)
        generator = torch.Generator().manual_seed(self.loop.seed * 1_000_003 + position * 2 + 3_000_000_019)
        given = self._given(batch, generator)
        num_untold = min(round(settings.untold_share * count), count - 1)
        untold, told = torch.randperm(count, generator=generator).tensor_split([num_untold])
        losses = []
        if len(untold):
            clips, captions = self.books.in_other_colours(batch, settings.other_colour_share, position)
            source = self.encoded(clips[:, :, 1:])
            sourced = with_source(noise.to(clean), clean, source, timesteps, self.objective, **place)
            kept = self.with_dropout(captions, luck)
            rows = untold.to(clean.device)
            losses.append(
                self.denoising(
                    self.network, clean[rows], sourced[rows], timesteps[untold], [kept[row] for row in untold.tolist()]
                )
            )
        terse_from = 1 - settings.terse_share * (1 - self.caption_dropout)
        said = [
            terse_caption(scene) if one >= terse_from else whole
            for scene, whole, one in zip(
                batch.scenes, self.with_dropout(batch.captions, luck), luck.tolist(), strict=True
            )
        ]
        rows, captions = told.to(clean.device), [said[row] for row in told.tolist()]
        losses.append(
            self._drawn(clean[rows], noise[told], timesteps[told], captions, given[told], network=self.network)
        )
        return torch.cat(losses)

    def validate(self) -> dict[str, float]:
        """The loss on held-out pictures at evenly spread timesteps with captions of the motion alone, told another
        picture of the scene: attending to it, and only by its words; and with whole captions, told none."""
        batch = self.data.batch(0, self.num_validation_clips, held_out=True)
        clean = self.encoded(batch.clips[:, :, 1:])
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
        timesteps, half = even_timesteps(len(clean), self.objective.num_timesteps), len(clean) // 2
        terse, given = [terse_caption(scene) for scene in batch.scenes], self._first(batch)
        found: dict[str, float] = {}
        for name, attends in (("", True), ("_words_alone", False)):
            losses = self._drawn(clean, noise, timesteps, terse, given, attends=attends)
            found |= {f"loss{name}": float(losses.mean()), f"loss{name}_noisy_half": float(losses[half:].mean())}
        losses = self.denoising(self.unet, clean, noise, timesteps, batch.captions)
        return found | {"loss_untold": float(losses.mean()), "loss_untold_noisy_half": float(losses[half:].mean())}

    def show(self, folder: Path) -> None:
        """A sheet of held-out scenes, a column each: the given and the true picture, and what the noised true one is
        taken for, attending to the given one and only by its words."""
        batch = self.data.batch(0, NUM_SHOWN, held_out=True)
        clean = self.encoded(batch.clips[:, :, 1:])
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
        timesteps = torch.full((NUM_SHOWN,), int(SHOWN_AT * self.objective.num_timesteps) - 1)
        noisy = self.objective.add_noise(clean, noise, timesteps)
        given, rows = self._first(batch), [batch.clips[:, :, :1], batch.clips[:, :, 1:]]
        terse = [terse_caption(scene) for scene in batch.scenes]
        rows += [
            self.predicted_clean(noisy, timesteps, terse, self._told(given, attends=attends))
            for attends in (True, False)
        ]
        write_columns(folder / "seen_and_said.png", rows, batch.captions)

    def _given(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """<C, M> [B, c, 1, h, w] of parts of the first pictures."""
        assert self.mix is not None
        return random_conditioning(batch.clips[:, :, :1].cpu(), self.mix, generator).encoded(self.codec)

    def _first(self, batch: Batch) -> Tensor:
        """<C, M> [B, c, 1, h, w] of the whole first pictures."""
        return first_frame(batch.clips[:, :, 0], 1).encoded(self.codec)

    def _told(self, given: Tensor, *, attends: bool = True) -> dict[str, object]:
        """What the network is told of another picture of which <C, M> [B, c, 1, h, w] is given."""
        given = channels_last(given.to(self.device, self.unet.dtype))
        said = {} if self.unet.temporal.words is None else {"said_of_given": self.unet.say_given(given)}
        return said | ({"given_elsewhere": given} if attends else {})

    def _drawn(
        self,
        clean: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        captions: list[str],
        given: Tensor,
        *,
        attends: bool = True,
        network: nn.Module | None = None,
    ) -> Tensor:
        """The loss [B] of pictures [B, C, 1, h, w], told another picture of their scenes."""
        told = self._told(given, attends=attends)
        return self.denoising(self.unet if network is None else network, clean, noise, timesteps, captions, told=told)
