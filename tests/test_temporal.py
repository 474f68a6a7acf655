"""The layers that mix frames, each alone on feature clips."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from lumiere.config import load_settings
from lumiere.model.temporal import (
    AttentionInflation,
    ChannelNorm,
    Clock,
    ConvolutionInflation,
    TemporalDownsample,
    TemporalSettings,
    TemporalUpsample,
)

CHANNELS, FRAMES = 8, 6
BLOCKS = [ConvolutionInflation, AttentionInflation]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def clip(frames: int = FRAMES, batch: int = 2) -> Tensor:
    return torch.randn(batch, CHANNELS, frames, 4, 3)


def channels_last(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)


def shaken(module: nn.Module) -> nn.Module:
    """The module with random weights everywhere, as after training."""
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
    return module


def test_downsample_starts_by_keeping_every_second_frame() -> None:
    features = clip()
    assert torch.equal(TemporalDownsample(CHANNELS)(features), features[:, :, ::2])


def test_upsample_starts_by_giving_each_frame_twice() -> None:
    features = clip()
    assert torch.equal(TemporalUpsample(CHANNELS)(features), features.repeat_interleave(2, dim=2))


@pytest.mark.parametrize("resize", [TemporalDownsample, TemporalUpsample])
def test_standard_start_is_not_identity(resize: type[nn.Module]) -> None:
    features = clip()
    assert not torch.allclose(resize(CHANNELS, resize_init="standard")(features), resize(CHANNELS)(features), atol=0.1)


@pytest.mark.parametrize("kernel_frames", [1, 3, 5])
def test_temporal_convolutions_equal_conv1d_on_transposed_clips(kernel_frames: int) -> None:
    features = clip()
    down, up = (shaken(kind(CHANNELS, kernel_frames=kernel_frames)) for kind in (TemporalDownsample, TemporalUpsample))

    def slowly(features: Tensor, conv: nn.Module) -> Tensor:
        rows = features.permute(0, 3, 4, 1, 2).flatten(0, 2)
        rows = F.conv1d(rows, conv.weight.squeeze(-1), conv.bias, padding=kernel_frames // 2)
        return rows.unflatten(0, (2, 4, 3)).permute(0, 3, 4, 1, 2)

    torch.testing.assert_close(down(features), slowly(features, down.conv)[:, :, ::2])
    torch.testing.assert_close(up(features), slowly(features.repeat_interleave(2, dim=2), up.conv))


@pytest.mark.parametrize("block", BLOCKS)
def test_inflation_blocks_start_by_changing_nothing(block: type[nn.Module]) -> None:
    features = clip()
    assert torch.equal(block(CHANNELS)(features), features)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("settings", [{}, {"width": 1.5, "norm": "group", "feed_forward": 2.0, "kernel_frames": 5}])
def test_blocks_do_not_care_how_a_clip_lies_in_memory(block: type[nn.Module], settings: dict) -> None:
    features = clip()
    module = shaken(block(CHANNELS, TemporalSettings(**settings)))
    torch.testing.assert_close(module(features), module(channels_last(features)))


@pytest.mark.parametrize("block", BLOCKS)
def test_trained_blocks_mix_frames_and_not_clips(block: type[nn.Module]) -> None:
    features = clip()
    module = shaken(block(CHANNELS))
    before = module(features)
    features[0, :, 2] = torch.randn(CHANNELS, 4, 3)
    change = (module(features) - before).abs().amax(dim=(1, 3, 4))
    assert change[0, 1] > 1e-4 and change[0, 3] > 1e-4
    assert change[1].max() == 0


def test_attention_keeps_places_apart() -> None:
    features = clip()
    module = shaken(AttentionInflation(CHANNELS))
    before = module(features)
    features[:, :, :, 1, 2] = torch.randn(2, CHANNELS, FRAMES)
    change = (module(features) - before).abs().amax(dim=(0, 1, 2))
    assert change[1, 2] > 1e-4
    change[1, 2] = 0
    assert change.max() == 0


def test_space_time_layers_start_silent_and_then_bring_all_places_together() -> None:
    settings = TemporalSettings(space_time_layers=2, feed_forward=2.0)
    block = AttentionInflation(CHANNELS, settings)
    nn.init.normal_(block.project.weight)
    alone = AttentionInflation(CHANNELS, TemporalSettings(feed_forward=2.0))
    alone.load_state_dict({name: w for name, w in block.state_dict().items() if not name.startswith("space_time")})
    features = clip()
    assert torch.equal(block(features), alone(features))
    shaken(block)
    changed = features.clone()
    changed[0, :, 2, 1, 1] += torch.randn(CHANNELS)
    moved = (block(changed) - block(features)).abs().amax(1)
    assert bool((moved[0] > 1e-6).all()) and not bool(moved[1].any())


def test_space_time_layers_know_where_and_when() -> None:
    block = shaken(AttentionInflation(CHANNELS, TemporalSettings(attention_layers=1, space_time_layers=1)))
    same = torch.randn(1, CHANNELS, 1, 1, 1).expand(1, CHANNELS, FRAMES, 4, 3)
    flat = block(same + 1e-3 * torch.randn(1)).flatten(2)
    assert len(torch.unique(flat[0].T.round(decimals=5), dim=0)) == FRAMES * 4 * 3


def test_attention_knows_the_order_of_frames_only_by_positions() -> None:
    features = clip()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    blind = shaken(AttentionInflation(CHANNELS, TemporalSettings(positions="none")))
    seeing = shaken(AttentionInflation(CHANNELS))
    torch.testing.assert_close(blind(features[:, :, order]), blind(features)[:, :, order])
    assert not torch.allclose(seeing(features[:, :, order]), seeing(features)[:, :, order], atol=1e-3)


def test_attention_layer_equals_torch_multi_head_attention() -> None:
    settings = TemporalSettings(attention_layers=1, attention_heads=2, positions="none")
    block = shaken(AttentionInflation(CHANNELS, settings))
    layer = block.layers[0]
    library = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
    library.load_state_dict(
        {
            "in_proj_weight": layer.qkv.weight,
            "in_proj_bias": layer.qkv.bias,
            "out_proj.weight": layer.out.weight,
            "out_proj.bias": layer.out.bias,
        }
    )
    features = clip()
    rows = features.permute(0, 3, 4, 2, 1).flatten(0, 2)
    hidden = block.norm(rows)
    normed = layer.norm(hidden)
    rows = rows + block.project(hidden + library(normed, normed, normed)[0])
    torch.testing.assert_close(block(features), rows.unflatten(0, (2, 4, 3)).permute(0, 4, 3, 1, 2))


def test_group_norm_sees_one_frame_at_a_time() -> None:
    features = clip()
    norm = ChannelNorm(CHANNELS, kind="group")
    last = features.permute(0, 2, 3, 4, 1)
    frame_by_frame = torch.stack([F.group_norm(features[:, :, t], norm.num_groups) for t in range(FRAMES)], dim=2)
    torch.testing.assert_close(norm(last).permute(0, 4, 1, 2, 3), frame_by_frame)


@pytest.mark.parametrize("block", BLOCKS)
def test_what_a_clip_is_told_reaches_that_clip_only(block: type[nn.Module]) -> None:
    features, told = clip(), torch.randn(2, 5)
    module = shaken(block(CHANNELS, told_width=5))
    before = module(features, told)
    told[1] += 1
    after = module(features, told)
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1], atol=1e-3)
    with pytest.raises(ValueError, match="call it with told"):
        module(features)


def test_a_clock_shows_every_level_the_same_time_and_other_words_another() -> None:
    clock = shaken(Clock(5, CHANNELS))
    told = torch.randn(2, 5)
    fine, coarse = clock(told, 16, 1), clock(told, 4, 4)
    assert fine.shape == (2, 16, CHANNELS)
    torch.testing.assert_close(coarse, fine[:, ::4])
    assert not torch.allclose(fine[0], fine[1], atol=1e-3)
    # One period later it shows the same again, and not before.
    long = clock(told, 2 * Clock.PERIOD_FRAMES, 1)
    torch.testing.assert_close(long[:, Clock.PERIOD_FRAMES :], long[:, : Clock.PERIOD_FRAMES], atol=1e-4, rtol=1e-4)
    distances = (long[:, 1 : Clock.PERIOD_FRAMES] - long[:, :1]).abs().amax(-1)
    assert float(distances.detach().min()) > 1e-3


@pytest.mark.parametrize("module", [TemporalDownsample, TemporalUpsample, *BLOCKS])
def test_an_image_without_frames_is_refused(module: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"\[B, C, T, H, W\]"):
        module(CHANNELS)(torch.zeros(2, CHANNELS, 4, 4))


def test_odd_number_of_frames_is_refused_with_the_two_nearest() -> None:
    with pytest.raises(ValueError, match=r"5 frames.*trim to 4 or pad to 6"):
        TemporalDownsample(CHANNELS)(clip(5))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match="odd size"):
        TemporalSettings(kernel_frames=4)
    with pytest.raises(ValueError, match=r"'kernel_frame'.*did you mean 'kernel_frames'"):
        load_settings(TemporalSettings, {"kernel_frame": 3})
    with pytest.raises(ValidationError, match="without hears_time_and_text"):
        TemporalSettings(hears_clock=True)
    with pytest.raises(ValueError, match="3 heads for 8 channels"):
        AttentionInflation(CHANNELS, TemporalSettings(attention_heads=3))
