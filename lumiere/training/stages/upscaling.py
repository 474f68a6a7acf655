"""What the stages that train super-resolution share: small clips made of large ones, loss, held-out loss, export."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from lumiere.conditioning.text import TextStates
from lumiere.config import Settings
from lumiere.device import choose_placement
from lumiere.diffusion.objective import Objective
from lumiere.model.stunet import STUNet
from lumiere.super_resolution import SuperResolutionStage, augmented, signal_left
from lumiere.training.distributed import gathered, share
from lumiere.training.loop import LoopSettings, compiled
from lumiere.training.noise import NoiseSettings, by_noise_level, draw_noise, even_timesteps
from lumiere.training.stages.clips import ClipBatches
from lumiere.video import as_floats, channels_last, contact_sheet, in_blocks, psnr_db, resize_clip

NUM_SHOWN = 4

Read = Callable[[Sequence[str]], TextStates]
"""Captions -> what the network is told of them."""


class UpscalingSettings(Settings):
    """What every run that trains super-resolution says."""

    out: str
    """Folder of the run."""
    loop: LoopSettings
    crop: int | None = Field(default=64, ge=8)
    """Side in pixels of the random crops that are trained on; null: whole pictures."""
    noise: NoiseSettings = NoiseSettings(mean=0.0, std=1.2)
    max_noise_level: int = Field(default=300, ge=0, lt=1000)
    """The small clip is noised to levels drawn evenly from 0 to this."""
    no_clip_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the clips of which the small one is nothing but noise."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    num_validation_clips: int = Field(default=16, ge=1)


class UpscalingStage:
    """Trains whatever of a super-resolution stage's U-Net asks for gradients, on large clips and their small versions.

    A subclass says what part of a batch's clips is trained on (``part``).
    """

    shown_noise_level: ClassVar[int | None] = None
    """How much the small clip is noised where a sample is made; None: as the stage does it."""
    sheet_columns = 2

    def __init__(self, stage: SuperResolutionStage, data: ClipBatches, read: Read, settings: UpscalingSettings) -> None:
        self.stage, self.data, self.read, self.settings = stage, data, read, settings
        self.unet, self.codec = stage.unet, stage.codec
        self.device = choose_placement(settings.loop.device).device
        stage.set_progress_bar_config(disable=True)
        stage.to(self.device)
        if settings.loop.number_format == "bfloat16":
            self.unet.to(torch.bfloat16)
        self.unet.to(memory_format=torch.channels_last)
        self.objective = Objective.from_scheduler(stage.scheduler)
        self.network: nn.Module = compiled(self.unet, settings.loop.compile)
        self._made: tuple[Tensor, ...] | None = None

    def part(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """The part of each clip that is trained on."""
        raise NotImplementedError

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the U-Net; only the trainable ones are trained."""
        yield from self.unet.named_parameters()

    def shardable(self) -> STUNet | None:
        """The U-Net."""
        return self.unet

    def put(self, network: STUNet) -> None:
        """Use another U-Net of the same kind from now on."""
        self.stage.register_modules(unet=network)
        self.unet = self.network = network

    def losses(self, position: int, count: int) -> Tensor:
        """Denoising loss [B] of a position's clips."""
        settings, seed = self.settings, self.settings.loop.seed
        batch = self.data.batch(position, count)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + position * 2 + 2_000_000_011)
        clips = as_floats(self.part(batch.clips, generator), self.device)
        levels = torch.randint(settings.max_noise_level + 1, (len(clips),), generator=generator)
        is_nothing = torch.rand(len(clips), generator=generator) < settings.no_clip_share
        levels[is_nothing] = self.stage.low_res_scheduler.config.num_train_timesteps - 1
        beside = self._beside(clips, levels, generator)
        clean = self.codec.encode(clips)
        noise, timesteps, luck = draw_noise(
            tuple(clean.shape), self.objective.num_timesteps, settings.noise, seed=seed, step=position
        )
        kept = (luck >= settings.caption_dropout).tolist()
        captions = [caption if keep else "" for caption, keep in zip(batch.captions, kept, strict=True)]
        return self._denoising(self.network, clean, beside, levels, noise, timesteps, captions)

    def validate(self) -> dict[str, float]:
        """The loss on held-out clips at evenly spread timesteps, by how much noise there is, and how much nearer to the
        truth than bicubic."""
        losses = self._held_out_losses()
        self._made = self._upscaled()
        _, bicubic, sharp, truth = self._made
        gain = psnr_db(sharp, truth) - psnr_db(bicubic, truth)
        return by_noise_level(losses) | {"psnr_over_bicubic_db": float(gain.mean())}

    def show(self, folder: Path) -> None:
        """A sheet: for each held-out clip the small one, bicubic, the network's and the true one, side by side."""
        kinds, self._made = self._made or self._upscaled(), None
        frames = torch.cat([kind[:, :, ::4] for kind in kinds], dim=-1)
        folder.mkdir(parents=True, exist_ok=True)
        rows = torch.cat(list(frames), dim=1)
        Image.fromarray(contact_sheet(rows, columns=self.sheet_columns)).save(folder / "upscaled.png")

    def export(self, folder: Path) -> None:
        """The stage as a diffusers folder, in bfloat16."""
        copy.deepcopy(self.stage).to(torch.bfloat16).save_pretrained(folder)

    def _held_out_losses(self) -> Tensor:
        """The loss [B] of held-out clips at evenly spread timesteps and noise of the small clip, one clip at a time.

        Ranks share the clips; the noise of each is the same for any number of them.
        """
        count = self.settings.num_validation_clips
        batch = self.data.batch(0, count, held_out=True)
        levels = torch.linspace(0, self.settings.max_noise_level, count).long()
        timesteps = even_timesteps(count, self.objective.num_timesteps)
        losses = []
        for index in share(count):
            one, generator = slice(index, index + 1), torch.Generator().manual_seed(index)
            clip = as_floats(self.part(batch.clips[one], generator), self.device)
            beside = self._beside(clip, levels[one], generator)
            clean = self.codec.encode(clip)
            noise = torch.randn(clean.shape, generator=generator)
            told = batch.captions[one]
            losses.append(self._denoising(self.unet, clean, beside, levels[one], noise, timesteps[one], told))
        return gathered(torch.cat(losses), count)

    def _upscaled(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(small enlarged by repeating, bicubic, the network's, true) parts of the same held-out clips."""
        batch = self.data.batch(1, NUM_SHOWN, held_out=True)
        truth = as_floats(self._shown_part(batch.clips)).cpu()
        small = self._small(truth)
        size = (truth.shape[-2], truth.shape[-1])
        sharp = self.stage(
            small,
            states=(self.read(batch.captions), self.read([""] * NUM_SHOWN)),
            noise_level=self.shown_noise_level,
            generator=[torch.Generator().manual_seed(seed) for seed in range(NUM_SHOWN)],
        )
        return in_blocks(small, self.stage.config.scale), resize_clip(small, size), sharp, truth

    def _shown_part(self, clips: Tensor) -> Tensor:
        """What of held-out clips is shown."""
        return clips

    def _denoising(
        self,
        network: nn.Module,
        clean: Tensor,
        beside: Tensor,
        levels: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        captions: list[str],
    ) -> Tensor:
        text, dtype, device = self.read(captions), self.unet.dtype, self.device
        mask = None if text.mask is None else text.mask.to(device)
        start = (
            signal_left(self.stage.low_res_scheduler, levels) * beside if self.stage.config.predicts_change else None
        )

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            seen = channels_last(torch.cat([noisy, beside.to(noisy)], dim=1).to(dtype))
            answer = network(
                seen,
                timestep,
                text.states.to(device, dtype),
                class_labels=levels.to(device),
                encoder_attention_mask=mask,
            ).sample
            return answer if start is None else answer.float() + start.to(device)

        return self.objective.loss(predict, clean.to(device), noise=noise.to(device), timestep=timesteps.to(device))

    def _small(self, clips: Tensor) -> Tensor:
        scale = self.stage.config.scale
        return resize_clip(clips, (clips.shape[-2] // scale, clips.shape[-1] // scale))

    def _beside(self, clips: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
        """The clips made small, noised to ``levels`` and brought to the network's grid, as the stage does it."""
        how = self.stage.config
        low = augmented(
            self._small(clips),
            (clips.shape[-2], clips.shape[-1]),
            scheduler=self.stage.low_res_scheduler,
            levels=levels,
            draw=lambda shape: torch.randn(shape, generator=generator),
            upsampling=how.upsampling,
            noise_first=how.noise_before_upsampling,
        )
        return low if how.upsampling == "none" else self.codec.encode(low)


def cropped(clips: Tensor, side: int, corners: Tensor) -> Tensor:
    """A square of each clip, its corners [B, 2] being the first row and column."""
    return torch.stack(
        [clip[..., y : y + side, x : x + side] for clip, (y, x) in zip(clips, corners.tolist(), strict=True)]
    )
