"""What given frames will look like at other moments is learned from the storybook, which knows how it moves things.

No network draws anything for that: a picture, words and times say where everything goes, so scenes are met a hundred
times as often as in training on clips, which comes after (the stage ``conditional``) and teaches the network what to
make of forecasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lumiere.conditioning.frames import Conditioning
from lumiere.config import Settings
from lumiere.data.batches import CLIP_S, Batch, StorybookSettings
from lumiere.data.captions import terse_caption
from lumiere.data.storybook import MOTIONS, OPEN_MOTIONS, Scene, motion_between, object_pixels
from lumiere.model.forecast import Forecast, Motion, centres
from lumiere.model.inflate import add_forecast
from lumiere.model.stunet import mean_text
from lumiere.training.loop import LoopSettings
from lumiere.training.noise import NoiseSettings
from lumiere.training.stages.clips import ClipStage, storybook, write_columns
from lumiere.training.stages.given_words import frozen_pipeline
from lumiere.video import FPS

NUM_SHOWN = 10
STAYS, LINEAR = 1.0, 0.3
"""Weights of places where nothing has moved, and of how things were turned and resized beside where they were."""
OWN_PIXELS = 4.0
"""Weight of saying which pixels of a picture are the thing that moves, which is quickly learned."""


class Misses(NamedTuple):
    """The loss [B] of forecasts, how many pixels [B] they are off where something moves, and of the pixels that are
    the moving thing or said to be the share [B] that are both."""

    losses: Tensor
    pixels_off: Tensor
    overlap: Tensor


class ForecastSettings(Settings):
    """A run of the stage."""

    stage: Literal["forecast"]
    out: str
    """Folder of the run."""
    start_from: str | None
    """Pipeline folder whose text encoder is heard; null is the one inside the package."""
    loop: LoopSettings
    data: StorybookSettings = StorybookSettings(num_frames=1, motion_from_start=True)
    """Stills, each of which is given."""
    num_moments: int = Field(default=4, ge=1)
    """Other moments that each is seen at."""
    first_share: float = Field(default=0.6, ge=0, le=1)
    """Share of the stills that are a clip's first frame; the others are of any moment."""
    bars_share: float = Field(default=0.15, ge=0, le=1)
    """Share of the stills of which only a strip across the whole picture is given, as of pictures of other shapes."""
    terse_share: float = Field(default=0.6, ge=0, le=1)
    """Share of the captions that only say how the object moves."""
    caption_dropout: float = Field(default=0.05, ge=0, lt=1)
    carry_given: bool | None = None
    """Whether the exported pipeline lets clips show things that move as they are forecast; null: as its base."""
    opening_frames: int | None = Field(default=None, ge=0)
    """Of how many frames the clip is whose first one the exported pipeline makes first; null: as its base."""
    num_validation_clips: int = Field(default=64, ge=1)


