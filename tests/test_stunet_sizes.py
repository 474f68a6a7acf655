"""Real backbones at their real sizes, on the meta device."""

from __future__ import annotations

import pytest

from benchmarks.model_sizes import BACKBONES, measure, table
from lumiere.model.temporal import TemporalSettings

# Counted by others: Stable Diffusion 1.5's U-Net has 859,520,964 weights; DeepFloyd publishes 4.3 billion for IF-I-XL
# and 400 million for IF-I-M.
PUBLISHED = {
    "Stable Diffusion 1.5": (859_520_964, 0),
    "DeepFloyd IF-I-M": (400e6, 0.1),
    "DeepFloyd IF-I-XL": (4.3e9, 0.02),
}


def num_new(widths: tuple[int, ...], layers: int) -> int:
    """The weights of the temporal layers by hand: kernel 3, 3x3 pixels, width 1, no hearing, no feed-forward."""
    norm = {c: 2 * c for c in widths}
    resize = {c: 3 * c * c + c for c in widths}
    convolution = {c: (9 * c * c + c) + (3 * c * c + c) + (c * c + c) + 2 * norm[c] for c in widths}
    layer = {c: norm[c] + 3 * (c * c + c) + (c * c + c) for c in widths}
    attention = {c: norm[c] + layers * layer[c] + (c * c + c) for c in widths}
    *finer, coarsest = widths
    down = sum(convolution[c] + resize[c] for c in finer) + attention[coarsest]
    up = sum(convolution[c] for c in finer) + attention[coarsest] + sum(resize[c] for c in widths[1:])
    return down + attention[coarsest] + up


@pytest.mark.parametrize("name", list(BACKBONES))
def test_real_backbones_have_the_weights_and_shapes_they_should(name: str) -> None:
    backbone = BACKBONES[name]
    size = measure(backbone)
    published, tolerance = PUBLISHED[name]
    assert abs(size.num_frozen - published) <= tolerance * published
    widths = backbone.config.get("block_out_channels", (320, 640, 1280, 1280))
    assert size.num_new == num_new(widths, TemporalSettings().attention_layers)
    sides = [backbone.size // 2**level for level in range(4)]
    assert size.shapes == [(80 // 2**i, side, side, c) for i, (side, c) in enumerate(zip(sides, widths, strict=True))]
    assert size.output == (1, backbone.config.get("out_channels", 4), 80, backbone.size, backbone.size)


def test_table_states_every_backbone() -> None:
    rows = table().splitlines()
    assert len(rows) == 2 + len(BACKBONES)
    assert "859.5 M" in rows[2] and "80×64×64, 320 → 40×32×32, 640 → 20×16×16, 1280 → 10×8×8, 1280" in rows[2]
