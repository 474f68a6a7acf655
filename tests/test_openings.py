"""A clip's first frame made before the rest, and things carried along from it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lumiere.applications.stylization import apply_style, remove_style
from lumiere.conditioning.frames import Conditioning, MaskMix, first_frame, kept_region, num_channels
from lumiere.config import find_recipe, load_settings
from lumiere.data.batches import StorybookBatches, StorybookSettings
from lumiere.data.storybook import from_start, render
from lumiere.diffusion.sample import draw_noise
from lumiere.model.inflate import account, add_forecast, add_opening, widen_input
from lumiere.model.style import LowRank, Style, image_layers
from lumiere.pipeline import LumierePipeline
from lumiere.training.run import train
from lumiere.training.stages.motion import _make_ready
from lumiere.training.stages.opening import OpeningSettings, OpeningTraining
from tests.tiny_pipeline import tiny_pipeline

PROMPT = "a red ball bounces"
FRAMES, SHORT = 8, 4


def forecasting(*, moving: bool = True, **settings: Any) -> LumierePipeline:
    """A tiny pipeline that forecasts given frames (badly), and sees them; everything in them moves, or nothing does."""
    pipeline = tiny_pipeline()
    widen_input(pipeline.unet, num_channels(pipeline.codec))
    torch.manual_seed(3)
    torch.nn.init.normal_(pipeline.unet.temporal.given.weight, std=0.3)
    add_forecast(pipeline.unet)
    torch.nn.init.constant_(pipeline.unet.temporal.forecast.whose_say.bias, 200 if moving else -200)
    pipeline.register_to_config(**settings)
    return pipeline


def made(pipeline: LumierePipeline, seed: int = 0, **call: Any) -> Tensor:
    """The clip [1, 3, T, H, W] in -1..1 of a call."""
    generator = call.pop("generator", torch.Generator().manual_seed(seed))
    frames = pipeline(PROMPT, num_inference_steps=3, output_type="pt", generator=generator, **call).frames
    return frames.transpose(1, 2) * 2 - 1


@pytest.mark.parametrize("carry", [False, True])
def test_an_opened_clip_is_a_clip_whose_first_frame_was_made_and_given(carry: bool) -> None:
    pipeline = forecasting(carry_given=carry)
    opened = made(pipeline, opening_frames=SHORT)
    # By hand: the whole clip's noise is drawn first, the short one's after it.
    generator = torch.Generator().manual_seed(0)
    noise = draw_noise((1, 12, FRAMES, 8, 8), [generator])
    short = made(pipeline, num_frames=SHORT, generator=generator)
    assert torch.allclose(opened[:, :, 0], short[:, :, 0], atol=1e-5)
    whole = made(pipeline, conditioning=first_frame(short[:, :, 0], FRAMES), latents=noise)
    assert torch.allclose(opened, whole, atol=1e-4)
    assert not torch.allclose(opened[:, :, 1:], made(pipeline)[:, :, 1:], atol=1e-2)


def test_a_first_frame_in_which_nothing_moves_is_not_gone_on_with() -> None:
    pipeline = forecasting(moving=False, carry_given=True)
    assert torch.equal(made(pipeline, opening_frames=SHORT), made(pipeline))
    # Of two clips one may have its own: each is asked by itself.
    pictures = torch.zeros(2, 16, 1, 8, 8)
    pictures[1, :12], pictures[:, 12:] = 1, 1
    forecast = pipeline.unet.temporal.forecast
    by_colour = torch.where(pictures[:, :1].expand(-1, 4, -1, -1, -1) > 0, 9.0, -9.0)
    forecast.whose_pixels = lambda _: by_colour
    assert pipeline.unet.shows_what_moves(pictures).tolist() == [False, True]
    for share, is_enough in ((0.05, False), (0.07, True)):
        tiny = torch.full((1, 4, 1, 50, 50), -9.0)
        tiny.view(-1)[: int(share * tiny.numel())] = 9
        forecast.whose_pixels = lambda _, tiny=tiny: tiny
        assert pipeline.unet.shows_what_moves(pictures[:1]).tolist() == [is_enough]
    given = kept_region(torch.ones(2, 3, FRAMES, 16, 16), torch.ones(2, 1, 1, 16, 16))
    opened = given.opened_with(torch.ones(2, 3, 16, 16), torch.tensor([False, True]))
    assert not opened.mask[0].any() and not opened.pixels[0].any()
    assert opened.mask[1, 0].flatten(1).amin(1).tolist() == [1] + [0] * (FRAMES - 1)


def test_it_is_the_same_in_a_batch() -> None:
    pipeline = forecasting(carry_given=True, opening_frames=SHORT)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    both = pipeline([PROMPT] * 2, num_inference_steps=3, output_type="pt", generator=generators).frames
    for seed in (0, 1):
        assert torch.allclose(both[seed : seed + 1].transpose(1, 2) * 2 - 1, made(pipeline, seed), atol=1e-4)


def test_the_callback_is_told_of_the_whole_clips_steps_alone() -> None:
    told: list[tuple[int, int]] = []

    def tell(_: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        told.append((index, tensors["latents"].shape[2]))
        return {}

    made(forecasting(), opening_frames=SHORT, callback_on_step_end=tell)
    assert told == [(0, FRAMES), (1, FRAMES), (2, FRAMES)]


def test_a_frame_that_is_given_needs_no_opening_and_a_region_stays_as_given() -> None:
    pipeline = forecasting()
    clip = torch.rand(1, 3, FRAMES, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    bars = first_frame(clip[:, :, 0], FRAMES)
    bars = Conditioning.of(bars.pixels, torch.cat([bars.mask[..., :12], torch.zeros_like(bars.mask[..., 12:])], dim=-1))
    for given in (first_frame(clip[:, :, 0], FRAMES), bars):
        plain, opened = (made(pipeline, conditioning=given, opening_frames=frames) for frames in (0, SHORT))
        assert torch.equal(plain, opened)
    box = torch.zeros(1, 1, 1, 16, 16)
    box[..., 4:12, 4:12] = 1
    plain, opened = (made(pipeline, conditioning=kept_region(clip, box), opening_frames=count) for count in (0, SHORT))
    is_kept = (box == 0).expand_as(clip)
    assert torch.allclose(opened[is_kept], clip[is_kept], atol=1e-6)
    assert not torch.allclose(opened, plain, atol=1e-2)
    usual = forecasting(opening_frames=SHORT)
    assert torch.equal(made(usual, conditioning=kept_region(clip, box)), opened)
    # A video that is started from shows its own first frame, and clips in windows have many.
    for call in ({"video": clip, "strength": 0.5}, {"num_frames": 2 * FRAMES}):
        assert torch.equal(made(pipeline, **call), made(pipeline, opening_frames=SHORT, **call))


def test_things_are_carried_only_from_a_given_frame_and_it_stays() -> None:
    pipeline = forecasting()
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    assert torch.equal(made(pipeline, carry_given=True), made(pipeline))
    given = first_frame(image, FRAMES)
    plain, carried = (made(pipeline, conditioning=given, carry_given=wish) for wish in (False, True))
    assert torch.allclose(carried[:, :, 0], image, atol=1e-6)
    assert not torch.allclose(carried[:, :, 1:], plain[:, :, 1:], atol=1e-2)


def test_they_travel_with_the_weights(tmp_path: Path) -> None:
    pipeline = forecasting(carry_given=True, opening_frames=SHORT)
    pipeline.save_pretrained(tmp_path)
    again = LumierePipeline.from_pretrained(tmp_path)
    assert again.config.carry_given is True and again.config.opening_frames == SHORT
    assert torch.allclose(made(again), made(pipeline), atol=1e-5)


def test_what_cannot_be_done_is_refused_before_any_work() -> None:
    pipeline = forecasting()
    with pytest.raises(ValueError, match="3 opening_frames; this network halves time"):
        made(pipeline, opening_frames=3)
    with pytest.raises(ValueError, match="-4 opening_frames"):
        made(pipeline, opening_frames=-4)
    for call, name in (
        ({"opening_frames": SHORT}, "opening_frames is 4"),
        ({"carry_given": True}, "carry_given is True"),
    ):
        with pytest.raises(ValueError, match=f"{name}, but this base does not forecast"):
            made(tiny_pipeline(), **call)
        with pytest.raises(ValueError, match=f"{name}, but this base does not forecast"):
            tiny_pipeline(**call)


def with_opening(pipeline: LumierePipeline, rank: int = 2) -> dict[str, LowRank]:
    """Give it changes for first frames that change something, and say which."""
    generator = torch.Generator().manual_seed(9)
    unet = add_opening(pipeline.unet, rank)
    changes = {}
    for name, layer in image_layers(unet).items():
        out, *others = layer.weight.shape
        down = torch.randn(rank, *others, generator=generator) * 0.1
        up = torch.randn(out, rank, *(1 for _ in others[1:]), generator=generator) * 0.1
        changes[name] = LowRank(down, up)
    unet.temporal.opening.take(unet, changes)
    return changes


def test_first_frames_are_drawn_by_changed_layers_and_nothing_else_is() -> None:
    pipeline = forecasting()
    plain = made(pipeline)
    before = {name: layer.weight.detach().clone() for name, layer in image_layers(pipeline.unet).items()}
    num_before = account(pipeline.unet).num_new
    changes = with_opening(pipeline)
    num_changes = sum(change.down.numel() + change.up.numel() for change in changes.values())
    assert account(pipeline.unet).num_new - num_before == num_changes
    assert torch.equal(made(pipeline), plain)
    opened = made(pipeline, opening_frames=1)
    after = {name: layer.weight for name, layer in image_layers(pipeline.unet).items()}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    # By hand: the same changes as a style of the image network, for the still alone.
    generator = torch.Generator().manual_seed(0)
    noise = draw_noise((1, 12, FRAMES, 8, 8), [generator])
    weights = {f"{name}.weight": change for name, change in changes.items()}
    apply_style(pipeline, Style("opening", low_rank=weights), 1.0)
    still = made(pipeline, num_frames=1, generator=generator)
    remove_style(pipeline)
    assert torch.allclose(opened[:, :, :1], still, atol=1e-5)
    whole = made(pipeline, conditioning=first_frame(still[:, :, 0], FRAMES), latents=noise)
    assert torch.allclose(opened, whole, atol=1e-4)


def test_changes_for_first_frames_are_put_off_when_drawing_fails_and_travel(tmp_path: Path) -> None:
    pipeline = forecasting()
    changes = with_opening(pipeline)
    name, layer = next(iter(image_layers(pipeline.unet).items()))
    kept = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="stopped"), pipeline.unet.drawing_openings():
        change = changes[name].change(kept.shape)
        assert torch.allclose(layer.weight, kept + change, atol=1e-6) and change.abs().max() > 1e-3
        raise RuntimeError("stopped")
    assert torch.equal(layer.weight, kept)
    opened = made(pipeline, opening_frames=1)
    pipeline.save_pretrained(tmp_path / "whole")
    again = LumierePipeline.from_pretrained(tmp_path / "whole")
    again.set_progress_bar_config(disable=True)
    assert torch.allclose(made(again, opening_frames=1), opened, atol=1e-4)
    pipeline.unet.freeze_image()
    assert not any(weight.requires_grad for weight in pipeline.unet.temporal.opening.parameters())
    pipeline.unet.save_motion(tmp_path / "motion.safetensors")
    with pytest.raises(ValueError, match="opening_rank"):
        forecasting().unet.load_motion(tmp_path / "motion.safetensors")
    with pytest.raises(ValueError, match="changes of 1 layers"):
        pipeline.unet.temporal.opening.take(pipeline.unet, {name: changes[name]})


def test_stills_can_be_first_frames() -> None:
    settings = StorybookSettings(size=16, num_frames=1, motion_from_start=True, first_moment=True)
    batch = StorybookBatches(settings, seed=3).batch(0, 6)
    assert torch.equal(batch.clips, render(batch.scenes, torch.zeros(6, 1), size=16))
    assert all(scene == from_start(scene) for scene in batch.scenes)
    anywhen = StorybookBatches(settings.model_copy(update={"first_moment": False}), seed=3).batch(0, 6)
    assert not torch.equal(anywhen.clips, batch.clips)


def test_a_base_that_is_trained_on_other_clips_leaves_both_off() -> None:
    pipeline = forecasting(carry_given=True, opening_frames=SHORT)
    _make_ready(pipeline, SimpleNamespace(checkpointing=False, chunk_image_layers=None), (16, 16, FRAMES))
    assert (pipeline.config.carry_given, pipeline.config.opening_frames) == (False, 0)


def test_it_is_trained_alone(tmp_path: Path, base_network: Path) -> None:
    options = ["--start_from", str(base_network)]
    out = train("opening_smoke", ["--out", str(tmp_path / "run"), *options])
    before, after = (load_file(run / "unet" / "diffusion_pytorch_model.safetensors") for run in (base_network, out))
    assert {name.split(".")[1] for name in after.keys() - before.keys()} == {"given", "opening"}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(bool(weight.any()) for name, weight in after.items() if ".opening.up." in name)
    assert json.loads((out / "model_index.json").read_text("utf-8"))["num_frames"] > 1
    with pytest.raises(ValueError, match="it is 1"):
        train("opening_smoke", ["--out", str(tmp_path / "two"), *options, "--data.num_frames", "2"])
    with pytest.raises(ValueError, match=r"several_frames 0\.2.* a lone first frame"):
        train("opening_smoke", ["--out", str(tmp_path / "whole"), *options, "--given.several_frames", "0.2"])
    with pytest.raises(ValueError, match="every share"):
        shares = [word for name in MaskMix.model_fields for word in (f"--given.{name}", "0")]
        train("opening_smoke", ["--out", str(tmp_path / "none"), *options, *shares])


def test_what_is_exported_draws_as_what_was_trained(tmp_path: Path, base_network: Path) -> None:
    overrides = ["--start_from", str(base_network), "--out", str(tmp_path), "--loop.bf16_weights", "false"]
    stage = OpeningTraining(load_settings(OpeningSettings, find_recipe("opening_smoke"), overrides))
    torch.manual_seed(1)
    for weight in stage.unet.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.02)
    clip, states = torch.randn(1, 12, 1, 8, 8), torch.randn(1, 5, stage.unet.config.cross_attention_dim)
    stage.export(tmp_path / "out")
    unet = LumierePipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.float32).unet
    with torch.no_grad():
        trained = stage.unet.eval()(clip, 500, states).sample
        with unet.drawing_openings():
            worn = unet(clip, 500, states).sample
        plain = unet(clip, 500, states).sample
    # To the rounding of the stored bfloat16.
    assert torch.allclose(worn, trained, atol=0.05 * float((trained - plain).abs().max()))


def test_training_goes_on_with_the_openings_of_its_base(tmp_path: Path, base_network: Path) -> None:
    base = LumierePipeline.from_pretrained(base_network)
    base.unet.to(torch.float32)
    changes = with_opening(base)
    base.save_pretrained(tmp_path / "base")
    clip, states = torch.randn(1, 12, 1, 8, 8), torch.randn(1, 5, base.unet.config.cross_attention_dim)

    def at_first(rank: int) -> Tensor:
        overrides = ["--start_from", str(tmp_path / "base"), "--out", str(tmp_path), "--rank", str(rank)]
        overrides += ["--loop.bf16_weights", "false"]
        stage = OpeningTraining(load_settings(OpeningSettings, find_recipe("opening_smoke"), overrides))
        trained = [weight for weight in stage.unet.parameters() if weight.requires_grad]
        assert len(trained) == 2 * len(changes)
        with torch.no_grad():
            return stage.unet.eval()(clip, 500, states).sample

    with torch.no_grad():
        plain = base.unet(clip, 500, states).sample
        with base.unet.drawing_openings():
            worn = base.unet(clip, 500, states).sample
    assert not torch.allclose(worn, plain, atol=1e-3)
    assert torch.allclose(at_first(2), worn, atol=1e-5) and torch.allclose(at_first(3), plain, atol=1e-5)


def test_what_is_given_around_nothing_is_shaped_as_around_a_thing(tmp_path: Path, base_network: Path) -> None:
    overrides = ["--start_from", str(base_network), "--out", str(tmp_path), "--data.empty_share", "0.5"]
    stage = OpeningTraining(load_settings(OpeningSettings, find_recipe("opening_smoke"), overrides))
    batch = stage.books.batch(0, 4)
    there = [bool(scene.actors) for scene in batch.scenes]
    assert there == [True, True, False, False]
    boxes = stage.objects(batch)
    assert torch.equal(boxes[:2], stage.books.objects(batch)[:2]) and torch.equal(boxes[2:], boxes[:2])
    assert boxes.flatten(1).any(1).all()
    empty = load_settings(OpeningSettings, find_recipe("opening_smoke"), [*overrides[:-1], "1"])
    nothing = OpeningTraining(empty)
    assert not nothing.objects(nothing.books.batch(0, 4)).any()
