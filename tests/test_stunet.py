"""The Space-Time U-Net of every family at its start: SPEC section 3, with tiny random image networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from lumiere.model import image_unet
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalConv, TemporalSettings
from lumiere.video import fold_time, unfold_time
from tests.tiny_unets import FAMILIES, conditions, embedded, repeat_per_frame, stable_diffusion

EVERY_FAMILY = pytest.mark.parametrize("family", list(FAMILIES))
HALVINGS = pytest.mark.parametrize("halvings", [2, 3])
HEARING = TemporalSettings(hears_time_and_text=True)


def inflated(family: str, halvings: int = 2, **settings: Any) -> STUNet:
    unet = FAMILIES[family](halvings)
    generator = torch.Generator().manual_seed(0)
    return STUNet.from_image_unet(unet, temporal=TemporalSettings(**settings), generator=generator)


def noisy_clip(stunet: STUNet, frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, stunet.config.in_channels, frames, 16, 16, generator=generator)


def as_images(family: str, halvings: int, clip: Tensor, inputs: dict[str, Any]) -> Tensor:
    """What the library's own image network says of every frame."""
    frames = clip.shape[2]
    unet = FAMILIES[family](halvings)
    return unfold_time(unet(fold_time(clip), **repeat_per_frame(inputs, frames)).sample, frames)


def shake(stunet: STUNet) -> STUNet:
    """Give every temporal layer random weights, as after training."""
    generator = torch.Generator().manual_seed(1)
    for weight in stunet.temporal_parameters():
        nn.init.normal_(weight, std=0.1, generator=generator)
    return stunet


