"""Tiny random text-to-image models of every family that can be inflated whole, as diffusers folders, for tests."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    IFPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.tiny_unets import _build, deepfloyd_1

TEXT = ("a red ball bounces slowly on the beach", "a blue star spins in the night", "A green tree slides left")


def stable_diffusion(folder: Path) -> Path:
    """Stable Diffusion 1.x: CLIP, latents, predicted noise."""
    unet = _build(2, **_LEVELS, in_channels=4, out_channels=4, cross_attention_dim=12, attention_head_dim=2)
    return _saved(
        StableDiffusionPipeline(
            unet=unet,
            vae=vae(),
            text_encoder=clip(CLIPTextModel, 12),
            tokenizer=clip_tokenizer(folder),
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
            text_encoder=clip(CLIPTextModel, 12),
            tokenizer=clip_tokenizer(folder),
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
        projection_class_embeddings_input_dim=10 + 6 * 4,
    )
    return _saved(
        StableDiffusionXLPipeline(
            unet=unet,
            vae=vae(force_upcast=True),
            text_encoder=clip(CLIPTextModel, 12),
            text_encoder_2=clip(CLIPTextModelWithProjection, 20, projection_dim=10),
            tokenizer=clip_tokenizer(folder),
            tokenizer_2=clip_tokenizer(folder),
            scheduler=noise_schedule("epsilon"),
            add_watermarker=False,
        ),
        folder,
    )


def deepfloyd(folder: Path) -> Path:
    """DeepFloyd IF I: T5, pixels, learned variance."""
    tokenizer = t5_tokenizer(folder)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=10,
        d_kv=5,
        d_ff=20,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return _saved(
        IFPipeline(
            unet=deepfloyd_1(),
            text_encoder=_seeded(lambda: T5EncoderModel(config)),
            tokenizer=tokenizer,
            scheduler=DDPMScheduler(
                beta_schedule="squaredcos_cap_v2",
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


def clip(kind: type, width: int, **settings: Any) -> Any:
    """A CLIP text encoder with states of ``width``."""
    config = CLIPTextConfig(
        vocab_size=len(_clip_vocabulary()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=len(_clip_vocabulary()) - 2,
        eos_token_id=len(_clip_vocabulary()) - 1,
        **settings,
    )
    return _seeded(lambda: kind(config)).eval()


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer of single letters."""
    place = folder.parent / f"{folder.name}-clip"
    place.mkdir(parents=True, exist_ok=True)
    (place / "vocab.json").write_text(json.dumps(_clip_vocabulary()))
    (place / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(place, model_max_length=16)


def t5_tokenizer(folder: Path) -> T5Tokenizer:
    """A T5 tokenizer from a spiece.model, as DeepFloyd IF's folders have it."""
    place = folder.parent / f"{folder.name}-t5"
    place.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in TEXT] * 10),
        model_writer=model,
        vocab_size=30,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (place / "spiece.model").write_bytes(model.getvalue())
    return T5Tokenizer.from_pretrained(place, extra_ids=0)


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


def _clip_vocabulary() -> dict[str, int]:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}


def _seeded(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make()


def _saved(pipeline: DiffusionPipeline, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    return folder
