"""The pipeline as a user of diffusers knows it: calls, seeds, folders, refusals."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, PNDMScheduler
from diffusers.video_processor import VideoProcessor
from safetensors.torch import load_file, save_file
from tqdm import tqdm

import lumiere.pipeline
from lumiere.codec import PixelBlocks
from lumiere.conditioning.frames import first_frame, nothing, num_channels
from lumiere.conditioning.text import T5Text
from lumiere.diffusion.sample import draw_noise
from lumiere.diffusion.schedulers import SAMPLERS, named_scheduler
from lumiere.model.inflate import widen_input
from lumiere.pipeline import LumierePipeline, as_frames, clip_generators
from tests.tiny_pipeline import tiny_pipeline

PROMPT = "a red ball bouncing on the beach"


@pytest.fixture(scope="module")
def pipeline() -> LumierePipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def folder(pipeline: LumierePipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "tiny"
    pipeline.save_pretrained(path)
    return path


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def psnr_db(first: np.ndarray, second: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(first - second).mean() + 1e-12))


def test_a_prompt_becomes_frames_of_the_models_own_size(pipeline: LumierePipeline) -> None:
    frames = pipeline(PROMPT, generator=generator(0)).frames
    assert frames.shape == (1, 8, 16, 16, 3)
    assert frames.dtype == np.float32
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert frames.std() > 0.01


def test_the_call_is_the_loop_that_diffusers_users_would_write(pipeline: LumierePipeline) -> None:
    scheduler = named_scheduler("ddim", pipeline.scheduler)
    text = T5Text(pipeline.tokenizer, pipeline.text_encoder)
    told, empty = text.encode([PROMPT]), text.encode([""])
    latents = draw_noise((1, 12, 8, 8, 8), [generator(0)])
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            passes = [
                pipeline.unet(latents, timestep, one.states, encoder_attention_mask=one.mask).sample
                for one in (empty, told)
            ]
            prediction = passes[0] + 2.5 * (passes[1] - passes[0])
            latents = scheduler.step(prediction, timestep, latents, use_clipped_model_output=True).prev_sample
    expected = (PixelBlocks(2).decode(latents)[0].permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1)
    frames = pipeline(PROMPT, guidance_scale=2.5, generator=generator(0)).frames
    assert np.abs(frames[0] - expected.numpy()).max() < 1e-4


def test_frames_are_those_of_diffusers_video_processor() -> None:
    clip = torch.randn(2, 3, 4, 6, 5)
    for kind in ("np", "pt"):
        expected = VideoProcessor().postprocess_video(clip, output_type=kind)
        assert np.allclose(np.asarray(as_frames(clip, kind)), np.asarray(expected), atol=1e-6)
    ours, theirs = as_frames(clip, "pil"), VideoProcessor().postprocess_video(clip, output_type="pil")
    assert [len(frames) for frames in ours] == [4, 4]
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert np.abs(np.asarray(mine, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize(("kind", "shape"), [("np", (2, 4, 8, 16, 3)), ("pt", (2, 4, 3, 8, 16))])
def test_length_and_size_can_be_chosen(pipeline: LumierePipeline, kind: str, shape: tuple[int, ...]) -> None:
    frames = pipeline(
        [PROMPT, "a star"], num_frames=4, height=8, width=16, num_inference_steps=2, output_type=kind
    ).frames
    assert tuple(frames.shape) == shape


def test_one_frame_is_a_still(pipeline: LumierePipeline) -> None:
    assert pipeline(PROMPT, num_frames=1, num_inference_steps=2).frames.shape == (1, 1, 16, 16, 3)


def test_output_can_be_a_tuple_of_pictures(pipeline: LumierePipeline) -> None:
    (frames,) = pipeline(PROMPT, num_inference_steps=1, output_type="pil", return_dict=False)
    assert len(frames) == 1
    assert [picture.size for picture in frames[0]] == [(16, 16)] * 8


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "unipc"])
def test_a_clip_is_the_same_alone_and_in_a_batch(sampler: str) -> None:
    pipeline = tiny_pipeline().use_scheduler(sampler)
    prompts = [PROMPT, "a blue star spinning", "a star"]
    batch = pipeline(prompts, generator=[generator(seed) for seed in (4, 5, 6)]).frames
    by_one_seed = pipeline(prompts, generator=generator(4)).frames
    assert np.array_equal(batch, by_one_seed)
    for index, prompt in enumerate(prompts):
        alone = pipeline(prompt, generator=generator(4 + index)).frames
        assert np.abs(alone[0] - batch[index]).max() < 1e-3


def test_in_bf16_a_clip_in_a_batch_is_within_40_db_of_the_clip_alone() -> None:
    pipeline = tiny_pipeline().to(dtype=torch.bfloat16)
    prompts = [PROMPT, "a blue star spinning", "a star"]
    batch = pipeline(prompts, generator=generator(4)).frames
    assert batch.dtype == np.float32
    for index, prompt in enumerate(prompts):
        alone = pipeline(prompt, generator=generator(4 + index)).frames
        assert psnr_db(alone[0], batch[index]) > 40


def test_the_same_seed_makes_the_same_clip_and_another_seed_another(pipeline: LumierePipeline) -> None:
    first, again, other = (pipeline(PROMPT, generator=generator(seed)).frames for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    unseeded = [pipeline(PROMPT, num_inference_steps=1).frames for _ in range(2)]
    assert not np.array_equal(*unseeded)


def test_sampling_leaves_torchs_own_random_numbers_alone(pipeline: LumierePipeline) -> None:
    before = torch.get_rng_state()
    pipeline(PROMPT, num_inference_steps=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_several_videos_per_prompt_follow_each_other(pipeline: LumierePipeline) -> None:
    frames = pipeline([PROMPT, "a star"], num_videos_per_prompt=2, generator=generator(7), num_inference_steps=2).frames
    alone = pipeline("a star", generator=generator(10), num_inference_steps=2).frames
    assert len(frames) == 4
    assert np.abs(frames[3] - alone[0]).max() < 1e-3


def test_prompt_and_negative_prompt_and_guidance_all_matter(pipeline: LumierePipeline) -> None:
    clips = [
        pipeline(prompt, generator=generator(0), **options).frames
        for prompt, options in (
            (PROMPT, {}),
            ("a blue star", {}),
            (PROMPT, {"negative_prompt": "a blue star"}),
            (PROMPT, {"guidance_scale": 1.0}),
            (PROMPT, {"guidance_scale": 6.0}),
        )
    ]
    for index, first in enumerate(clips):
        for second in clips[index + 1 :]:
            assert np.abs(first - second).max() > 1e-4


def test_own_noise_takes_the_place_of_the_generators(pipeline: LumierePipeline) -> None:
    latents = draw_noise((1, 12, 8, 8, 8), [generator(3)])
    given = pipeline(PROMPT, latents=latents, generator=generator(99)).frames
    assert np.array_equal(given, pipeline(PROMPT, generator=generator(3)).frames)
    with pytest.raises(ValueError, match=r"latents have shape .* needs \[1, 12, 8, 8, 8\]"):
        pipeline(PROMPT, latents=latents[:, :4])


def test_a_callback_sees_every_step_and_can_change_the_clip(pipeline: LumierePipeline) -> None:
    seen: list[tuple[int, int]] = []
    cleans = []

    def watch(pipe: Any, index: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        assert pipe is pipeline
        seen.append((index, int(timestep)))
        cleans.append(tensors["clean"])
        return {"latents": torch.zeros_like(tensors["latents"])} if index == 3 else {}

    asked = ["latents", "clean"]
    frames = pipeline(PROMPT, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=asked).frames
    assert seen == [(0, 999), (1, 749), (2, 499), (3, 249)]
    assert all(clean.shape == (1, 3, 8, 16, 16) for clean in cleans)
    assert (frames == 0.5).all()


def test_what_the_network_means_is_clipped_to_pixels_at_every_step_with_any_sampler() -> None:
    for name in SAMPLERS:
        pipeline = tiny_pipeline().use_scheduler(name)
        largest = []

        def watch(pipe: Any, index: int, timestep: Any, tensors: dict, largest: list[float] = largest) -> dict:
            largest.append(float(tensors["clean"].abs().max()))
            return {}

        pipeline(
            PROMPT,
            guidance_scale=30.0,
            generator=generator(0),
            callback_on_step_end=watch,
            callback_on_step_end_tensor_inputs=["clean"],
        )
        assert max(largest) < 1.001, name
        assert max(largest) > 0.99, name


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 5),
        ({"restarts": [0.5], "polish": [0.3, 0.2]}, 5 + 2 + 2),
        ({"video": torch.zeros(1, 3, 8, 16, 16), "strength": 0.4}, 2),
    ],
)
def test_a_bar_knows_how_many_steps_there_are(options: dict[str, Any], expected: int) -> None:
    pipeline, bars, totals = tiny_pipeline(), [], []

    def progress_bar(*, total: int) -> tqdm:
        bars.append(tqdm(total=total, disable=False))
        return bars[-1]

    pipeline.progress_bar = progress_bar
    size = {"num_inference_steps": 5, "num_frames": 8, "height": 16, "width": 16}
    pipeline(PROMPT, **size, callback_on_step_end=lambda *_: totals.append(bars[0].total), **options)
    assert totals == [expected] * expected and [bar.n for bar in bars] == [expected]


def same_to_rounding(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for how weights happen to lie in memory, which may choose another kernel: 1e-5."""
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=1e-5))


