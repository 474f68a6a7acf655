"""Forecasts of given frames: moved as is said, shown only where less is given, and the likelier of two."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lumiere.codec import PixelBlocks
from lumiere.config import find_recipe, load_settings
from lumiere.data.storybook import (
    MOTIONS,
    draw_scene,
    from_start,
    motion_between,
    object_pixels,
    render,
    without_actors,
)
from lumiere.model.forecast import TRUST, Ahead, Forecast, Motion, whole_frames
from lumiere.model.inflate import account, add_forecast
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from lumiere.training.run import train
from lumiere.training.stages.forecast import ForecastSettings, ForecastTraining, Misses
from tests.test_given_frames import first_given
from tests.test_given_words import network
from tests.tiny_unets import FAMILIES, conditions


def blocks_given(frames: int, at: tuple[int, ...], *, block: int = 2) -> Tensor:
    """<C, M> [1, c, T, 8, 8] of random pictures in blocks, of which the frames ``at`` are given."""
    codec = PixelBlocks(block)
    pictures = torch.rand(1, 3, frames, 8 * block, 8 * block, generator=torch.Generator().manual_seed(2)) + 0.1
    mask = torch.zeros(1, 1, frames, 8 * block, 8 * block)
    mask[:, :, list(at)] = 1
    return torch.cat([codec.encode(pictures * mask), codec.encode(mask)], dim=1)


def told_to_move(block: int, x: float, y: float) -> Forecast:
    """One that says of all places that what is there was ``x``, ``y`` places farther right and down, of 8."""
    torch.manual_seed(0)
    forecast = Forecast(4 * block**2, 3 * block**2, text_width=6)
    with torch.no_grad():
        forecast.say.weight.zero_()
        forecast.say.bias.copy_(torch.tensor([0, 0, x / 4, 0, 0, y / 4, 9.0]))
    return forecast


def seen(forecast: Forecast, given: Tensor, noisy: Tensor | None = None) -> Tensor:
    """<C, M> with forecasts, for noise and an empty text."""
    noisy = torch.zeros_like(given[:, : forecast.picture_channels]) if noisy is None else noisy
    with torch.no_grad():
        ahead = forecast(given, torch.zeros(len(given), 6))
        return given if ahead is None else forecast.shown(given, noisy, ahead)


@pytest.mark.parametrize("block", [1, 2])
def test_a_given_frame_is_moved_as_is_said(block: int) -> None:
    given = blocks_given(4, (0,), block=block)
    codec, colours = PixelBlocks(block), 3 * block**2
    moved = seen(told_to_move(block, 2, -1), given)
    assert torch.equal(moved[:, :, 0], given[:, :, 0])
    picture, mask = codec.decode(moved[:, :colours]), codec.decode(moved[:, colours:])
    true = codec.decode(given[:, :colours])[:, :, :1]
    for frame in (1, 2, 3):
        right, down = 2 * block, block
        assert torch.allclose(picture[:, :, frame, down:, :-right], true[:, :, 0, :-down, right:], atol=1e-5)
        assert bool((mask[:, :, frame, down:, :-right] == TRUST).all())
        # Nothing is known of what has come in from outside the picture.
        assert not picture[:, :, frame, :down].any() and not mask[:, :, frame, :, -right:].any()


def test_parts_of_a_block_are_moved_as_pixels() -> None:
    """Half a place is one pixel of a block of two."""
    given, codec = blocks_given(2, (0,)), PixelBlocks(2)
    picture = codec.decode(seen(told_to_move(2, 0.5, 0), given)[:, :12])
    true = codec.decode(given[:, :12])
    assert torch.allclose(picture[:, :, 1, :, :-1], true[:, :, 0, :, 1:], atol=1e-5)


def test_what_is_given_stays_and_where_nothing_is_nothing_is_forecast() -> None:
    forecast = told_to_move(2, 1, 0)
    nothing = torch.zeros(1, 16, 4, 8, 8)
    assert torch.equal(seen(forecast, nothing), nothing)
    # As much is given of all frames: no frame says more than another.
    alike = blocks_given(4, (0, 1, 2, 3))
    alike[..., 3:6] = 0
    assert torch.equal(seen(forecast, alike), alike)
    # A frame beside is given in part: that part stays, the rest is forecast.
    part = blocks_given(4, (0, 1))
    part[:, :, 1, :, 3:] = 0
    shown = seen(forecast, part)
    assert torch.equal(shown[:, :, 1, :, :3], part[:, :, 1, :, :3])
    assert torch.allclose(shown[:, :12, 1, :, 3:7], part[:, :12, 0, :, 4:], atol=1e-5)


def test_frames_are_forecast_from_the_nearer_end() -> None:
    given = blocks_given(6, (0, 5))
    shown = seen(told_to_move(2, 0, 0), given)
    for frame, source in ((1, 0), (2, 0), (3, 5), (4, 5)):
        assert torch.allclose(shown[:, :12, frame], given[:, :12, source], atol=1e-5)


@pytest.mark.parametrize("way", [0, 1])
def test_the_forecast_that_the_noisy_clip_is_like_is_shown(way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forecast, given = told_to_move(2, 0, 0), blocks_given(20, (0,))
    given[:, :12] -= given[:, :12].mean()
    plain = forecast.motion(
        given[:, :, :1], torch.zeros(1, 6), *(torch.zeros(1, 20, dtype=torch.long) for _ in range(3))
    )
    maps = plain.maps.clone()
    maps[:, 0, ..., 0, 2], maps[:, 1, ..., 0, 2] = 0.5, -0.5
    monkeypatch.setattr(forecast, "motion", lambda *_: Motion(maps, plain.seen))
    one = torch.zeros(1, 20, dtype=torch.long)
    both = forecast.moved(given[:, :, :1], Motion(maps, plain.seen), one)[:, :, :12]
    noise = torch.randn(both[:, 0].shape, generator=torch.Generator().manual_seed(5))
    noisy = 0.3 * both[:, way] + 0.95 * noise
    assert torch.equal(seen(forecast, given, noisy)[:, :12, 1:], both[:, way, :, 1:])


def turning(period: float, *, swings: bool = False) -> Forecast:
    """One that says that everything turns round and round, once in so many frames, or swings to and fro."""
    forecast = told_to_move(2, 0, 0)

    def motion(pictures: Tensor, text: Tensor, which: Tensor, sources: Tensor, numbers: Tensor) -> Motion:
        angles = torch.stack([2 * math.pi / period * times for times in (numbers, sources)])
        angles = (angles.sin() if swings else angles).diff(dim=0)[0].neg()[:, None].expand(-1, 2, -1)
        maps = torch.zeros(*angles.shape, 8, 8, 2, 3)
        maps[..., 0, 0] = maps[..., 1, 1] = angles.cos()[..., None, None]
        maps[..., 0, 1], maps[..., 1, 0] = -angles.sin()[..., None, None], angles.sin()[..., None, None]
        return Motion(maps, torch.full(maps.shape[:-2], 9.0))

    forecast.motion = motion
    return forecast


@pytest.mark.parametrize(("period", "told"), [(12, 36), (20, 40), (29, 29), (90, 40)])
def test_a_loop_closes_when_things_are_back_where_they_were(period: int, told: int) -> None:
    """Told of as many frames as whole turns take, and slowed down; of none, where it cannot be."""
    given = blocks_given(41, (0,))
    given[:, :, 40] = given[:, :, 0]
    ahead = turning(period)(given, torch.zeros(1, 6))
    assert ahead is not None
    angles = torch.atan2(ahead.motion.maps[0, 0, :, 0, 0, 1, 0], ahead.motion.maps[0, 0, :, 0, 0, 0, 0])
    per_frame = 2 * math.pi / period * told / 40
    expected = torch.cat([torch.arange(21), torch.arange(21, 41) - 40]) * per_frame
    assert torch.allclose(torch.exp(1j * angles), torch.exp(1j * expected), atol=1e-4)


@pytest.mark.parametrize(("period", "told"), [(30, 30), (40, 40), (26, 26)])
def test_what_swings_is_back_when_it_also_goes_on_as_it_did(period: int, told: int) -> None:
    given = blocks_given(41, (0,))
    given[:, :, 40] = given[:, :, 0]
    ahead = turning(period, swings=True)(given, torch.zeros(1, 6))
    assert ahead is not None
    angles = torch.atan2(ahead.motion.maps[0, 0, :, 0, 0, 1, 0], ahead.motion.maps[0, 0, :, 0, 0, 0, 0])
    expected = torch.sin(2 * math.pi / period * told / 40 * torch.arange(41))
    assert torch.allclose(angles, expected, atol=1e-4)


def test_where_another_picture_comes_last_nothing_is_slowed_down() -> None:
    given = blocks_given(41, (0, 40))
    ahead = turning(29)(given, torch.zeros(1, 6))
    assert ahead is not None
    angle = torch.atan2(ahead.motion.maps[0, 0, 5, 0, 0, 1, 0], ahead.motion.maps[0, 0, 5, 0, 0, 0, 0])
    assert float(angle) == pytest.approx(2 * math.pi * 5 / 29, abs=1e-5)


def ahead_of(forecast: Forecast, given: Tensor, *, own: float) -> Ahead:
    """The forecast for an empty text where every pixel is the moving thing's (``own`` high) or none is."""
    with torch.no_grad():
        forecast.whose_say.weight.zero_()
        forecast.whose_say.bias.fill_(own)
        found = forecast(given, torch.zeros(len(given), 6))
    assert found is not None
    return found


