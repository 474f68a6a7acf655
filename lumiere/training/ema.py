"""A running average of the trained weights, which is what is sampled from and shipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """The exponential moving average of some fp32 weights, warmed up so that early steps do not linger.

    ``used`` are the network's own parameters, where the average is applied: the same ones, or copies in bfloat16.
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
        torch._foreach_lerp_(self.averages, [weight.detach() for weight in self.weights], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the network's parameters hold the averages; afterwards themselves again."""
        own = [parameter.detach().clone() for parameter in self.used]
        self._assign(self.averages)
        try:
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, values: list[Tensor]) -> None:
        torch._foreach_copy_([parameter.data for parameter in self.used], values)
