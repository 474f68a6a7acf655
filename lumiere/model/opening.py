"""A clip's first frame, drawn alone: low-rank changes of the image network that are worn for nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lumiere.model.style import LowRank, image_layers


class Opening(nn.Module):
    """Let the image network draw the first frames of clips: changes of all its layers, each of one ``rank``.

    An image network that was trained on any moments of clips draws a thing that is to spin or to grow at any angle and
    of any size, and those are what it draws worst (LOG.md). Clips begin with things as they are. What draws those can
    be small, is cheap to train (stage ``opening``), and one frame is drawn in a fraction of a clip's time, which is
    then brought to life. The new weights change nothing at first.

    Source: LoRA (Hu et al., arXiv 2106.09685); first an image, then a clip of it, as in Emu Video (Girdhar et al.,
    arXiv 2311.10709).
    """

    def __init__(self, network: nn.Module, rank: int) -> None:
        super().__init__()
        shapes = {name: weight.shape for name, weight in _weights(network).items()}
        self.down = nn.ParameterList(torch.zeros(rank, *shape[1:]) for shape in shapes.values())
        self.up = nn.ParameterList(torch.zeros(shape[0], rank, *(1 for _ in shape[2:])) for shape in shapes.values())

    @torch.no_grad()
    def take(self, network: nn.Module, changes: Mapping[str, LowRank]) -> None:
        """The changes of layers, by their names; raises ValueError when they are not those of the network's layers."""
        names = list(_weights(network))
        if set(names) != set(changes):
            odd = sorted(set(names) ^ set(changes))
            raise ValueError(f"changes of {len(changes)} layers for a network of {len(names)}; the first odd: {odd[0]}")
        for name, down, up in zip(names, self.down, self.up, strict=True):
            down.copy_(changes[name].down)
            up.copy_(changes[name].scale * changes[name].up)

    def changes(self, network: nn.Module) -> dict[str, LowRank]:
        """The changes of the network's layers, by their names: what ``take`` takes."""
        names = _weights(network)
        return {name: LowRank(*both) for name, *both in zip(names, self.down, self.up, strict=True)}

    @contextmanager
    def worn(self, network: nn.Module) -> Iterator[None]:
        """Within it the network's image layers are changed; afterwards they are as before, bit for bit."""
        weights = list(_weights(network).values())
        kept = [weight.detach().clone() for weight in weights]
        try:
            _write(weights, [_changed(*one) for one in zip(kept, self.down, self.up, strict=True)])
            yield
        finally:
            _write(weights, kept)


def _changed(weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return weight.float() + LowRank(down.detach(), up.detach()).change(weight.shape).to(weight.device)


@torch.no_grad()
def _write(weights: list[Tensor], values: list[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights that are changed, by the names of their layers, with or without adapters around these."""
    return {
        name.removesuffix(".base_layer"): layer.weight
        for name, layer in image_layers(network).items()
        if ".lora_" not in name
    }
