"""What the network is asked to predict and how its error is weighed: one loss per clip."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noisy clip [B, C, T, H, W], timestep [B]) -> prediction [B, C, T, H, W]."""


class Objective:
    """The training target of a diffusers scheduler: add noise, ask for a prediction, weigh the error.

    The schedule and what is predicted (noise, v, or the clean clip) come from the scheduler's own configuration,
    so that a network is trained for what its sampler will ask. Source: v is Salimans and Ho, arXiv 2202.00512.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str) -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction type is {prediction_type!r}; known are {', '.join(PREDICTION_TYPES)}")
        self.alphas_cumprod = alphas_cumprod.cpu().double()
        self.prediction_type = prediction_type

    @classmethod
    def from_scheduler(cls, scheduler: object) -> Objective:
        """The objective that a diffusers scheduler's configuration describes."""
        return cls(scheduler.alphas_cumprod, scheduler.config.prediction_type)  # type: ignore[attr-defined]

    @property
    def num_timesteps(self) -> int:
        """Timesteps of the schedule: 0 is nearly clean, the last is the noisiest."""
        return len(self.alphas_cumprod)

    def coefficients(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """How much of the clean clip and of the noise a noisy one holds at ``timestep`` [B], to multiply ``like``.

        A fractional timestep lies between its neighbours.
        """
        # In fp64, so on the CPU: Apple's devices have none.
        place = timestep.detach().cpu().double()
        low, high = self.alphas_cumprod[place.floor().long()], self.alphas_cumprod[place.ceil().long()]
        alpha = torch.lerp(low, high, place.frac()).view((-1,) + (1,) * (like.ndim - 1))
        return alpha.sqrt().to(like.device, like.dtype), (1 - alpha).sqrt().to(like.device, like.dtype)

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """The clean clips [B, ...] noised to ``timestep`` [B]."""
        signal, sigma = self.coefficients(timestep, clean)
        return signal * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What the network should have predicted."""
        signal, sigma = self.coefficients(timestep, clean)
        match self.prediction_type:
            case "epsilon":
                return noise
            case "v_prediction":
                return signal * noise - sigma * clean
        return clean

    def clean_from(self, prediction: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        """The clean clip that a prediction implies.

        Raises ValueError for noise prediction at a timestep of no signal, where noise says nothing about the clip.
        """
        signal, sigma = self.coefficients(timestep, noisy)
        match self.prediction_type:
            case "epsilon":
                if bool((signal == 0).any()):
                    raise ValueError("a predicted noise cannot give the clean clip where the schedule has no signal")
                return (noisy - sigma * prediction) / signal
            case "v_prediction":
                return signal * noisy - sigma * prediction
        return prediction

    def moved(self, prediction: Tensor, timestep: Tensor, *, by: Tensor) -> Tensor:
        """The prediction whose clean clip lies ``by`` away from that of ``prediction``, for the same noisy clip."""
        signal, sigma = self.coefficients(timestep, prediction)
        match self.prediction_type:
            case "epsilon":
                return prediction - signal / sigma * by
            case "v_prediction":
                return prediction - by / sigma
        return prediction + by

    def loss(self, predict: Predict, clean: Tensor, *, noise: Tensor, timestep: Tensor) -> Tensor:
        """The mean squared error of each clip's prediction, [B], in fp32.

        A network that also predicts a variance (twice the channels, as DeepFloyd IF) is judged on its first half.
        """
        noisy = self.add_noise(clean, noise, timestep)
        prediction = predict(noisy, timestep)[:, : clean.shape[1]].float()
        error = prediction - self.target(clean, noise, timestep).float()
        return error.square().flatten(1).mean(1)


def draw_timesteps(count: int, num_timesteps: int, *, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """``count`` timesteps, their place in the schedule logit-normal: a mean above 0 shifts them toward noise.

    Source: the distribution is that of Esser et al., arXiv 2403.03206; for clips the mean is shifted up, because
    eighty nearly equal frames hide less behind the same noise than eighty pictures would.
    """
    level = torch.sigmoid(mean + std * torch.randn(count, generator=generator))
    return (level * num_timesteps).long().clamp(max=num_timesteps - 1)