def test_a_saved_pipeline_comes_back_bit_for_bit(pipeline: LumierePipeline, folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "LumierePipeline"
    assert not list(folder.rglob("*.bin"))
    again = LumierePipeline.from_pretrained(folder)
    again.set_progress_bar_config(disable=True)
    assert again.unet.config.sample_size == 8
    assert again.config.default_steps == 4
    assert again.config.guidance_interval == [0.0, 1.0]
    for name, weight in pipeline.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], weight), name
    expected = pipeline(PROMPT, generator=generator(0)).frames
    assert same_to_rounding(again(PROMPT, generator=generator(0)).frames, expected)
    once_more = LumierePipeline.from_pretrained(folder)
    assert np.array_equal(
        again(PROMPT, generator=generator(0)).frames, once_more(PROMPT, generator=generator(0)).frames
    )


def test_settings_of_the_sampler_travel_with_the_weights(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "num_frames": 12,
        "height": 8,
        "width": 24,
        "default_steps": 3,
        "default_guidance_scale": 5.0,
        "guidance_interval": [0.2, 0.9],
        "guidance_rescale": 0.5,
        "timestep_shift": 2.0,
        "restarts": [0.7],
        "polish": [0.4, 0.2],
        "seam_reach": 8.0,
    }
    pipeline = tiny_pipeline(**settings).use_scheduler("dpm++")
    pipeline.save_pretrained(tmp_path)
    again = LumierePipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert {name: again.config[name] for name in settings} == settings
    assert type(again.scheduler) is type(pipeline.scheduler)
    frames = again(PROMPT, generator=generator(0)).frames
    assert frames.shape == (1, 12, 8, 24, 3)
    assert same_to_rounding(frames, pipeline(PROMPT, generator=generator(0)).frames)
    explicit = tiny_pipeline(**{**settings, "default_steps": 9, "default_guidance_scale": 1.0}).use_scheduler("dpm++")
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 5.0}
    told = explicit(PROMPT, **options, generator=generator(0)).frames
    assert same_to_rounding(frames, told)
    even = explicit(PROMPT, **options, timestep_shift=1.0, generator=generator(0)).frames
    assert not same_to_rounding(even, told)
    assert same_to_rounding(explicit(PROMPT, **options, timestep_shift=2.0, generator=generator(0)).frames, told)
    assert same_to_rounding(explicit(PROMPT, **options, polish=[0.4, 0.2], generator=generator(0)).frames, told)
    assert not same_to_rounding(explicit(PROMPT, **options, polish=[], generator=generator(0)).frames, told)
    assert same_to_rounding(explicit(PROMPT, **options, restarts=[0.7], generator=generator(0)).frames, told)
    assert not same_to_rounding(explicit(PROMPT, **options, restarts=[], generator=generator(0)).frames, told)


