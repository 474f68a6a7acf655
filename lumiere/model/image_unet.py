"""Any supported diffusers image U-Net seen as stem, levels, middle and head: the only file that knows its insides.

A level is what lies between two changes of size: residual layers, each with an attention where the network has one,
then a resizer. Walking the parts in turn equals the library's own forward; taking them one by one is what lets layers
that mix frames stand between them. Frames are [N, C, H, W] in channels-last memory everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from lumiere.model.given_words import Said

DOWN_BLOCKS: tuple[str, ...] = (
    "CrossAttnDownBlock2D",
    "DownBlock2D",
    "ResnetDownsampleBlock2D",
    "SimpleCrossAttnDownBlock2D",
)
MIDDLE_BLOCKS: tuple[str, ...] = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn")
UP_BLOCKS: tuple[str, ...] = ("CrossAttnUpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D")
FAMILIES = "Stable Diffusion 1.x and 2.x, SDXL, the x4 upscaler, DeepFloyd IF I and II"

# PyTorch's nearest-neighbour kernels for channels-last memory count in 32 bits (pytorch issue 141831).
_LARGEST_CHANNELS_LAST_UPSAMPLE = 2**31

# Scores of one head up to which plain attention is taken on a CPU: larger ones would cost memory, not time.
_LARGEST_PLAIN_ATTENTION = 256 * 256

Run = Callable[..., Tensor]
"""Calls a module with its arguments; where gradient checkpointing comes in."""


@dataclass(frozen=True)
class Heard:
    """What the image layers are told, once for each clip or, after ``for_frames``, for each of its frames."""

    # Embedded noise level, and class or size where the network has them: [B, E].
    time: Tensor
    # Text states [B, L, D] as cross-attention takes them.
    text: Tensor
    # Added to attention scores, [B, 1, keys]; None: nothing is hidden.
    text_bias: Tensor | None = None
    self_bias: Tensor | None = None
    # diffusers' cross_attention_kwargs, for custom attention processors.
    options: dict[str, Any] | None = None

    def with_words(self, states: Tensor, is_said: Tensor) -> Heard:
        """The same with more states [B, K, D] behind the text's, for those clips where ``is_said`` [B] is 1."""
        bias = self.text_bias
        if bias is None:
            bias = self.text.new_zeros(len(self.text), 1, self.text.shape[1])
        more = ((1 - is_said) * -10000.0).to(bias)[:, None, None].expand(-1, 1, states.shape[1])
        return replace(
            self, text=torch.cat([self.text, states.to(self.text)], 1), text_bias=torch.cat([bias, more], -1)
        )

    def part(self, which: slice) -> Heard:
        """What the frames ``which`` of all that are told hear."""
        text_bias, self_bias = (None if bias is None else bias[which] for bias in (self.text_bias, self.self_bias))
        return replace(self, time=self.time[which], text=self.text[which], text_bias=text_bias, self_bias=self_bias)

    def for_frames(self, num_frames: int) -> Heard:
        """The same, said to each of ``num_frames`` frames of every clip."""
        if num_frames == 1:
            return self
        return Heard(
            _repeat(self.time, num_frames),
            _repeat(self.text, num_frames),
            None if self.text_bias is None else _repeat(self.text_bias, num_frames),
            None if self.self_bias is None else _repeat(self.self_bias, num_frames),
            self.options,
        )


def _repeat(per_clip: Tensor, num_frames: int) -> Tensor:
    """[B, ...] -> [B*T, ...], each clip's entry once for each of its frames."""
    return per_clip.unsqueeze(1).expand(-1, num_frames, *per_clip.shape[1:]).flatten(0, 1)


def in_parts(layer: Callable[[Tensor, Heard], Tensor], frames: Tensor, heard: Heard, most: int | None) -> Tensor:
    """``layer`` (frames [N, ...] and what they hear -> frames) for at most so many frames at once; None: for all."""
    if most is None or len(frames) <= most:
        return layer(frames, heard)
    parts = [slice(start, start + most) for start in range(0, len(frames), most)]
    made = torch.cat([layer(frames[part], heard.part(part)) for part in parts])
    return made.contiguous(memory_format=torch.channels_last)