@pytest.mark.parametrize("block", [1, 2])
def test_clips_show_what_moves_as_it_is_forecast_and_nothing_else_changes(block: int) -> None:
    forecast, given, colours = told_to_move(block, 2, 0), blocks_given(4, (0,), block=block), 3 * block**2
    clean = torch.randn(1, colours, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    moved = forecast.carry(ahead_of(forecast, given, own=200.0))(clean)
    assert torch.allclose(moved[..., 1:, :, :-2], given[:, :colours, :1, :, 2:].expand(-1, -1, 3, -1, -1), atol=1e-5)
    # Not what is given, and not where what moves has come from outside the picture.
    assert torch.equal(moved[:, :, 0], clean[:, :, 0]) and torch.equal(moved[..., -2:], clean[..., -2:])
    assert torch.equal(forecast.carry(ahead_of(forecast, given, own=-200.0))(clean), clean)
    half = forecast.carry(ahead_of(forecast, given, own=0.0))(clean)
    assert torch.allclose(half, (clean + moved) / 2, atol=1e-5)


def test_what_is_enlarged_too_far_is_not_firm() -> None:
    given, firm = blocks_given(4, (0,)), []
    for scale in (1.0, 0.9, 0.67, 0.5):
        forecast = told_to_move(2, 0, 0)
        with torch.no_grad():
            forecast.say.bias[[0, 4]] = scale - 1
        ahead = ahead_of(forecast, given, own=200.0)
        firm.append(float(forecast.firm(ahead).detach()[:, :, :, 1:, 4, 4].mean()))
    assert firm[0] == firm[1] == 1 and 0.3 < firm[2] < 0.7 and firm[3] == 0


def test_what_does_not_move_with_the_rest_is_not_firm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crumbs: places beside a thing whose maps, on their way from its motion to none, lead into it."""
    given = blocks_given(2, (0,))
    forecast = told_to_move(2, 2, 0)
    told, zeros = torch.zeros(1, 6), torch.zeros(1, 2, dtype=torch.long)
    motion = forecast.motion(given[:, :, :1], told, zeros, zeros, torch.arange(2)[None])
    maps = motion.maps.clone()
    # One place leads 2 places farther than the others, another, within what may be, a third of one.
    maps[:, :, 1, 4, 2, 0, 2] += 0.5
    maps[:, :, 1, 4, 4, 0, 2] += 0.08
    monkeypatch.setattr(forecast, "motion", lambda *_: Motion(maps, motion.seen))
    firm = forecast.firm(ahead_of(forecast, given, own=200.0))[:, :, :, 1]
    assert not firm[..., 4, 2].any()
    others = torch.ones(8, 8, dtype=torch.bool)
    others[4, 2] = False
    others[:, -2:] = False
    assert bool((firm[..., others] == 1).all())


@pytest.mark.parametrize("way", [0, 1])
def test_of_two_forecasts_that_is_carried_which_the_clip_shows(way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forecast, given = told_to_move(2, 0, 0), blocks_given(4, (0,))
    plain = ahead_of(forecast, given, own=200.0)
    shown = plain.shown.clone()
    shown[:, 1] = shown[:, 1].flip(-1)
    noise = torch.randn(shown[:, way, :12].shape, generator=torch.Generator().manual_seed(5))
    moved = forecast.carry(plain._replace(shown=shown))(shown[:, way, :12] + 0.2 * noise)
    assert torch.allclose(moved[:, :, 1:], shown[:, way, :12, 1:])


def test_where_no_frame_says_more_than_others_nothing_is_carried() -> None:
    stunet = add_forecast(network("embedded"))
    states = torch.zeros(1, 3, stunet.config.cross_attention_dim)
    assert stunet.look_ahead(torch.zeros_like(first_given(stunet, 8)), states) is None
    ahead = stunet.look_ahead(first_given(stunet, 8), states)
    assert ahead is not None and stunet.carry(ahead) is not None
    assert network("embedded").look_ahead(first_given(stunet, 8), states) is None
    with pytest.raises(ValueError, match="does not forecast"):
        network("embedded").carry(ahead)
    assert whole_frames(torch.ones(1, 4, 3, 2, 2)).all() and not whole_frames(torch.zeros(1, 4, 3, 2, 2)).any()
    bars = torch.ones(1, 1, 3, 4, 4)
    bars[..., 0, :], bars[:, :, 1:] = 0, 0
    assert whole_frames(bars).tolist() == [[True, False, False]]
    # Around a hole that grows: the first frame holds all that is given in any, but not what is in the hole.
    holes = torch.ones(1, 1, 3, 6, 6)
    holes[:, :, 0, 2:4, 2:4], holes[:, :, 1:, 1:5, 1:5] = 0, 0
    assert not whole_frames(holes).any()
    # All of a picture, and then only what lies around a region of it (a cinemagraph).
    holes[:, :, 0] = 1
    assert whole_frames(holes).tolist() == [[True, False, False]]


@pytest.mark.parametrize("way", [0, 1])
def test_given_parts_of_later_frames_say_which_forecast_is_true(way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What moves left or right; of later frames the right third is given."""
    given, forecast = blocks_given(3, (0,)), told_to_move(2, 0, 0)
    plain = ahead_of(forecast, given, own=200.0)
    maps = plain.motion.maps.clone()
    maps[:, 0, 1:, ..., 0, 2], maps[:, 1, 1:, ..., 0, 2] = 0.5, -0.5
    monkeypatch.setattr(forecast, "motion", lambda *_: Motion(maps, plain.motion.seen))
    both = ahead_of(forecast, given, own=200.0)
    assert torch.equal(both.motion.maps, maps)
    part = given.clone()
    part[:, 12:, 1:, :, 5:] = 1
    part[:, :12, 1:, :, 5:] = both.shown[:, way, :12, 1:, :, 5:]
    for own, is_told in ((200.0, True), (-200.0, False)):
        told = ahead_of(forecast, part, own=own)
        assert torch.equal(told.motion.maps, maps[:, [way, way]] if is_told else maps)
        assert torch.equal(told.shown[:, 0], told.shown[:, 1]) == is_told
        assert torch.equal(told.is_open[0, 0, 1, 0], torch.arange(8) < 5)


@pytest.mark.parametrize("way", [0, 1])
def test_later_whole_frames_say_which_forecast_is_true(way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What moves left or right by one place of eight a frame; the last frame shows it there, or where it began."""
    given, forecast = blocks_given(4, (0,)), told_to_move(2, 0, 0)

    def motion(pictures: Tensor, text: Tensor, which: Tensor, sources: Tensor, numbers: Tensor) -> Motion:
        maps = torch.eye(2, 3).expand(len(which), 2, which.shape[1], 8, 8, 2, 3).clone()
        moved = torch.stack((numbers - sources, sources - numbers), dim=1) / 4
        maps[..., 0, 2] = moved[..., None, None]
        return Motion(maps, torch.full(maps.shape[:-2], 9.0))

    monkeypatch.setattr(forecast, "motion", motion)
    both = ahead_of(forecast, given, own=200.0)
    assert not torch.equal(both.shown[:, 0], both.shown[:, 1])
    last = given.clone()
    last[:, :12, 3], last[:, 12:, 3] = both.shown[:, way, :12, 3], 1
    told = ahead_of(forecast, last, own=200.0)
    assert torch.equal(told.shown[:, 0], told.shown[:, 1])
    assert torch.equal(told.shown[:, 0, :, :2], both.shown[:, way, :, :2])
    assert torch.equal(told.which, torch.tensor([[0, 0, 1, 1]]))
    two = torch.cat([last, given])
    two[1, :, 3] = given[0, :, 0]
    for chance in (ahead_of(forecast, last, own=-200.0), ahead_of(forecast, two, own=200.0)):
        assert not torch.equal(chance.shown[-1, 0], chance.shown[-1, 1])


@pytest.mark.parametrize("family", ["embedded", "sd1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clips_of_which_nothing_is_given_are_left_alone(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    stunet = network(family).to(dtype)
    clip, given = torch.randn(2, stunet.config.in_channels, 8, 16, 16), first_given(stunet, 8)
    inputs = {k: v.to(dtype) if k == "encoder_hidden_states" else v for k, v in conditions(stunet, 2).items()}
    one_told = torch.cat([clip, given * torch.tensor([1, 0]).view(2, 1, 1, 1, 1)], dim=1).to(dtype)
    torch.nn.init.normal_(stunet.temporal.given.weight, std=0.3)
    with torch.no_grad():
        before = stunet(one_told, **inputs).sample
        assert add_forecast(stunet) is stunet
        after = stunet(one_told, **inputs).sample
        assert torch.equal(after[1], before[1]) and not torch.allclose(after[0], before[0], atol=1e-3)
        image = one_told[:, :, :1]
        assert torch.isfinite(stunet(image, **inputs).sample).all()
        stunet.save_pretrained(tmp_path / "whole")
        assert torch.equal(STUNet.from_pretrained(tmp_path / "whole", dtype=dtype)(one_told, **inputs).sample, after)
        stunet.save_motion(tmp_path / "motion.safetensors")
        with pytest.raises(ValueError, match="forecasts"):
            network(family).load_motion(tmp_path / "motion.safetensors")


def test_it_is_counted_frozen_and_refused() -> None:
    with pytest.raises(ValueError, match="widen_input first"):
        add_forecast(STUNet.from_image_unet(FAMILIES["embedded"](2)))
    stunet = network("embedded")
    before = account(stunet).num_new
    add_forecast(stunet)
    weights = list(stunet.temporal.forecast.parameters())
    assert account(stunet).num_new - before == sum(weight.numel() for weight in weights)
    stunet.freeze_image()
    assert not any(weight.requires_grad for weight in weights)
    with pytest.raises(ValueError, match="already"):
        add_forecast(stunet)
    with pytest.raises(ValueError, match="forecasts"):
        TemporalSettings(forecasts=True)


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_storybook_knows_how_it_moves_things(motion: str) -> None:
    """A picture moved by the true maps is the later picture, as far as the later object shows what the first did."""
    generator = torch.Generator().manual_seed(7)
    scenes = [from_start(draw_scene(generator, motions=(motion,))) for _ in range(6)]
    from_s, to_s = torch.full((6,), 0.2), torch.tensor([0.5, 0.9, 2.0]).expand(6, -1)
    maps, is_near = motion_between(scenes, from_s, to_s, size=(32, 32))
    first, later = render(scenes, from_s[:, None], size=64), render(scenes, to_s, size=64)
    empty = render([without_actors(scene) for scene in scenes], to_s, size=64)
    codec, forecast = PixelBlocks(2), Forecast(16, 12, text_width=6)
    given = torch.cat([codec.encode(first), codec.encode(torch.ones_like(first[:, :1]))], dim=1)
    told = Motion(maps[:, None], torch.full(is_near[:, None].shape, 9.0))
    moved = codec.decode(forecast.moved(given, told, torch.zeros(6, 3, dtype=torch.long))[:, 0, :12])
    of_object = object_pixels(later, empty).expand_as(later)
    off, stayed = (float((clip - later)[of_object].square().mean()) for clip in (moved, first.expand_as(later)))
    assert off < 0.5 * stayed
    near = is_near.repeat_interleave(2, -1).repeat_interleave(2, -2)[:, None]
    assert bool((object_pixels(later, empty) <= near).float().mean() > 0.999)


def test_it_is_trained_alone(tmp_path: Path, base_network: Path) -> None:
    asked = ["--start_from", str(base_network), "--carry_given", "true", "--opening_frames", "4"]
    out = train("forecast_smoke", ["--out", str(tmp_path / "seen"), *asked])
    settings = json.loads((out / "model_index.json").read_text("utf-8"))
    assert (settings["carry_given"], settings["opening_frames"]) == (True, 4)
    before, after = (load_file(run / "unet" / "diffusion_pytorch_model.safetensors") for run in (base_network, out))
    assert {name.split(".")[1] for name in after.keys() - before.keys()} == {"given", "forecast"}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not after["temporal.given.weight"].any()
    lines = [json.loads(line) for line in (tmp_path / "seen" / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out/pixels_off" in line and "held_out/moving_thing_iou" in line for line in lines)
    assert list((tmp_path / "seen" / "samples").glob("*/given_true_forecast.png"))
    with pytest.raises(ValueError, match="it is 1"):
        train("forecast_smoke", ["--out", str(tmp_path / "three"), "--data.num_frames", "3"])
    # And the base goes on from there, told what is forecast; that itself stays as it was trained.
    options = ["--out", str(tmp_path / "told"), "--start_from", str(out), "--given.nothing", "0"]
    told = load_file(train("conditional_smoke", options) / "unet" / "diffusion_pytorch_model.safetensors")
    assert told.keys() == after.keys() and bool(told["temporal.given.weight"].any())
    assert all(torch.equal(told[name], after[name]) for name in after if ".forecast." in name)


def test_true_motion_is_no_pixel_off(tmp_path: Path, base_network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of two forecasts, where things may go round either way, one is asked for each."""
    overrides = ["--start_from", str(base_network), "--out", str(tmp_path), "--loop.bf16_weights", "false"]
    stage = ForecastTraining(load_settings(ForecastSettings, find_recipe("forecast_smoke"), overrides))
    batch, to_s, captions, known = stage._held_out(4, 3)
    kinds = ((-1, "spin"), (1, "spin"), (1, "orbit"), (1, "slide left"))
    actors = [replace(batch.scenes[0].actors[0], turn=turn, motion=motion) for turn, motion in kinds]
    batch = replace(batch, scenes=tuple(replace(batch.scenes[0], actors=(actor,)) for actor in actors))
    maps, _ = motion_between(batch.scenes, torch.zeros(4), to_s, size=(8, 8))
    stays = torch.eye(3)[:2].expand_as(maps)
    logits = torch.full((4, 2, 3, 8, 8), 9.0)

    def misses(*ways: Tensor) -> Misses:
        monkeypatch.setattr(stage.forecaster, "motion", lambda *_: Motion(torch.stack(ways, 1), logits))
        return stage._misses(batch, to_s, captions, known)

    right, first, second, neither = (
        misses(*ways) for ways in ((maps, maps), (maps, stays), (stays, maps), (stays, stays))
    )
    assert torch.allclose(right[1], torch.zeros(4), atol=1e-5) and bool((neither[1] > 0.2).all())
    for place in (0, 1):
        asked = torch.stack([first[place], second[place]])
        for row, way in ((0, 0), (1, 1), (2, 1)):
            assert torch.equal(asked[way, row], right[place][row])
            assert torch.equal(asked[1 - way, row], neither[place][row])
        # Where nothing is left open both are.
        assert torch.allclose(asked[:, 3], (right[place][3] + neither[place][3]) / 2)