def test_parts_can_be_replaced_as_with_any_diffusers_pipeline(folder: Path) -> None:
    scheduler = EulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    pipeline = LumierePipeline.from_pretrained(folder, scheduler=scheduler, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler is scheduler
    assert pipeline.unet.dtype == torch.bfloat16
    assert np.isfinite(pipeline(PROMPT, num_inference_steps=2).frames).all()
    assert {"unet", "scheduler", "text_encoder", "tokenizer", "super_resolution", "vae"} <= set(pipeline.components)
    assert isinstance(pipeline, DiffusionPipeline)


def test_without_an_argument_the_embedded_weights_are_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lumiere.pipeline, "embedded_weights", lambda: folder)
    assert LumierePipeline.from_pretrained().config.num_frames == 8


def test_a_missing_folder_and_one_that_is_no_pipeline_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        LumierePipeline.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        LumierePipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_broken_weights_are_refused_by_name(part: str, value: float, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    file = next((tmp_path / part).glob("*.safetensors"))
    weights = load_file(file)
    name = sorted(weights)[3]
    weights[name] = weights[name].clone()
    weights[name].view(-1)[0] = value
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{part}: the weight '?{name}'? (is|holds) NaN"):
        LumierePipeline.from_pretrained(tmp_path)


def test_a_clip_that_stops_being_numbers_is_never_returned() -> None:
    pipeline = tiny_pipeline()
    pipeline.unet.conv_out.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"step 1 of 4 clip 0 of 1 .*float32"):
        pipeline(PROMPT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "empty"),
        ({"prompt": [3]}, "prompts are text"),
        ({"num_frames": 10}, "multiple of 4: the nearest are 8 and 12"),
        ({"num_frames": 2}, "nearest are 4 and 8"),
        ({"num_frames": 0}, "nearest are 4 and 8"),
        ({"num_frames": 8.5}, "whole number"),
        ({"height": 17}, "multiple of 8: the nearest are 16 and 24"),
        ({"width": 0}, "nearest are 8 and 16"),
        ({"num_inference_steps": 0}, "from 1 to 1000"),
        ({"num_inference_steps": 1001}, "from 1 to 1000"),
        ({"num_inference_steps": 2.5}, "whole number"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": 1.0, "negative_prompt": "a star"}, "no effect"),
        ({"negative_prompt": ["a star", "a ball"]}, "2 negative prompts for 1 prompts"),
        ({"num_videos_per_prompt": 0}, "1 or more"),
        ({"output_type": "latent"}, "np, pt, pil"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "prompt_embeds"),
        ({"generator": [torch.Generator(), torch.Generator()]}, "2 generators for 1 clips"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_network_runs(
    pipeline: LumierePipeline, options: dict[str, Any], message: str
) -> None:
    runs = []
    hook = pipeline.unet.register_forward_pre_hook(lambda *_: runs.append(1))
    with pytest.raises(ValueError, match=message):
        pipeline(**{"prompt": PROMPT, **options})
    hook.remove()
    assert not runs


@pytest.mark.parametrize(
    "settings", [{"guidance_interval": [0.5, 0.2]}, {"guidance_interval": [0, 2]}, {"guidance_rescale": 1.5}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="guidance"):
        tiny_pipeline(**settings)


def test_places_to_polish_at_are_checked_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="polish holds 1"):
        tiny_pipeline(polish=[1.0])
    pipeline = tiny_pipeline()
    monkeypatch.setattr(pipeline.unet, "forward", None)
    with pytest.raises(ValueError, match="polish holds 0"):
        pipeline(PROMPT, polish=[0.0])


def test_restarts_are_guided_everywhere_each_clip_by_itself_and_not_for_videos() -> None:
    pipeline, passes, told = tiny_pipeline(guidance_interval=[0.9, 1.0], restarts=[0.6]), [], []
    hook = pipeline.unet.register_forward_pre_hook(lambda *_: passes.append(1))
    call: dict[str, Any] = {"num_inference_steps": 5, "output_type": "pt"}
    made = pipeline(
        PROMPT, generator=generator(1), callback_on_step_end=lambda *step: told.append(step[1]) or {}, **call
    )
    assert len(passes) == 5 + 1 + 2 * 3 and told == list(range(8))
    hook.remove()
    both = pipeline([PROMPT, PROMPT], generator=[generator(0), generator(1)], **call).frames
    assert torch.allclose(both[1], made.frames[0], atol=1e-5)
    video = made.frames.transpose(1, 2) * 2 - 1
    plain = pipeline(PROMPT, video=video, strength=0.4, generator=generator(2), **call).frames
    pipeline.register_to_config(restarts=[])
    assert torch.equal(plain, pipeline(PROMPT, video=video, strength=0.4, generator=generator(2), **call).frames)
    with pytest.raises(ValueError, match="restarts would make little of the video"):
        pipeline(PROMPT, video=video, restarts=[0.5], **call)
    with pytest.raises(ValueError, match="restarts holds 1"):
        tiny_pipeline(restarts=[1.0])


def test_polishing_is_not_guided_is_told_to_callbacks_and_leaves_what_is_given() -> None:
    pipeline, passes, told = tiny_pipeline(), [], []
    widen_input(pipeline.unet, num_channels(pipeline.codec))
    pipeline.unet.register_forward_pre_hook(lambda *_: passes.append(1))
    image = torch.rand(1, 3, 16, 16, generator=generator(5)) * 2 - 1

    def tell(_: Any, index: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        told.append((index, int(timestep)))
        return {}

    call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt", "conditioning": first_frame(image, 8)}
    plain = pipeline(PROMPT, generator=generator(0), **call).frames
    made = pipeline(PROMPT, generator=generator(0), polish=(0.3, 0.2), callback_on_step_end=tell, **call).frames
    assert len(passes) == 2 * 2 + 2 * 2 + 2
    assert told[2:] == [(2, 299), (3, 199)] and len(told) == 4
    assert torch.equal(made[:, 0], image / 2 + 0.5) and not torch.allclose(made[:, 1:], plain[:, 1:], atol=1e-3)


def test_what_is_made_is_moved_to_meet_what_is_given_when_asked() -> None:
    pipeline = tiny_pipeline()
    widen_input(pipeline.unet, num_channels(pipeline.codec))
    image = torch.zeros(1, 3, 16, 16)
    call: dict[str, Any] = {"num_inference_steps": 4, "output_type": "pt", "conditioning": first_frame(image, 8)}
    plain = pipeline(PROMPT, generator=generator(0), **call).frames
    joined = pipeline(PROMPT, generator=generator(0), seam_reach=8, **call).frames
    assert torch.equal(joined[:, 0], image / 2 + 0.5) and not torch.allclose(joined[:, 1:], plain[:, 1:], atol=1e-3)
    with pytest.raises(ValueError, match="seam_reach is -1"):
        pipeline(PROMPT, seam_reach=-1)
    with pytest.raises(ValueError, match="seam_reach is -1"):
        tiny_pipeline(seam_reach=-1)


def test_a_scheduler_that_would_be_silently_wrong_is_refused() -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match="accepted are"):
        pipeline(PROMPT)


def test_guidance_only_in_its_interval_saves_passes() -> None:
    passes = {}
    for interval in ([0.0, 1.0], [0.0, 0.5], [0.6, 0.8]):
        pipeline, count = tiny_pipeline(guidance_interval=interval), []
        pipeline.unet.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        pipeline(PROMPT)
        passes[tuple(interval)] = len(count)
    assert passes == {(0.0, 1.0): 8, (0.0, 0.5): 6, (0.6, 0.8): 5}


def test_one_generator_for_several_clips_counts_its_seed_up() -> None:
    seeds = [one.initial_seed() for one in clip_generators(generator(41), 3)]
    assert seeds == [41, 42, 43]
    used = generator(41)
    torch.rand(1, generator=used)
    with pytest.raises(ValueError, match="already drawn from"):
        clip_generators(used, 2)
    assert clip_generators(used, 1) == [used]
    assert len({one.initial_seed() for one in clip_generators(None, 4)}) == 4


def test_words_that_the_model_has_never_seen_are_named_with_the_nearest(pipeline: LumierePipeline) -> None:
    with pytest.warns(UserWarning, match=r"never seen the word 'bounding'; the nearest that it knows: bouncing"):
        pipeline("a red ball bounding", num_inference_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline(PROMPT, num_inference_steps=1)


def test_parts_that_are_moved_in_for_their_turn_make_the_same_clip(pipeline: LumierePipeline) -> None:
    # accelerate's hooks, with the CPU standing for the accelerator.
    offloaded = tiny_pipeline()
    offloaded.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        frames = offloaded(PROMPT, generator=generator(0)).frames
        assert np.array_equal(frames, pipeline(PROMPT, generator=generator(0)).frames)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs an accelerator")
def test_offloaded_to_the_cpu_a_clip_is_the_same() -> None:
    expected = tiny_pipeline()(PROMPT, generator=generator(0)).frames
    on_gpu = tiny_pipeline().to("cuda")(PROMPT, generator=generator(0)).frames
    pipeline = tiny_pipeline()
    pipeline.enable_model_cpu_offload()
    offloaded = pipeline(PROMPT, generator=generator(0)).frames
    assert np.abs(on_gpu - offloaded).max() < 1e-3
    assert np.abs(expected - offloaded).max() < 1e-2
    assert pipeline.unet.device.type == "cpu"


def test_what_is_given_comes_back_and_changes_the_rest() -> None:
    pipeline = tiny_pipeline()
    image = torch.rand(1, 3, 16, 16, generator=generator(5)) * 2 - 1
    given = first_frame(image, 8)
    call: dict[str, Any] = {"num_inference_steps": 3, "output_type": "pt"}
    with pytest.raises(ValueError, match="never told of given frames"):
        pipeline(PROMPT, conditioning=given, **call)
    widen_input(pipeline.unet, num_channels(pipeline.codec))
    before = pipeline(PROMPT, generator=generator(0), **call).frames
    torch.nn.init.normal_(pipeline.unet.temporal.given.weight, generator=generator(1))
    # Nothing given is the same as not to speak of it.
    for conditioning in (None, nothing((1, 3, 8, 16, 16))):
        made = pipeline(PROMPT, generator=generator(0), conditioning=conditioning, **call).frames
        assert torch.allclose(made, before, atol=1e-5)
    animated = pipeline(PROMPT, generator=generator(0), conditioning=given, **call).frames
    assert torch.equal(animated[:, 0], image / 2 + 0.5)
    assert not torch.allclose(animated[:, 1:], before[:, 1:], atol=1e-2)
    with pytest.raises(ValueError, match="this call makes"):
        pipeline(PROMPT, conditioning=first_frame(image, 4), **call)


def test_a_longer_clip_is_made_in_windows_of_the_network_s_own_length() -> None:
    pipeline = tiny_pipeline()
    lengths = []
    forward = pipeline.unet.forward

    def counted(sample: torch.Tensor, *inputs: Any, **options: Any) -> Any:
        lengths.append(sample.shape[2])
        return forward(sample, *inputs, **options)

    pipeline.unet.forward = counted
    frames = pipeline(PROMPT, num_frames=20, num_inference_steps=1, guidance_scale=1.0).frames
    assert frames.shape[1] == 20
    assert lengths == [8, 8, 8, 8]  # from frames 0, 4, 8 and 12 on
    lengths.clear()
    for own in (8, 8 + pipeline.unet.temporal_factor):  # A little longer than its own is still made in one piece.
        pipeline(PROMPT, num_frames=own, num_inference_steps=1, guidance_scale=1.0)
        assert lengths == [own]
        lengths.clear()
