"""One loop, exact resume, stages that learn what they should and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lumiere.conditioning.frames import MaskMix
from lumiere.config import find_recipe, load_settings
from lumiere.data.batches import StorybookBatches, StorybookSettings
from lumiere.data.captions import BACKGROUND_WORDS, brief_caption
from lumiere.data.drawing import STYLES
from lumiere.data.storybook import RESIZING_MOTIONS, TURNING_MOTIONS, is_held_out, render
from lumiere.diffusion.objective import Objective
from lumiere.pipeline import LumierePipeline
from lumiere.training.checkpoint import checkpoints, read_tensors
from lumiere.training.ema import Ema
from lumiere.training.loop import LoopSettings, compiled, learning_rate
from lumiere.training.noise import (
    WHOLE_SOURCE,
    NoiseSettings,
    draw_noise,
    embedded_scheduler,
    noise_shares,
    with_source,
)
from lumiere.training.run import train
from tests.tiny_pipeline import tiny_pipeline

QUICK = ["--loop.log_every", "1"]


def _newest_weights(out: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for what in ("weights", "ema", "optimizer"):
        for key, value in read_tensors(checkpoints(out)[-1], what).items():
            tensors[f"{what}:{key}"] = value
    return tensors


def _assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different[:3]


def test_resumed_image_run_equals_unbroken_run(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train("text_to_image_smoke", ["--out", str(whole), "--loop.num_steps", "4", *QUICK])
    train("text_to_image_smoke", ["--out", str(broken), "--loop.num_steps", "4", "--loop.save_every", "1", *QUICK])
    for late in checkpoints(broken)[1:]:
        (late / "state.json").unlink()
    lines_before = (broken / "metrics.jsonl").read_text().count("\n")
    train("text_to_image_smoke", ["--out", str(broken), "--loop.num_steps", "4", *QUICK])
    _assert_equal(_newest_weights(whole), _newest_weights(broken))
    assert (broken / "metrics.jsonl").read_text().count("\n") == lines_before


def test_resumed_video_run_equals_unbroken_run(tmp_path: Path, image_network: Path) -> None:
    common = ["--image", str(image_network), *QUICK]
    train("text_to_video_smoke", ["--out", str(tmp_path / "whole"), *common])
    train("text_to_video_smoke", ["--out", str(tmp_path / "broken"), *common, "--loop.keep_checkpoints", "4"])
    newest = checkpoints(tmp_path / "broken")
    assert len(newest) == 2
    (newest[-1] / "state.json").unlink()
    train("text_to_video_smoke", ["--out", str(tmp_path / "broken"), *common])
    _assert_equal(_newest_weights(tmp_path / "whole"), _newest_weights(tmp_path / "broken"))


def test_motion_training_leaves_every_image_weight_as_it_was(tmp_path: Path, image_network: Path) -> None:
    export = train("text_to_video_smoke", ["--out", str(tmp_path), "--image", str(image_network)])
    before = load_file(image_network / "unet" / "diffusion_pytorch_model.safetensors")
    after = load_file(export / "unet" / "diffusion_pytorch_model.safetensors")
    temporal = [name for name in after if name.startswith("temporal.")]
    assert temporal and set(after) - set(temporal) == set(before)
    for name, weight in before.items():
        assert torch.equal(weight.to(torch.bfloat16), after[name]), name


def test_a_processor_that_only_emulates_bf16_trains_in_fp32_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(name: str, emulates: bool, **formats: bool) -> tuple[dict[str, torch.Tensor], bool]:
        """What one step makes of the weights, and whether it was said that bf16 is left out."""
        monkeypatch.setattr("lumiere.device.has_fast_bfloat16", lambda _: not emulates)
        asked = [word for key, value in formats.items() for word in (f"--loop.{key}", str(value).lower())]
        words = ["--loop.device", "cpu", "--loop.num_steps", "1", "--loop.bf16", "false", *asked]
        train("text_to_image_smoke", ["--out", str(tmp_path / name), *words])
        said = capsys.readouterr().out
        return _newest_weights(tmp_path / name), "bf16 is left out: computing on cpu, float32" in said

    in_fp32, was_said = trained("fp32", True)
    assert not was_said
    for name in ("bf16", "bf16_weights"):
        found, was_said = trained(name, True, **{name: True})
        assert was_said
        _assert_equal(found, in_fp32)
    in_bf16, was_said = trained("rough", False, bf16_weights=True)
    assert not was_said and any(not torch.equal(in_bf16[name], in_fp32[name]) for name in in_fp32)


def test_a_broken_loss_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train("text_to_image_smoke", ["--out", str(out), "--loop.num_steps", "2"])
    kept = _newest_weights(out)
    with pytest.raises(ValueError, match="the loss is"):
        broken = ["--loop.num_steps", "9", "--loop.learning_rate", "1e30", "--loop.max_bad_steps", "3"]
        train("text_to_image_smoke", ["--out", str(out), *broken], accept_changes=True)
    _assert_equal(kept, _newest_weights(out))


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    train("text_to_image_smoke", ["--out", str(tmp_path), "--loop.num_steps", "2"])
    with pytest.raises(ValueError, match="another network"):
        train("text_to_image_smoke", ["--out", str(tmp_path), "--network.text_width", "48"], accept_changes=True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--loop.lerning_rate", "1"], "learning_rate"),
        (["--loop.num_steps", "0"], "num_steps"),
        (["--stage", "text_to_music"], "text_to_image"),
    ],
)
def test_wrong_settings_are_refused_by_name(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train("text_to_image_smoke", overrides)


def test_missing_image_network_is_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unet"):
        train("text_to_video_smoke", ["--image", str(tmp_path), "--out", str(tmp_path / "run")])


def test_average_follows_the_weights_and_gives_them_back() -> None:
    weight = nn.Parameter(torch.zeros(3))
    ema = Ema([weight], decay=0.5)
    expected = torch.zeros(3)
    for step in range(1, 30):
        weight.data += 1
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.data
    assert torch.allclose(ema.averages[0], expected)
    with ema.applied():
        assert torch.allclose(weight.data, expected)
    assert torch.equal(weight.data, torch.full((3,), 29.0))


def test_a_network_is_compiled_whole_or_block_by_block() -> None:
    """(That compiled blocks train the same is tested with the network.)"""
    unet = tiny_pipeline().unet
    assert compiled(unet, False) is unet and compiled(unet, True) is not unet
    assert compiled(unet, "blocks") is unet
    done = {type(part).__name__ for part in unet.modules() if part._compiled_call_impl is not None}
    assert done and done <= set(unet._repeated_blocks)


def test_learning_rate_rises_stays_and_falls_to_zero() -> None:
    settings = LoopSettings(num_steps=100, batch_size=1, learning_rate=2.0, warmup_steps=10, decay_steps=50)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[50] == 2.0
    assert rates[75] == pytest.approx(1.0) and rates[-1] == pytest.approx(2 / 50)
    assert all(b >= a for a, b in pairwise(rates[:11]))


def test_a_batch_depends_on_its_step_and_seed_alone() -> None:
    data = StorybookBatches(StorybookSettings(size=16, num_frames=4, pair_share=0.5), seed=3)
    first, again = data.batch(7, 4), StorybookBatches(data.settings, seed=3).batch(7, 4)
    assert torch.equal(first.clips, again.clips) and first.captions == again.captions
    assert not torch.equal(first.clips, data.batch(8, 4).clips)
    assert not torch.equal(first.clips, StorybookBatches(data.settings, seed=4).batch(7, 4).clips)


def test_empty_scenes_and_terse_captions_are_drawn_as_often_as_asked() -> None:
    settings = StorybookSettings(size=16, num_frames=2, pair_share=0.25, empty_share=0.25, terse_share=0.5)
    data = StorybookBatches(settings, seed=0)
    batches = [data.batch(step, 8) for step in range(12)]
    assert all(batch.clips.shape == (8, 3, 2, 16, 16) for batch in batches)
    scenes = [scene for batch in batches for scene in batch.scenes]
    places = [bool(place.any()) for batch in batches for place in data.objects(batch)]
    assert places == [bool(scene.actors) for scene in scenes], "objects are found where there are any"
    captions = [caption for batch in batches for caption in batch.captions]
    counts = [len(scene.actors) for scene in scenes]
    assert [counts.count(number) for number in (0, 1, 2)] == [24, 48, 24]
    places = {phrase for phrases in BACKGROUND_WORDS.values() for phrase in phrases}
    assert all((caption in places) == (not scene.actors) for caption, scene in zip(captions, scenes, strict=True))
    terse = [not any(place in caption for place in places) for caption in captions]
    assert 24 <= sum(terse) <= 48
    assert not any(
        actor.object in text
        for text, scene, is_terse in zip(captions, scenes, terse, strict=True)
        if is_terse
        for actor in scene.actors
    )


def test_scenes_of_other_styles_are_drawn_as_often_as_asked_each_as_it_is_alone() -> None:
    settings = StorybookSettings(size=16, num_frames=2, pair_share=0.2, empty_share=0.2, style_share=0.5)
    batches = [StorybookBatches(settings, seed=0).batch(step, 16) for step in range(8)]
    plain = StorybookBatches(settings.model_copy(update={"style_share": 0.0}), seed=0)
    scenes = [scene for batch in batches for scene in batch.scenes]
    styles = [scene.style for scene in scenes]
    assert set(styles) == set(STYLES) and 0.4 < styles.count("flat") / len(styles) < 0.6
    assert [replace(scene, style="flat") for scene in batches[0].scenes] == list(plain.batch(0, 16).scenes)
    assert batches[0].times_s is not None
    for scene, times, clip in zip(batches[0].scenes, batches[0].times_s, batches[0].clips, strict=True):
        assert torch.equal(render([scene], times, size=16)[0], clip), scene


def test_the_image_network_is_not_asked_for_facts_that_captions_leave_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="caption_fact_weight"):
        train("text_to_image_smoke", ["--out", str(tmp_path), "--data.empty_share", "0.1"])


def test_every_nth_frame_of_a_clip_is_of_the_same_clip() -> None:
    whole = StorybookBatches(StorybookSettings(size=16, num_frames=16), seed=3).batch(2, 2)
    sparse = StorybookBatches(StorybookSettings(size=16, num_frames=4, frame_step=4), seed=3).batch(2, 2)
    assert sparse.captions == whole.captions and torch.equal(sparse.clips, whole.clips[:, :, ::4])


def test_motions_from_the_start_are_told_by_the_words_but_for_size_place_and_direction() -> None:
    settings = StorybookSettings(size=16, num_frames=16)
    data = StorybookBatches(settings.model_copy(update={"motion_from_start": True}), seed=3)
    batch, free = data.batch(2, 8), StorybookBatches(settings, seed=3).batch(2, 8)
    assert batch.captions == free.captions and not torch.equal(batch.clips, free.clips)
    drawn = [scene.actors[0] for scene in batch.scenes]
    assert {(actor.phase, actor.tempo) for actor in drawn} == {(0.0, 1.0)}
    for one, other in zip(drawn, (scene.actors[0] for scene in free.scenes), strict=True):
        assert replace(one, phase=other.phase, tempo=other.tempo) == other


def test_more_scenes_turn_when_asked_and_none_held_out_is_drawn() -> None:
    settings = StorybookSettings(size=16, num_frames=1, turning_share=0.5, pair_share=0.1)
    data = StorybookBatches(settings, seed=0)
    scenes = [scene for step in range(8) for scene in data.batch(step, 32).scenes]
    share = sum(scene.actors[0].motion in TURNING_MOTIONS for scene in scenes) / len(scenes)
    assert 0.5 < share < 0.72  # The half asked for, and two tenths of the others by chance.
    assert not any(is_held_out(actor, scene.background) for scene in scenes for actor in scene.actors)
    evaluated = data.batch(0, 64, held_out=True).scenes
    assert sum(scene.actors[0].motion in TURNING_MOTIONS for scene in evaluated) < 32


def test_more_scenes_change_their_size_when_asked() -> None:
    settings = StorybookSettings(size=16, num_frames=1, turning_share=0.25, resizing_share=0.25)
    scenes = [scene for step in range(8) for scene in StorybookBatches(settings, seed=0).batch(step, 32).scenes]
    motions = [scene.actors[0].motion for scene in scenes]
    for kind in (TURNING_MOTIONS, RESIZING_MOTIONS):  # The quarter asked for, and a tenth of all by chance.
        assert 0.27 < sum(motion in kind for motion in motions) / len(motions) < 0.43


def test_some_clips_come_in_another_colour_and_captions_ask_for_their_own() -> None:
    data = StorybookBatches(StorybookSettings(size=32, num_frames=2, pair_share=0.2, empty_share=0.1), seed=4)
    num_other = num_brief = num_alone = 0
    for step in range(6):
        batch = data.batch(step, 16)
        clips, captions = data.in_other_colours(batch, 0.5, step)
        again = data.in_other_colours(batch, 0.5, step)
        assert torch.equal(again[0], clips) and again[1] == captions
        differs, objects = (clips != batch.clips).amax(1, keepdim=True), data.objects(batch)
        assert not (differs & (objects == 0)).any()  # What is not the object stays bit for bit.
        for row, scene in enumerate(batch.scenes):
            is_other, is_brief = bool(differs[row].any()), captions[row] != batch.captions[row]
            assert not is_brief or (is_other and captions[row] == brief_caption(scene))
            assert not is_other or len(scene.actors) == 1
            num_other += is_other
            num_brief += is_brief
            num_alone += len(scene.actors) == 1
    assert 0.3 < num_other / num_alone < 0.7 and 0.4 * num_other < num_brief < 0.7 * num_other
    unchanged = data.in_other_colours(batch, 0.0, 5)
    assert torch.equal(unchanged[0], batch.clips) and unchanged[1] == batch.captions


def test_a_share_of_the_noise_levels_is_even_from_a_place_on() -> None:
    plain, mixed = NoiseSettings(mean=2.0), NoiseSettings(mean=2.0, even_share=0.5, even_from=0.2)
    one, other = (draw_noise((4000, 1), 1000, settings, seed=1, step=2) for settings in (plain, mixed))
    assert torch.equal(one[0], other[0]) and torch.equal(one[2], other[2])
    drawn_anew = one[1] != other[1]
    assert 0.45 < float(drawn_anew.float().mean()) < 0.55
    even = other[1][drawn_anew].float()
    assert 200 <= even.min() < 220 and 980 < even.max() < 1000 and 585 < even.mean() < 615


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_noised_source_leads_to_the_clean_clip_and_is_whole_only_under_much_noise(prediction_type: str) -> None:
    objective = Objective.from_scheduler(embedded_scheduler(prediction_type))
    clean, source, noise = torch.randn(3, 256, 2, 3, 4, 4, dtype=torch.float64)
    timesteps = torch.arange(256) * 3 + 4
    moved = with_source(noise, clean, source, timesteps, objective, seed=1, step=2)
    assert torch.equal(moved, with_source(noise, clean, source, timesteps, objective, seed=1, step=2))
    noisy = objective.add_noise(clean, moved, timesteps)
    found = objective.clean_from(objective.target(clean, moved, timesteps), noisy, timesteps)
    assert torch.allclose(found, clean, atol=1e-6)
    signal, sigma = objective.coefficients(timesteps, clean)
    seen = (noisy - sigma * noise) / signal  # What lies below the noise: the clean clip, the source, or in between.
    parts = ((seen - clean) / (source - clean)).flatten(1)
    assert torch.allclose(parts, parts[:, :1].expand_as(parts), atol=1e-6)
    parts, most = parts[:, 0], (sigma / signal / WHOLE_SOURCE).flatten().clamp(max=1)
    assert (parts >= -1e-9).all() and (parts <= most + 1e-9).all()
    assert parts[most == 1].max() > 0.95 and 0.4 < float((parts / most).mean()) < 0.6
    assert torch.allclose(with_source(noise, clean, clean, timesteps, objective, seed=1, step=2), noise)


def test_an_image_network_goes_on_with_its_text_encoder_as_it_was(tmp_path: Path, image_network: Path) -> None:
    more = ["--start_from", str(image_network), "--train_text", "false", "--caption_fact_weight", "0"]
    more += ["--other_colour_share", "0.8", "--doubt", "4", "--out", str(tmp_path / "more")]
    with pytest.raises(ValueError, match="caption_fact_weight"):
        train("text_to_image_smoke", [*more, "--caption_fact_weight", "0.1"])
    run = train("text_to_image_smoke", more)
    changed = {}
    for part, file in (("unet", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")):
        before, after = (load_file(made / part / file) for made in (image_network, run))
        changed[part] = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed["unet"] and not changed["text_encoder"]


def test_curves_and_recipe_lie_beside_the_run(image_network: Path) -> None:
    out = image_network.parent
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out/loss" in line for line in lines) and any("clips_per_s" in line for line in lines)
    assert (out / "recipe.yaml").read_text().startswith("stage: text_to_image")
    assert list((out / "samples").glob("*/stills.png")) and list((out / "tensorboard").iterdir())


def test_training_goes_on_from_a_pipeline(tmp_path: Path, image_network: Path) -> None:
    base = train("text_to_video_smoke", ["--out", str(tmp_path / "base"), "--image", str(image_network)])
    before = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    from lumiere.training.stages.text_to_image import TextToImage, TextToImageSettings

    settings = load_settings(TextToImageSettings, find_recipe("text_to_image_smoke"), ["--start_from", str(base)])
    stage = TextToImage(settings)
    for name, weight in stage.unet.state_dict().items():
        assert torch.equal(weight, before[name].float()), name
    options = ["--start_from", str(image_network)]
    from_run = TextToImage(load_settings(TextToImageSettings, find_recipe("text_to_image_smoke"), options))
    exported = load_file(image_network / "unet" / "diffusion_pytorch_model.safetensors")
    for name, weight in from_run.unet.state_dict().items():
        assert torch.equal(weight, exported[name]), name
    with pytest.raises(ValueError, match="another image network"):
        train("text_to_image_smoke", ["--start_from", str(base), "--network.text_width", "64", "--out", str(tmp_path)])
    more = ["--start_from", str(base), "--image", "null", "--out", str(tmp_path / "more"), "--loop.num_steps", "1"]
    longer = train("text_to_video_smoke", [*more, "--data.num_frames", "12"])
    assert json.loads((longer / "model_index.json").read_text())["num_frames"] == 12
    after = load_file(longer / "unet" / "diffusion_pytorch_model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("temporal.") for name in moved)


@pytest.mark.parametrize("share", [0.5, 0.15])
def test_doubt_takes_noise_away_from_a_share_of_the_stills(share: float) -> None:
    shares = torch.cat([noise_shares(64, 16.0, share, seed=1, step=step) for step in range(200)])
    whole = shares == 1
    assert abs(float(whole.float().mean()) - (1 - share)) < 0.02
    assert float(shares.min()) >= 0.25 - 1e-6
    assert torch.allclose(shares[~whole].log2().mean(), torch.tensor(-1.0), atol=0.02)
    assert torch.equal(noise_shares(64, 16.0, 0.5, seed=1, step=7), noise_shares(64, 16.0, 0.5, seed=1, step=7))
    assert bool((noise_shares(64, 1.0, 0.5, seed=1, step=7) == 1).all())


def test_the_target_of_less_noise_leads_to_the_clean_picture_at_the_timestep_that_is_told() -> None:
    objective = Objective.from_scheduler(embedded_scheduler())
    clean, noise = torch.randn(2, 4, 3, 5, 5)
    timestep, share = torch.tensor([100, 500, 900, 999]), torch.tensor([1.0, 0.5, 0.25, 0.1]).view(-1, 1, 1, 1)
    noisy = objective.add_noise(clean, share * noise, timestep)
    assert torch.allclose(
        objective.clean_from(objective.target(clean, share * noise, timestep), noisy, timestep), clean, atol=1e-4
    )


def test_new_temporal_layers_can_be_begun_on_the_image_part_of_a_pipeline(tmp_path: Path, image_network: Path) -> None:
    base = train("text_to_video_smoke", ["--out", str(tmp_path / "base"), "--image", str(image_network)])
    anew = ["--image", str(base), "--temporal.kernel_frames", "5", "--loop.num_steps", "1"]
    run = train("text_to_video_smoke", ["--out", str(tmp_path / "anew"), *anew])
    before, after = (load_file(made / "unet" / "diffusion_pytorch_model.safetensors") for made in (base, run))
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("temporal."))
    assert after["temporal.down.0.temporal.weight"].shape[2] == 5


def test_a_base_can_be_grown_before_it_is_trained_further(tmp_path: Path, image_network: Path) -> None:
    base = train("text_to_video_smoke", ["--out", str(tmp_path / "base"), "--image", str(image_network)])
    growth = ["--add_space_time_layers", "1", "--add_noise_level_shifts", "true", "--widen_kernels", "5"]
    growth += ["--add_clock", "true"]
    more = ["--start_from", str(base), "--image", "null", "--out", str(tmp_path / "more")]
    grown = train("text_to_video_smoke", [*more, *growth, "--default_guidance_interval", "[0.5, 1.0]"])
    assert LumierePipeline.from_pretrained(grown).config.guidance_interval == [0.5, 1.0]
    before, after = (load_file(run / "unet" / "diffusion_pytorch_model.safetensors") for run in (base, grown))
    new = after.keys() - before.keys()
    assert new and all(any(part in name for part in (".space_time.0.", ".noise_level.", ".clock.")) for name in new)
    silent = [name for name in new if name.endswith(("out.weight", "change.weight"))]
    assert silent and all(bool(after[name].any()) for name in silent)
    kernel = after["temporal.down.0.temporal.weight"]
    assert kernel.shape[2] == 5 and bool(kernel[:, :, 0].any()) and bool(kernel[:, :, 4].any())
    with pytest.raises(ValueError, match=r"from a lower to a higher place"):
        train("text_to_video_smoke", [*more, "--default_guidance_interval", "[0.5, 0.5]"])
    with pytest.raises(ValueError, match=r"temporal\.space_time_layers"):
        train("text_to_video_smoke", ["--image", str(image_network), "--add_space_time_layers", "1"])


def test_a_base_of_every_nth_frame_goes_on_with_all_frames(tmp_path: Path, image_network: Path) -> None:
    coarse = ["--image", str(image_network), "--temporal.halve_time", "[false]"]
    coarse += ["--data.num_frames", "4", "--data.frame_step", "2", "--out", str(tmp_path / "coarse")]
    base = train("text_to_video_smoke", coarse)
    whole = ["--start_from", str(base), "--image", "null", "--out", str(tmp_path / "whole")]
    grown = train("text_to_video_smoke", [*whole, "--add_time_halving", "true"])
    pipeline = LumierePipeline.from_pretrained(grown)
    assert pipeline.unet.temporal_factor == 2 and pipeline.config.num_frames == 8
    before, after = (load_file(run / "unet" / "diffusion_pytorch_model.safetensors") for run in (base, grown))
    assert all("halve_time" in name or "double_time" in name for name in after.keys() - before.keys())


def test_the_base_learns_to_be_told_part_of_the_clip(tmp_path: Path, image_network: Path) -> None:
    base = train("text_to_video_smoke", ["--out", str(tmp_path / "base"), "--image", str(image_network)])
    before = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    told = train("conditional_smoke", ["--out", str(tmp_path / "told"), "--start_from", str(base)])
    after = load_file(told / "unet" / "diffusion_pytorch_model.safetensors")
    assert after.keys() - before.keys() == {"temporal.given.weight"}
    assert bool((after["temporal.given.weight"] != 0).any())
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("temporal."))
    lines = [json.loads(line) for line in (tmp_path / "told" / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out/loss_given" in line for line in lines)
    again = train("conditional_smoke", ["--out", str(tmp_path / "again"), "--start_from", str(told)])
    assert load_file(again / "unet" / "diffusion_pytorch_model.safetensors").keys() == after.keys()
    further = ["--start_from", str(image_network), "--train_text", "false", "--caption_fact_weight", "0"]
    image = train("text_to_image_smoke", ["--out", str(tmp_path / "image"), *further])
    moved = ["--start_from", str(told), "--image", str(image), "--other_colour_share", "0.9", "--given.nothing", "9"]
    on_it = load_file(
        train("conditional_smoke", ["--out", str(tmp_path / "moved"), *moved])
        / "unet"
        / "diffusion_pytorch_model.safetensors"
    )
    drawn = load_file(image / "unet" / "diffusion_pytorch_model.safetensors")
    assert on_it.keys() == after.keys() and any(not torch.equal(drawn[name], before[name].float()) for name in drawn)
    assert all(torch.equal(weight.to(torch.bfloat16), on_it[name]) for name, weight in drawn.items())
    other = train("text_to_image_smoke", ["--out", str(tmp_path / "other"), "--network.text_width", "64"])
    with pytest.raises(ValueError, match="another image network"):
        train("conditional_smoke", ["--out", str(tmp_path / "none"), "--start_from", str(told), "--image", str(other)])
    with pytest.raises(ValueError, match="every share"):
        nothing = [f"--given.{name}=0" for name in MaskMix.model_fields]
        train("conditional_smoke", ["--out", str(tmp_path / "none"), "--start_from", str(base), *nothing])
