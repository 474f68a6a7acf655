"""Attention to given frames: silent at first and where nothing is given, and led by what is given alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lumiere.model.given_frames import Ask, Ends, GivenFrames
from lumiere.model.inflate import account, attend_to_given
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from lumiere.training.run import train
from tests.test_given_words import network
from tests.tiny_unets import FAMILIES, conditions


def first_given(stunet: STUNet, frames: int) -> torch.Tensor:
    """<C, M> [2, C, T, 16, 16] of which the first frame is given."""
    given = torch.zeros(2, stunet.temporal.given.in_channels, frames, 16, 16)
    generator = torch.Generator().manual_seed(1)
    given[:, :-1, 0] = torch.randn(2, stunet.config.in_channels, 16, 16, generator=generator)
    given[:, -1, 0] = 1
    return given


def woken(stunet: STUNet) -> STUNet:
    """The same with attention that changes what it meets."""
    generator = torch.Generator().manual_seed(3)
    for ask in stunet.temporal.frames.ask:
        torch.nn.init.normal_(ask.use[-1].weight, std=0.3, generator=generator)
    return stunet


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_starts_silent_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    stunet = network(family).to(dtype)
    clip = torch.randn(2, stunet.config.in_channels, 8, 16, 16)
    told = torch.cat([clip, first_given(stunet, 8)], dim=1).to(dtype)
    inputs = {k: v.to(dtype) if k == "encoder_hidden_states" else v for k, v in conditions(stunet, 2).items()}
    with torch.no_grad():
        before = stunet(told, **inputs).sample
        assert attend_to_given(stunet) is stunet
        assert torch.equal(stunet(told, **inputs).sample, before)
        assert not torch.equal(woken(stunet)(told, **inputs).sample, before)


@pytest.mark.parametrize("family", ["embedded", "sd1"])
def test_clips_of_which_nothing_is_given_are_left_alone(family: str, tmp_path: Path) -> None:
    stunet = network(family)
    clip, inputs, given = (
        torch.randn(2, stunet.config.in_channels, 8, 16, 16),
        conditions(stunet, 2),
        first_given(stunet, 8),
    )
    one_told = torch.cat([clip, given * torch.tensor([1, 0]).view(2, 1, 1, 1, 1)], dim=1)
    with torch.no_grad():
        alone, before = stunet(clip, **inputs).sample, stunet(one_told, **inputs).sample
        woken(attend_to_given(stunet))
        after = stunet(one_told, **inputs).sample
        assert torch.equal(stunet(clip, **inputs).sample, alone)
        assert torch.equal(after[1], before[1]) and not torch.allclose(after[0], before[0], atol=1e-3)
        # Saved, loaded, and lent to another copy of the image network as a motion file.
        stunet.save_pretrained(tmp_path / "whole")
        assert torch.equal(STUNet.from_pretrained(tmp_path / "whole")(one_told, **inputs).sample, after)
        stunet.save_motion(tmp_path / "motion.safetensors")
        other = attend_to_given(network(family))
        other.load_motion(tmp_path / "motion.safetensors")
        assert torch.equal(other(one_told, **inputs).sample, after)
        with pytest.raises(ValueError, match="attends_to_given"):
            network(family).load_motion(tmp_path / "motion.safetensors")


@pytest.mark.parametrize("family", ["embedded", "sd1"])
def test_frames_given_elsewhere_are_attended_to(family: str) -> None:
    stunet = woken(attend_to_given(network(family)))
    torch.nn.init.zeros_(stunet.temporal.given.weight)
    clip, inputs, given = (
        torch.randn(2, stunet.config.in_channels, 8, 16, 16),
        conditions(stunet, 2),
        first_given(stunet, 8),
    )
    added = dict(inputs.pop("added_cond_kwargs", None) or {})
    elsewhere = {**inputs, "added_cond_kwargs": added | {"given_elsewhere": given}}
    inputs["added_cond_kwargs"] = added
    with torch.no_grad():
        whole = stunet(torch.cat([clip, given], dim=1), **inputs).sample
        assert torch.equal(stunet(clip, **elsewhere).sample, whole)
        # One frame passes as an image, and attends to another frame all the same.
        image, plain = (stunet(clip[:, :, :1], **told).sample for told in (elsewhere, inputs))
        assert not torch.allclose(image, plain, atol=1e-4)


def test_a_masked_place_of_a_given_frame_changes_nothing() -> None:
    """What the network is shown of a frame that is half given is the half, and zeros."""
    stunet = woken(attend_to_given(network("embedded")))
    clip, inputs, given = (
        torch.randn(2, stunet.config.in_channels, 8, 16, 16),
        conditions(stunet, 2),
        first_given(stunet, 8),
    )
    half = given.clone()
    half[..., 8:] = 0
    with torch.no_grad():
        whole, less = (stunet(torch.cat([clip, one], dim=1), **inputs).sample for one in (given, half))
    assert not torch.allclose(whole, less, atol=1e-4)


def test_every_place_finds_the_given_place_that_it_is_like() -> None:
    """With queries and keys that are the features themselves it returns what lies at the places most alike."""
    torch.manual_seed(0)
    ask = Ask(128, 128, 4)
    for linear in (ask.query_position, ask.key_position, ask.value):
        for weight in linear.parameters():
            torch.nn.init.zeros_(weight)
    with torch.no_grad():
        ask.query.weight.copy_(40 * torch.eye(128))
        ask.key.weight.copy_(torch.eye(128))
        ask.value.weight.copy_(torch.eye(128))
        # The change is what was found, passed on by pairs of units that are each other's negative.
        both = torch.cat([torch.eye(128), -torch.eye(128)])
        ask.use[0].weight.copy_(torch.cat([torch.zeros(256, 128), 50 * both, torch.zeros(256, 128)], 1))
        ask.use[0].bias.zero_()
        ask.use[2].weight.copy_(both.T / 50)
        given = torch.nn.functional.layer_norm(torch.randn(16, 128), (128,))
        order = torch.stack([torch.randperm(16) for _ in range(3)])

        def as_clip(places: torch.Tensor) -> torch.Tensor:
            return places.view(1, -1, 4, 4, 128).permute(0, 4, 1, 2, 3)

        clip, share = as_clip(given[order]), torch.ones(1, 1, 1, 4, 4)
        found = ask(clip, as_clip(given), share, torch.ones(1)) - clip
        assert torch.allclose(found, clip, atol=0.05)
        # A place of which nothing is given is never found.
        share[:, :, :, :2] = 0
        found = (ask(clip, as_clip(given), share, torch.ones(1)) - clip).permute(0, 2, 3, 4, 1).view(-1, 128)
        distances = (found[:, None] - given).abs().amax(-1)
        assert bool((distances[:, :8].amin(1) > 0.5).all())
        assert bool((distances[order.flatten() >= 8, 8:].amin(1) < 0.05).all())


def test_the_first_and_the_last_given_frame_are_seen() -> None:
    torch.manual_seed(0)
    frames = GivenFrames(4, [8, 16])
    given = torch.randn(2, 5, 6, 16, 16)
    given[:, 4] = 1
    given[:, :, [0, 5]] = 0
    ends = frames.ends(given)
    assert torch.equal(ends.pictures, given[:, :4, [1, 4]]) and torch.equal(ends.share, given[:, 4:, [1, 4]])
    assert torch.equal(ends.is_given, torch.ones(2))
    # One frame of both clips is seen once; attention to it twice is the same to rounding.
    only = given.clone()
    only[:, :, 2:] = 0
    once = frames.ends(only)
    assert torch.equal(once.pictures, given[:, :4, [1]])
    mixed = torch.cat([only[:1], torch.zeros_like(only[:1]), given[:1]])
    twice = frames.ends(mixed)
    assert torch.equal(twice.is_given, torch.tensor([1.0, 0.0, 1.0])) and twice.pictures.shape[2] == 2
    clip, features = torch.randn(1, 8, 3, 8, 8), torch.randn(1, 8, 1, 8, 8)
    torch.nn.init.normal_(frames.ask[0].use[2].weight)
    alone = frames(0, clip, features, Ends(*(one[:1] for one in once)))
    beside = frames(0, clip, features.expand(-1, -1, 2, -1, -1), Ends(*(one[:1] for one in twice)))
    assert torch.allclose(alone, beside, atol=1e-5) and not torch.allclose(alone, clip, atol=1e-2)


def test_it_is_counted_and_refused() -> None:
    plain = STUNet.from_image_unet(FAMILIES["embedded"](2))
    with pytest.raises(ValueError, match="widen_input first"):
        attend_to_given(plain)
    stunet = network("embedded")
    before = account(stunet).num_new
    attend_to_given(stunet)
    assert account(stunet).num_new - before == sum(weight.numel() for weight in stunet.temporal.frames.parameters())
    assert stunet.settings.attends_to_given
    with pytest.raises(ValueError, match="already"):
        attend_to_given(stunet)
    with pytest.raises(ValueError, match="attends_to_given"):
        TemporalSettings(attends_to_given=True)


def test_it_is_trained_alone_on_pairs_of_stills(tmp_path: Path, base_network: Path) -> None:
    out = train("given_frames_smoke", ["--out", str(tmp_path / "seen"), "--start_from", str(base_network)])
    before, after = (load_file(run / "unet" / "diffusion_pytorch_model.safetensors") for run in (base_network, out))
    new = after.keys() - before.keys()
    assert {name.split(".")[1] for name in new} == {"given", "frames"}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not after["temporal.given.weight"].any() and bool(after["temporal.frames.ask.0.use.2.weight"].any())
    lines = [json.loads(line) for line in (tmp_path / "seen" / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out/loss_words_alone" in line for line in lines)
    assert list((tmp_path / "seen" / "samples").glob("*/seen_and_said.png"))
    with pytest.raises(ValueError, match="it is 2"):
        train("given_frames_smoke", ["--out", str(tmp_path / "three"), "--data.num_frames", "3"])


def test_the_image_network_learns_beside_it_by_words_alone_too(tmp_path: Path, base_network: Path) -> None:
    asked = ["--start_from", str(base_network), "--train_image", "true", "--untold_share", "0.5", "--doubt", "4"]
    out = train("given_frames_smoke", [*asked, "--other_colour_share", "1", "--out", str(tmp_path / "both")])
    before, after = (load_file(run / "unet" / "diffusion_pytorch_model.safetensors") for run in (base_network, out))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any(name.startswith("temporal.") for name in moved)
    assert bool(after["temporal.frames.ask.0.use.2.weight"].any())
    line = json.loads((tmp_path / "both" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "held_out/loss_untold" in line
