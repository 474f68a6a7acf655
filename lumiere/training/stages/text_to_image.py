"""The image network: text in, a still out; its text encoder learns with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from transformers import T5EncoderModel

from lumiere.codec import PixelBlocks
from lumiere.conditioning.text import T5Text, freeze, mean_state, small_t5, word_tokenizer
from lumiere.config import Settings
from lumiere.data.batches import FACT_SIZES, Batch, StorybookBatches, StorybookSettings, scene_facts
from lumiere.data.captions import vocabulary
from lumiere.device import choose_placement
from lumiere.diffusion.objective import Objective
from lumiere.model.stunet import STUNet
from lumiere.pipeline import LumierePipeline
from lumiere.training.loop import LoopSettings, compiled
from lumiere.training.noise import (
    NoiseSettings,
    draw_noise,
    embedded_scheduler,
    even_timesteps,
    noise_shares,
    with_source,
)
from lumiere.video import contact_sheet


class ImageNetworkSettings(Settings):
    """The image U-Net, of Stable Diffusion's family, on blocks of pixels."""

    pixel_block_size: int = Field(default=2, ge=1)
    channels: tuple[int, ...] = (96, 128, 192)
    layers_per_block: int = Field(default=1, ge=1)
    num_heads: int = Field(default=4, ge=1)
    text_width: int = Field(default=128, ge=8)
    text_layers: int = Field(default=2, ge=1)
    text_length: int = Field(default=24, ge=2)
    """Words of a caption, with its end mark."""


class TextToImageSettings(Settings):
    """A run of the stage."""

    stage: Literal["text_to_image"]
    out: str
    """Folder of the run."""
    start_from: str | None = None
    """Folder of a pipeline, or of an exported run of this stage, whose image network and text encoder training starts
    from; none: random weights."""
    loop: LoopSettings
    data: StorybookSettings = StorybookSettings(num_frames=1)
    network: ImageNetworkSettings = ImageNetworkSettings()
    noise: NoiseSettings = NoiseSettings()
    doubt: float = Field(default=1.0, ge=1)
    """``doubt_share`` of the stills hold noise of up to so many times less power than the network is told: then it
    looks for itself, and a clip's temporal layers have something to gain from bringing frames together. 1: never."""
    doubt_share: float = Field(default=0.5, ge=0, le=1)
    other_colour_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the stills that are noised with their object in another colour than the caption's, as when a clip is
    recoloured; half of their captions then name the object and its colour alone."""
    train_text: bool = True
    """Train the text encoder, too. False for an image network that goes on inside a base: what else learned from these
    text states (words of given parts, styles) then still fits."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    caption_fact_weight: float = Field(default=0.05, ge=0)
    """Weight of a loss that keeps every fact of a caption readable from its mean text state, motion words too, which
    a still cannot teach; 0 leaves it out."""
    sample_steps: int = Field(default=20, ge=1)
    """Denoising steps of the stills that a run shows."""


def make_image_network(settings: ImageNetworkSettings, *, size: int) -> UNet2DConditionModel:
    """A random image network for pictures of ``size`` pixels."""
    codec = PixelBlocks(settings.pixel_block_size)
    deeper = len(settings.channels) - 1
    return UNet2DConditionModel(
        sample_size=size // codec.spatial_factor,
        in_channels=codec.channels,
        out_channels=codec.channels,
        block_out_channels=settings.channels,
        layers_per_block=settings.layers_per_block,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        cross_attention_dim=settings.text_width,
        attention_head_dim=settings.num_heads,
        # The pooled caption joins the time embedding, as in DeepFloyd IF, so that every layer hears it, not only the
        # coarse ones with cross-attention: without it colours came soon and outlines hardly (LOG.md, 2026-11-21).
        addition_embed_type="text",
        addition_embed_type_num_heads=settings.num_heads,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=16,
    )


def _trained(folder: Path) -> tuple[nn.Module, nn.Module]:
    """The image network and the text encoder in the folder of a pipeline or of an exported run of this stage."""
    if (folder / "unet").is_dir() and not (folder / "model_index.json").exists():
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
        return unet, T5EncoderModel.from_pretrained(folder / "text_encoder", local_files_only=True)
    pipeline = LumierePipeline.from_pretrained(folder)
    return pipeline.unet, pipeline.text_encoder