def check_readable(unet: nn.Module) -> None:
    """Raise ValueError that names the part of an image U-Net that cannot be read, if there is one."""
    if not isinstance(unet, UNet2DConditionModel):
        raise ValueError(f"{type(unet).__name__} cannot be inflated; needed is a diffusers UNet2DConditionModel")
    places = [(f"down_blocks.{i}", block, DOWN_BLOCKS) for i, block in enumerate(unet.down_blocks)]
    places += [("mid_block", unet.mid_block, MIDDLE_BLOCKS)]
    places += [(f"up_blocks.{i}", block, UP_BLOCKS) for i, block in enumerate(unet.up_blocks)]
    for place, block, known in places:
        name = type(block).__name__
        if name not in known:
            raise _unreadable(f"{place} is a {name}", f"known there are {', '.join(known)}")
        for index, attention in enumerate(attentions(block)):
            if type(attention).__name__ not in ("Transformer2DModel", "Attention"):
                raise _unreadable(
                    f"{place}.attentions.{index} is a {type(attention).__name__}", "set dual_cross_attention to false"
                )
    _check_config(unet)


def _check_config(unet: UNet2DConditionModel) -> None:
    allowed = {
        "addition_embed_type": (None, "text", "text_time"),
        "encoder_hid_dim_type": (None, "text_proj"),
        "attention_type": ("default",),
    }
    for key, values in allowed.items():
        value = unet.config.get(key)
        if value not in values:
            raise _unreadable(f"its {key} is {value!r}", f"known are {', '.join(map(repr, values))}")


def _unreadable(what: str, known: str) -> ValueError:
    return ValueError(f"this image U-Net cannot be read: {what} ({known}); families that can: {FAMILIES}")


def attentions(block: nn.Module) -> list[nn.Module]:
    """The attention after each residual layer of a block; empty where the block has none."""
    return list(getattr(block, "attentions", ()))


def num_spatial_halvings(unet: UNet2DConditionModel) -> int:
    """How many times the network halves height and width."""
    return sum(block.downsamplers is not None for block in unet.down_blocks)


def text_width(unet: UNet2DConditionModel) -> int:
    """D of the text states [B, L, D] that cross-attention takes."""
    width = unet.config.cross_attention_dim
    return width if isinstance(width, int) else width[0]


def encoder_width(unet: UNet2DConditionModel) -> int:
    """D of the text encoder's own states [B, L, D], which some networks project to ``text_width``."""
    return unet.config.encoder_hid_dim or text_width(unet)


def time_width(unet: UNet2DConditionModel) -> int:
    """E of the embedded noise level [B, E]."""
    width = unet.time_embedding.linear_2.out_features
    return 2 * width if unet.config.class_embeddings_concat else width