@EVERY_FAMILY
@HALVINGS
@torch.no_grad()
def test_walk_over_the_image_network_equals_the_library(family: str, halvings: int) -> None:
    unet = FAMILIES[family](halvings)
    inputs = conditions(unet, 2)
    images = torch.randn(2, unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    # With attention to the text only (IF II), the library's own forward fails with a mask.
    mask = None if family == "if2" else torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    expected = unet(images, **inputs, encoder_attention_mask=mask).sample
    heard = image_unet.Heard(*image_unet.hear(unet, images, **inputs), image_unet.score_bias(mask, images))
    torch.testing.assert_close(image_unet.predict_images(unet, images, heard), expected, atol=1e-5, rtol=1e-5)


@EVERY_FAMILY
@HALVINGS
@torch.no_grad()
def test_every_nth_frame_starts_as_the_image_networks_own(family: str, halvings: int) -> None:
    stunet = inflated(family, halvings, hears_time_and_text=halvings == 2)
    assert stunet.temporal_factor == 2**halvings
    clip, inputs = noisy_clip(stunet, 2 * stunet.temporal_factor), conditions(stunet, 2)
    prediction, images = stunet(clip, **inputs).sample, as_images(family, halvings, clip, inputs)
    step = stunet.temporal_factor
    torch.testing.assert_close(prediction[:, :, ::step], images[:, :, ::step], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(prediction[:, :, 1], images[:, :, 1], atol=1e-2)


@EVERY_FAMILY
@HALVINGS
@torch.no_grad()
def test_still_noise_stays_still_after_inflation(family: str, halvings: int) -> None:
    stunet = inflated(family, halvings)
    clip, inputs = noisy_clip(stunet, 1).expand(-1, -1, 16, -1, -1), conditions(stunet, 2)
    images = as_images(family, halvings, clip[:, :, :1], inputs)
    torch.testing.assert_close(stunet(clip, **inputs).sample, images.expand(-1, -1, 16, -1, -1), atol=1e-5, rtol=1e-5)


@EVERY_FAMILY
@HALVINGS
@torch.no_grad()
def test_without_temporal_resizing_every_frame_starts_as_the_image_networks_own(family: str, halvings: int) -> None:
    stunet = inflated(family, halvings, halve_time=(False,) * halvings)
    assert stunet.temporal_factor == 1
    clip, inputs = noisy_clip(stunet, 5), conditions(stunet, 2)
    images = as_images(family, halvings, clip, inputs)
    torch.testing.assert_close(stunet(clip, **inputs).sample, images, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("halve_time", [(True, False, True), (False, True, True), (True, False, False)])
@torch.no_grad()
def test_each_temporal_resize_can_be_switched_off(halve_time: tuple[bool, ...]) -> None:
    stunet = inflated("sd1", 3, halve_time=halve_time)
    step = stunet.temporal_factor
    assert step == 2 ** sum(halve_time)
    clip, inputs = noisy_clip(stunet, 8), conditions(stunet, 2)
    images = as_images("sd1", 3, clip, inputs)
    torch.testing.assert_close(stunet(clip, **inputs).sample[:, :, ::step], images[:, :, ::step], atol=1e-5, rtol=1e-5)


@EVERY_FAMILY
@HALVINGS
def test_first_step_moves_only_zero_projections_and_resizing(family: str, halvings: int) -> None:
    stunet = inflated(family, halvings, hears_time_and_text=halvings == 3).train()
    before = {name: weight.clone() for name, weight in stunet.state_dict().items()}
    optimizer = torch.optim.Adam(stunet.temporal_parameters(), lr=1e-3)
    clip = noisy_clip(stunet, 2 * stunet.temporal_factor)
    (stunet(clip, **conditions(stunet, 2)).sample - 1).square().mean().backward()
    assert all(weight.grad is None for weight in stunet.image_parameters())
    optimizer.step()
    moved = {name for name, weight in stunet.state_dict().items() if not torch.equal(weight, before[name])}
    started_at_zero = {name for name in before if name.startswith("temporal.") and ".project." in name}
    started_at_zero -= {name for name in before if ".hearing." in name}
    resizing = {name for name in before if name.startswith(("temporal.halve_time", "temporal.double_time"))}
    assert moved == started_at_zero | resizing


@EVERY_FAMILY
@torch.no_grad()
def test_one_frame_passes_as_an_image_even_after_training(family: str) -> None:
    stunet = shake(inflated(family, hears_time_and_text=True))
    clip, inputs = noisy_clip(stunet, 1), conditions(stunet, 2)
    torch.testing.assert_close(stunet(clip, **inputs).sample, as_images(family, 2, clip, inputs), atol=1e-5, rtol=1e-5)


@EVERY_FAMILY
@torch.no_grad()
def test_a_clip_is_predicted_alone_as_in_a_batch(family: str) -> None:
    stunet = shake(inflated(family, hears_time_and_text=True))
    clip, inputs = noisy_clip(stunet, 8), conditions(stunet, 2)
    together = stunet(clip, **inputs).sample

    def second(value: Any) -> Any:
        return {name: second(inner) for name, inner in value.items()} if isinstance(value, dict) else value[1:]

    torch.testing.assert_close(stunet(clip[1:], **second(inputs)).sample, together[1:], atol=1e-4, rtol=1e-4)


# Networks with an added text embedding (DeepFloyd IF, the embedded one) pool it without a mask, in the library too.
@pytest.mark.parametrize("family", ["sd1", "sd2"])
@torch.no_grad()
def test_words_under_the_mask_are_not_heard(family: str) -> None:
    stunet = shake(inflated(family, hears_time_and_text=True))
    clip, inputs = noisy_clip(stunet, 4), conditions(stunet, 2)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    before = stunet(clip, **inputs, encoder_attention_mask=mask).sample
    inputs["encoder_hidden_states"][1, 2:] += 5
    torch.testing.assert_close(stunet(clip, **inputs, encoder_attention_mask=mask).sample, before)
    inputs["encoder_hidden_states"][1, 0] += 5
    after = stunet(clip, **inputs, encoder_attention_mask=mask).sample
    assert torch.equal(after[0], before[0]) and not torch.allclose(after[1], before[1], atol=1e-3)


@torch.no_grad()
def test_scalar_timestep_is_every_clips_timestep() -> None:
    stunet = inflated("embedded")
    clip, inputs = noisy_clip(stunet, 4), conditions(stunet, 2)
    inputs["timestep"] = torch.tensor([7, 7])
    expected = stunet(clip, **inputs).sample
    for timestep in (7, torch.tensor(7)):
        assert torch.equal(stunet(clip, timestep, inputs["encoder_hidden_states"], return_dict=False)[0], expected)


def test_only_the_temporal_layers_can_be_trained() -> None:
    stunet = inflated("sd1")
    trainable = {name for name, weight in stunet.named_parameters() if weight.requires_grad}
    assert trainable == {name for name, _ in stunet.named_parameters() if name.startswith("temporal.")}
    assert sum(1 for _ in stunet.temporal_parameters()) == len(trainable)
    frozen = {name for name, _ in stunet.named_parameters()} - trainable
    assert frozen == {name for name, _ in stable_diffusion().named_parameters()}


def test_image_layers_stay_in_evaluation_mode_while_frozen() -> None:
    stunet = inflated("sd1").train()
    assert stunet.training and stunet.temporal.training and not stunet.down_blocks.training
    stunet.requires_grad_(True)
    assert stunet.train().down_blocks.training


def test_same_generator_draws_the_same_network_and_leaves_torchs_own_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = inflated("sd1"), inflated("sd1")
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_standard_start_of_resizing_breaks_the_identity() -> None:
    stunet = inflated("embedded", resize_init="standard")
    clip, inputs = noisy_clip(stunet, 4), conditions(stunet, 2)
    with torch.no_grad():
        assert not torch.allclose(
            stunet(clip, **inputs).sample[:, :, 0], as_images("embedded", 2, clip, inputs)[:, :, 0], atol=1e-2
        )


@pytest.mark.parametrize("settings", [TemporalSettings(), HEARING])
def test_checkpointing_changes_no_gradient(settings: TemporalSettings) -> None:
    gradients = []
    for is_checkpointed in (False, True):
        stunet = shake(inflated("sdxl", **settings.model_dump())).train()
        if is_checkpointed:
            stunet.enable_gradient_checkpointing()
        calls: list[nn.Module] = []
        stunet.temporal.down[0].register_forward_pre_hook(lambda module, *_, seen=calls: seen.append(module))
        stunet(noisy_clip(stunet, 8), **conditions(stunet, 2)).sample.square().mean().backward()
        assert len(calls) == 1 + is_checkpointed
        gradients.append([weight.grad for weight in stunet.temporal_parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@torch.no_grad()
def test_bfloat16_stays_near_float32() -> None:
    stunet = shake(inflated("embedded", hears_time_and_text=True))
    clip, inputs = noisy_clip(stunet, 8), conditions(stunet, 2)
    exact = stunet(clip, **inputs).sample
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].bfloat16()
    rough = stunet.bfloat16()(clip.bfloat16(), **inputs).sample
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).square().mean() < 1e-3 * exact.square().mean()


def test_bfloat16_image_network_trains_float32_temporal_layers_under_autocast() -> None:
    stunet = inflated("embedded", hears_time_and_text=True).to(torch.bfloat16)
    stunet.temporal.float()
    clip, inputs = noisy_clip(stunet, 8).bfloat16(), conditions(stunet, 2)
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        stunet(clip, **inputs).sample.float().square().mean().backward()
    gradients = [weight.grad for weight in stunet.temporal_parameters()]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)


@pytest.mark.slow
def test_whole_network_is_one_graph_for_the_compiler() -> None:
    stunet = shake(inflated("embedded", 1, hears_time_and_text=True))
    clip, inputs = noisy_clip(stunet, 4), conditions(stunet, 2)
    compiled = torch.compile(stunet, backend="eager", fullgraph=True)
    mask = torch.ones(2, 5, dtype=torch.bool)
    with torch.no_grad():
        expected = stunet(clip, **inputs, encoder_attention_mask=mask).sample
        actual = compiled(clip, **inputs, encoder_attention_mask=mask).sample
    torch.testing.assert_close(actual, expected)


def has_compiler() -> bool:
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_repeated_blocks_compute_and_train_the_same() -> None:
    gradients, predictions = [], []
    for is_compiled in (False, True):
        stunet = shake(inflated("embedded", 1, hears_time_and_text=True)).train()
        if is_compiled:
            stunet.compile_repeated_blocks()
        predictions.append(stunet(noisy_clip(stunet, 4), **conditions(stunet, 2)).sample)
        predictions[-1].square().mean().backward()
        gradients.append([weight.grad for weight in stunet.temporal_parameters()])
    torch.testing.assert_close(predictions[1], predictions[0], atol=1e-4, rtol=1e-4)
    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-3)


def test_every_temporal_convolution_runs_as_a_two_dimensional_one() -> None:
    stunet = STUNet.from_image_unet(embedded(2))
    kernels = {module.kernel_size for module in stunet.temporal.modules() if isinstance(module, TemporalConv)}
    assert kernels == {(3, 1)}
    assert not any(isinstance(module, nn.Conv1d | nn.Conv3d) for module in stunet.modules())
