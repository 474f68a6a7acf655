"""From an image network's folder to a Space-Time U-Net's, with an account of what is new and what is frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from lumiere.model import image_unet, motion
from lumiere.model.opening import Opening
from lumiere.model.stunet import (
    STUNet,
    forecast,
    given_channels,
    given_frames,
    given_stem,
    given_words,
    noise_level_shifts,
    time_resizers,
)
from lumiere.model.temporal import (
    AttentionInflation,
    Clock,
    ConvolutionInflation,
    Hearing,
    TemporalSettings,
    sight_of_given,
    silent_attention,
)


@dataclass(frozen=True)
class Part:
    """One part of a Space-Time U-Net: how many of its weights came from the image network, and how many are new."""

    name: str
    num_frozen: int
    num_new: int


@dataclass(frozen=True)
class Inflation:
    """What is new and what is frozen in a Space-Time U-Net, part by part, and what its clips must be like."""

    parts: tuple[Part, ...]
    temporal_factor: int
    spatial_factor: int

    @property
    def num_frozen(self) -> int:
        """Weights of the image network."""
        return sum(part.num_frozen for part in self.parts)

    @property
    def num_new(self) -> int:
        """Weights of the temporal layers."""
        return sum(part.num_new for part in self.parts)

    def as_markdown(self) -> str:
        """The account as a table."""
        rows = [*self.parts, Part("all", self.num_frozen, self.num_new)]
        lines = [f"| {part.name} | {part.num_frozen:,} | {part.num_new:,} |" for part in rows]
        return "\n".join(["| part | image weights, frozen | temporal weights, new |", "|---|---:|---:|", *lines])


def inflate_folder(
    source: str | Path,
    target: str | Path,
    *,
    temporal: TemporalSettings | None = None,
    seed: int = 0,
) -> Inflation:
    """Inflate the image U-Net in the folder ``source`` and write the Space-Time U-Net to the folder ``target``.

    ``source`` may also be a whole pipeline's folder. Raises ValueError when it cannot be read or inflated, or when
    ``target`` exists and is not empty.
    """
    target = Path(target)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(f"{target} exists already; give a new folder, so that nothing is overwritten")
    unet = load_image_unet(source)
    stunet = STUNet.from_image_unet(unet, temporal=temporal, generator=torch.Generator().manual_seed(seed))
    try:
        stunet.save_pretrained(target)
    except OSError as error:
        raise ValueError(f"{target} cannot be written ({error})") from error
    return account(stunet)


def load_image_unet(folder: str | Path) -> UNet2DConditionModel:
    """The diffusers image U-Net in a folder, or in the ``unet`` folder of a pipeline; safetensors only, never pickle.

    Raises ValueError that says why it cannot be read: no such folder, another kind of network, an unreadable block,
    no safetensors, broken weights. The kind is looked at before the weights are loaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; needed is a diffusers U-Net folder (config.json + safetensors)")
    if (folder / "model_index.json").is_file():
        folder = folder / "unet"
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; needed is a diffusers U-Net folder")
    _check_config(folder)
    try:
        unet = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{folder}: no weights could be loaded ({str(error).splitlines()[0]}); needed is"
            " diffusion_pytorch_model.safetensors of the same network (pickled .bin files are not opened)"
        ) from error
    motion.check_finite(unet.named_parameters(), folder)
    return unet


def widen_input(stunet: STUNet, channels: int) -> STUNet:
    """Give the network a second first convolution, for the ``channels`` of <C, M>; changed in place and returned.

    The paper's wider first convolution written as a sum, so that the image network's own stays as it is. The new one
    starts at zero: at first nothing changes, bit for bit. It belongs to the temporal weights. Source: Lumiere,
    section 4. Raises ValueError when the network is told of something given already.
    """
    if channels < 1:
        raise ValueError(f"{channels} channels of what is given; it has at least one")
    if stunet.settings.conditioning_channels:
        raise ValueError(f"the network is widened already, for {stunet.settings.conditioning_channels} channels")
    stem = given_stem(stunet, channels)
    stunet.temporal.given = stem.to(stunet.conv_in.weight.device, stunet.conv_in.weight.dtype)
    _grown(stunet, conditioning_channels=channels)
    return stunet


def show_given_to_blocks(stunet: STUNet) -> STUNet:
    """Let the blocks that mix frames see <C, M> themselves, at their level's size; changed in place and returned.

    They make nothing of it at first: nothing changes, bit for bit. Raises ValueError for a network that is told of
    nothing given (``widen_input`` first), and for one whose blocks see it already.
    """
    if stunet.settings.blocks_see_given:
        raise ValueError("the blocks see what is given already")
    channels = given_channels(stunet, stunet.settings)
    _grown(stunet, blocks_see_given=True)
    temporal, like = stunet.temporal, stunet.conv_in.weight
    blocks = [*temporal.down, temporal.middle, *temporal.up]
    for block, given in zip(blocks, [*channels, channels[-1], *channels[::-1]], strict=True):
        width = block.spatial.out_channels if isinstance(block, ConvolutionInflation) else block.project.in_features
        block.sight = sight_of_given(given, width).to(like.device, like.dtype)
    return stunet