def hear(
    unet: UNet2DConditionModel,
    sample: Tensor,
    timestep: Tensor | float | int,
    encoder_hidden_states: Tensor,
    *,
    class_labels: Tensor | None = None,
    timestep_cond: Tensor | None = None,
    added_cond_kwargs: dict[str, Tensor] | None = None,
    said: Said | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The embedded noise level [B, E] and the text states [B, L, D] of B clips (or images) ``sample`` [B, ...].

    Where a network pools its text states into the noise level, states that were ``said`` beside the text count, too.
    """
    time = unet.time_embedding(unet.get_time_embed(sample, timestep), timestep_cond)
    labels = unet.get_class_embed(sample, class_labels)
    if labels is not None:
        time = torch.cat([time, labels], dim=-1) if unet.config.class_embeddings_concat else time + labels
    added = unet.get_aug_embed(time, encoder_hidden_states, added_cond_kwargs or {})
    if added is not None:
        if said is not None and unet.config.addition_embed_type == "text":
            with_said = unet.get_aug_embed(
                time, _filled_up(encoder_hidden_states, mask, said.states), added_cond_kwargs or {}
            )
            added = torch.where(said.is_said[:, None] > 0, with_said, added)
        time = time + added
    if unet.time_embed_act is not None:
        time = unet.time_embed_act(time)
    return time, unet.process_encoder_hidden_states(encoder_hidden_states, added_cond_kwargs or {})


def _filled_up(text: Tensor, mask: Tensor | None, said: Tensor) -> Tensor:
    """Text states [B, L, D] whose padding, where ``mask`` [B, L] is 0, is filled with states that were said [B, K, D],
    in turn: the padding's own states hold the text once more, and would outweigh what was said."""
    if mask is None:
        return torch.cat([text, said.to(text)], dim=1)
    turns = -(-text.shape[1] // said.shape[1])
    return torch.where(mask[..., None] > 0, text, said.to(text).repeat(1, turns, 1)[:, : text.shape[1]])


def score_bias(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """What to add to attention scores, [B, 1, L], for a mask [B, L] of what may be seen (1 or True)."""
    if mask is None:
        return None
    return ((1 - mask.to(like.dtype)) * -10000.0).unsqueeze(1)


def stem(unet: UNet2DConditionModel, frames: Tensor) -> Tensor:
    """Noisy frames [N, in_channels, H, W] -> features."""
    if unet.config.center_input_sample:
        frames = 2 * frames - 1
    return unet.conv_in(frames.contiguous(memory_format=torch.channels_last))


def head(unet: UNet2DConditionModel, frames: Tensor) -> Tensor:
    """Features -> predictions [N, out_channels, H, W]."""
    if unet.conv_norm_out is not None:
        frames = unet.conv_act(unet.conv_norm_out(frames))
    return unet.conv_out(frames)


def layers(block: Any) -> list[tuple[nn.Module, nn.Module | None]]:
    """The layers of a down or up block in order: each a residual layer and the attention that follows it, if any."""
    following: list[nn.Module | None] = [*attentions(block)]
    following = following or [None] * len(block.resnets)
    return list(zip(block.resnets, following, strict=True))


def through(layer: tuple[nn.Module, nn.Module | None], frames: Tensor, heard: Heard, run: Run) -> Tensor:
    """Frames through one of a block's ``layers``."""
    resnet, attention = layer
    frames = run(resnet, frames, heard.time)
    return frames if attention is None else attend(attention, frames, heard, run)


def middle(unet: UNet2DConditionModel, frames: Tensor, heard: Heard, run: Run) -> Tensor:
    """The layers of the middle block."""
    frames = run(unet.mid_block.resnets[0], frames, heard.time)
    for attention, resnet in zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True):
        frames = run(resnet, attend(attention, frames, heard, run), heard.time)
    return frames


def attend(attention: nn.Module, frames: Tensor, heard: Heard, run: Run) -> Tensor:
    """One attention of an image network, over the places of each frame and the text."""
    if isinstance(attention, Transformer2DModel):
        return _attend_transformer(attention, frames, heard, run)
    # DeepFloyd IF: one bias serves the text and the places together.
    bias = heard.text_bias if heard.self_bias is None else heard.self_bias
    return attention(frames, encoder_hidden_states=heard.text, attention_mask=bias, **(heard.options or {}))


def _attend_transformer(attention: Transformer2DModel, frames: Tensor, heard: Heard, run: Run) -> Tensor:
    """Transformer2DModel without its way back to channels-first memory, which would cost a copy each time."""
    count, _, height, width = frames.shape
    hidden = attention.norm(frames)
    if not attention.use_linear_projection:
        hidden = attention.proj_in(hidden)
    tokens = hidden.permute(0, 2, 3, 1).reshape(count, height * width, -1)
    if attention.use_linear_projection:
        tokens = attention.proj_in(tokens)
    for block in attention.transformer_blocks:
        tokens = run(block, tokens, heard.self_bias, heard.text, heard.text_bias, None, heard.options)
    if attention.use_linear_projection:
        tokens = attention.proj_out(tokens)
    hidden = tokens.reshape(count, height, width, -1).permute(0, 3, 1, 2)
    if not attention.use_linear_projection:
        hidden = attention.proj_out(hidden)
    return frames + hidden


class PlainAttention:
    """An attention processor for diffusers: plain on a CPU while the scores are few, else the library's fused one.

    With few keys the CPU's fused kernel is slow, most of all backwards: plain attention took a training step of the
    embedded Space-Time U-Net from 2.0 to 1.5 s.
    """

    def __call__(
        self,
        attention: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Tokens [N, Q, C], attending to themselves or to ``encoder_hidden_states`` [N, K, D] -> [N, Q, C]."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        num_scores = hidden_states.shape[1] * source.shape[1]
        is_odd_mask = attention_mask is not None and attention_mask.shape[-1] != source.shape[1]
        if hidden_states.device.type != "cpu" or num_scores > _LARGEST_PLAIN_ATTENTION or is_odd_mask:
            return AttnProcessor2_0()(attention, hidden_states, encoder_hidden_states, attention_mask, temb)
        query, key, value = (
            projected.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for projected in (attention.to_q(hidden_states), attention.to_k(source), attention.to_v(source))
        )
        scores = (query * attention.scale) @ key.transpose(-1, -2)
        if attention_mask is not None:
            scores = scores + attention_mask.unsqueeze(1)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        project, dropout = attention.to_out
        return dropout(project(mixed))


def attend_plainly(unet: nn.Module) -> None:
    """Give the transformer layers of an image network ``PlainAttention``, where it means the same."""
    for block in unet.modules():
        if not isinstance(block, BasicTransformerBlock):
            continue
        for attention in (block.attn1, block.attn2):
            if attention is not None and not attention.upcast_attention and attention.norm_q is None:
                attention.set_processor(PlainAttention())


def downsample(block: Any, frames: Tensor, heard: Heard, run: Run) -> Tensor:
    """The resizer of a down block: half the height and width."""
    (resizer,) = block.downsamplers
    return run(resizer, frames, heard.time) if isinstance(resizer, ResnetBlock2D) else resizer(frames)


def upsample(block: Any, frames: Tensor, heard: Heard, run: Run) -> Tensor:
    """The resizer of an up block: twice the height and width."""
    (resizer,) = block.upsamplers
    if isinstance(resizer, ResnetBlock2D):
        # From 64 frames on, the library goes to channels-first memory inside, and has to be fetched back.
        return run(resizer, frames, heard.time).contiguous(memory_format=torch.channels_last)
    return _upsample_convolution(resizer, frames)


def _upsample_convolution(resizer: Upsample2D, frames: Tensor) -> Tensor:
    """Upsample2D without its way to channels-first memory, which it takes for 64 frames and more."""
    if frames.numel() * 4 >= _LARGEST_CHANNELS_LAST_UPSAMPLE:
        frames = frames.contiguous()
    larger = nn.functional.interpolate(frames, scale_factor=2.0, mode="nearest")
    return resizer.conv(larger.contiguous(memory_format=torch.channels_last))


def predict_images(unet: UNet2DConditionModel, images: Tensor, heard: Heard) -> Tensor:
    """Predictions [N, out_channels, H, W] for images [N, in_channels, H, W], walked part by part.

    Equals the library's own forward; it is the Space-Time U-Net without its temporal layers.
    """
    frames = stem(unet, images)
    skips = [frames]
    for block in unet.down_blocks:
        for layer in layers(block):
            frames = through(layer, frames, heard, call)
            skips.append(frames)
        if block.downsamplers is not None:
            frames = downsample(block, frames, heard, call)
            skips.append(frames)
    frames = middle(unet, frames, heard, call)
    for block in unet.up_blocks:
        for layer in layers(block):
            frames = through(layer, torch.cat([frames, skips.pop()], dim=1), heard, call)
        if block.upsamplers is not None:
            frames = upsample(block, frames, heard, call)
    return head(unet, frames)


def call(module: nn.Module, *inputs: Any) -> Tensor:
    """Run a module as it is, keeping what its backward pass needs."""
    return module(*inputs)
