"""The noise of training: drawn from (seed, step) alone, so that a resumed run draws the same."""

from __future__ import annotations

from typing import Annotated

import torch
from diffusers import DDIMScheduler
from pydantic import AfterValidator, Field
from torch import Tensor

from lumiere.config import Settings
from lumiere.diffusion.objective import Objective, draw_timesteps
from lumiere.diffusion.sample import check_polish

WHOLE_SOURCE = 0.6
"""Noise over signal from which on a noised source of an edit may be there as a whole: edits start there or above."""
NUM_LEVELS = 4
"""Ranges of noise that held-out losses are told of."""


def _checked_polish(places: tuple[float, ...]) -> tuple[float, ...]:
    check_polish(places)
    return places


Polish = Annotated[tuple[float, ...], AfterValidator(_checked_polish)]
"""Places in the noise schedule at which an exported network looks at a finished clip again."""


class NoiseSettings(Settings):
    """Where in the schedule training looks: logit-normal, a mean above 0 looks at noisier clips."""

    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    even_share: float = Field(default=0.0, ge=0, le=1)
    """Share of examples whose place is anywhere in the schedule instead: what is hardly noised, which a mean above 0
    leaves out, is what the last steps of a sampler see."""
    even_from: float = Field(default=0.0, ge=0, lt=1)
    """Where in the schedule, 0 (clean) to 1, this part of it begins: samplers of few steps never look at its start."""


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
    luck = torch.rand(shape[0], generator=generator)
    if settings.even_share:
        is_even, places = torch.rand(2, shape[0], generator=generator)
        places = settings.even_from + (1 - settings.even_from) * places
        timesteps = torch.where(is_even < settings.even_share, (places * num_timesteps).long(), timesteps)
    return noise, timesteps, luck


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


def with_source(
    noise: Tensor, clean: Tensor, source: Tensor, timesteps: Tensor, objective: Objective, *, seed: int, step: int
) -> Tensor:
    """The noise that makes of clean clips [B, C, ...] noisy ones that lie part of the way toward ``source`` clips.

    So a clip looks that is being edited from a noised source (SDEdit): all of the source at first, and ever less of it
    as the noise gets less. Which part is drawn from (seed, step): up to all where there is ``WHOLE_SOURCE`` times as
    much noise as signal, less in proportion below.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step * 2 + 5_000_000_029)
    signal, sigma = objective.coefficients(timesteps, clean)
    parts = torch.rand(len(clean), generator=generator).view_as(signal.cpu()).to(signal)
    # Divided by no less than the noise of the first timesteps, where parts are next to nothing.
    parts = parts * (sigma / signal.clamp(min=1e-3) / WHOLE_SOURCE).clamp(max=1)
    return noise + parts * signal / sigma.clamp(min=1e-3) * (source - clean)


def noise_shares(count: int, doubt: float, doubt_share: float, *, seed: int, step: int) -> Tensor:
    """What share of the noise that the network is told there is each of ``count`` examples of a step holds, [B].

    In about ``doubt_share`` of them noise of up to ``doubt`` times less power, evenly over its logarithm; in the others
    all of it.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step * 2 + 2_000_000_011)
    doubts, powers = torch.rand(2, count, generator=generator)
    return torch.where(doubts < doubt_share, doubt ** (-powers / 2), 1.0)
