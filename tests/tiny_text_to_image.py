"""Tiny random text-to-image models of every family that can be inflated whole, as diffusers folders, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny_text import clip_text, t5_encoder, t5_tokenizer
from tests.tiny_unets import _build, deepfloyd_1, deepfloyd_2, upscaler


def stable_diffusion(folder: Path) -> Path:
    """Stable Diffusion 1.x: CLIP, latents, predicted noise."""
    unet = _build(2, **_LEVELS, in_channels=4, out_channels=4, cross_attention_dim=12, attention_head_dim=2)
    return _saved(
        StableDiffusionPipeline(
            unet=unet,
            vae=vae(),
            **_clip(folder, CLIPTextModel, 12),
            scheduler=noise_schedule("epsilon"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
        folder,
    )


def stable_diffusion_2(folder: Path) -> Path:
    """Stable Diffusion 2.x: linear projections, predicted v."""
    unet = _build(
        2,
        **_LEVELS,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=12,
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
    )
    return _saved(
        StableDiffusionPipeline(
            unet=unet,
            vae=vae(),
            **_clip(folder, CLIPTextModel, 12),
            scheduler=noise_schedule("v_prediction"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
        folder,
    )


def stable_diffusion_xl(folder: Path) -> Path:
    """SDXL: two encoders, pooled state, sizes."""
    unet = _build(
        2,
        down=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        in_channels=4,
        out_channels=4,
        cross_attention_dim=12 + 20,
        attention_head_dim=2,
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 + 6 * 4,
    )
    return _saved(
        StableDiffusionXLPipeline(
            unet=unet,
            vae=vae(force_upcast=True),
            **_clip(folder, CLIPTextModel, 12),
            **_clip(folder, CLIPTextModelWithProjection, 20, suffix="_2"),
            scheduler=noise_schedule("epsilon"),
            add_watermarker=False,
        ),
        folder,
    )


def deepfloyd(folder: Path) -> Path:
    """DeepFloyd IF I: T5, pixels, learned variance."""
    return _saved(
        IFPipeline(
            unet=deepfloyd_1(),
            **_t5(folder),
            scheduler=DDPMScheduler(
                # DeepFloyd's own (squaredcos_cap_v2) multiplies rounding by 20,000 at its noisiest timestep.
                beta_schedule="linear",
                variance_type="learned_range",
                thresholding=True,
                sample_max_value=1.5,
            ),
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
        ),
        folder,
    )


def deepfloyd_second(folder: Path) -> Path:
    """DeepFloyd IF II."""
    return _saved(
        IFSuperResolutionPipeline(
            unet=deepfloyd_2(),
            **_t5(folder),
            scheduler=DDPMScheduler(variance_type="learned_range", clip_sample=False, thresholding=True),
            image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
        ),
        folder,
    )


def upscaler_x4(folder: Path) -> Path:
    """The Stable Diffusion x4 upscaler: CLIP, latents beside the small picture, predicted v."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.08333,
        )
    text = _clip(folder, CLIPTextModel, 16)
    return _saved(
        StableDiffusionUpscalePipeline(
            vae=vae,
            **text,
            unet=upscaler(width=16),
            low_res_scheduler=DDPMScheduler(beta_schedule="scaled_linear", num_train_timesteps=1000),
            scheduler=DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False),
            max_noise_level=9,
        ),
        folder,
    )


MODELS = {
    "sd1": stable_diffusion,
    "sd2": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
    "if1": deepfloyd,
}

_LEVELS: dict[str, Any] = {
    "down": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}


def vae(**settings: Any) -> AutoencoderKL:
    """A VAE of two levels: latents of 4 channels, half as wide as the picture."""
    return _seeded(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            block_out_channels=(4, 8),
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.5,
            **settings,
        )
    ).eval()


def noise_schedule(prediction: str) -> DDIMScheduler:
    """Stable Diffusion's, with a sampler that draws no noise of its own."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
        timestep_spacing="leading",
    )


def _clip(folder: Path, kind: type, width: int, *, suffix: str = "") -> dict[str, Any]:
    text = clip_text(_beside(folder), kind, width=width, num_layers=3)
    return {f"tokenizer{suffix}": text.tokenizer, f"text_encoder{suffix}": text.text_encoder}


def _t5(folder: Path) -> dict[str, Any]:
    tokenizer = t5_tokenizer(_beside(folder))
    return {"tokenizer": tokenizer, "text_encoder": t5_encoder(len(tokenizer), width=10)}


def _beside(folder: Path) -> Path:
    place = folder.parent / f"{folder.name}-text"
    place.mkdir(parents=True, exist_ok=True)
    return place


def _seeded(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make()


def _saved(pipeline: DiffusionPipeline, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    return folder
