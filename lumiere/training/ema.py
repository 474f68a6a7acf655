"""A running average of the trained weights, which is what is sampled from and shipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lumiere.training.sharding import local


class Ema:
    """The exponential moving average of some fp32 weights, warmed up so that early steps do not linger.

    ``used`` are the network's own parameters, where the average is applied: the same ones, or copies in bfloat16. Of
    sharded weights every rank averages its own parts.
    """

    def __init__(self, weights: Iterable[Tensor], used: Iterable[Tensor] | None = None, *, decay: float) -> None:
        self.weights = list(weights)
        self.used = self.weights if used is None else list(used)
        self.decay = decay
        self.averages = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average toward the weights after ``step`` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(_parts(self.averages), _parts(self.weights), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the network's parameters hold the averages; afterwards themselves again."""
        own = [part.clone() for part in _parts(self.used)]
        self._assign(self.averages)
        try:
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(_parts(self.used), _parts(values))


def _parts(weights: Iterable[Tensor]) -> list[Tensor]:
    """What this rank holds of each."""
    return [local(weight.detach()) for weight in weights]