class ForecastTraining(ClipStage):
    """Trains only what forecasts."""

    def __init__(self, settings: ForecastSettings) -> None:
        if settings.data.num_frames != 1:
            raise ValueError(f"data.num_frames is {settings.data.num_frames}; it is 1: stills are given")
        self.settings = settings
        pipeline = frozen_pipeline(settings.start_from, seed=settings.loop.seed)
        if not pipeline.unet.settings.forecasts:
            add_forecast(pipeline.unet)
        pipeline.unet.temporal.forecast.requires_grad_(True)
        of_pipeline = {"carry_given", "opening_frames"}
        pipeline.register_to_config(**settings.model_dump(include=of_pipeline, exclude_none=True))
        pipeline.unet.to(memory_format=torch.channels_last)
        self.books = storybook(settings.data, settings.loop)
        super().__init__(
            pipeline,
            self.books,
            loop=settings.loop,
            noise=NoiseSettings(),
            caption_dropout=settings.caption_dropout,
            num_validation_clips=settings.num_validation_clips,
        )

    @property
    def forecaster(self) -> Forecast:
        """What is trained."""
        found = self.unet.temporal.forecast
        assert isinstance(found, Forecast)
        return found

    def shardable(self) -> None:
        """None: forecasts are asked for without the network's forward pass."""

    def losses(self, position: int, count: int) -> Tensor:
        """How far off [B] forecasts of the pictures at a position are."""
        settings = self.settings
        batch = self.data.batch(position, count)
        generator = torch.Generator().manual_seed(self.loop.seed * 1_000_003 + position * 2 + 8_000_000_011)
        luck = torch.rand(3, count, generator=generator)
        assert batch.times_s is not None
        batch = self.books.at(batch, batch.times_s.cpu() * (luck[0] >= settings.first_share)[:, None])
        to_s = torch.rand(count, settings.num_moments, generator=generator) * CLIP_S
        captions = [
            terse_caption(scene, generator) if scene.actors and is_terse else whole
            for scene, is_terse, whole in zip(
                batch.scenes, (luck[1] < settings.terse_share).tolist(), batch.captions, strict=True
            )
        ]
        known = torch.ones(count, 1, 1, self.books.settings.size, self.books.settings.size)
        for row in torch.nonzero(luck[2] < settings.bars_share).flatten().tolist():
            _cover_bars(known[row, 0, 0], generator)
        captions = self.with_dropout(captions, torch.rand(count, generator=generator))
        return self._misses(batch, to_s, captions, known).losses

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Of held-out scenes, first frames of which are given, seen at eight moments, with captions of the motion
        alone: the loss, the mean distance in pixels between where things were and where the forecast has them,
        where something moves, in all and by motion; and how far the moving thing is told from what lies around it
        (intersection over union)."""
        batch, to_s, terse, known = self._held_out(self.num_validation_clips, 8)
        losses, far, overlap = self._misses(batch, to_s, terse, known)
        motions = [scene.actors[0].motion if scene.actors else "" for scene in batch.scenes]
        found = {"loss": float(losses.mean()), "pixels_off": float(far.mean())}
        moving = torch.tensor([bool(scene.actors) for scene in batch.scenes], device=overlap.device)
        found["moving_thing_iou"] = float(overlap[moving].mean())
        for motion in MOTIONS:
            rows = [row for row, one in enumerate(motions) if one == motion]
            if rows:
                found["pixels_off_" + motion.replace(" ", "_")] = float(far[rows].mean())
        return found

    @torch.no_grad()
    def show(self, folder: Path) -> None:
        """A sheet of held-out scenes, a column each: the given picture, what of it is said to move, and at three
        moments what is true and what the better forecast says."""
        batch, to_s, terse, known = self._held_out(NUM_SHOWN, 3)
        pictures, motion, which = self._forecast(batch, to_s, terse, known)
        moved = self.forecaster.moved(pictures, motion, which)[:, :, : self.codec.channels].float()
        true = self.books.at(batch, to_s).clips.to(moved.device)
        seen = torch.stack([self.codec.decode(way) for way in moved.unbind(1)], dim=1)
        best = (seen - true[:, None]).square().flatten(2).mean(2).argmin(1)
        seen = seen[torch.arange(len(seen)), best]
        is_own = self.codec.decode(self.forecaster.whose_pixels(pictures) > 0).to(batch.clips.device)
        rows = [batch.clips, torch.where(is_own, batch.clips, torch.zeros_like(batch.clips))]
        for moment in range(true.shape[2]):
            rows += [true[:, :, moment : moment + 1], seen[:, :, moment : moment + 1]]
        write_columns(folder / "given_true_forecast.png", rows, terse)

    def _held_out(self, count: int, num_moments: int) -> tuple[Batch, Tensor, list[str], Tensor]:
        """Scenes that are never trained on, whose first frames are given, and moments [B, T] to see them at."""
        batch = self.books.at(self.data.batch(0, count, held_out=True), torch.zeros(count, 1))
        to_s = (torch.arange(num_moments) + 1).expand(count, -1) * (CLIP_S / (num_moments + 0.5))
        size = self.books.settings.size
        terse = [terse_caption(scene) for scene in batch.scenes]
        return batch, to_s, terse, torch.ones(count, 1, 1, size, size)

    def _forecast(
        self, batch: Batch, to_s: Tensor, captions: list[str], known: Tensor
    ) -> tuple[Tensor, Motion, Tensor]:
        """<C, M> [B, c, 1, h, w] of pictures, how things move from them until ``to_s`` [B, T], and zeros [B, T]: the
        number of the picture that each moment is seen from."""
        assert batch.times_s is not None
        text = self.text.encode(captions)
        pictures = Conditioning.of(batch.clips.cpu(), known).encoded(self.codec).to(self.device, self.unet.dtype)
        which = torch.zeros(to_s.shape, dtype=torch.long, device=self.device)
        states = mean_text(text.states.to(self.device, self.unet.dtype), text.mask)
        sources, numbers = (FPS * times.to(self.device) for times in (batch.times_s.expand_as(to_s), to_s))
        return pictures, self.forecaster.motion(pictures, states, which, sources, numbers), which

    def _misses(self, batch: Batch, to_s: Tensor, captions: list[str], known: Tensor) -> Misses:
        """How far off forecasts are."""
        assert batch.times_s is not None
        pictures, motion, _ = self._forecast(batch, to_s, captions, known)
        size = (pictures.shape[-2], pictures.shape[-1])
        maps, is_near = motion_between(batch.scenes, batch.times_s[:, 0].cpu(), to_s, size=size)
        maps, is_near = maps.to(self.device)[:, None], is_near.to(self.device)
        error = motion.maps - maps
        far = (error @ centres(*size, like=error)[..., None]).squeeze(-1).norm(dim=-1)
        wrong = far + LINEAR * error[..., :2].abs().sum((-1, -2))
        near = is_near[:, None].expand_as(far)
        moved = _mean(wrong, near) + STAYS * _mean(wrong, ~near)
        # Whether what is there was seen: what is near an actor was, where none is unless it hid it.
        pixels = object_pixels(batch.clips, self.books.empty(batch))
        hidden = F.adaptive_max_pool2d(pixels[:, :, 0].float().to(self.device), size)
        was_seen = (near | (hidden < 0.5)[:, None].expand_as(near)).float()
        sight = F.binary_cross_entropy_with_logits(motion.seen, was_seen, reduction="none").mean((2, 3, 4))
        told = _ways(batch.scenes).to(moved)
        pixels_off = (_mean(far, near) * told).sum(1) * (self.books.settings.size / 2)
        logits = self.forecaster.whose_pixels(pictures)
        is_own = self.codec.encode((pixels & (known.to(pixels.device) > 0)).to(logits)) > 0
        unlike = F.binary_cross_entropy_with_logits(logits, is_own.to(logits), reduction="none").flatten(1).mean(1)
        both, either = ((logits > 0) & is_own, (logits > 0) | is_own)
        overlap = both.flatten(1).sum(1) / either.flatten(1).sum(1).clamp(min=1)
        return Misses(((8 * moved + sight) * told).sum(1) + OWN_PIXELS * unlike, pixels_off, overlap)


def _mean(values: Tensor, is_in: Tensor) -> Tensor:
    """The mean [B, W] of values [B, W, T, h, w] at the places that count."""
    return (values * is_in).sum((2, 3, 4)) / is_in.sum((2, 3, 4)).clamp(min=1)


def _ways(scenes: Sequence[Scene]) -> Tensor:
    """How much each of the two forecasts of scenes should say what is true of them, [B, 2]: one of both where things go
    round this way or that, which neither picture nor words say, else both alike.

    Left to choose the better one of each scene, both showed the object in both places (LOG.md).
    """
    turns = [
        (scene.actors[0].turn if scene.actors and scene.actors[0].motion in OPEN_MOTIONS else 0) for scene in scenes
    ]
    return torch.tensor([[(1 - turn) / 2, (1 + turn) / 2] for turn in turns])


def _cover_bars(known: Tensor, generator: torch.Generator) -> None:
    """Zero what is above and below, or left and right of a strip of a picture [H, W] that is given, in place."""
    size = known.shape[0]
    width = int(torch.randint(size // 2, size, (), generator=generator))
    start = int(torch.randint(size - width + 1, (), generator=generator))
    if bool(torch.rand((), generator=generator) < 0.5):
        known[:start], known[start + width :] = 0, 0
    else:
        known[:, :start], known[:, start + width :] = 0, 0
