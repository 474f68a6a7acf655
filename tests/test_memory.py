"""Memory counted tensor by tensor: against what is known by hand, and a computation on meta against a real one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lumiere.memory import gib, peak_bytes, tensor_bytes
from lumiere.model.stunet import STUNet
from lumiere.model.weigh import on_meta, pass_bytes, training_bytes
from tests.tiny_unets import FAMILIES, conditions

MIB = 2**20


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_what_lives_at_one_time_is_counted(device: str) -> None:
    def empty() -> torch.Tensor:
        return torch.zeros(256, 1024, device=device)

    outside = empty()
    assert peak_bytes(lambda: [empty() for _ in range(5)]) == 5 * MIB
    assert peak_bytes(lambda: [empty().shape for _ in range(5)]) == MIB
    assert peak_bytes(lambda: outside.t()[3:]) == 0
    assert peak_bytes(lambda: outside.add_(1)) == 0
    # The first sum is given up for the second, which needs it while it is made.
    assert peak_bytes(lambda: outside + 1 + 1 + 1) == 2 * MIB


def test_the_backward_pass_is_counted_and_checkpointing_lowers_it() -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)) for _ in range(8)).to("meta")

    def step(is_light: bool) -> None:
        features = torch.empty(1024, 64, device="meta")
        for layer in layers:
            features = checkpoint(layer, features, use_reentrant=False) if is_light else layer(features)
        features.sum().backward()

    whole = peak_bytes(lambda: step(False))
    layers.zero_grad()
    light = peak_bytes(lambda: step(True))
    features = 1024 * 64 * 4
    # Each layer keeps its input's and its tanh's values, beside the gradients of all weights at the end.
    assert 16 * features < whole < 22 * features + tensor_bytes(layers.parameters())
    assert light < 0.75 * whole


def test_fused_attention_holds_no_scores() -> None:
    query = torch.empty(1, 2, 4096, 8, device="meta", requires_grad=True)

    def attend() -> None:
        F.scaled_dot_product_attention(query, query, query).sum().backward()

    assert peak_bytes(attend) < 4096 * 4096
    real = torch.randn(1, 2, 16, 8)
    own = F.scaled_dot_product_attention
    counted = []
    peak_bytes(lambda: counted.append(F.scaled_dot_product_attention(real, real, real)))
    assert torch.equal(counted[0], own(real, real, real)) and F.scaled_dot_product_attention is own


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_on_meta_takes_what_a_real_one_does(family: str) -> None:
    real = STUNet.from_image_unet(FAMILIES[family](2))
    # Attention as it is fused on meta: the plain one on processors writes down its scores.
    clip = torch.randn(1, real.config.in_channels, 8, 32, 32)
    with torch.no_grad():
        counted = peak_bytes(lambda: real(clip, **conditions(real, 1)).sample)
    meta = on_meta(real.config, torch.float32)
    assert all(weight.is_meta for weight in meta.parameters())
    needed = pass_bytes(meta, (1, 8, 32, 32))
    assert 0.3 * counted < needed < 1.3 * counted
    assert pass_bytes(meta, (1, 8, 32, 32), chunk=2) < needed
    assert pass_bytes(on_meta(real.config, torch.bfloat16), (1, 8, 32, 32)) < 0.7 * needed
    whole, light = (training_bytes(meta, (1, 8, 32, 32), checkpointing=one) for one in (False, True))
    assert needed < light < 0.6 * whole


def test_bytes_are_said_for_people() -> None:
    assert (gib(3 * 2**30), gib(20 * 2**20), gib(1)) == ("3.0 GiB", "20 MiB", "1 MiB")
