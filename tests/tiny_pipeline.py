"""A whole pipeline with tiny random weights, of the embedded default's shape."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler

from lumiere.conditioning.text import freeze, small_t5, word_tokenizer
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from lumiere.pipeline import LumierePipeline
from tests.tiny_unets import embedded

WORDS = ("a", "red", "blue", "ball", "star", "bouncing", "spinning", "slowly", "on", "beach", "the")


def tiny_pipeline(**settings: Any) -> LumierePipeline:
    """Clips of 8 frames of 16x16 pixels on 2x2 blocks, time halved twice; every layer has something to say."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = embedded()
        # The grid of 16 that the tiny image networks come with is more than these tests need.
        unet.register_to_config(sample_size=8)
        stunet = STUNet.from_image_unet(unet, temporal=TemporalSettings(hears_time_and_text=True))
        for weight in stunet.temporal_parameters():
            torch.nn.init.normal_(weight, std=0.1)
        tokenizer = word_tokenizer(WORDS, max_length=8)
        text_encoder = small_t5(len(tokenizer), width=12, num_layers=1, num_heads=2)
    freeze(text_encoder)
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=True,
    )
    defaults: dict[str, Any] = {"pixel_block_size": 2, "num_frames": 8, "default_steps": 4}
    pipeline = LumierePipeline(stunet.eval(), scheduler, text_encoder, tokenizer, **{**defaults, **settings})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
