"""Styles: other weights lent to the image network, blended with its own; the layers that mix frames stay as they are.

W = alpha * W_style + (1 - alpha) * W_orig, on the pretrained spatial weights only; a low-rank change (LoRA) is the same
formula, W_orig + alpha * dW. Source: Lumiere, arXiv 2401.12945, section 5 (stylized generation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

TEMPORAL = "temporal."
"""What the names of the weights begin with that no style touches."""

_OWN = "weights_without_style"


@dataclass(frozen=True)
class LowRank:
    """A change of one weight: ``scale`` * ``up`` [out, rank, ...] times ``down`` [rank, in, ...]."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def change(self, shape: torch.Size) -> Tensor:
        """The change, fp32, in the weight's ``shape``."""
        return self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1)).view(shape)

    def fits(self, shape: torch.Size) -> bool:
        """Whether a weight of that shape can be changed by it: one value of ``up`` for each output and rank."""
        rank = self.down.shape[0]
        sides_fit = self.up.numel() == shape[0] * rank and self.down.numel() == rank * math.prod(shape[1:])
        return sides_fit and tuple(self.up.shape[:2]) == (shape[0], rank)


@dataclass(frozen=True)
class Style:
    """What a style knows of the image network's weights, by their names: whole ones, or low-rank changes of some."""

    name: str
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)

    def check_fits(self, network: nn.Module) -> None:
        """Raise ValueError that names the first weights in which the style and the image network differ."""
        own = {name: weight.shape for name, weight in image_weights(network).items()}
        problems = [f"the network has no {name}" for name in sorted({*self.whole, *self.low_rank} - own.keys())]
        if self.whole:
            problems += [f"the style has no {name}" for name in sorted(own.keys() - self.whole.keys())]
        problems += [
            f"{name} is {list(weight.shape)}, the network's {list(own[name])}"
            for name, weight in self.whole.items()
            if name in own and weight.shape != own[name]
        ]
        problems += [
            f"{name} is changed by {list(low.up.shape)} x {list(low.down.shape)}, the network's is {list(own[name])}"
            for name, low in self.low_rank.items()
            if name in own and not low.fits(own[name])
        ]
        if problems:
            raise ValueError(
                f"style {self.name!r} is for another image network: {'; '.join(problems[:3])}"
                f" ({len(problems)} differences in all)"
            )


Worn = tuple[Style, float]
"""A style and its strength, 0 (nothing of it) to 1 (all of it)."""


def image_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the image network, by name."""
    return {name: weight for name, weight in network.named_parameters() if not name.startswith(TEMPORAL)}


def image_layers(network: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The convolutions and linear layers of the image network, by name: what low-rank changes are of."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and not name.startswith(TEMPORAL)
    }


@torch.no_grad()
def wear(network: nn.Module, worn: Sequence[Worn]) -> None:
    """Give the image network its own weights blended with all the styles, instead of what it wears now; [] for its own.

    Its own weights are kept aside, and come back bit for bit. Raises ValueError, before any weight is changed, for a
    strength outside 0..1 and a style that does not fit.
    """
    for style, strength in worn:
        if not (math.isfinite(strength) and 0 <= strength <= 1):
            raise ValueError(f"style strength is {strength}; it lies in 0 (not at all) to 1 (nothing else)")
        style.check_fits(network)
    own: dict[str, Tensor] = network.__dict__.setdefault(_OWN, {})
    weights = image_weights(network)
    for name, kept in own.items():
        weights[name].copy_(kept)
    own.clear()
    for name in sorted({name for style, _ in worn for name in (*style.whole, *style.low_rank)}):
        own[name] = weights[name].detach().clone()
        weights[name].copy_(blended(name, own[name], worn))


def is_worn(network: nn.Module) -> bool:
    """Whether the network's weights are blended with a style's."""
    return bool(network.__dict__.get(_OWN))


def blended(name: str, own: Tensor, worn: Sequence[Worn]) -> Tensor:
    """One weight, blended, in fp32 on the own one's device; with strength 0 or 1 exactly the one or the other."""
    rest = 1 - sum(strength for style, strength in worn if name in style.whole)
    total = own.float() * rest if rest else torch.zeros_like(own, dtype=torch.float32)
    for style, strength in worn:
        if not strength:
            continue
        if name in style.whole:
            total = total + strength * style.whole[name].to(own.device).float()
        if name in style.low_rank:
            low = style.low_rank[name]
            low = LowRank(low.down.to(own.device), low.up.to(own.device), low.scale)
            total = total + strength * low.change(own.shape)
    return total
