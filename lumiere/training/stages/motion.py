"""Any base learns how the clips of shards, or of a folder, move: its temporal layers are trained, nothing else."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lumiere.codec import Latents
from lumiere.conditioning.frames import MaskMix, num_channels
from lumiere.conditioning.text import TextStates, freeze, unknown_words
from lumiere.config import Settings
from lumiere.data import store
from lumiere.data.cache import Cache, has_latents
from lumiere.data.folder import ClipFolder, ClipFolderSettings
from lumiere.data.shards import ShardClips, ShardSettings
from lumiere.media import VIDEO_SUFFIXES
from lumiere.model.inflate import widen_input
from lumiere.pipeline import LumierePipeline
from lumiere.training.distributed import num_ranks
from lumiere.training.loop import LoopSettings
from lumiere.training.noise import NoiseSettings
from lumiere.training.stages.clips import ClipStage, SampleSettings
from lumiere.training.stages.finetune_clips import check_folder

MOST_WORDS = 8
"""Words never seen that are named."""


class MotionSettings(Settings):
    """A run of the stage ``clips``."""

    stage: Literal["clips"]
    out: str
    """Folder of the run."""
    like: str | None = None
    """Public model that ``model`` is an inflated copy of: by it plans are made while the folder is not there."""
    planned_size: str | None = Field(default=None, pattern=r"^\d+x\d+x\d+$")
    """Width, height and frames that plans are made for while the shards are not there, such as 512x512x80."""
    data: str
    """Folder of shards (or its URL), or of videos with captions in .txt files: what it holds decides."""
    model: str | None = None
    """Folder of the pipeline whose motion is trained; null is the one inside the package."""
    shards: ShardSettings = ShardSettings()
    """How clips are drawn, if ``data`` are shards."""
    clips: ClipFolderSettings = ClipFolderSettings()
    """How videos become clips, if it is a folder of videos."""
    cache: str | None = None
    """Folder of what text encoder and VAE say of these shards (lumiere data cache); null: they are asked each time."""
    loop: LoopSettings
    noise: NoiseSettings = NoiseSettings(mean=0.6, std=1.2)
    tell_given: bool = False
    """Let a base that is told nothing of given parts learn to be told, as the stage ``conditional`` does."""
    given: MaskMix = MaskMix()
    """How often what of the clips is given, for bases that can be told."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    checkpointing: bool = False
    """Forget what the layers computed, and compute it again for the gradients: less memory, a third more time."""
    chunk_image_layers: int | None = Field(default=None, ge=1)
    """At most so many frames at once through the image layers: less memory, the same clip; null: all."""
    num_validation_clips: int = Field(default=16, ge=1)
    """Held-out clips, each at its own noise level."""
    samples: SampleSettings = SampleSettings()


class MotionTraining(ClipStage):
    """Trains the temporal layers of a pipeline's base on the user's own clips; everything pretrained stays frozen."""

    def __init__(self, settings: MotionSettings) -> None:
        settings.given.kinds()
        torch.manual_seed(settings.loop.seed)
        pipeline = LumierePipeline.from_pretrained(settings.model)
        if settings.tell_given and not pipeline.unet.settings.conditioning_channels:
            widen_input(pipeline.unet, num_channels(pipeline.codec))
        is_told = bool(pipeline.unet.settings.conditioning_channels)
        if not is_told and settings.given != MaskMix():
            raise ValueError("given has no effect: this base is told nothing of given parts (set tell_given to true)")
        self.cache: Cache | None = None
        self.has_latents = False
        data = self._opened(settings, pipeline, is_told=is_told)
        _warn_of_unknown_words(pipeline, data.captions())
        _make_ready(pipeline, settings, _usual_size(data))
        names = ("text_encoder", "text_encoder_2", "super_resolution")
        # Large ones cost more memory than the base; super-resolution may hear one of its own.
        self._aside: dict[str, Any] = {name: getattr(pipeline, name) for name in names if self.cache is not None}
        self.pipeline = pipeline
        self._put_back(False)
        super().__init__(
            pipeline,
            data,
            loop=settings.loop,
            noise=settings.noise,
            caption_dropout=settings.caption_dropout,
            num_validation_clips=settings.num_validation_clips,
            samples=settings.samples,
            mix=settings.given if is_told else None,
        )

    def encoded(self, clips: Tensor) -> Tensor:
        """A batch's clips in the network's space; latents of a cache are there already."""
        return clips if self.has_latents else super().encoded(clips)

    def read(self, captions: Sequence[str], height: int, width: int) -> TextStates:
        """What the network is told of captions, from the cache if there is one."""
        if self.cache is None:
            return super().read(captions, height, width)
        return self.pipeline.sized(self.cache.text(captions), height, width)

    def export(self, folder: Path) -> None:
        """The whole pipeline as a diffusers folder, in bfloat16."""
        self._put_back(True)
        try:
            super().export(folder)
        finally:
            self._put_back(False)

    def _sampled(self, caption: str, seed: int) -> Tensor:
        if self.cache is None:
            return super()._sampled(caption, seed)
        size = self.pipeline.default_size
        output: Any = self.pipeline(
            prompt_embeds=self.read([caption], *size),
            negative_prompt_embeds=self.read([""], *size),
            generator=torch.Generator().manual_seed(seed),
            super_resolution=False,
            output_type="pt",
        )
        return output.frames * 2 - 1

    def _put_back(self, is_there: bool) -> None:
        """Give the pipeline the parts that training does without, or take them out of it."""
        if self._aside:
            self.pipeline.register_modules(**{name: self._aside[name] if is_there else None for name in self._aside})

    def _opened(self, settings: MotionSettings, pipeline: LumierePipeline, *, is_told: bool) -> ClipFolder | ShardClips:
        """The clips at ``data``, of sizes that the network takes, and the cache of them."""
        if not _are_shards(settings.data):
            for name, default in (("shards", ShardSettings()), ("cache", None)):
                if getattr(settings, name) != default:
                    raise ValueError(f"{name} has no effect: {settings.data} holds videos, no shards (*.tar)")
            check_folder(pipeline, settings.clips)
            return ClipFolder(settings.data, settings.clips, seed=settings.loop.seed)
        if settings.clips != ClipFolderSettings():
            raise ValueError(f"clips has no effect: {settings.data} holds shards, whose clips were made when packing")
        self.has_latents = settings.cache is not None and has_latents(settings.cache)
        if self.has_latents and (is_told or not isinstance(pipeline.codec, Latents)):
            why = "is told given parts, which are masked as pixels" if is_told else "works on pixels"
            raise ValueError(
                f"{settings.cache} holds latents, and this base {why}; use a cache of text alone (lumiere data cache"
                " ... --latents false)"
            )
        if self.has_latents and settings.samples.metrics:
            raise ValueError(
                f"samples.metrics compare with the true clips, of which {settings.cache} holds latents alone; leave"
                " them out, or use a cache of text alone (lumiere data cache ... --latents false)"
            )
        shards = ShardClips(
            settings.data,
            settings.shards,
            batch_size=settings.loop.batch_size,
            seed=settings.loop.seed,
            stride=num_ranks(),
            read=self._latents if self.has_latents else None,
        )
        _check_shards(pipeline, shards, settings.data)
        if settings.cache is not None:
            codec = pipeline.codec if self.has_latents and isinstance(pipeline.codec, Latents) else None
            self.cache = Cache(settings.cache, shards.clips(), text=pipeline.text, codec=codec)
        return shards

    def _latents(self, clip: Any) -> Tensor:
        assert self.cache is not None
        return self.cache.latents(clip)


