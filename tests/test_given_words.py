"""What is given, said in the image network's words: only where something is given, and only by what is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lumiere.config import find_recipe, load_settings
from lumiere.data.batches import StorybookBatches, StorybookSettings
from lumiere.model.given_words import GivenWords
from lumiere.model.inflate import account, add_given_words, widen_input
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from lumiere.training.run import train
from lumiere.training.stages.conditional import Conditional, ConditionalSettings
from tests.tiny_unets import FAMILIES, conditions

TOLD = [name for name in FAMILIES if name not in ("upscaler", "if1", "if2")]


def network(family: str) -> STUNet:
    """A network of random weights that is told of 4 channels of pictures and one of masks."""
    unet = FAMILIES[family](2)
    stunet = widen_input(STUNet.from_image_unet(unet), unet.config.in_channels + 1)
    generator = torch.Generator().manual_seed(0)
    for weight in stunet.temporal_parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=generator)
    return stunet


def partly_given(stunet: STUNet, frames: int) -> torch.Tensor:
    """<C, M> of which the first frame's left half is given."""
    given = torch.zeros(2, stunet.temporal.given.in_channels, frames, 16, 16)
    given[:, :-1, 0, :, :8] = torch.randn(
        2, stunet.config.in_channels, 16, 8, generator=torch.Generator().manual_seed(1)
    )
    given[:, -1, 0, :, :8] = 1
    return given