def add_space_time_layers(stunet: STUNet, count: int) -> STUNet:
    """Give every attention block ``count`` more layers that see all places of all frames; changed in place, returned.

    They start silent: at first nothing changes but how sums are rounded. Raises ValueError for fewer than one.
    """
    if count < 1:
        raise ValueError(f"{count} space-time layers to add; it takes at least one")
    settings = _grown(stunet, space_time_layers=stunet.settings.space_time_layers + count)
    like = stunet.conv_in.weight
    for block in stunet.temporal.modules():
        if isinstance(block, AttentionInflation):
            channels = block.project.in_features
            block.space_time.extend(silent_attention(channels, settings).to(like) for _ in range(count))
    return stunet


def add_noise_level_shifts(stunet: STUNet) -> STUNet:
    """Let the frozen image layers behind the first mixing be told another noise level; changed in place, returned.

    At first nothing changes, bit for bit. Raises ValueError when they are already.
    """
    if stunet.settings.shifts_noise_level:
        raise ValueError("the image layers are told a shifted noise level already")
    settings = _grown(stunet, shifts_noise_level=True)
    stunet.temporal.noise_level.extend(noise_level_shifts(stunet, settings))
    stunet.temporal.noise_level.to(stunet.conv_in.weight)
    return stunet


def add_clock(stunet: STUNet) -> STUNet:
    """Let every block that mixes frames hear when each frame is; changed in place, returned.

    At first nothing changes, bit for bit. Raises ValueError when they hear it already, or hear nothing at all.
    """
    if stunet.settings.hears_clock:
        raise ValueError("the blocks hear the clock already")
    if not stunet.settings.hears_time_and_text:
        raise ValueError("these blocks hear nothing (hears_time_and_text), so they cannot be given a clock")
    _grown(stunet, hears_clock=True)
    for hearing in stunet.temporal.modules():
        if isinstance(hearing, Hearing):
            clock = Clock(hearing.project.in_features, hearing.project.out_features)
            hearing.clock = clock.to(stunet.conv_in.weight)
    return stunet


def add_given_words(stunet: STUNet, count: int) -> STUNet:
    """Let what is given be said to the image layers in ``count`` states of text; changed in place and returned.

    Where nothing is given nothing changes but how sums are rounded. Raises ValueError for fewer than one, for a network
    that is told of nothing given (``widen_input`` first), for one to which it is said already, and for one in which
    states that are hidden count all the same: where layers attend to text alone (upscalers), or norms pool a prompt's
    states (DeepFloyd IF).
    """
    if count < 1:
        raise ValueError(f"{count} words of what is given; it takes at least one")
    if stunet.settings.words_of_given:
        raise ValueError("what is given is said to this network already")
    _check_told(stunet, "could be said")
    alone = stunet.config.only_cross_attention
    if alone if isinstance(alone, bool) else any(alone or ()):
        raise ValueError("this network has layers that attend to text alone (only_cross_attention): it takes no words")
    if stunet.config.cross_attention_norm == "group_norm":
        raise ValueError("this network pools text states in norms (cross_attention_norm): it takes no words")
    settings = _grown(stunet, words_of_given=count)
    stunet.temporal.words = given_words(stunet, settings).to(stunet.conv_in.weight)
    return stunet


def attend_to_given(stunet: STUNet) -> STUNet:
    """Let places of every frame attend to given frames; changed in place and returned.

    At first nothing changes, bit for bit, and later nothing where nothing is given. Raises ValueError for a network
    that is told of nothing given (``widen_input`` first), and for one that attends already.
    """
    if stunet.settings.attends_to_given:
        raise ValueError("this network attends to given frames already")
    _check_told(stunet, "it could attend to")
    settings = _grown(stunet, attends_to_given=True)
    stunet.temporal.frames = given_frames(stunet, settings).to(stunet.conv_in.weight)
    return stunet


def add_forecast(stunet: STUNet) -> STUNet:
    """Let what given frames will look like at other moments be forecast; changed in place and returned.

    Where nothing is given nothing changes; elsewhere forecasts of new weights are wrong (stage ``forecast``). Raises
    ValueError for a network that is told of nothing given (``widen_input`` first), and for one that forecasts already.
    """
    if stunet.settings.forecasts:
        raise ValueError("this network forecasts given frames already")
    _check_told(stunet, "could be forecast")
    settings = _grown(stunet, forecasts=True)
    stunet.temporal.forecast = forecast(stunet, settings).to(stunet.conv_in.weight)
    return stunet


