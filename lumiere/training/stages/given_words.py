"""What is given learns to be said in the image network's words, as the text encoder would say what is seen of it.

An object is named where a good part of it is given; behind a hole that hides it, only the place is. Words that named it
there, too, painted it into regions from which it was to be removed (LOG.md).

No network draws anything for that, so it takes minutes: learned through the image network instead, by what it makes of
the words, they named night and dusk and stopped there (LOG.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lumiere.conditioning.frames import Conditioning, MaskMix, first_frame, num_channels, random_conditioning
from lumiere.conditioning.text import freeze
from lumiere.config import Settings
from lumiere.data.batches import Batch, StorybookSettings
from lumiere.data.captions import still_caption, terse_caption
from lumiere.data.storybook import object_pixels, without_actors
from lumiere.model.given_words import Said
from lumiere.model.inflate import add_given_words, widen_input
from lumiere.pipeline import LumierePipeline
from lumiere.training.loop import LoopSettings
from lumiere.training.noise import NoiseSettings, even_timesteps
from lumiere.training.stages.clips import ClipStage, storybook, write_columns
from lumiere.training.stages.text_to_image import take_image_network

NUM_SHOWN = 8
SEEN_FROM = 0.3
"""Share of an object's pixels in a frame that must be given for it to be named."""
SHOWN_AT = 0.97
"""Share of the schedule at which predictions are shown: little more than the scene's colours is left."""


class GivenWordsSettings(Settings):
    """A run of the stage."""

    stage: Literal["given_words"]
    out: str
    """Folder of the run."""
    start_from: str | None
    """Pipeline folder whose image network is spoken to; null is the one inside the package."""
    num_words: int = Field(default=8, ge=1)
    """States of text that are said."""
    loop: LoopSettings
    data: StorybookSettings = StorybookSettings(num_frames=2, any_moments=True)
    """Clips of two frames, of which parts are given. (For validation only of the first; the second is drawn by it.)"""
    given: MaskMix = MaskMix(
        nothing=0,
        first_frame=0.5,
        several_frames=0,
        outside_boxes=0.1,
        outside_blobs=0.1,
        outside_objects=0.15,
        inside_boxes=0.15,
        cinemagraph=0,
    )
    """How much of a frame is given."""
    second_share: float = Field(default=0.3, ge=0, le=1)
    """Share of the clips of which the second frame is given, too, as much of it as chance wills."""
    num_validation_clips: int = Field(default=64, ge=1)


def pipeline_for_pairs(
    start_from: str | None, data: StorybookSettings, *, seed: int, image: str | None = None
) -> LumierePipeline:
    """The pipeline to train on pairs of pictures of which one is given: told what is given, and all of it frozen.

    New weights are drawn by ``seed``; ``image`` is an exported image network that takes the place of its own.
    Raises ValueError for data of another number of frames.
    """
    if data.num_frames != 2:
        raise ValueError(f"data.num_frames is {data.num_frames}; it is 2: one frame is given, one drawn")
    return frozen_pipeline(start_from, seed=seed, image=image)


def frozen_pipeline(start_from: str | None, *, seed: int, image: str | None = None) -> LumierePipeline:
    """A pipeline told what is given, and all of it frozen. As for ``pipeline_for_pairs``."""
    torch.manual_seed(seed)
    pipeline = LumierePipeline.from_pretrained(start_from)
    if image is not None:
        take_image_network(Path(image), pipeline.unet, pipeline.text_encoder)
    if not pipeline.unet.settings.conditioning_channels:
        widen_input(pipeline.unet, num_channels(pipeline.codec))
    pipeline.unet.requires_grad_(False)
    freeze(pipeline.text_encoder)
    return pipeline


