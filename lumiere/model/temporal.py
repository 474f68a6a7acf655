"""Layers that mix the frames of a clip. Each works alone on any feature clip [B, C, T, H, W].

A feature clip lives channels-last, [B, T, H, W, C] in memory. Convolutions along time see the same bytes as
[B, C, T, H*W] in torch.channels_last and run as a (k, 1) Conv2d; only attention along time transposes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from lumiere.config import Settings
from lumiere.video import fold_time, unfold_time

NORM_GROUPS = 32


class TemporalSettings(Settings):
    """What an image network is given to become a Space-Time U-Net; the defaults are those of SPEC section 3."""

    # Whether time is halved together with the first, second, ... halving of space; None: with every one of them.
    halve_time: tuple[bool, ...] | None = None
    # Frames that a temporal convolution sees at once; odd.
    kernel_frames: int = Field(default=3, ge=1)
    # The same for those of the convolution blocks alone, not the resizers'; None: ``kernel_frames``.
    block_kernel_frames: int | None = Field(default=None, ge=1)
    # Pixels on a side that the 2-D convolution of a convolution block sees at once; odd.
    kernel_px: int = Field(default=3, ge=1)
    # Channels inside a convolution block, as a multiple of its level's.
    width: float = Field(default=1.0, gt=0)
    # Inside a block: over the channels of each place ("layer"), or over groups of channels of each frame ("group").
    # On a CPU in bf16 the first was measured at a tenth of the second's time.
    norm: Literal["layer", "group"] = "layer"
    # Attention layers stacked in each attention block.
    attention_layers: int = Field(default=2, ge=1)
    # Attention layers stacked behind those, in which every place of every frame sees every other; 0: none, as in the
    # paper. Along time alone, the places of a path are only brought together by the frozen image layers.
    space_time_layers: int = Field(default=0, ge=0)
    # Heads of temporal attention; None: one per 64 channels.
    attention_heads: int | None = Field(default=None, ge=1)
    # Channels of a feed-forward after each attention layer, as a multiple of the level's; 0: none, as in the paper.
    feed_forward: float = Field(default=0.0, ge=0)
    # How attention knows the order of the frames.
    positions: Literal["sinusoidal", "none"] = "sinusoidal"
    # How the convolutions of the temporal resizing start; "standard" exists for the paper's ablation (appendix B).
    resize_init: Literal["identity", "standard"] = "identity"
    # Whether the blocks hear the noise level and the mean text state.
    hears_time_and_text: bool = False
    # Whether they also hear, at each frame, when it is, in a form that depends on the noise level and the text: what
    # repeats does so in step with a clock that every level has, not with what attention makes of it at the coarsest.
    hears_clock: bool = False
    # Whether the frozen image layers behind the first mixing of frames are told another noise level than the clip's,
    # which is learned: frames that were brought together hide less, and layers told otherwise trust them too little.
    shifts_noise_level: bool = False
    # Channels of <C, M>, what of the clip is given, for which there is a second first convolution; 0: not told.
    conditioning_channels: int = Field(default=0, ge=0)
    # Whether the blocks that mix frames see <C, M> too, at their level's size: through the first convolution alone it
    # reaches them by way of frozen image layers, which take it for a part of the noisy clip.
    blocks_see_given: bool = False
    # States of text in which what is given is said to the image layers, too; 0: it is not.
    words_of_given: int = Field(default=0, ge=0)
    # Whether places of every frame attend to given frames, on the way up.
    attends_to_given: bool = False
    # Whether what given frames will look like at other moments is forecast, and shown where less is given.
    forecasts: bool = False
    # Rank of the changes of the image layers with which a clip's first frame is drawn alone; 0: there are none.
    opening_rank: int = Field(default=0, ge=0)

    @property
    def frames_seen_by_blocks(self) -> int:
        """Frames that the temporal convolution of a block sees at once."""
        return self.block_kernel_frames or self.kernel_frames

    @model_validator(mode="after")
    def _needs_what_it_builds_on(self) -> TemporalSettings:
        if self.hears_clock and not self.hears_time_and_text:
            raise ValueError("hears_clock is set without hears_time_and_text, on which what is heard depends")
        if self.words_of_given and not self.conditioning_channels:
            raise ValueError("words_of_given is set without conditioning_channels: nothing is given that could be said")
        if self.attends_to_given and not self.conditioning_channels:
            raise ValueError("attends_to_given is set without conditioning_channels: nothing is given to attend to")
        if self.forecasts and not self.conditioning_channels:
            raise ValueError("forecasts is set without conditioning_channels: nothing is given to forecast from")
        return self

    @field_validator("kernel_frames", "block_kernel_frames", "kernel_px")
    @classmethod
    def _odd(cls, value: int | None) -> int | None:
        if value is not None and value % 2 == 0:
            raise ValueError(f"is {value}; a kernel needs a middle, so an odd size (1, 3, 5, ...)")
        return value


class TemporalConv(nn.Conv2d):
    """A convolution along time of a feature clip in channels-last memory, as a (k, 1) Conv2d on the same bytes."""

    def __init__(self, channels: int, *, kernel_frames: int, stride: int = 1) -> None:
        super().__init__(channels, channels, (kernel_frames, 1), stride=(stride, 1), padding=(kernel_frames // 2, 0))

    def forward(self, clip: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T / stride, H, W]; frames beyond the ends count as zero."""
        height, width = clip.shape[-2:]
        # Flattened with the channels last, because a flattened view of one clip alone [1, C, T, H*W] gets strides
        # that convolutions do not take for channels-last memory, and copies begin.
        rows = clip.permute(0, 2, 3, 4, 1).flatten(2, 3).permute(0, 3, 1, 2)
        rows = super().forward(rows).permute(0, 2, 3, 1)
        return rows.unflatten(2, (height, width)).permute(0, 4, 1, 2, 3)

    def widen(self, kernel_frames: int) -> None:
        """See more frames at once; at first none of the new ones counts."""
        more = (kernel_frames - self.kernel_size[0]) // 2
        self.weight = nn.Parameter(F.pad(self.weight.detach(), (0, 0, more, more)))
        self.kernel_size, self.padding = (kernel_frames, 1), (kernel_frames // 2, 0)

    def start_as_identity(self) -> None:
        """Set Dirac weights and zero bias: what comes in goes out."""
        nn.init.dirac_(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]


class TemporalDownsample(nn.Module):
    """Halve the frame rate of a feature clip.

    Starts by keeping every second frame unchanged, so that an inflated network begins with its image network's
    opinion; training turns it into a learned filter.

    Raises ValueError when the number of frames is odd.
    Source: Lumiere, section 3.1 and appendix B.
    """

    def __init__(
        self, channels: int, *, kernel_frames: int = 3, resize_init: Literal["identity", "standard"] = "identity"
    ) -> None:
        super().__init__()
        # A strided convolution gives the same frames as a convolution of which every second frame is kept.
        self.conv = TemporalConv(channels, kernel_frames=kernel_frames, stride=2)
        if resize_init == "identity":
            self.conv.start_as_identity()

    def forward(self, clip: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T/2, H, W]."""
        _check_rank(clip)
        if clip.shape[2] % 2:
            frames = clip.shape[2]
            raise ValueError(
                f"clip has {frames} frames; halving time needs an even number (trim to {frames - 1} or pad to"
                f" {frames + 1})"
            )
        return self.conv(clip)


class TemporalUpsample(nn.Module):
    """Double the frame rate of a feature clip: each frame twice, then a convolution along time.

    Starts by giving each frame twice, unchanged. Source: Lumiere, section 3.1 and appendix B.
    """

    def __init__(
        self, channels: int, *, kernel_frames: int = 3, resize_init: Literal["identity", "standard"] = "identity"
    ) -> None:
        super().__init__()
        self.conv = TemporalConv(channels, kernel_frames=kernel_frames)
        if resize_init == "identity":
            self.conv.start_as_identity()

    def forward(self, clip: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, 2*T, H, W]."""
        _check_rank(clip)
        last = clip.permute(0, 2, 3, 4, 1)
        # Stacking was measured at a fortieth of the time of repeat_interleave or a nearest-neighbour resize.
        twice = torch.stack((last, last), dim=2).flatten(1, 2)
        return self.conv(twice.permute(0, 4, 1, 2, 3))


class ChannelNorm(nn.Module):
    """Normalise features [B, T, H, W, C], channels last: over each place's channels, or over groups in each frame."""

    def __init__(self, channels: int, *, kind: Literal["layer", "group"] = "layer") -> None:
        super().__init__()
        self.num_groups = math.gcd(channels, NORM_GROUPS) if kind == "group" else 0
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, last: Tensor) -> Tensor:
        """[B, T, H, W, C] -> the same shape."""
        if not self.num_groups:
            return F.layer_norm(last, self.weight.shape, self.weight, self.bias)
        frames = last.flatten(0, 1).permute(0, 3, 1, 2)
        return F.group_norm(frames, self.num_groups, self.weight, self.bias).permute(0, 2, 3, 1).view(last.shape)


