"""Every application on a tiny untrained network: what is given comes back, sizes are right, the rest is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lumiere.applications.cinemagraph import cinemagraph
from lumiere.applications.image_to_video import animate
from lumiere.applications.inpainting import canvas_around, inpaint, outpaint
from lumiere.applications.known_frames import extend, interpolate, loop, retime
from lumiere.applications.video_to_video import edit
from lumiere.conditioning.frames import num_channels
from lumiere.model.inflate import widen_input
from lumiere.pipeline import LumierePipeline
from lumiere.super_resolution import SuperResolution
from lumiere.video import resize_clip
from tests.test_super_resolution import stage
from tests.tiny_pipeline import tiny_pipeline

CALL: dict[str, Any] = {"num_inference_steps": 1}


@pytest.fixture(scope="module")
def base() -> LumierePipeline:
    """Frames of 16x16 pixels, clips of 8."""
    pipeline = tiny_pipeline()
    widen_input(pipeline.unet, num_channels(pipeline.codec))
    return pipeline


def seeded() -> dict[str, Any]:
    return {**CALL, "generator": torch.Generator().manual_seed(0)}


def picture(height: int, width: int, *, frames: int | None = None, seed: int = 0) -> Tensor:
    shape = (1, 3, height, width) if frames is None else (1, 3, frames, height, width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9


def test_an_image_is_the_first_frame_in_its_own_proportions(base: LumierePipeline) -> None:
    image = picture(20, 40)
    made = animate(base, image, "a red ball", **seeded())
    assert made.shape == (1, 3, 8, 8, 16)
    assert torch.equal(made[:, :, 0], resize_clip(image[:, :, None], (8, 16))[:, :, 0])
    assert not torch.allclose(made[:, :, 1], made[:, :, 0], atol=0.1)
    assert torch.equal(made, animate(base, image, "a red ball", **seeded()))
    assert animate(base, image, "a red ball", num_frames=4, **seeded()).shape[2] == 4


def test_inpainting_keeps_every_pixel_outside_whatever_size_and_length(base: LumierePipeline) -> None:
    clip, to_make = picture(24, 40, frames=6), torch.zeros(1, 1, 1, 24, 40)
    to_make[..., 8:16, 10:30] = 1
    made = inpaint(base, clip, to_make, "a red ball", **seeded())
    assert made.shape == clip.shape
    kept = (to_make == 0).expand_as(clip)
    assert torch.equal(made[kept], clip[kept]) and not torch.allclose(made[~kept], clip[~kept], atol=0.2)
    moving = to_make.repeat(1, 1, 6, 1, 1)
    assert torch.equal(inpaint(base, clip, moving, "a red ball", **seeded()), made)
    # What lies in the hole is not looked at.
    other = torch.where(to_make > 0, -clip, clip)
    assert torch.equal(inpaint(base, other, to_make, "a red ball", **seeded()), made)


def test_outpainting_puts_the_clip_in_a_larger_picture(base: LumierePipeline) -> None:
    clip = picture(16, 16, frames=8)
    made = outpaint(base, clip, 2.0, "a red ball", **seeded())
    assert made.shape == (1, 3, 8, 16, 32) and torch.equal(made[..., 8:24], clip)
    assert float(made[..., :8].std()) > 0
    assert canvas_around(9, 16, 1.0)[0] == (16, 16)
    assert canvas_around(480, 640, 16 / 9) == ((480, 854), (107, 107, 0, 0))
    with pytest.raises(ValueError, match="that shape already"):
        outpaint(base, clip, 1.0, "a red ball", **seeded())


def test_of_a_cinemagraph_only_the_region_moves(base: LumierePipeline) -> None:
    image, region = picture(16, 16), torch.zeros(1, 1, 16, 16)
    region[..., :8, :] = 1
    made = cinemagraph(base, image, region, "a red ball", **seeded())
    assert made.shape == (1, 3, 8, 16, 16)
    assert torch.equal(made[..., 8:, :], image[:, :, None, 8:].expand(-1, -1, 8, -1, -1))
    assert torch.equal(made[:, :, 0], image) and not torch.allclose(made[:, :, 1:], made[:, :, :-1], atol=0.1)


def test_known_frames_are_where_they_belong(base: LumierePipeline) -> None:
    first, last = picture(16, 16), picture(16, 16, seed=1)
    made = interpolate(base, first, last, "a red ball", **seeded())
    assert torch.equal(made[:, :, 0], first) and torch.equal(made[:, :, -1], last) and made.shape[2] == 8
    looped = loop(base, first, "a red ball", **seeded())
    assert looped.shape[2] == 8 and torch.equal(looped[:, :, 0], first)
    assert not torch.equal(looped[:, :, -1], first)
    clip = picture(16, 16, frames=5)
    assert extend(base, clip, "a red ball", num_new=4, num_known=3, **seeded()).shape == (1, 3, 4, 16, 16)
    slow = retime(base, clip, 0.5, "a red ball", **seeded())
    assert slow.shape[2] == 9 and torch.equal(slow[:, :, ::2], clip)
    assert torch.equal(retime(base, clip, 1.0, "a red ball"), clip)


def test_a_loop_is_given_its_image_again_one_frame_after_its_last(base: LumierePipeline) -> None:
    first, seen = picture(16, 16), []
    hook = base.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    loop(base, first, "a red ball", **seeded())
    hook.remove()
    given = base.codec.encode(first[:, :, None])
    assert seen
    for sample in seen:  # In one piece, though longer than the network's eight frames: no windows.
        assert sample.shape[2] == 8 + base.unet.temporal_factor
        pixels, mask = sample[:, -16:-4], sample[:, -4:]
        assert mask.amax((0, 1, 3, 4)).nonzero().flatten().tolist() == [0, 8]
        assert torch.allclose(pixels[:, :, 0], given[:, :, 0], atol=0.01)
        assert torch.equal(pixels[:, :, 0], pixels[:, :, 8])


def test_a_source_longer_than_the_base_goes_through_windows(base: LumierePipeline) -> None:
    clip, to_make = picture(16, 16, frames=19), torch.zeros(1, 1, 1, 16, 16)
    to_make[..., 4:8, 4:8] = 1
    made = inpaint(base, clip, to_make, "a red ball", **seeded())
    assert made.shape == clip.shape and torch.equal(made[..., 8:, :], clip[..., 8:, :])


def test_with_super_resolution_the_given_pixels_keep_their_sharpness() -> None:
    pipeline = tiny_pipeline(num_frames=4)
    widen_input(pipeline.unet, num_channels(pipeline.codec))
    pipeline.register_modules(super_resolution=SuperResolution.of(stage()))
    for one in pipeline.super_resolution.stages:
        one.set_progress_bar_config(disable=True)
    image = picture(64, 64)
    made = animate(pipeline, image, "a red ball", **seeded())
    assert made.shape == (1, 3, 4, 32, 32)
    assert torch.equal(made[:, :, 0], resize_clip(image[:, :, None], (32, 32))[:, :, 0])
    small = animate(pipeline, image, "a red ball", super_resolution=False, **seeded())
    assert small.shape == (1, 3, 4, 16, 16)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda p: inpaint(p, picture(16, 16, frames=4), torch.ones(1, 1, 1, 16, 16), "x"), "nothing would be kept"),
        (lambda p: inpaint(p, picture(16, 16, frames=4), torch.zeros(1, 1, 1, 16, 16), "x"), "region is empty"),
        (lambda p: inpaint(p, picture(16, 16, frames=4), torch.zeros(1, 1, 1, 8, 16), "x"), "mask 16x8"),
        (lambda p: inpaint(p, picture(16, 16, frames=4), torch.zeros(1, 1, 3, 16, 16), "x"), "3 frames for a video"),
        (lambda p: cinemagraph(p, picture(16, 16), torch.full((1, 1, 16, 16), 0.5), "x"), "0 or 1 everywhere"),
        (lambda p: interpolate(p, picture(16, 16), picture(8, 16), "x"), "different sizes"),
        (lambda p: extend(p, picture(16, 16, frames=4), "x", num_new=0), "at least 1"),
        (lambda p: retime(p, picture(16, 16, frames=4), 2.0, "x"), "up to 1"),
        (lambda p: outpaint(p, picture(16, 16, frames=4), -1.0, "x"), "above 0"),
        (lambda p: animate(p, picture(16, 16).repeat(2, 1, 1, 1), "x"), "one at a time"),
    ],
)
def test_what_cannot_be_done_is_refused(base: LumierePipeline, ask: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ask(base)


def test_a_base_that_was_never_told_refuses() -> None:
    with pytest.raises(ValueError, match="never told"):
        animate(tiny_pipeline(), picture(16, 16), "a red ball", **CALL)


def test_an_edit_of_no_strength_is_the_clip_as_the_base_holds_it(base: LumierePipeline) -> None:
    clip = picture(16, 16, frames=6)
    assert torch.equal(edit(base, clip, "a red ball", strength=0, **seeded()), clip)
    large = picture(32, 48, frames=6)
    held = resize_clip(resize_clip(large, (11, 16)), (32, 48)).clamp(-1, 1)
    assert torch.allclose(edit(base, large, "a red ball", strength=0, **seeded()), held, atol=1e-6)


def test_an_edit_of_full_strength_starts_from_noise_alone_whatever_the_schedule(base: LumierePipeline) -> None:
    clip = picture(16, 16, frames=8)
    call: dict[str, Any] = {"num_inference_steps": 3, "output_type": "pt"}
    for sampler in ("ddim", "euler"):
        base.use_scheduler(sampler)
        free = base("a red ball", generator=torch.Generator().manual_seed(0), **call).frames.transpose(1, 2) * 2 - 1
        options: dict[str, Any] = {**seeded(), "num_inference_steps": 3}
        assert torch.allclose(edit(base, clip, "a red ball", strength=1, **options), free, atol=1e-5)
        options["generator"] = torch.Generator().manual_seed(0)
        assert not torch.allclose(edit(base, clip, "a red ball", strength=0.4, **options), free, atol=0.05)
    base.use_scheduler("ddim")


def test_an_edit_looks_at_the_clip_and_keeps_its_size_and_length(base: LumierePipeline) -> None:
    options: dict[str, Any] = {"num_inference_steps": 4, "strength": 0.5}
    one, other = picture(18, 32, frames=5), picture(18, 32, frames=5, seed=1)
    made = [
        edit(base, clip, "a red ball", generator=torch.Generator().manual_seed(0), **options) for clip in (one, other)
    ]
    assert made[0].shape == one.shape and not torch.allclose(made[0], made[1], atol=0.05)
    long = picture(16, 16, frames=13)
    assert edit(base, long, "a red ball", strength=0.5, **{**seeded(), "num_inference_steps": 2}).shape == long.shape


def test_a_local_edit_keeps_every_pixel_outside(base: LumierePipeline) -> None:
    clip, to_make = picture(16, 16, frames=8), torch.zeros(1, 1, 1, 16, 16)
    to_make[..., :8, :] = 1
    options: dict[str, Any] = {**seeded(), "num_inference_steps": 2, "strength": 0.6}
    made = edit(base, clip, "a red ball", to_make=to_make, **options)
    assert torch.equal(made[..., 8:, :], clip[..., 8:, :])
    assert not torch.allclose(made[..., :8, :], clip[..., :8, :], atol=0.05)


def test_edits_that_cannot_be_are_refused(base: LumierePipeline) -> None:
    clip = picture(16, 16, frames=8)
    with pytest.raises(ValueError, match=r"strength is 1\.2"):
        edit(base, clip, "a red ball", strength=1.2)
    with pytest.raises(ValueError, match="one at a time"):
        edit(base, clip.repeat(2, 1, 1, 1, 1), "a red ball")
    with pytest.raises(ValueError, match="video is"):
        base("a red ball", video=picture(8, 8, frames=8), num_inference_steps=1)
    with pytest.raises(ValueError, match="NaN"):
        base("a red ball", video=clip * float("nan"), num_inference_steps=1)


def test_an_edit_starts_from_the_clip_under_super_resolution_too(base: LumierePipeline) -> None:
    sharper = tiny_pipeline()
    sharper.register_modules(super_resolution=SuperResolution.of(stage()))
    for one in sharper.super_resolution.stages:
        one.set_progress_bar_config(disable=True)
    scale = sharper.super_resolution.scale
    clip = picture(16 * scale, 16 * scale, frames=8)
    made = edit(sharper, clip, "a red ball", strength=0.5, **{**seeded(), "num_inference_steps": 2})
    assert made.shape == clip.shape
    held = resize_clip(resize_clip(clip, (16, 16)), (16 * scale, 16 * scale)).clamp(-1, 1)
    assert torch.allclose(edit(sharper, clip, "a red ball", strength=0, **seeded()), held, atol=1e-6)
