"""A running average of the trained weights, which is what is sampled from and shipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """The exponential moving average of some parameters, warmed up so that early steps do not linger."""

    def __init__(self, parameters: Sequence[Tensor], *, decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average toward the parameters after ``step`` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the parameters hold their averages; afterwards themselves again."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        self._assign(self.averages)
        try:
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, values: Sequence[Tensor]) -> None:
        torch._foreach_copy_([parameter.data for parameter in self.parameters], list(values))