class Hearing(nn.Module):
    """Scale and shift normalised features [B, T, H, W, C] by what their clip was told [B, D], and by the clock."""

    def __init__(self, told_width: int, channels: int, *, has_clock: bool = False) -> None:
        super().__init__()
        self.project = nn.Linear(told_width, 2 * channels)
        self.clock = Clock(told_width, 2 * channels) if has_clock else None

    def forward(self, normed: Tensor, told: Tensor, frame_step: int = 1) -> Tensor:
        """Features [B, T, H, W, C] and told [B, D] -> features; a frame stands for ``frame_step`` of the clip's."""
        heard = self.project(told)[:, None]
        if self.clock is not None:
            heard = heard + self.clock(told, normed.shape[1], frame_step)
        scale, shift = heard.to(normed.dtype)[:, :, None, None].chunk(2, dim=-1)
        return torch.addcmul(shift, normed, 1 + scale)


class Clock(nn.Module):
    """Something [B, T, C] about when each frame is, as what the clip was told [B, D] makes of it.

    A series of sines and cosines of the frame's time whose coefficients depend on what was told, so that a word can
    have a period. Its slowest wave is ``PERIOD_FRAMES`` of the clip's frames long. Starts silent.
    """

    PERIOD_FRAMES, HARMONICS, HIDDEN = 160, 32, 64

    def __init__(self, told_width: int, channels: int) -> None:
        super().__init__()
        self.listen = nn.Linear(told_width, self.HIDDEN)
        self.read = nn.Linear(2 * self.HARMONICS, self.HIDDEN)
        self.change = silent_linear(self.HIDDEN, channels)

    def forward(self, told: Tensor, frames: int, frame_step: int) -> Tensor:
        """Told [B, D] and so many frames, each of which stands for ``frame_step`` of the clip's -> [B, T, C]."""
        turns = torch.arange(frames, device=told.device) * (frame_step / self.PERIOD_FRAMES)
        angles = 2 * math.pi * turns[:, None] * torch.arange(1, self.HARMONICS + 1, device=told.device)
        faces = torch.cat((angles.sin(), angles.cos()), dim=-1).to(told.dtype)
        return self.change(F.silu(self.listen(told))[:, None] * self.read(faces))


