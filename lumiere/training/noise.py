"""The noise of training: drawn from (seed, step) alone, so that a resumed run draws the same."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler
from pydantic import Field
from torch import Tensor

from lumiere.config import Settings
from lumiere.diffusion.objective import draw_timesteps

NUM_LEVELS = 4
"""Ranges of noise that held-out losses are told of."""


class NoiseSettings(Settings):
    """Where in the schedule training looks: logit-normal, a mean above 0 looks at noisier clips."""

    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)


def embedded_scheduler(prediction_type: str = "v_prediction") -> DDIMScheduler:
    """The schedule of our own networks: cosine, v-prediction, zero terminal SNR, trailing timesteps.

    Source: Lin et al., arXiv 2305.08891.
    """
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=True,
    )


def draw_noise(
    shape: tuple[int, ...], num_timesteps: int, settings: NoiseSettings, *, seed: int, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(noise, timesteps [B], uniform draws [B] for caption dropout) of a step."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step * 2 + 1_000_000_007)
    noise = torch.randn(shape, generator=generator)
    timesteps = draw_timesteps(shape[0], num_timesteps, mean=settings.mean, std=settings.std, generator=generator)
    return noise, timesteps, torch.rand(shape[0], generator=generator)


def even_timesteps(count: int, num_timesteps: int) -> Tensor:
    """``count`` timesteps spread evenly over the schedule, for held-out losses."""
    return ((torch.arange(count) + 0.5) / count * num_timesteps).long()


def by_noise_level(losses: Tensor) -> dict[str, float]:
    """The mean of held-out losses [B] at ``even_timesteps``, and of those in each quarter of the schedule.

    ``loss_noise_25_50`` is the second quarter, in percent; of fewer than four losses each stands for itself. A clip has
    one level, so quarters are of different clips: compare each with itself over time.
    """
    losses = losses.detach()
    parts = losses.tensor_split(min(NUM_LEVELS, len(losses)))
    means = {
        f"loss_noise_{100 * place // len(parts):02d}_{100 * (place + 1) // len(parts)}": float(part.mean())
        for place, part in enumerate(parts)
    }
    return {"loss": float(losses.mean())} | means


def noise_shares(count: int, doubt: float, *, seed: int, step: int) -> Tensor:
    """What share of the noise that the network is told there is each of ``count`` examples of a step holds, [B].

    All of it in half of them, and in the others noise of up to ``doubt`` times less power, evenly over its logarithm.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step * 2 + 2_000_000_011)
    doubts, powers = torch.rand(2, count, generator=generator)
    return torch.where(doubts < 0.5, doubt ** (-powers / 2), 1.0)
