"""The second first convolution for <C, M>: nothing changes at first, the image network's own stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lumiere.model.inflate import account, widen_input
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from tests.tiny_unets import FAMILIES, conditions, embedded


def network(family: str = "embedded") -> STUNet:
    stunet = STUNet.from_image_unet(FAMILIES[family](2), temporal=TemporalSettings(hears_time_and_text=True))
    for weight in stunet.temporal_parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return stunet


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_widened_network_says_the_same_at_first_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    stunet = network(family).to(dtype)
    clip = torch.randn(2, stunet.config.in_channels, 8, 16, 16).to(dtype)
    inputs = {k: v.to(dtype) if k == "encoder_hidden_states" else v for k, v in conditions(stunet, 2).items()}
    with torch.no_grad():
        before = stunet(clip, **inputs).sample
        widen_input(stunet, 5)
        given = torch.randn(2, 5, 8, 16, 16).to(dtype)
        assert torch.equal(stunet(torch.cat([clip, given], dim=1), **inputs).sample, before)
        assert torch.equal(stunet(clip, **inputs).sample, before)
        torch.nn.init.normal_(stunet.temporal.given.weight)
        assert not torch.equal(stunet(torch.cat([clip, given], dim=1), **inputs).sample, before)
        nothing = torch.zeros_like(given)
        assert torch.equal(stunet(torch.cat([clip, nothing], dim=1), **inputs).sample, before)


def test_it_is_the_paper_s_wider_convolution_written_as_a_sum() -> None:
    stunet = widen_input(network(), 16)
    torch.nn.init.normal_(stunet.temporal.given.weight)
    own = stunet.conv_in
    wide = torch.nn.Conv2d(12 + 16, own.out_channels, 3, padding=1)
    with torch.no_grad():
        wide.weight.copy_(torch.cat([own.weight, stunet.temporal.given.weight], dim=1))
        wide.bias.copy_(own.bias)
        frames = torch.randn(3, 28, 8, 8)
        total = own(frames[:, :12]) + stunet.temporal.given(frames[:, 12:])
        assert torch.allclose(total, wide(frames), atol=1e-4)


def test_the_new_weights_are_temporal_ones(tmp_path: Path) -> None:
    stunet = widen_input(network(), 16)
    named = dict(stunet.named_parameters())
    assert named["temporal.given.weight"].requires_grad and not named["conv_in.weight"].requires_grad
    stem = next(part for part in account(stunet).parts if part.name == "stem")
    assert stem.num_new == named["temporal.given.weight"].numel()
    torch.nn.init.normal_(stunet.temporal.given.weight)
    stunet.save_pretrained(tmp_path / "whole")
    stunet.save_motion(tmp_path / "motion.safetensors")
    again = STUNet.from_pretrained(tmp_path / "whole")
    assert again.settings.conditioning_channels == 16
    other = widen_input(STUNet.from_image_unet(embedded(), temporal=TemporalSettings(hears_time_and_text=True)), 16)
    other.load_motion(tmp_path / "motion.safetensors")
    for copy in (again, other):
        assert torch.equal(copy.temporal.given.weight, stunet.temporal.given.weight)


def test_it_is_done_once_and_the_channels_are_checked() -> None:
    stunet = widen_input(network(), 16)
    with pytest.raises(ValueError, match="widened already"):
        widen_input(stunet, 16)
    with pytest.raises(ValueError, match="at least one"):
        widen_input(network(), 0)
    with pytest.raises(ValueError, match="12, or 28 with what is given"):
        stunet(torch.randn(1, 20, 4, 8, 8), 1, torch.randn(1, 5, 12))