@pytest.mark.parametrize("family", TOLD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_said_where_nothing_is_given(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    stunet = network(family).to(dtype)
    clip = torch.randn(2, stunet.config.in_channels, 8, 16, 16).to(dtype)
    inputs = {k: v.to(dtype) if k == "encoder_hidden_states" else v for k, v in conditions(stunet, 2).items()}
    given = partly_given(stunet, 8).to(dtype)
    nothing = torch.cat([clip, torch.zeros_like(given)], dim=1)
    one_told = torch.cat([clip, given * torch.tensor([1, 0]).view(2, 1, 1, 1, 1).to(dtype)], dim=1)
    with torch.no_grad():
        alone, none, one = (stunet(seen, **inputs).sample for seen in (clip, nothing, one_told))
        assert add_given_words(stunet, 3) is stunet

        def distance(one: torch.Tensor, other: torch.Tensor) -> float:
            return float((one - other).float().std() / other.float().std())

        # In bfloat16 the networks of random weights make much of how sums are rounded.
        rounding = 1e-5 if dtype == torch.float32 else 0.02
        assert torch.equal(stunet(clip, **inputs).sample, alone)
        assert distance(stunet(nothing, **inputs).sample, none) < rounding
        after = stunet(one_told, **inputs).sample
        quiet = distance(after[1], one[1])
        assert quiet < rounding and distance(after[0], one[0]) > 2 * quiet
        stunet.save_pretrained(tmp_path)
        assert torch.equal(STUNet.from_pretrained(tmp_path, dtype=dtype)(one_told, **inputs).sample, after)


@pytest.mark.parametrize("family", TOLD)
def test_what_was_said_can_be_told_without_the_given_places(family: str) -> None:
    stunet = add_given_words(network(family), 3)
    torch.nn.init.zeros_(stunet.temporal.given.weight)
    clip, inputs, given = (
        torch.randn(2, stunet.config.in_channels, 8, 16, 16),
        conditions(stunet, 2),
        partly_given(stunet, 8),
    )
    with torch.no_grad():
        said = stunet.say_given(given)
        whole = stunet(torch.cat([clip, given], dim=1), **inputs).sample
        inputs["added_cond_kwargs"] = dict(inputs.get("added_cond_kwargs") or {}) | {"said_of_given": said}
        assert torch.equal(stunet(clip, **inputs).sample, whole)
        image = stunet(clip[:, :, :1], **inputs).sample
        inputs["added_cond_kwargs"].pop("said_of_given")
        assert not torch.allclose(stunet(clip[:, :, :1], **inputs).sample, image, atol=1e-4)


def test_frames_of_which_nothing_is_given_say_nothing() -> None:
    torch.manual_seed(0)
    words = GivenWords(5, 4, num_words=3, text_width=12)
    given = torch.randn(2, 5, 3, 16, 16)
    given[:, 4] = 1
    longer = torch.cat([given, torch.zeros(2, 5, 4, 16, 16)], dim=2)
    short, long = words(given), words(longer)
    assert short.states.shape == (2, 3, 12) and torch.allclose(short.states, long.states, atol=1e-5)
    assert torch.equal(short.is_said, torch.ones(2))
    empty = words(torch.zeros(2, 5, 3, 16, 16))
    assert torch.equal(empty.is_said, torch.zeros(2))
    # What is seen counts, not when: the words name what is there at all times.
    assert torch.allclose(words(longer.flip(2)).states, long.states, atol=1e-5)
    assert not torch.allclose(words(longer.flip(4)).states, long.states, atol=1e-3)


def test_words_are_counted_and_refused() -> None:
    stunet = network("embedded")
    with pytest.raises(ValueError, match="at least one"):
        add_given_words(stunet, 0)
    before = account(stunet).num_new
    add_given_words(stunet, 3)
    assert account(stunet).num_new - before == sum(weight.numel() for weight in stunet.temporal.words.parameters())
    assert stunet.settings.words_of_given == 3
    with pytest.raises(ValueError, match="already"):
        add_given_words(stunet, 3)
    for family, reason in (("upscaler", "text alone"), ("if2", "text alone"), ("if1", "in norms")):
        with pytest.raises(ValueError, match=reason):
            add_given_words(network(family), 3)
    plain = STUNet.from_image_unet(FAMILIES["embedded"](2))
    with pytest.raises(ValueError, match="widen_input first"):
        add_given_words(plain, 3)
    with pytest.raises(ValueError, match="does not say"):
        plain.say_given(torch.zeros(1, 5, 4, 16, 16))
    with pytest.raises(ValueError, match="words_of_given"):
        TemporalSettings(words_of_given=3)


def test_words_are_trained_alone_on_pairs_of_stills(tmp_path: Path, base_network: Path) -> None:
    base = base_network
    said = train("given_words_smoke", ["--out", str(tmp_path / "said"), "--start_from", str(base)])
    before, after = (load_file(run / "unet" / "diffusion_pytorch_model.safetensors") for run in (base, said))
    new = after.keys() - before.keys()
    assert {name.split(".")[1] for name in new} == {"given", "words"}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not after["temporal.given.weight"].any() and bool(after["temporal.words.say.weight"].any())
    lines = [json.loads(line) for line in (tmp_path / "said" / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out/loss_untold" in line for line in lines)
    assert list((tmp_path / "said" / "samples").glob("*/told_and_untold.png"))
    with pytest.raises(ValueError, match="it is 2"):
        train(
            "given_words_smoke", ["--out", str(tmp_path / "three"), "--start_from", str(base), "--data.num_frames", "3"]
        )
    # And the base goes on from there, with captions that leave to a whole given frame what it shows.
    options = ["--start_from", str(said), "--terse_share_of_given", "1", "--given.nothing", "0.5"]
    stage = Conditional(load_settings(ConditionalSettings, find_recipe("conditional_smoke"), options))
    batch = stage.data.batch(0, 16)
    _, given = stage.given(batch, 0)
    captions = stage.captions(batch, given, 0)
    has_frame = given[:, stage.codec.channels :].amin((1, 3, 4)).amax(1) > 0
    assert 0 < int(has_frame.sum()) < 16
    for scene, short, whole, frame in zip(batch.scenes, captions, batch.captions, has_frame.tolist(), strict=True):
        assert (short != whole) == frame, (short, whole)
        assert not frame or scene.background not in short
    losses = stage.losses(0, 2)
    assert losses.isfinite().all()
    # What says the words stays as it was trained, unless asked for.
    trained = {name for name, weight in stage.unet.named_parameters() if weight.requires_grad}
    assert not any(".words." in name for name in trained) and "temporal.given.weight" in trained
    settings = load_settings(ConditionalSettings, find_recipe("conditional_smoke"), [*options, "--train_words", "true"])
    assert all(weight.requires_grad for weight in Conditional(settings).unet.temporal.words.parameters())
    # What a recipe says of the finished clips is written into the pipeline.
    asked = [*options, "--seam_reach", "4", "--restarts", "[0.5]", "--default_guidance_scale", "2"]
    config = Conditional(load_settings(ConditionalSettings, find_recipe("conditional_smoke"), asked)).pipeline.config
    assert (config.seam_reach, config.restarts, config.polish) == (4, [0.5], [])
    assert config.default_guidance_scale == 2
    with pytest.raises(ValueError, match="seam_reach is -1"):
        load_settings(ConditionalSettings, find_recipe("conditional_smoke"), [*options, "--seam_reach", "-1"])
    with pytest.raises(ValueError, match="restarts holds 1"):
        load_settings(ConditionalSettings, find_recipe("conditional_smoke"), [*options, "--restarts", "[1.0]"])


def test_frames_at_any_moments_are_of_one_scene() -> None:
    settings = StorybookSettings(size=16, num_frames=2, any_moments=True)
    batch = StorybookBatches(settings, seed=0).batch(0, 8)
    assert batch.clips.shape == (8, 3, 2, 16, 16)
    steps = (batch.clips[:, :, 0] - batch.clips[:, :, 1]).abs().mean((1, 2, 3))
    others = (batch.clips[:, :, 0] - batch.clips.roll(1, 0)[:, :, 1]).abs().mean((1, 2, 3))
    assert bool((steps > 0).all()) and float(steps.mean()) < 0.5 * float(others.mean())
