"""The base: temporal layers learn motion on a frozen image network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoTokenizer, T5EncoderModel

from lumiere.codec import PixelBlocks
from lumiere.conditioning.text import T5Text, freeze
from lumiere.config import Settings
from lumiere.data.batches import StorybookBatches, StorybookSettings
from lumiere.diffusion.objective import Objective
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from lumiere.pipeline import LumierePipeline
from lumiere.training.loop import LoopSettings
from lumiere.training.noise import NoiseSettings, draw_noise, embedded_scheduler, even_timesteps
from lumiere.video import contact_sheet


class TextToVideoSettings(Settings):
    """A run of the stage."""

    stage: Literal["text_to_video"]
    out: str
    """Folder of the run."""
    image: str
    """Folder of the trained image network: unet, text_encoder, tokenizer."""
    loop: LoopSettings
    pixel_block_size: int = Field(default=2, ge=1)
    data: StorybookSettings = StorybookSettings()
    temporal: TemporalSettings = TemporalSettings(hears_time_and_text=True)
    noise: NoiseSettings = NoiseSettings(mean=1.0, std=1.2)
    """Eighty nearly equal frames hide less behind the same noise than stills, so clips are trained at more noise."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    num_validation_clips: int = Field(default=16, ge=1)
    default_steps: int = Field(default=16, ge=1)
    """What the exported pipeline does when it is not told otherwise."""
    default_guidance_scale: float = Field(default=3.0, ge=1)


class TextToVideo:
    """Trains the temporal layers of an inflated image network; everything pretrained stays frozen."""

    def __init__(self, settings: TextToVideoSettings) -> None:
        self.settings = settings
        image = Path(settings.image)
        for part in ("unet", "text_encoder", "tokenizer"):
            if not (image / part).is_dir():
                raise ValueError(f"{image} has no folder {part!r}; train text_to_image first, or set --image FOLDER")
        torch.manual_seed(settings.loop.seed)
        self.codec = PixelBlocks(settings.pixel_block_size)
        unet = UNet2DConditionModel.from_pretrained(image / "unet").to(memory_format=torch.channels_last)
        self.unet = STUNet.from_image_unet(unet, temporal=settings.temporal)
        self.unet.set_attn_processor(AttnProcessor())
        text_encoder = T5EncoderModel.from_pretrained(image / "text_encoder")
        freeze(text_encoder)
        tokenizer = AutoTokenizer.from_pretrained(image / "tokenizer")
        self.text = T5Text(tokenizer, text_encoder)
        self.scheduler = embedded_scheduler()
        self.pipeline = LumierePipeline(
            unet=self.unet,
            scheduler=self.scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            pixel_block_size=settings.pixel_block_size,
            num_frames=settings.data.num_frames,
            default_steps=settings.default_steps,
            default_guidance_scale=settings.default_guidance_scale,
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.objective = Objective.from_scheduler(self.scheduler)
        self.data = StorybookBatches(settings.data, seed=settings.loop.seed)
        self.network: nn.Module = torch.compile(self.unet) if settings.loop.compile else self.unet  # type: ignore[assignment]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the STUNet; only its temporal ones are trainable."""
        yield from self.unet.named_parameters()

    def losses(self, step: int, count: int) -> Tensor:
        """Denoising loss [B] of the step's clips."""
        settings = self.settings
        batch = self.data.batch(step, count)
        clean = self.codec.encode(batch.clips)
        noise, timesteps, luck = draw_noise(
            tuple(clean.shape), self.objective.num_timesteps, settings.noise, seed=settings.loop.seed, step=step
        )
        kept = (luck >= settings.caption_dropout).tolist()
        captions = [caption if keep else "" for caption, keep in zip(batch.captions, kept, strict=True)]
        return self.denoising(self.network, clean, noise, timesteps, captions)

    def denoising(
        self, network: nn.Module, clean: Tensor, noise: Tensor, timesteps: Tensor, captions: list[str]
    ) -> Tensor:
        """The loss [B] of ``network`` on clean clips in its own space, noised to ``timesteps``."""
        with torch.no_grad():
            text = self.text.encode(captions)

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            return network(noisy, timestep, text.states, encoder_attention_mask=text.mask).sample

        return self.objective.loss(predict, _channels_last(clean), noise=_channels_last(noise), timestep=timesteps)

    def validate(self) -> dict[str, float]:
        """The loss on held-out clips at evenly spread timesteps, in all and where noise is strongest."""
        count = self.settings.num_validation_clips
        batch = self.data.batch(0, count, held_out=True)
        timesteps = even_timesteps(count, self.objective.num_timesteps)
        generator = torch.Generator().manual_seed(1)
        losses = []
        for index in range(count):
            clean = self.codec.encode(batch.clips[index : index + 1])
            noise = torch.randn(clean.shape, generator=generator)
            one = slice(index, index + 1)
            losses.append(self.denoising(self.unet, clean, noise, timesteps[one], batch.captions[one]))
        values = torch.cat(losses)
        return {"loss": float(values.mean()), "loss_noisy_half": float(values[count // 2 :].mean())}

    def show(self, folder: Path) -> None:
        """A sheet of four held-out captions, a row each: every fifth frame."""
        captions = self.data.batch(0, 4, held_out=True).captions
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(captions))]
        clips = [
            self.pipeline(caption, generator=generator, output_type="pt").frames * 2 - 1
            for caption, generator in zip(captions, generators, strict=True)
        ]
        rows = torch.cat([clip[0, ::5].transpose(0, 1) for clip in clips], dim=1)
        folder.mkdir(parents=True, exist_ok=True)
        sheet = contact_sheet(rows, columns=rows.shape[1] // len(clips), scale=3)
        Image.fromarray(sheet).save(folder / "clips.png")
        (folder / "captions.txt").write_text("\n".join(captions) + "\n")

    def export(self, folder: Path) -> None:
        """The whole pipeline as a diffusers folder, in bfloat16."""
        copy.deepcopy(self.pipeline).to(torch.bfloat16).save_pretrained(folder)


def _channels_last(clip: Tensor) -> Tensor:
    """The same clip [B, C, T, H, W], channels last in memory, where folding time is free."""
    return clip.contiguous(memory_format=torch.channels_last_3d)