def take_image_network(folder: Path, unet: nn.Module, text_encoder: nn.Module) -> None:
    """Give networks the image weights and the text encoder of an exported run or a pipeline; temporal layers stay.

    Raises ValueError where those are of other networks, before anything is changed.
    """
    networks = {"image network": unet, "text encoder": text_encoder}
    weights = [_without_temporal(trained.state_dict()) for trained in _trained(folder)]
    for (what, network), new in zip(networks.items(), weights, strict=True):
        own = _without_temporal(network.state_dict())
        differing = [
            name
            for name in own.keys() | new
            if getattr(own.get(name), "shape", None) != getattr(new.get(name), "shape", None)
        ]
        if differing:
            raise ValueError(
                f"{folder} holds another {what} than the recipe's ({len(differing)} weights differ, the first is"
                f" {min(differing)}); give one of the same kind, or the recipe its `network` settings"
            )
    for network, new in zip(networks.values(), weights, strict=True):
        network.load_state_dict(network.state_dict() | new)


def _without_temporal(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight for name, weight in weights.items() if not name.startswith("temporal.")}


class TextToImage:
    """Trains the image network and its text encoder on single storybook pictures."""

    def __init__(self, settings: TextToImageSettings) -> None:
        if settings.caption_fact_weight and not settings.train_text:
            raise ValueError("caption_fact_weight trains the text encoder, and train_text is false; set it to 0")
        if settings.caption_fact_weight and (settings.data.empty_share or settings.data.terse_share):
            raise ValueError(
                "caption_fact_weight keeps facts readable that captions of data.empty_share and data.terse_share do not"
                " state; set it, or these two, to 0"
            )
        self.settings = settings
        torch.manual_seed(settings.loop.seed)
        network = settings.network
        self.codec = PixelBlocks(network.pixel_block_size)
        self.unet = make_image_network(network, size=settings.data.size).to(memory_format=torch.channels_last)
        self.device = choose_placement(settings.loop.device).device
        if self.device.type == "cpu":
            # Plain attention beats the fused kernel at a few hundred keys.
            self.unet.set_attn_processor(AttnProcessor())
        if settings.loop.number_format == "bfloat16":
            self.unet.to(torch.bfloat16)
        self.tokenizer = word_tokenizer(vocabulary(), max_length=network.text_length)
        self.text = T5Text(
            self.tokenizer, small_t5(len(self.tokenizer), width=network.text_width, num_layers=network.text_layers)
        )
        if settings.start_from:
            take_image_network(Path(settings.start_from), self.unet, self.text.text_encoder)
        if not settings.train_text:
            freeze(self.text.text_encoder)
        self.fact_readers = nn.ModuleDict({name: nn.Linear(network.text_width, n) for name, n in FACT_SIZES.items()})
        for network_part in (self.unet, self.text.text_encoder, self.fact_readers):
            network_part.to(self.device)
        self.scheduler = embedded_scheduler()
        self.objective = Objective.from_scheduler(self.scheduler)
        self.data = StorybookBatches(settings.data, seed=settings.loop.seed, device=self.device)
        self.network: nn.Module = compiled(self.unet, settings.loop.compile)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the image network, the text encoder and the readers of facts."""
        modules = {"unet": self.unet, "text_encoder": self.text.text_encoder, "facts": self.fact_readers}
        for part, module in modules.items():
            for name, parameter in module.named_parameters():
                yield f"{part}.{name}", parameter

    def shardable(self) -> None:
        """None: the text encoder and the readers of facts are trained, too."""

    def put(self, network: STUNet) -> None:
        """Not used: nothing is sharded."""
        raise AssertionError(network)

    def losses(self, position: int, count: int) -> Tensor:
        """Denoising loss [B], plus how badly the facts are read from the text."""
        settings = self.settings
        batch = self.data.batch(position, count)
        clean = self.codec.encode(batch.clips).squeeze(2)
        noise, timesteps, luck = draw_noise(
            tuple(clean.shape), self.objective.num_timesteps, settings.noise, seed=settings.loop.seed, step=position
        )
        kept = luck >= settings.caption_dropout
        captions, place = batch.captions, {"seed": settings.loop.seed, "step": position}
        # The target of less noise is the one from which a sampler that believes the timestep finds the clean picture.
        noise = noise * noise_shares(count, settings.doubt, settings.doubt_share, **place).view(-1, 1, 1, 1)
        if settings.other_colour_share:
            clips, captions = self.data.in_other_colours(batch, settings.other_colour_share, position)
            source = self.codec.encode(clips).squeeze(2)
            noise = with_source(noise.to(clean), clean, source, timesteps, self.objective, **place)
        text = self.text.encode([c if keep else "" for c, keep in zip(captions, kept.tolist(), strict=True)])
        losses = self._denoising(self.network, clean, noise, timesteps, text.states, text.mask)
        if settings.caption_fact_weight:
            misread = self._misread(batch, mean_state(text)) * kept.to(self.device)
            losses = losses + settings.caption_fact_weight * misread
        return losses

    def _denoising(
        self, network: nn.Module, clean: Tensor, noise: Tensor, timesteps: Tensor, states: Tensor, mask: Tensor | None
    ) -> Tensor:
        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            noisy = noisy.to(self.unet.dtype, memory_format=torch.channels_last)
            return network(noisy, timestep, states.to(self.unet.dtype), encoder_attention_mask=mask).sample

        clean, noise, timesteps = clean.to(self.device), noise.to(self.device), timesteps.to(self.device)
        return self.objective.loss(predict, clean, noise=noise, timestep=timesteps)

    def _misread(self, batch: Batch, states: Tensor) -> Tensor:
        """The cross-entropy [B] of the caption's facts read from the mean text state."""
        facts = {name: values.to(self.device) for name, values in scene_facts(batch.scenes).items()}
        errors = [F.cross_entropy(self.fact_readers[n](states), facts[n], reduction="none") for n in facts]
        return torch.stack(errors).sum(0)

    def validate(self) -> dict[str, float]:
        """The loss on held-out stills at evenly spread timesteps."""
        batch = self.data.batch(0, 64, held_out=True)
        clean = self.codec.encode(batch.clips).squeeze(2)
        timesteps = even_timesteps(len(clean), self.objective.num_timesteps)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
        text = self.text.encode(batch.captions)
        losses = self._denoising(self.unet, clean, noise, timesteps, text.states, text.mask)
        found = {"loss": float(losses.mean())}
        if self.settings.caption_fact_weight:  # Else nothing has taught the readers.
            found["facts"] = float(self._misread(batch, mean_state(text)).mean())
        return found

    def show(self, folder: Path) -> None:
        """A sheet of stills for held-out captions, drawn as clips of one frame."""
        captions = self.data.batch(0, 32, held_out=True).captions
        output: Any = self._pipeline()(captions, output_type="pt")
        stills = output.frames * 2 - 1
        folder.mkdir(parents=True, exist_ok=True)
        sheet = contact_sheet(stills[:, 0].transpose(0, 1), columns=16, scale=3)
        Image.fromarray(sheet).save(folder / "stills.png")
        (folder / "captions.txt").write_text("\n".join(captions) + "\n")

    def _pipeline(self) -> LumierePipeline:
        """The image network as a pipeline for clips of one frame; it shares the weights."""
        pipeline = LumierePipeline(
            unet=STUNet.from_image_unet(self.unet),
            scheduler=self.scheduler,
            text_encoder=self.text.text_encoder,
            tokenizer=self.tokenizer,
            pixel_block_size=self.codec.size,
            num_frames=1,
            default_steps=self.settings.sample_steps,
            default_guidance_scale=2.0,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def export(self, folder: Path) -> None:
        """Image network, text encoder, tokenizer and scheduler as diffusers folders."""
        self.unet.save_pretrained(folder / "unet")
        self.text.text_encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.scheduler.save_pretrained(folder / "scheduler")
