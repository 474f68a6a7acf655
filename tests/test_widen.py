"""The second first convolution for <C, M>: nothing changes at first, the image network's own stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lumiere.model.inflate import (
    account,
    add_clock,
    add_noise_level_shifts,
    add_space_time_layers,
    add_time_halving,
    show_given_to_blocks,
    widen_input,
    widen_kernels,
)
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import ConvolutionInflation, TemporalSettings, given_at
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_that_see_what_is_given_say_the_same_at_first_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    stunet = widen_input(network(family), 5)
    torch.nn.init.normal_(stunet.temporal.given.weight, std=0.1)
    stunet.to(dtype)
    clip = torch.randn(2, stunet.config.in_channels + 5, 8, 16, 16).to(dtype)
    inputs = {k: v.to(dtype) if k == "encoder_hidden_states" else v for k, v in conditions(stunet, 2).items()}
    with torch.no_grad():
        before = stunet(clip, **inputs).sample
        show_given_to_blocks(stunet)
        assert torch.equal(stunet(clip, **inputs).sample, before)
        for name, weight in stunet.temporal.named_parameters():
            if "sight" in name:
                torch.nn.init.normal_(weight)
        assert not torch.equal(stunet(clip, **inputs).sample, before)
        nothing = torch.cat([clip[:, :-5], torch.zeros_like(clip[:, -5:])], dim=1)
        assert torch.equal(stunet(nothing, **inputs).sample, stunet(clip[:, :-5], **inputs).sample)


def test_what_a_block_sees_is_the_clip_s_own_frames_stacked() -> None:
    given = torch.arange(2 * 3 * 8 * 4 * 4.0).view(2, 3, 8, 4, 4)
    here = given_at(given, 2, (2, 2))
    assert here.shape == (2, 12, 2, 2, 2)
    # The second frame there stands for frames 4 to 7; of channel 1 the third of them, averaged over 2x2 places.
    assert here[1, 1 * 4 + 2, 1, 0, 1] == given[1, 1, 6, 0:2, 2:4].mean()


def test_a_network_whose_blocks_see_what_is_given_is_saved_and_loaded(tmp_path: Path) -> None:
    stunet = show_given_to_blocks(widen_input(network(), 16))
    for name, weight in stunet.temporal.named_parameters():
        if "sight" in name:
            torch.nn.init.normal_(weight)
    stunet.save_pretrained(tmp_path)
    again = STUNet.from_pretrained(tmp_path)
    own, theirs = stunet.state_dict(), again.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)
    with pytest.raises(ValueError, match="already"):
        show_given_to_blocks(stunet)
    with pytest.raises(ValueError, match="nothing is given"):
        show_given_to_blocks(network())


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_added_space_time_layers_change_nothing_at_first_and_are_temporal(dtype: torch.dtype, tmp_path: Path) -> None:
    stunet = network().to(dtype)
    clip = torch.randn(2, stunet.config.in_channels, 8, 16, 16).to(dtype)
    inputs = {k: v.to(dtype) if k == "encoder_hidden_states" else v for k, v in conditions(stunet, 2).items()}
    with torch.no_grad():
        before = stunet(clip, **inputs).sample
        add_space_time_layers(stunet, 1)
        add_space_time_layers(stunet, 1)
        after = stunet(clip, **inputs).sample
        assert torch.allclose(after, before, atol=1e-5 if dtype == torch.float32 else 0.05)
    assert stunet.settings.space_time_layers == 2 and stunet.temporal.middle.space_time[1].qkv.weight.requires_grad
    stunet.save_pretrained(tmp_path)
    again = STUNet.from_pretrained(tmp_path, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(again(clip, **inputs).sample, after)
    with pytest.raises(ValueError, match="at least one"):
        add_space_time_layers(stunet, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_shifts_of_the_noise_level_start_silent_and_then_reach_clips_and_no_images(family: str, tmp_path: Path) -> None:
    stunet = network(family)
    clip = torch.randn(2, stunet.config.in_channels, 8, 16, 16)
    inputs = conditions(stunet, 2)
    with torch.no_grad():
        before, image = (stunet(part, **inputs).sample for part in (clip, clip[:, :, :1]))
        add_noise_level_shifts(stunet)
        assert torch.equal(stunet(clip, **inputs).sample, before)
        for shift in stunet.temporal.noise_level:
            torch.nn.init.normal_(shift.change.bias)
        after = stunet(clip, **inputs).sample
        assert not torch.allclose(after, before, atol=1e-3)
        assert torch.equal(stunet(clip[:, :, :1], **inputs).sample, image)
        stunet.save_pretrained(tmp_path)
        assert torch.equal(STUNet.from_pretrained(tmp_path)(clip, **inputs).sample, after)
    with pytest.raises(ValueError, match="already"):
        add_noise_level_shifts(stunet)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_clock_starts_silent_and_then_tells_frames_apart(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    stunet = network(family).to(dtype)
    clip = torch.randn(2, stunet.config.in_channels, 8, 16, 16).to(dtype)
    inputs = {k: v.to(dtype) if k == "encoder_hidden_states" else v for k, v in conditions(stunet, 2).items()}
    with torch.no_grad():
        before, image = (stunet(part, **inputs).sample for part in (clip, clip[:, :, :1]))
        assert add_clock(stunet) is stunet and stunet.settings.hears_clock
        assert torch.equal(stunet(clip, **inputs).sample, before)
        for name, weight in stunet.temporal.named_parameters():
            if name.endswith("clock.change.weight"):
                torch.nn.init.normal_(weight)
        after = stunet(clip, **inputs).sample
        assert not torch.allclose(after, before, atol=1e-2)
        assert torch.equal(stunet(clip[:, :, :1], **inputs).sample, image)
        stunet.save_pretrained(tmp_path)
        assert torch.equal(STUNet.from_pretrained(tmp_path, dtype=dtype)(clip, **inputs).sample, after)
    with pytest.raises(ValueError, match="already"):
        add_clock(stunet)
    with pytest.raises(ValueError, match="hear nothing"):
        add_clock(STUNet.from_image_unet(FAMILIES[family](2)))


def test_a_shifted_noise_level_is_that_of_another_timestep() -> None:
    # One shift for all that turns the embedding of one timestep into another's: then the layers behind the first
    # mixing hear the other one, and only those before it, and the temporal layers, the clip's own.
    stunet = add_noise_level_shifts(STUNet.from_image_unet(embedded(2)))
    clip = torch.randn(1, 12, 4, 16, 16)
    inputs = {name: value for name, value in conditions(stunet, 1).items() if name != "timestep"}
    heard = []
    hook = stunet.mid_block.resnets[0].register_forward_hook(lambda module, given, output: heard.append(given[1][:1]))
    with torch.no_grad():
        stunet(clip, 900, **inputs)
        stunet(clip, 500, **inputs)
        for shift in stunet.temporal.noise_level:
            shift.change.bias.copy_((heard[1] - heard[0])[0])
        stunet(clip, 900, **inputs)
    hook.remove()
    assert torch.allclose(heard[2], heard[1], atol=1e-5) and not torch.allclose(heard[0], heard[1], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_wider_kernels_change_nothing_until_they_are_trained(family: str, tmp_path: Path) -> None:
    stunet = network(family)
    clip = torch.randn(2, stunet.config.in_channels, 8, 16, 16)
    inputs = conditions(stunet, 2)
    blocks = [block for block in stunet.temporal.modules() if isinstance(block, ConvolutionInflation)]
    with torch.no_grad():
        before = stunet(clip, **inputs).sample
        assert widen_kernels(stunet, 7) is stunet and stunet.settings.block_kernel_frames == 7
        assert torch.allclose(stunet(clip, **inputs).sample, before, atol=1e-5)
        for block in blocks:
            assert block.temporal.weight.shape[2] == 7
            block.temporal.weight[:, :, 0].normal_()
        after = stunet(clip, **inputs).sample
        assert not torch.allclose(after, before, atol=1e-3)
        stunet.save_pretrained(tmp_path)
        assert torch.equal(STUNet.from_pretrained(tmp_path)(clip, **inputs).sample, after)
    for frames in (7, 5, 10):
        with pytest.raises(ValueError, match="wider ones are odd: 9, 11"):
            widen_kernels(stunet, frames)


def test_time_halving_keeps_what_the_coarsest_level_learned_from_every_nth_frame(tmp_path: Path) -> None:
    settings = TemporalSettings(halve_time=(False, False), hears_time_and_text=True)
    stunet = STUNet.from_image_unet(embedded(2), temporal=settings)
    learned = (stunet.temporal.down[-1], stunet.temporal.middle, stunet.temporal.up[0])
    for block in learned:
        for weight in block.parameters():
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    clip = torch.randn(1, 12, 16, 16, 16)
    inputs = conditions(stunet, 1)
    with torch.no_grad():
        coarse = stunet(clip[:, :, ::4], **inputs).sample
        assert not torch.allclose(coarse[:, :, :1], stunet(clip[:, :, :1], **inputs).sample, atol=1e-3)
        grown = add_time_halving(stunet)
        assert grown.temporal_factor == 4 and grown.settings.halve_time is None
        assert torch.allclose(grown(clip, **inputs).sample[:, :, ::4], coarse, atol=1e-5)
        grown.save_pretrained(tmp_path)
        again = STUNet.from_pretrained(tmp_path)
        assert torch.allclose(again(clip, **inputs).sample, grown(clip, **inputs).sample, atol=1e-5)


def test_time_is_halved_only_once() -> None:
    with pytest.raises(ValueError, match="one frame in 4"):
        add_time_halving(network())