def add_opening(stunet: STUNet, rank: int) -> STUNet:
    """Let clips' first frames be drawn alone, by image layers changed by matrices of a ``rank``; changed in place and
    returned. At first these change nothing (stage ``opening``); such as there were are replaced."""
    settings = _grown(stunet, opening_rank=rank)
    stunet.temporal.opening = Opening(stunet, settings.opening_rank).to(stunet.conv_in.weight)
    return stunet


def widen_kernels(stunet: STUNet, frames: int) -> STUNet:
    """Let the temporal convolution of every convolution block see ``frames`` at once; changed in place, returned.

    The new frames count nothing at first: nothing changes but how sums are rounded. Raises ValueError when ``frames``
    is even, or not more than they see already.
    """
    now = stunet.settings.frames_seen_by_blocks
    if frames % 2 == 0 or frames <= now:
        raise ValueError(
            f"kernels of {frames} frames; these have {now}, and wider ones are odd: {now + 2}, {now + 4}, ..."
        )
    _grown(stunet, block_kernel_frames=frames)
    for block in stunet.temporal.modules():
        if isinstance(block, ConvolutionInflation):
            block.temporal.widen(frames)
    return stunet


def add_time_halving(stunet: STUNet) -> STUNet:
    """Let a network whose time is halved nowhere halve it with every halving of space; changed in place, returned.

    For a base that first learned where things go from every N-th frame of its clips, N = the new ``temporal_factor``:
    its coarsest level sees the same frames as before, as the new resizers start by keeping every second one. Raises
    ValueError when time is halved somewhere already.
    """
    if stunet.temporal_factor != 1:
        raise ValueError(f"time is halved already, to one frame in {stunet.temporal_factor}")
    settings = _grown(stunet, halve_time=None)
    stunet.temporal.halve_time, stunet.temporal.double_time = (
        resizers.to(stunet.conv_in.weight) for resizers in time_resizers(stunet, settings)
    )
    return stunet


def _check_told(stunet: STUNet, what: str) -> None:
    """Refuse a network to which nothing is given ``what``."""
    if not stunet.settings.conditioning_channels:
        raise ValueError(f"nothing is given to this network that {what} (widen_input first)")


def _grown(stunet: STUNet, **changes: Any) -> TemporalSettings:
    """The network's settings with ``changes``, which are its own from now on."""
    settings = stunet.settings.model_copy(update=changes)
    stunet.register_to_config(temporal_settings=settings.model_dump(mode="json"))
    return settings


def account(stunet: STUNet) -> Inflation:
    """What is new and what is frozen in ``stunet``, in the order in which a clip passes."""
    temporal, widths = stunet.temporal, stunet.config.block_out_channels
    level_parts = {"conv_in", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out", "temporal"}
    embeddings = [child for name, child in stunet.named_children() if name not in level_parts]
    known = (temporal.given, temporal.words, temporal.frames, temporal.forecast, temporal.opening)
    of_given: list[nn.Module] = [part for part in known if part is not None]
    parts = [
        _part("embeddings of noise level and text", embeddings, [temporal.noise_level]),
        _part(
            "stem",
            [stunet.conv_in],
            of_given,
        ),
    ]
    for level, width in enumerate(widths):
        new = [temporal.down[level], *temporal.halve_time[level : level + 1]]
        parts.append(_part(f"down {level + 1} ({width} channels)", [stunet.down_blocks[level]], new))
    parts.append(_part(f"middle ({widths[-1]} channels)", [stunet.mid_block], [temporal.middle]))
    for level, width in enumerate(reversed(widths)):
        new = [temporal.up[level], *temporal.double_time[level : level + 1]]
        parts.append(_part(f"up {len(widths) - level} ({width} channels)", [stunet.up_blocks[level]], new))
    heads = [module for module in (stunet.conv_norm_out, stunet.conv_out) if module is not None]
    parts.append(_part("head", heads, []))
    return Inflation(tuple(parts), stunet.temporal_factor, stunet.spatial_factor)


def _part(name: str, frozen: list[nn.Module], new: list[nn.Module]) -> Part:
    return Part(name, _num_weights(frozen), _num_weights(new))


def _num_weights(modules: list[nn.Module]) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def _check_config(folder: Path) -> None:
    """Raise ValueError when the network that a folder's config.json describes cannot be inflated."""
    try:
        config: dict[str, Any] = UNet2DConditionModel.load_config(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}/config.json cannot be read ({error})") from error
    kind = config.get("_class_name")
    if kind != "UNet2DConditionModel":
        raise ValueError(f"{folder} holds a {kind}; needed is a UNet2DConditionModel ({image_unet.FAMILIES})")
    try:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}/config.json describes no working U-Net ({error})") from error
    image_unet.check_readable(unet)
