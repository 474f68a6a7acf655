"""What the stages that train on clips share: loss, held-out loss, samples, export."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from lumiere.conditioning.frames import MaskMix, random_conditioning
from lumiere.conditioning.text import TextEncoder, TextStates
from lumiere.config import Settings
from lumiere.data.batches import Batch, StorybookBatches, StorybookSettings
from lumiere.device import choose_placement
from lumiere.diffusion.objective import Objective
from lumiere.evaluation.samples import METRICS, MetricName, check_metrics
from lumiere.model.stunet import STUNet
from lumiere.pipeline import LumierePipeline
from lumiere.training.distributed import gathered, share
from lumiere.training.loop import LoopSettings, compiled
from lumiere.training.noise import NoiseSettings, by_noise_level, draw_noise, even_timesteps, with_source
from lumiere.video import channels_last, contact_sheet

SHEET_FRAMES = 16


class SampleSettings(Settings):
    """The clips that are made of held-out captions whenever training is looked at."""

    num_samples: int = Field(default=4, ge=1)
    """Rows of the sheet."""
    metrics: tuple[MetricName, ...] = ()
    """What of them is measured (lumiere.evaluation.samples): movement, storybook."""


class ClipBatches(Protocol):
    """Clips and captions as a pure function of the position."""

    def batch(self, position: int, count: int, /, *, held_out: bool = False) -> Batch:
        """``count`` clips [B, 3, T, H, W] with their captions."""


class ClipStage:
    """Trains whatever of a pipeline's networks asks for gradients, on clips (a still is a clip of one frame).

    ``mix`` says how often the network is told what of the clips; None for one that is told nothing.
    """

    def __init__(
        self,
        pipeline: LumierePipeline,
        data: ClipBatches,
        *,
        loop: LoopSettings,
        noise: NoiseSettings,
        caption_dropout: float,
        num_validation_clips: int,
        mix: MaskMix | None = None,
        samples: SampleSettings | None = None,
    ) -> None:
        self.mix, self.samples = mix, samples or SampleSettings()
        check_metrics(self.samples.metrics, data)
        self.pipeline, self.data = pipeline, data
        self.loop, self.noise = loop, noise
        self.caption_dropout, self.num_validation_clips = caption_dropout, num_validation_clips
        self.device = choose_placement(loop.device).device
        pipeline.to(self.device)
        if loop.number_format == "bfloat16":
            pipeline.unet.to(torch.bfloat16)
        self.unet, self.codec = pipeline.unet, pipeline.codec
        self.objective = Objective.from_scheduler(pipeline.scheduler)
        self.network: nn.Module = compiled(self.unet, loop.compile)
        pipeline.set_progress_bar_config(disable=True)

    @property
    def text(self) -> TextEncoder:
        """What reads captions."""
        return self.pipeline.text

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the U-Net; only the trainable ones are trained."""
        yield from self.unet.named_parameters()

    def shardable(self) -> STUNet | None:
        """The U-Net."""
        return self.unet

    def put(self, network: STUNet) -> None:
        """Use another U-Net of the same kind from now on."""
        self.pipeline.register_modules(unet=network)
        self.unet = self.network = network

    def losses(self, position: int, count: int) -> Tensor:
        """Denoising loss [B] of the clips at a position."""
        batch = self.data.batch(position, count).on(self.device)
        clips, given = self.given(batch, position)
        clean = self.encoded(clips)
        noise, timesteps, luck = draw_noise(
            tuple(clean.shape), self.objective.num_timesteps, self.noise, seed=self.loop.seed, step=position
        )
        captions = self.captions(batch, given, position)
        other, captions = self.noised_from(batch, clips, given, captions, position)
        if other is not None:
            place = {"seed": self.loop.seed, "step": position}
            noise = with_source(noise.to(clean), clean, self.encoded(other), timesteps, self.objective, **place)
        return self.denoising(self.network, clean, noise, timesteps, self.with_dropout(captions, luck), given)

    def with_dropout(self, captions: Sequence[str], luck: Tensor) -> list[str]:
        """The captions, the empty one in the place of those whose uniform draw of ``luck`` [B] is below the dropout."""
        kept = (luck >= self.caption_dropout).tolist()
        return [caption if keep else "" for caption, keep in zip(captions, kept, strict=True)]

    def encoded(self, clips: Tensor) -> Tensor:
        """A batch's clips in the network's space."""
        return self.codec.encode(clips)

    def read(self, captions: Sequence[str], height: int, width: int) -> TextStates:
        """What the network is told of captions for clips of so many pixels."""
        return self.pipeline.read(captions, height, width)

    def given(self, batch: Batch, position: int) -> tuple[Tensor, Tensor | None]:
        """The clips [B, 3, T, H, W] to be made there, and <C, M> [B, c, T, h, w] of them that the network is told.

        Drawn from (seed, position) alone.
        """
        if self.mix is None:
            return batch.clips, None
        seed = self.loop.seed * 1_000_003 + position * 2 + 3_000_000_019
        return self._partly_given(batch, self.mix, torch.Generator().manual_seed(seed))

    def captions(self, batch: Batch, given: Tensor | None, position: int) -> list[str]:
        """What is said of the clips at a position, of which so much is given."""
        return batch.captions

    def noised_from(
        self, batch: Batch, clips: Tensor, given: Tensor | None, captions: list[str], position: int
    ) -> tuple[Tensor | None, list[str]]:
        """Clips that are noised (part of the way) in the place of ``clips``, None for these, and what is said then."""
        return None, captions

    def objects(self, batch: Batch) -> Tensor | None:
        """Where the clips' objects are, [B, 1, T, H, W] of 0 and 1, if that is known."""
        return None

    def denoising(
        self,
        network: nn.Module,
        clean: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        captions: list[str],
        given: Tensor | None = None,
        told: Mapping[str, object] | None = None,
    ) -> Tensor:
        """The loss [B] of ``network`` on clean clips in its own space, noised to ``timesteps``.

        Known is <C, M> ``given`` of them, or only what else is ``told`` (``added_cond_kwargs``) of some.
        """
        dtype = self.unet.dtype
        height, width = (size * self.codec.spatial_factor for size in clean.shape[-2:])
        text = self.read(captions, height, width).to(self.device, dtype)
        added = text.added() | dict(told or {})

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            seen = noisy if given is None else channels_last(torch.cat([noisy, given.to(noisy)], dim=1))
            read = {"encoder_attention_mask": text.mask, "added_cond_kwargs": added}
            return network(seen.to(dtype), timestep, text.states, **read).sample

        clean, noise = (channels_last(clip.to(self.device)) for clip in (clean, noise))
        return self.objective.loss(predict, clean, noise=noise, timestep=timesteps.to(self.device))

    def predicted_clean(
        self, noisy: Tensor, timesteps: Tensor, captions: list[str], told: Mapping[str, object]
    ) -> Tensor:
        """What noisy clips [B, C, T, h, w] of the network's space are taken for, as pixels, told also ``told``."""
        text, dtype = self.text.encode(captions), self.unet.dtype
        prediction = self.unet(
            noisy.to(self.device, dtype),
            timesteps.to(self.device),
            text.states.to(dtype),
            encoder_attention_mask=text.mask,
            added_cond_kwargs=dict(told),
        ).sample
        return self.codec.decode(self.objective.clean_from(prediction.float(), noisy, timesteps))

    def validate(self) -> dict[str, float]:
        """The loss on held-out clips at evenly spread timesteps, in all and by how much noise there is; and with parts
        of them given, if the network can be told."""
        # Where they are: to the device they go one at a time.
        batch = self.data.batch(0, self.num_validation_clips, held_out=True).on(None)
        losses = self.held_out_losses(batch.clips, batch.captions)
        found = by_noise_level(losses) | {"loss_noisy_half": float(losses[len(losses) // 2 :].mean())}
        if self.mix is None:
            return found
        clips, given = self._partly_given(batch, self.mix, torch.Generator().manual_seed(1))
        return found | {"loss_given": float(self.held_out_losses(clips, batch.captions, given).mean())}

    def held_out_losses(self, clips: Tensor, captions: list[str], given: Tensor | None = None) -> Tensor:
        """The loss [B] of clips at evenly spread timesteps, with fixed noise, one clip at a time.

        Ranks share the clips; the noise of each is the same for any number of them.
        """
        timesteps = even_timesteps(len(clips), self.objective.num_timesteps)
        generator = torch.Generator().manual_seed(1)
        own, losses, num_drawn = share(len(clips)), [], 0
        for index in own:
            one = slice(index, index + 1)
            clean = self.encoded(clips[one])
            while num_drawn <= index:
                noise = torch.randn(clean.shape, generator=generator)
                num_drawn += 1
            known = None if given is None else given[one]
            losses.append(self.denoising(self.unet, clean, noise, timesteps[one], captions[one], known))
        return gathered(torch.cat(losses), len(clips))

    def show(self, folder: Path) -> dict[str, float] | None:
        """A sheet of held-out captions, a row each: frames spread over the clip; and what of them is measured."""
        batch = self.data.batch(0, self.samples.num_samples, held_out=True).on(None)
        captions = batch.captions
        clips = [self._sampled(caption, seed) for seed, caption in enumerate(captions)]
        every = max(1, clips[0].shape[1] // SHEET_FRAMES)
        rows = torch.cat([clip[0, ::every].transpose(0, 1) for clip in clips], dim=1)
        folder.mkdir(parents=True, exist_ok=True)
        sheet = contact_sheet(rows, columns=rows.shape[1] // len(clips), scale=3)
        Image.fromarray(sheet).save(folder / "clips.png")
        (folder / "captions.txt").write_text("\n".join(captions) + "\n")
        made, found = torch.cat(clips).transpose(1, 2), dict[str, float]()
        for name in self.samples.metrics:
            found |= METRICS[name](made, batch)
        return found

    def _partly_given(self, batch: Batch, mix: MaskMix, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The batch's clips as they have to be made, and the parts of them that are given, as the network sees them."""
        objects = self.objects(batch) if mix.outside_objects else None
        clips = batch.clips.cpu()
        drawn = random_conditioning(clips, mix, generator, objects=None if objects is None else objects.cpu())
        return drawn.put_into(batch.clips), drawn.encoded(self.codec)

    def _sampled(self, caption: str, seed: int) -> Tensor:
        """The base's clip [1, T, 3, H, W] of a caption, in -1..1."""
        generator = torch.Generator().manual_seed(seed)
        output: Any = self.pipeline(caption, generator=generator, super_resolution=False, output_type="pt")
        return output.frames * 2 - 1

    def export(self, folder: Path) -> None:
        """The whole pipeline as a diffusers folder, in bfloat16."""
        copy.deepcopy(self.pipeline).to(torch.bfloat16).save_pretrained(folder)


def storybook(data: StorybookSettings, loop: LoopSettings) -> StorybookBatches:
    """The storybook that a run is trained on, drawn on its own device."""
    return StorybookBatches(data, seed=loop.seed, device=choose_placement(loop.device).device)


def write_columns(path: Path, rows: Sequence[Tensor], captions: Sequence[str]) -> None:
    """A sheet of stills [B, 3, 1, H, W] to compare, a column for each caption, and the captions beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = torch.cat([row.cpu().squeeze(2).transpose(0, 1) for row in rows], dim=1)
    Image.fromarray(contact_sheet(frames, columns=len(captions), scale=3)).save(path)
    (path.parent / "captions.txt").write_text("\n".join(captions) + "\n")


def check_divisible(what: str, count: int, step: int) -> None:
    """Refuse clips whose frames or pixels the network cannot halve as often as it does."""
    if count % step:
        below = max(count // step * step, step)
        raise ValueError(
            f"{what} is {count}; this network needs a multiple of {step}: the nearest are {below} and {below + step}"
        )
