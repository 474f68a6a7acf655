"""A super-resolution stage: first its image network on crops of stills, then its temporal layers on short windows."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from lumiere.codec import PixelBlocks
from lumiere.conditioning.text import freeze, text_encoder_for
from lumiere.config import Settings
from lumiere.data.batches import StorybookBatches, StorybookSettings
from lumiere.device import choose_placement
from lumiere.diffusion.objective import Objective
from lumiere.diffusion.schedulers import named_scheduler
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from lumiere.pipeline import LumierePipeline
from lumiere.super_resolution import SuperResolutionStage, augmented, low_res_schedule, signal_left
from lumiere.training.loop import LoopSettings
from lumiere.training.noise import NoiseSettings, draw_noise, embedded_scheduler, even_timesteps
from lumiere.video import channels_last, contact_sheet, in_blocks, psnr_db, resize_clip

NUM_SHOWN = 4


class SuperResolutionNetworkSettings(Settings):
    """The image U-Net of a stage, on blocks of pixels; text is attended to at the coarsest level only."""

    pixel_block_size: int = Field(default=4, ge=1)
    channels: tuple[int, ...] = (64, 96, 128)
    layers_per_block: int = Field(default=1, ge=1)
    num_heads: int = Field(default=4, ge=1)


class SuperResolutionSettings(Settings):
    """A run of the stage: stills (``data.num_frames`` 1) train the image network, clips the temporal layers."""

    stage: Literal["super_resolution"]
    out: str
    """Folder of the run."""
    base: str | None = None
    """Pipeline folder whose text encoder the network hears, frozen; null is the one inside the package."""
    start_from: str | None = None
    """Folder of a trained stage to go on with; null for new random weights (stills only)."""
    loop: LoopSettings
    scale: int = Field(default=4, ge=1)
    """How many times wider the clip becomes."""
    data: StorybookSettings = StorybookSettings(size=128, num_frames=1)
    crop: int | None = Field(default=64, ge=8)
    """Side in pixels of the random crops that are trained on; null: whole pictures."""
    network: SuperResolutionNetworkSettings = SuperResolutionNetworkSettings()
    temporal: TemporalSettings = TemporalSettings(halve_time=(True, False), hears_time_and_text=True)
    noise: NoiseSettings = NoiseSettings(mean=0.0, std=1.2)
    max_noise_level: int = Field(default=300, ge=0, lt=1000)
    """The small clip is noised to levels drawn evenly from 0 to this."""
    no_clip_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the clips of which the small one is nothing but noise."""
    predicts_change: bool = True
    """Whether a new network says how the large clip differs from the small one's enlargement, or what noise hides."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    num_validation_clips: int = Field(default=16, ge=1)
    window_frames: int = Field(default=16, ge=1)
    window_frames_overlap: int = Field(default=4, ge=0)
    """What the exported stage does when it is not told otherwise."""
    default_noise_level: int = Field(default=100, ge=0, lt=1000)
    default_steps: int = Field(default=6, ge=1)
    default_sampler: str = "ddim"


class SuperResolutionTraining:
    """Trains the image network or the temporal layers of a stage on storybook pictures and their small versions."""

    def __init__(self, settings: SuperResolutionSettings) -> None:
        self.settings = settings
        loop = settings.loop
        self.is_image = settings.data.num_frames == 1
        torch.manual_seed(loop.seed)
        base = LumierePipeline.from_pretrained(settings.base)
        freeze(base.text_encoder)
        self.stage = _new_stage(settings, base) if settings.start_from is None else _told(settings)
        self.stage.set_progress_bar_config(disable=True)
        self.unet, self.codec = self.stage.unet, self.stage.codec
        (self.unet.freeze_temporal if self.is_image else self.unet.freeze_image)()
        for name, weight in self.unet.named_parameters():
            # Added to the time embedding's bias, so one of the two is enough; and the C++ that torch 2.13 compiles
            # for two sums that are the same (their gradients) is not valid.
            if name == "class_embedding.linear_2.bias":
                weight.requires_grad_(False)
        self._check_sizes()
        self.device = choose_placement(loop.device).device
        self.stage.to(self.device)
        base.text_encoder.to(self.device)
        if loop.bf16_weights:
            self.unet.to(torch.bfloat16)
        self.unet.to(memory_format=torch.channels_last)
        self.text = text_encoder_for(base.tokenizer, base.text_encoder)
        self.objective = Objective.from_scheduler(self.stage.scheduler)
        self.data = StorybookBatches(settings.data, seed=loop.seed, device=self.device)
        self.network: nn.Module = torch.compile(self.unet) if loop.compile else self.unet  # type: ignore[assignment]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the U-Net; only the trainable ones are trained."""
        yield from self.unet.named_parameters()

    def shardable(self) -> STUNet:
        """The U-Net."""
        return self.unet

    def put(self, network: STUNet) -> None:
        """Use another U-Net of the same kind from now on."""
        self.stage.register_modules(unet=network)
        self.unet = self.network = network

    def losses(self, position: int, count: int) -> Tensor:
        """Denoising loss [B] of a position's crops."""
        settings, seed = self.settings, self.settings.loop.seed
        batch = self.data.batch(position, count)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + position * 2 + 2_000_000_011)
        clips = self._cropped(batch.clips, generator)
        levels = torch.randint(settings.max_noise_level + 1, (count,), generator=generator)
        is_nothing = torch.rand(count, generator=generator) < settings.no_clip_share
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
        """The loss on held-out pictures at evenly spread timesteps, and how much nearer to the truth than bicubic."""
        count = self.settings.num_validation_clips
        batch = self.data.batch(0, count, held_out=True)
        generator = torch.Generator().manual_seed(1)
        clips = self._cropped(batch.clips, generator)
        levels = torch.linspace(0, self.settings.max_noise_level, count).long()
        beside = self._beside(clips, levels, generator)
        clean = self.codec.encode(clips)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = even_timesteps(count, self.objective.num_timesteps)
        losses = [
            self._denoising(
                self.unet, clean[one], beside[one], levels[one], noise[one], timesteps[one], batch.captions[one]
            )
            for one in (slice(index, index + 1) for index in range(count))
        ]
        _, bicubic, sharp, truth = self._upscaled()
        gain = psnr_db(sharp, truth) - psnr_db(bicubic, truth)
        return {"loss": float(torch.cat(losses).mean()), "psnr_over_bicubic_db": float(gain.mean())}

    def show(self, folder: Path) -> None:
        """A sheet: for each held-out picture the small one, bicubic, the network's and the true one, side by side."""
        kinds = self._upscaled()
        frames = torch.cat([kind[:, :, ::4] for kind in kinds], dim=-1)
        folder.mkdir(parents=True, exist_ok=True)
        rows = torch.cat(list(frames), dim=1)
        Image.fromarray(contact_sheet(rows, columns=1 if self.is_image else 2)).save(folder / "upscaled.png")

    def export(self, folder: Path) -> None:
        """The stage as a diffusers folder; in full precision between its parts, in bfloat16 after the last."""
        if self.is_image:
            self.stage.save_pretrained(folder)
        else:
            copy.deepcopy(self.stage).to(torch.bfloat16).save_pretrained(folder)

    def _upscaled(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(small enlarged by repeating, bicubic, the network's, true) clips of the same held-out captions."""
        batch = self.data.batch(1, NUM_SHOWN, held_out=True)
        truth = batch.clips.cpu()
        small = self._small(truth)
        size = (truth.shape[-2], truth.shape[-1])
        sharp = self.stage(
            small,
            states=(self.text.encode(batch.captions), self.text.encode([""] * NUM_SHOWN)),
            noise_level=0,
            generator=[torch.Generator().manual_seed(seed) for seed in range(NUM_SHOWN)],
        )
        return in_blocks(small, self.settings.scale), resize_clip(small, size), sharp, truth

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
        text, dtype, device = self.text.encode(captions), self.unet.dtype, self.device
        start = (
            signal_left(self.stage.low_res_scheduler, levels) * beside if self.stage.config.predicts_change else None
        )

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            seen = channels_last(torch.cat([noisy, beside.to(noisy)], dim=1).to(dtype))
            answer = network(
                seen,
                timestep,
                text.states.to(dtype),
                class_labels=levels.to(device),
                encoder_attention_mask=text.mask,
            ).sample
            return answer if start is None else answer.float() + start.to(device)

        return self.objective.loss(predict, clean.to(device), noise=noise.to(device), timestep=timesteps.to(device))

    def _small(self, clips: Tensor) -> Tensor:
        scale = self.settings.scale
        return resize_clip(clips, (clips.shape[-2] // scale, clips.shape[-1] // scale))

    def _beside(self, clips: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
        """The clips made small, noised to ``levels`` and enlarged again, in the network's space."""
        low = augmented(
            self._small(clips),
            (clips.shape[-2], clips.shape[-1]),
            scheduler=self.stage.low_res_scheduler,
            levels=levels,
            draw=lambda shape: torch.randn(shape, generator=generator),
        )
        return self.codec.encode(low)

    def _cropped(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """A random square of each clip, on the small picture's grid."""
        crop, scale = self.settings.crop, self.settings.scale
        if crop is None:
            return clips
        spare = (self.settings.data.size - crop) // scale + 1
        corners = torch.randint(spare, (len(clips), 2), generator=generator) * scale
        return torch.stack(
            [clip[..., y : y + crop, x : x + crop] for clip, (y, x) in zip(clips, corners.tolist(), strict=True)]
        )

    def _check_sizes(self) -> None:
        """Refuse crops and clips that cannot be made small, or that the network cannot halve."""
        settings = self.settings
        step = self.unet.spatial_factor * self.codec.spatial_factor
        for name, size in (("data.size", settings.data.size), ("crop", settings.crop or settings.data.size)):
            if size % step or size % settings.scale or size > settings.data.size:
                raise ValueError(
                    f"{name} is {size}; it must be a multiple of {step} (the network's) and of {settings.scale}"
                    f" (the scale), and no larger than data.size ({settings.data.size})"
                )
        if not self.is_image and settings.start_from is None:
            raise ValueError("temporal layers are trained on a trained image network: set start_from (its folder)")


def _new_stage(settings: SuperResolutionSettings, base: LumierePipeline) -> SuperResolutionStage:
    """A stage with random image weights, and temporal layers that do nothing yet."""
    network = settings.network
    codec, deeper = PixelBlocks(network.pixel_block_size), len(network.channels) - 1
    unet = UNet2DConditionModel(
        sample_size=settings.data.size // codec.spatial_factor,
        in_channels=2 * codec.channels,
        out_channels=codec.channels,
        block_out_channels=network.channels,
        layers_per_block=network.layers_per_block,
        down_block_types=("DownBlock2D",) * deeper + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * deeper,
        cross_attention_dim=base.text_encoder.config.d_model,
        attention_head_dim=network.num_heads,
        norm_num_groups=math.gcd(32, *network.channels),
        class_embed_type="timestep",
        resnet_time_scale_shift="scale_shift",
    )
    if settings.predicts_change:
        # It begins with the enlargement as it is.
        for weight in unet.conv_out.parameters():
            nn.init.zeros_(weight)
    return SuperResolutionStage(
        unet=STUNet.from_image_unet(unet, temporal=settings.temporal),
        scheduler=named_scheduler(
            settings.default_sampler, embedded_scheduler("sample" if settings.predicts_change else "v_prediction")
        ),
        low_res_scheduler=low_res_schedule(),
        predicts_change=settings.predicts_change,
        scale=settings.scale,
        pixel_block_size=network.pixel_block_size,
        **_defaults(settings),
    )


def _told(settings: SuperResolutionSettings) -> SuperResolutionStage:
    """The trained stage to go on with, with the settings of this run."""
    stage = SuperResolutionStage.from_folder(str(settings.start_from))
    stage.register_to_config(**_defaults(settings))
    return stage


def _defaults(settings: SuperResolutionSettings) -> dict[str, Any]:
    """What the stage does when it is not told otherwise."""
    return {
        "noise_level": settings.default_noise_level,
        "window_frames": settings.window_frames,
        "window_frames_overlap": settings.window_frames_overlap,
        "default_steps": settings.default_steps,
    }