def _make_ready(pipeline: LumierePipeline, settings: MotionSettings, size: tuple[int, int, int]) -> None:
    """Freeze all but the temporal layers, save the memory that is to be saved, and let clips have ``size``."""
    for name in ("text_encoder", "text_encoder_2", "vae"):
        if getattr(pipeline, name) is not None:
            freeze(getattr(pipeline, name))
    pipeline.unet.freeze_image()
    pipeline.unet.to(memory_format=torch.channels_last)
    if settings.checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    pipeline.unet.chunk_image_layers(settings.chunk_image_layers)
    width, height, num_frames = size
    # Forecasts and first frames were learned from another world; the network itself learns what to make of forecasts.
    pipeline.register_to_config(num_frames=num_frames, height=height, width=width, carry_given=False, opening_frames=0)


def _are_shards(data: str) -> bool:
    """Whether there are shards, and not videos. Raises ValueError where both are."""
    folder = store.as_place(data)
    if not isinstance(folder, Path):
        return True
    if not store.list_files(folder, ".tar"):
        return False
    videos = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES]
    if videos:
        raise ValueError(
            f"{folder} holds shards and videos ({videos[0]}); give a folder that holds only the one or the other"
        )
    return True


def _check_shards(pipeline: LumierePipeline, shards: ShardClips, folder: str) -> None:
    """Refuse shards with clips of a size that the network cannot halve as often as it does."""
    time, space = pipeline.unet.temporal_factor, pipeline.unet.spatial_factor * pipeline.codec.spatial_factor
    wrong = {
        clip.size: clip
        for clip in shards.clips()
        if clip.height % space or clip.width % space or (clip.frames > 1 and clip.frames % time)
    }
    if not wrong:
        return
    clip = wrong[min(wrong)]
    sides = {"height": (clip.height, space), "width": (clip.width, space), "frames": (clip.frames, time)}
    near = ", ".join(f"{name}: {max(step, round(count / step) * step)}" for name, (count, step) in sides.items())
    raise ValueError(
        f"{folder} holds clips of {', '.join(sorted(wrong))} (width, height, frames); this model takes multiples of"
        f' {space} pixels and {time} frames: pack again, such as with --buckets "[{{{near}}}]"'
    )


def _usual_size(data: ClipFolder | ShardClips) -> tuple[int, int, int]:
    """Width, height and frames of most of the clips."""
    if isinstance(data, ClipFolder):
        return data.settings.size, data.settings.size, data.settings.num_frames
    sizes = Counter((clip.width, clip.height, clip.frames) for clip in data.clips())
    return sizes.most_common(1)[0][0]


def _warn_of_unknown_words(pipeline: LumierePipeline, captions: Sequence[str]) -> None:
    words = unknown_words(pipeline.tokenizer, list(dict.fromkeys(captions)))
    if words:
        shown = ", ".join(words[:MOST_WORDS]) + (", ..." if len(words) > MOST_WORDS else "")
        warnings.warn(
            f"{len(words)} words of the captions were never seen by the text encoder, which stays frozen: {shown}"
            " (finetune_clips trains it, too)",
            stacklevel=1,
        )