class GivenWordsTraining(ClipStage):
    """Trains only what says the words. How well the image network draws by them is what is validated."""

    def __init__(self, settings: GivenWordsSettings) -> None:
        settings.given.kinds()
        pipeline = pipeline_for_pairs(settings.start_from, settings.data, seed=settings.loop.seed)
        if not pipeline.unet.settings.words_of_given:
            add_given_words(pipeline.unet, settings.num_words)
        pipeline.unet.temporal.words.requires_grad_(True)
        pipeline.unet.to(memory_format=torch.channels_last)
        self.second_share = settings.second_share
        self.books = storybook(settings.data, settings.loop)
        super().__init__(
            pipeline,
            self.books,
            loop=settings.loop,
            noise=NoiseSettings(),
            caption_dropout=0.0,
            num_validation_clips=settings.num_validation_clips,
            mix=settings.given,
        )

    def shardable(self) -> None:
        """None: the words are asked for without the network's forward pass."""

    def losses(self, position: int, count: int) -> Tensor:
        """How far off [B] the words are from the text states of a caption of what is seen, of which share."""
        batch = self.data.batch(position, count)
        return self._misses(batch, torch.Generator().manual_seed(self.loop.seed * 1_000_003 + position))

    def validate(self) -> dict[str, float]:
        """How far off the words are on held-out stills of which parts are given; and the loss on held-out stills at
        evenly spread timesteps: with the whole caption; with only the motion's, and another moment of the scene said;
        and with that caption alone."""
        batch = self.data.batch(0, self.num_validation_clips, held_out=True)
        clean = self.codec.encode(batch.clips[:, :, 1:])
        generator = torch.Generator().manual_seed(1)
        noise, said = torch.randn(clean.shape, generator=generator), self._first_said(batch)
        timesteps, half = even_timesteps(len(clean), self.objective.num_timesteps), len(clean) // 2
        terse = [terse_caption(scene) for scene in batch.scenes]
        found = {"words": float(self._misses(batch, torch.Generator().manual_seed(2)).mean())}
        for name, captions, one in (
            ("", terse, said),
            ("_whole_caption", batch.captions, None),
            ("_untold", terse, None),
        ):
            losses = self.denoising(
                self.unet, clean, noise, timesteps, captions, told=None if one is None else {"said_of_given": one}
            )
            found |= {f"loss{name}": float(losses.mean()), f"loss{name}_noisy_half": float(losses[half:].mean())}
        return found

    def show(self, folder: Path) -> None:
        """A sheet of held-out scenes, a column each: the given and the true picture, and what the noised true one is
        taken for when the given is said, when the whole caption is, and when only the motion is."""
        batch = self.data.batch(0, NUM_SHOWN, held_out=True)
        clean = self.codec.encode(batch.clips[:, :, 1:])
        generator = torch.Generator().manual_seed(1)
        noise, said = torch.randn(clean.shape, generator=generator), self._first_said(batch)
        timesteps = torch.full((NUM_SHOWN,), int(SHOWN_AT * self.objective.num_timesteps) - 1)
        noisy = self.objective.add_noise(clean, noise, timesteps)
        terse = [terse_caption(scene) for scene in batch.scenes]
        made = [
            self.predicted_clean(noisy, timesteps, captions, {} if one is None else {"said_of_given": one})
            for captions, one in ((terse, said), (batch.captions, None), (terse, None))
        ]
        rows = [batch.clips[:, :, :1], batch.clips[:, :, 1:], *made]
        write_columns(folder / "told_and_untold.png", rows, batch.captions)

    def _misses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """How far off [B] what is said of randomly given parts is, as a share of the power of what should be."""
        given = self._given(batch, generator)
        said = self.unet.say_given(self._told(given)).states.float()
        wanted = self.text.encode(self._seen_captions(batch, given)).states[:, : said.shape[1]].float()
        return (said - wanted).square().mean((1, 2)) / wanted.square().mean()

    def _given(self, batch: Batch, generator: torch.Generator) -> Conditioning:
        """Part of the first frame of each clip, and of some of the second, too: [B, ...] of two frames."""
        assert self.mix is not None
        objects = self.books.objects(batch).cpu()
        parts = []
        for frame in (slice(0, 1), slice(1, 2)):
            clip = batch.clips[:, :, frame].cpu()
            parts.append(random_conditioning(clip, self.mix, generator, objects=objects[:, :, frame]))
        is_given = (torch.rand(len(objects), generator=generator) < self.second_share).view(-1, 1, 1, 1, 1)
        mask = torch.cat([parts[0].mask, parts[1].mask * is_given], dim=2)
        return Conditioning.of(batch.clips.cpu(), mask)

    def _first_said(self, batch: Batch) -> Said:
        """The first frames of the clips, said."""
        return self.unet.say_given(self._told(first_frame(batch.clips[:, :, 0], 1)))

    def _told(self, given: Conditioning) -> Tensor:
        """<C, M> as the network sees it."""
        return given.encoded(self.codec).to(self.device, self.unet.dtype)

    def _seen_captions(self, batch: Batch, given: Conditioning) -> list[str]:
        """What the given parts show: the actors of those scenes of whose pixels enough are given in one frame."""
        pixels = object_pixels(batch.clips, self.books.empty(batch)).cpu()
        seen = (pixels * given.mask).sum((1, 3, 4)) / pixels.sum((1, 3, 4)).clamp(min=1)
        is_seen = (seen.amax(1) >= SEEN_FROM).tolist()
        return [
            still_caption(scene if whole else without_actors(scene))
            for scene, whole in zip(batch.scenes, is_seen, strict=True)
        ]