class NoiseLevelShift(nn.Module):
    """What image layers are told of the noise level [B, E] in other words, by all that their clip was told [B, D].

    An image network believes its input to be as noisy as it is told. Behind layers that average over frames it is not
    that noisy any more: told so, the frozen layers trust what they see. Starts by changing nothing.
    """

    HIDDEN = 64

    def __init__(self, told_width: int, time_width: int) -> None:
        super().__init__()
        self.listen = nn.Linear(told_width, self.HIDDEN)
        self.change = silent_linear(self.HIDDEN, time_width)

    def forward(self, time: Tensor, told: Tensor) -> Tensor:
        """The embedded noise level [B, E] and told [B, D] -> the level to tell [B, E]."""
        return time + self.change(F.silu(self.listen(told))).to(time.dtype)


class ConvolutionInflation(nn.Module):
    """Add motion to a feature clip with a 2-D and a temporal convolution.

    2-D convolution, norm and activation, temporal convolution, norm and activation, linear projection; added to what
    came in. The projection starts at zero, so that nothing changes before training. With ``told_width`` the block
    also hears ``told`` [B, told_width], as a scale and shift after the first norm. With ``given_channels`` it also sees
    ``given`` [B, given_channels, T, H, W], what of the clip is given; at first it makes nothing of it.

    Source: Lumiere, section 3.1 and figure 4.
    """

    def __init__(
        self, channels: int, settings: TemporalSettings | None = None, *, told_width: int = 0, given_channels: int = 0
    ) -> None:
        super().__init__()
        settings = settings or TemporalSettings()
        width = max(1, round(channels * settings.width))
        self.sight = sight_of_given(given_channels, width) if given_channels else None
        self.spatial = nn.Conv2d(channels, width, settings.kernel_px, padding=settings.kernel_px // 2)
        self.spatial_norm = ChannelNorm(width, kind=settings.norm)
        self.hearing = Hearing(told_width, width, has_clock=settings.hears_clock) if told_width else None
        self.temporal = TemporalConv(width, kernel_frames=settings.frames_seen_by_blocks)
        self.temporal_norm = ChannelNorm(width, kind=settings.norm)
        self.project = silent_linear(width, channels)

    def forward(
        self, clip: Tensor, told: Tensor | None = None, given: Tensor | None = None, frame_step: int = 1
    ) -> Tensor:
        """[B, C, T, H, W] -> the same shape; each frame stands for ``frame_step`` of the whole clip's."""
        _check_rank(clip)
        frames = self.spatial(fold_time(clip))
        if self.sight is not None and given is not None:
            frames = frames + self.sight(fold_time(given))
        hidden = unfold_time(frames, clip.shape[2]).permute(0, 2, 3, 4, 1)
        hidden = _hear(self.hearing, self.spatial_norm(hidden), told, frame_step)
        hidden = self.temporal(F.silu(hidden).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        change = self.project(F.silu(self.temporal_norm(hidden)))
        return clip + change.permute(0, 4, 1, 2, 3)


class AttentionInflation(nn.Module):
    """Add motion to a feature clip with attention along time, at each place by itself.

    Norm, positions, a stack of attention layers, linear projection; added to what came in. The projection starts at
    zero, so that nothing changes before training. With ``told_width`` the block also hears ``told`` [B, told_width],
    as a scale and shift after the norm; with ``given_channels`` it also sees ``given`` [B, given_channels, T, H, W],
    what of the clip is given, and at first makes nothing of it. Costs grow with the square of the frames: for the
    coarsest level. With ``space_time_layers`` more layers follow in which all places of all frames see each other; they
    start silent, so a trained block can be given them.

    Source: Lumiere, section 3.1 and figure 4; the space-time layers are ours.
    """

    def __init__(
        self, channels: int, settings: TemporalSettings | None = None, *, told_width: int = 0, given_channels: int = 0
    ) -> None:
        super().__init__()
        settings = settings or TemporalSettings()
        self.sight = sight_of_given(given_channels, channels) if given_channels else None
        self.has_positions = settings.positions == "sinusoidal"
        self.norm = ChannelNorm(channels)
        self.hearing = Hearing(told_width, channels, has_clock=settings.hears_clock) if told_width else None
        self.layers = nn.ModuleList(_AttentionLayer(channels, settings) for _ in range(settings.attention_layers))
        self.space_time = nn.ModuleList(silent_attention(channels, settings) for _ in range(settings.space_time_layers))
        self.project = silent_linear(channels, channels)

    def forward(
        self, clip: Tensor, told: Tensor | None = None, given: Tensor | None = None, frame_step: int = 1
    ) -> Tensor:
        """[B, C, T, H, W] -> the same shape; each frame stands for ``frame_step`` of the whole clip's."""
        _check_rank(clip)
        batch, channels, frames, height, width = clip.shape
        last = clip.permute(0, 2, 3, 4, 1)
        hidden = _hear(self.hearing, self.norm(last), told, frame_step)
        if self.sight is not None and given is not None:
            seen = unfold_time(self.sight(fold_time(given)), frames)
            hidden = hidden + seen.permute(0, 2, 3, 4, 1)
        hidden = hidden.reshape(batch, frames, height * width, channels).transpose(1, 2).reshape(-1, frames, channels)
        if self.has_positions:
            hidden = hidden + sinusoidal_positions(frames, channels, like=hidden)
        for layer in self.layers:
            hidden = layer(hidden)
        # The projection comes after the way back, so that its output already lies as the clip does.
        hidden = hidden.view(batch, height * width, frames, channels).transpose(1, 2)
        if self.space_time:
            places = grid_positions(frames, height, width, channels, like=hidden)
            hidden = hidden.flatten(1, 2)
            for layer in self.space_time:
                hidden = layer(hidden, places)
        return clip + self.project(hidden.reshape(last.shape)).permute(0, 4, 1, 2, 3)


class _AttentionLayer(nn.Module):
    """Self-attention of sequences [N, T, C], added to what came in; then, if asked for, a feed-forward."""

    def __init__(self, channels: int, settings: TemporalSettings) -> None:
        super().__init__()
        self.num_heads = settings.attention_heads or max(1, channels // 64)
        if channels % self.num_heads:
            raise ValueError(
                f"temporal attention has {self.num_heads} heads for {channels} channels; attention_heads must divide"
                f" the channels (try {math.gcd(channels, 8)})"
            )
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        hidden = round(channels * settings.feed_forward)
        self.feed_forward: nn.Sequential | None = None
        if hidden:
            self.feed_forward = nn.Sequential(
                ChannelNorm(channels), nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels)
            )

    def forward(self, sequences: Tensor, positions: Tensor | None = None) -> Tensor:
        """[N, T, C] -> the same shape; ``positions`` [T, C] are told to the attention and not kept."""
        normed = self.norm(sequences)
        qkv = self.qkv(normed if positions is None else normed + positions).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)
        sequences = sequences + self.out(mixed)
        return sequences if self.feed_forward is None else sequences + self.feed_forward(sequences)


def silent_attention(channels: int, settings: TemporalSettings) -> _AttentionLayer:
    """A layer that changes nothing before it is trained."""
    layer = _AttentionLayer(channels, settings)
    for last in (layer.out, *([] if layer.feed_forward is None else [layer.feed_forward[-1]])):
        for weight in last.parameters():
            nn.init.zeros_(weight)
    return layer


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention of [N, heads, T, D] with ``bias`` [N, 1, 1, keys] added to the scores: plain on a CPU, where it was
    measured at two to five times the fused kernel."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, bias)
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if bias is not None:
        weights = weights + bias
    return weights.softmax(-1) @ value


def sinusoidal_positions(frames: int, channels: int, *, like: Tensor) -> Tensor:
    """Sines and cosines [T, C] of the frame's number, in ``like``'s dtype; odd ``channels`` end in a zero."""
    half = channels // 2
    rates = torch.exp(torch.arange(half, device=like.device) * (-math.log(10_000.0) / max(half, 1)))
    angles = torch.arange(frames, device=like.device)[:, None] * rates
    table = torch.cat((angles.sin(), angles.cos()), dim=1)
    return F.pad(table, (0, channels - 2 * half)).to(like.dtype)


def grid_positions(frames: int, height: int, width: int, channels: int, *, like: Tensor) -> Tensor:
    """Sines and cosines [T*H*W, C]: half of the channels say when, a quarter how far down, the rest how far right."""
    when, down = channels // 2, channels // 4
    grid = (frames, height, width, -1)
    parts = (
        sinusoidal_positions(frames, when, like=like)[:, None, None],
        sinusoidal_positions(height, down, like=like)[None, :, None],
        sinusoidal_positions(width, channels - when - down, like=like)[None, None],
    )
    return torch.cat([part.expand(grid) for part in parts], dim=-1).flatten(0, 2)


def sight_of_given(given_channels: int, channels: int) -> nn.Conv2d:
    """What makes features of <C, M> at a level's size; it starts at zero."""
    sight = nn.Conv2d(given_channels, channels, 1, bias=False)
    nn.init.zeros_(sight.weight)
    return sight


def given_at(given: Tensor, num_frames: int, size: tuple[int, int]) -> Tensor:
    """<C, M> [B, C, T, H, W] at a level of ``num_frames`` and ``size``: frames that fall together are stacked as more
    channels, places that do are averaged; [B, C * T / num_frames, num_frames, h, w]."""
    batch, _, frames, height, width = given.shape
    together = frames // num_frames
    stacked = given.unflatten(2, (num_frames, together)).transpose(2, 3).reshape(batch, -1, num_frames, height, width)
    smaller = F.avg_pool2d(fold_time(stacked), (height // size[0], width // size[1]))
    return unfold_time(smaller, num_frames)


def _hear(hearing: Hearing | None, normed: Tensor, told: Tensor | None, frame_step: int) -> Tensor:
    if hearing is None:
        return normed
    if told is None:
        raise ValueError("this temporal block hears the noise level and the text: call it with told [B, told_width]")
    return hearing(normed, told, frame_step)


def silent_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that gives zero before it is trained."""
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _check_rank(clip: Tensor) -> None:
    if clip.ndim != 5:
        raise ValueError(
            f"features have shape {list(clip.shape)}; layers that mix frames need a clip [B, C, T, H, W]"
            " (one image is a clip of one frame: image[:, :, None])"
        )
