"""One memory layout, no copies: what is copied in a forward pass, and by whom."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from tests.tiny_unets import FAMILIES, conditions

COPIES = {torch.ops.aten.clone.default, torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}

# More than the library's threshold of 64, above which its own upsampling goes to channels-first memory.
FRAMES = 64


class CopyCounter(TorchDispatchMode):
    """Counts copies of whole feature clips by the innermost module that was running; small tensors do not count."""

    def __init__(self, network: nn.Module, smallest: int) -> None:
        super().__init__()
        self.names = {module: name for name, module in network.named_modules()}
        self.smallest, self.running, self.copies = smallest, ["the hand-over"], Counter[str]()
        self.handles: list[RemovableHandle] = []
        for module in network.modules():
            self.handles.append(module.register_forward_pre_hook(self._enter))
            self.handles.append(module.register_forward_hook(self._leave))

    def _enter(self, module: nn.Module, *_: object) -> None:
        name = self.names[module]
        place = name.split(".")[0] + ": " if name.startswith("temporal") else ""
        self.running.append(place + type(module).__name__ if name else "the hand-over")

    def _leave(self, *_: object) -> None:
        self.running.pop()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        if op in COPIES and result.numel() >= self.smallest:
            self.copies[self.running[-1]] += 1
        return result


def copies(family: str) -> Counter[str]:
    """The copies of one forward pass on clips that already lie channels-last."""
    settings = TemporalSettings(hears_time_and_text=True, attention_heads=2)
    stunet = STUNet.from_image_unet(FAMILIES[family](2), temporal=settings)
    clip = torch.randn(2, FRAMES, 16, 16, stunet.config.in_channels).permute(0, 4, 1, 2, 3)
    inputs = conditions(stunet, 2)
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"][:, :1]
    # The features of the coarsest grid; whatever is smaller is the one word or an embedding, given to each frame.
    smallest = 2 * (FRAMES // 4) * 4 * 4 * stunet.config.block_out_channels[-1]
    with torch.no_grad(), CopyCounter(stunet, smallest) as counter:
        stunet(clip, **inputs)
    for handle in counter.handles:
        handle.remove()
    return counter.copies


def attention_along_time(counted: Counter[str]) -> int:
    """Takes from the count what attention along time needs, and says how often it turned a clip round."""
    # Matrix products want the queries, keys and values of each head in one piece, and give their result so.
    assert counted.pop("temporal: _AttentionLayer") == 3 * 2 * 4
    # One turn on the way in; the one on the way out is made by the linear projection that reads it.
    return counted.pop("temporal: AttentionInflation") + counted.pop("temporal: Linear")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "upscaler", "embedded"])
def test_nothing_is_copied_but_inside_attention(family: str) -> None:
    counted = copies(family)
    assert attention_along_time(counted) == 3 * 2
    # diffusers' own attention gathers the heads, as ours does.
    assert counted.pop("Attention") > 0
    assert not counted, counted


# What diffusers' own modules copy in DeepFloyd's networks: the tokens in each attention's norm, and twice the features
# in an upsampling block that is given 64 frames or more, for which it goes to channels-first memory; fetching them
# back is the third.
@pytest.mark.parametrize(("family", "num_attentions"), [("if1", 11), ("if2", 6)])
def test_copies_inside_diffusers_own_modules_are_these(family: str, num_attentions: int) -> None:
    counted = copies(family)
    assert attention_along_time(counted) == 3 * 2
    assert counted == {"GroupNorm": num_attentions, "ResnetBlock2D": 2, "the hand-over": 1}


class LayoutWatcher:
    """Notes every feature clip that goes into or comes out of the temporal layers and is not channels-last."""

    def __init__(self, stunet: STUNet) -> None:
        self.seen, self.wrong = 0, Counter[str]()
        blocks = [*stunet.temporal.down, stunet.temporal.middle, *stunet.temporal.up]
        blocks += [*stunet.temporal.halve_time, *stunet.temporal.double_time]
        for block in blocks:
            block.register_forward_hook(self._look)

    def _look(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        for clip, place in ((inputs[0], "into"), (output, "out of")):
            self.seen += 1
            if not clip.permute(0, 2, 3, 4, 1).is_contiguous():
                self.wrong[f"{place} {type(module).__name__}"] += 1


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "upscaler", "embedded", "if1", "if2"])
@pytest.mark.parametrize(("is_training", "frames"), [(False, 8), (True, 8), (False, FRAMES)])
def test_features_reach_and_leave_the_temporal_layers_channels_last(
    family: str, is_training: bool, frames: int
) -> None:
    stunet = STUNet.from_image_unet(FAMILIES[family](2)).train(is_training)
    watcher = LayoutWatcher(stunet)
    stunet(torch.randn(1, stunet.config.in_channels, frames, 16, 16), **conditions(stunet, 1))
    assert watcher.seen == 2 * (3 + 1 + 3 + 2 + 2)
    assert not watcher.wrong
