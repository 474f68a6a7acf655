"""The Space-Time U-Net: an image network with layers that mix frames between its own, resized in space and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from os import PathLike
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from lumiere.config import load_settings
from lumiere.model import image_unet, motion
from lumiere.model.forecast import Ahead, Forecast
from lumiere.model.given_frames import Ends, GivenFrames
from lumiere.model.given_words import GivenWords, Said
from lumiere.model.image_unet import Heard
from lumiere.model.opening import Opening
from lumiere.model.temporal import (
    AttentionInflation,
    ConvolutionInflation,
    NoiseLevelShift,
    TemporalDownsample,
    TemporalSettings,
    TemporalUpsample,
    given_at,
)
from lumiere.video import fold_time, unfold_time

LEAST_SHARE = 0.06
"""Of a picture, that a thing covers which can be brought to life from it. Of a smaller one, such as what is to grow,
too little is seen."""


class TemporalLayers(nn.Module):
    """Every layer of a Space-Time U-Net that mixes frames: one block and one resizer for each level of the image one.

    ``halve_time`` says for each halving of space whether time is halved with it, and doubled on the way up.
    """

    def __init__(self, unet: UNet2DConditionModel, settings: TemporalSettings) -> None:
        super().__init__()
        widths = list(unet.config.block_out_channels)
        self.hears = settings.hears_time_and_text
        told_width = image_unet.time_width(unet) + image_unet.text_width(unet) if self.hears else 0

        given = given_channels(unet, settings) if settings.blocks_see_given else [0] * len(widths)

        def block(level: int) -> nn.Module:
            kind = AttentionInflation if level == coarsest else ConvolutionInflation
            return kind(widths[level], settings, told_width=told_width, given_channels=given[level])

        # For each level behind the first mixing, on the way down, in the middle, on the way up.
        self.noise_level = nn.ModuleList()
        if settings.shifts_noise_level:
            self.noise_level.extend(noise_level_shifts(unet, settings))
        self.given = given_stem(unet, settings.conditioning_channels) if settings.conditioning_channels else None
        self.words = given_words(unet, settings) if settings.words_of_given else None
        self.frames = given_frames(unet, settings) if settings.attends_to_given else None
        self.forecast = forecast(unet, settings) if settings.forecasts else None
        self.opening = Opening(unet, settings.opening_rank) if settings.opening_rank else None
        coarsest = len(widths) - 1
        self.down = nn.ModuleList(block(level) for level in range(len(widths)))
        self.middle = block(coarsest)
        self.up = nn.ModuleList(block(level) for level in reversed(range(len(widths))))
        self.halve_time, self.double_time = time_resizers(unet, settings)

    @property
    def blocks_see_given(self) -> bool:
        """Whether the blocks see <C, M> themselves."""
        return self.middle.sight is not None

    @property
    def factor(self) -> int:
        """How many frames of the clip one frame stands for at the coarsest level."""
        return 2 ** sum(not isinstance(resizer, nn.Identity) for resizer in self.halve_time)


def time_resizers(unet: UNet2DConditionModel, settings: TemporalSettings) -> tuple[nn.ModuleList, nn.ModuleList]:
    """For each halving of space what follows it along time, finest first; for each doubling, coarsest first."""

    def resize(kind: type[TemporalDownsample] | type[TemporalUpsample], channels: int, is_there: bool) -> nn.Module:
        if not is_there:
            return nn.Identity()
        return kind(channels, kernel_frames=settings.kernel_frames, resize_init=settings.resize_init)

    widths, halve_time = list(unet.config.block_out_channels), halvings(unet, settings)
    down = (resize(TemporalDownsample, *one) for one in zip(widths, halve_time, strict=False))
    up = (resize(TemporalUpsample, *one) for one in zip(widths[:0:-1], halve_time[::-1], strict=True))
    return nn.ModuleList(down), nn.ModuleList(up)


def noise_level_shifts(unet: UNet2DConditionModel, settings: TemporalSettings) -> Iterator[NoiseLevelShift]:
    """A shift of the noise level for each part of the image network that is behind the first mixing of frames."""
    time = image_unet.time_width(unet)
    told = time + image_unet.text_width(unet) if settings.hears_time_and_text else time
    return (NoiseLevelShift(told, time) for _ in range(2 * len(unet.config.block_out_channels)))


def given_channels(unet: UNet2DConditionModel, settings: TemporalSettings) -> list[int]:
    """Channels of <C, M> at each level, finest first: frames that fall together there are stacked as channels."""
    if not settings.conditioning_channels:
        raise ValueError("blocks_see_given is set without conditioning_channels: nothing is given that could be seen")
    channels = [settings.conditioning_channels]
    for is_halved in halvings(unet, settings):
        channels.append(channels[-1] * (2 if is_halved else 1))
    # Image networks may have levels of one size.
    return channels + channels[-1:] * (len(unet.config.block_out_channels) - len(channels))


def given_stem(unet: UNet2DConditionModel, channels: int) -> nn.Conv2d:
    """A second first convolution, for <C, M>; it starts at zero, and says nothing where nothing is given."""
    own = unet.conv_in
    stem = nn.Conv2d(channels, own.out_channels, own.kernel_size, padding=own.padding, bias=False)
    nn.init.zeros_(stem.weight)
    return stem


def given_words(unet: UNet2DConditionModel, settings: TemporalSettings) -> GivenWords:
    """What says in the image network's words what is given of a clip."""
    return GivenWords(
        settings.conditioning_channels,
        unet.config.in_channels,
        num_words=settings.words_of_given,
        text_width=image_unet.encoder_width(unet),
    )


def given_frames(unet: UNet2DConditionModel, settings: TemporalSettings) -> GivenFrames:
    """What lets places of every frame attend to given frames."""
    return GivenFrames(unet.config.in_channels, list(unet.config.block_out_channels))


def forecast(unet: UNet2DConditionModel, settings: TemporalSettings) -> Forecast:
    """What says how given frames will look at other moments."""
    return Forecast(settings.conditioning_channels, unet.config.in_channels, text_width=image_unet.encoder_width(unet))


def mean_text(states: Tensor, mask: Tensor | None) -> Tensor:
    """The mean state [B, D] of texts [B, L, D] over their real words, ``mask`` [B, L] (None: over all), normalised."""
    if mask is None:
        text = states.mean(1)
    else:
        kept = mask.to(states.dtype).unsqueeze(-1)
        text = (states * kept).sum(1) / kept.sum(1).clamp(min=1)
    return F.layer_norm(text, text.shape[-1:])


class STUNet(UNet2DConditionModel):
    """A text-to-video network made of a text-to-image one: it denoises all frames of a clip together.

    It *is* its image network (diffusers' parameter names, configuration, LoRA loading and attention processors), with
    the layers that mix frames under ``temporal``. The image weights are frozen and the temporal ones trained. At the
    start, frames 0, N, 2N, ... (N = ``temporal_factor``) are the image network's own predictions.

        unet = UNet2DConditionModel.from_pretrained("stable-diffusion", subfolder="unet")
        stunet = STUNet.from_image_unet(unet, temporal=TemporalSettings(halve_time=(True, True, False)))
        prediction = stunet(noisy_clip, timestep, text_states).sample

    Source: Lumiere, arXiv 2401.12945, section 3.1.
    """

    # What model_index.json names, and diffusers looks up on loading: saved folders outlive a move of this file.
    __module__ = "lumiere"
    _repeated_blocks = ["BasicTransformerBlock", "ResnetBlock2D", "ConvolutionInflation", "AttentionInflation"]
    _no_split_modules = [*_repeated_blocks, "TemporalDownsample", "TemporalUpsample"]

    def __init__(self, temporal_settings: Mapping[str, Any] | None = None, **image_config: Any) -> None:
        """A network with random weights; ``image_config`` are UNet2DConditionModel's own arguments."""
        settings = load_settings(TemporalSettings, temporal_settings or {})
        super().__init__(**image_config)
        image_unet.check_readable(self)
        self.register_to_config(temporal_settings=settings.model_dump(mode="json"))
        image_unet.attend_plainly(self)
        self.gradient_checkpointing = False
        self._most_frames: int | None = None
        self.temporal = TemporalLayers(self, settings)
        self.freeze_image()

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """The keys of a stored configuration: diffusers reads them off the signature, ours stands for its parent's."""
        keys = UNet2DConditionModel._get_init_keys(UNet2DConditionModel)
        return keys | {"temporal_settings"} if issubclass(input_class, STUNet) else set(keys)

    @classmethod
    def from_image_unet(
        cls,
        unet: UNet2DConditionModel,
        *,
        temporal: TemporalSettings | None = None,
        generator: torch.Generator | None = None,
    ) -> STUNet:
        """The inflated ``unet``: its weights (shared, not copied), frozen, and new temporal layers.

        The new layers take the image network's device and dtype. ``generator`` draws their start; None: torch's own.
        Raises ValueError that names the block when ``unet`` is of a family that cannot be read.
        """
        if isinstance(unet, STUNet):
            raise ValueError("this is a Space-Time U-Net already; from_image_unet needs its image network")
        image_unet.check_readable(unet)
        settings = temporal or TemporalSettings()
        # The image part of a Space-Time U-Net's folder, loaded as an image network, still names what it has dropped.
        dropped = {"temporal_settings"}
        config = {key: value for key, value in unet.config.items() if not key.startswith("_") and key not in dropped}
        with torch.device("meta"):
            stunet = cls(temporal_settings=settings.model_dump(mode="json"), **config)
        unknown = stunet.load_state_dict(unet.state_dict(), strict=False, assign=True).unexpected_keys
        if unknown:
            raise ValueError(
                f"the image U-Net has weights that are not its own ({unknown[0]} and {len(unknown) - 1} more);"
                " fuse or unload adapters before inflating"
            )
        device = unet.device
        with _seeded(generator), torch.device("meta" if device.type == "meta" else "cpu"):
            stunet.temporal = TemporalLayers(stunet, settings)
        stunet.temporal.to(device=device, dtype=unet.dtype)
        stunet.freeze_image()
        return stunet.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **options: Any) -> STUNet:
        """The network in a folder that ``save_pretrained`` wrote; ``options`` are diffusers' own.

        Raises ValueError for a folder that holds an image network, and for weights that are missing, NaN or infinite.
        """
        config = cls.load_config(pretrained_model_name_or_path, **_where(options))
        if "temporal_settings" not in config:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {config.get('_class_name', 'network')}, not a Space-Time"
                " U-Net (inflate it first: lumiere inflate, or STUNet.from_image_unet)"
            )
        wants_info = options.pop("output_loading_info", False)
        stunet, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **options)
        if info["missing_keys"]:
            raise ValueError(
                f"{pretrained_model_name_or_path} has no weights for {min(info['missing_keys'])}"
                f" ({len(info['missing_keys'])} are missing); the file is incomplete"
            )
        motion.check_finite(stunet.named_parameters(), pretrained_model_name_or_path)
        return (stunet, info) if wants_info else stunet  # type: ignore[return-value]

    def save_motion(self, path: str | PathLike[str]) -> None:
        """Write the temporal weights alone, for the user's own copies of the image network (safetensors)."""
        motion.save(path, self.temporal, self.settings, self.config)

    def load_motion(self, path: str | PathLike[str]) -> None:
        """Take the temporal weights from a file of ``save_motion``.

        Raises ValueError that says what differs when the file was made for another network or other settings.
        """
        motion.load(path, self.temporal, self.settings, self.config)

    @property
    def settings(self) -> TemporalSettings:
        """The settings of the temporal layers."""
        return load_settings(TemporalSettings, self.config.temporal_settings)

    @property
    def temporal_factor(self) -> int:
        """How many frames of the clip one frame stands for at the coarsest level: lengths are multiples of it."""
        return self.temporal.factor

    @property
    def spatial_factor(self) -> int:
        """How many pixels one place stands for at the coarsest level: height and width are multiples of it."""
        return 2 ** image_unet.num_spatial_halvings(self)

    def image_parameters(self) -> Iterator[nn.Parameter]:
        """The weights of the image network."""
        return (weight for name, weight in self.named_parameters() if not name.startswith("temporal."))

    def temporal_parameters(self) -> Iterator[nn.Parameter]:
        """The weights of the layers that mix frames."""
        return self.temporal.parameters()

    def freeze_image(self) -> None:
        """Train the temporal layers only; what is trained by itself (stages ``forecast`` and ``opening``) stays."""
        for weight in self.image_parameters():
            weight.requires_grad_(False)
        self.temporal.requires_grad_(True)
        for part in (self.temporal.forecast, self.temporal.opening):
            if part is not None:
                part.requires_grad_(False)

    def freeze_temporal(self) -> None:
        """Train the image network only."""
        for weight in self.image_parameters():
            weight.requires_grad_(True)
        self.temporal.requires_grad_(False)

    def chunk_image_layers(self, frames: int | None) -> None:
        """Let at most so many frames, over all clips of a batch, through the image layers at once; None: all.

        Memory falls with the frames, results stay, and a processor that is not full gets slower. Raises ValueError
        for fewer than one.
        """
        if frames is not None and frames < 1:
            raise ValueError(f"{frames} frames at once; it takes at least one (None: all)")
        self._most_frames = frames

    def train(self, mode: bool = True) -> STUNet:
        """Training or evaluation mode; parts without a trainable weight stay in evaluation mode (dropout, copies)."""
        super().train(mode)
        for child in self.children():
            if mode and not any(weight.requires_grad for weight in child.parameters()):
                child.eval()
        return self

    @apply_lora_scale("cross_attention_kwargs")
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: tuple[Tensor, ...] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """The prediction [B, out_channels, T, H, W] for noisy clips ``sample`` [B, in_channels, T, H, W].

        A widened network (``inflate.widen_input``) also takes them with <C, M> behind as more channels; without,
        nothing is given. One that ``forecasts`` fills it with what given frames will look like at other moments. Among
        ``added_cond_kwargs``, beside diffusers' own, can be told what ``say_given`` said of some other <C, M> as
        ``said_of_given``, some other <C, M> [B, c, T', H, W] to whose frames to attend as ``given_elsewhere``, and what
        ``look_ahead`` saw of these clips as ``ahead``.

        diffusers' arguments in diffusers' order, and all of them per clip: ``timestep`` a number or [B],
        ``encoder_hidden_states`` [B, L, D], ``encoder_attention_mask`` [B, L] (1: keep), class labels and added
        embeddings [B, ...]. A clip of one frame passes as an image, without the temporal layers.
        Raises ValueError for sizes that the network cannot halve, and for residuals, which no image level could place.
        """
        self._check_clip(sample)
        if not all(
            extra is None
            for extra in (
                down_block_additional_residuals,
                mid_block_additional_residual,
                down_intrablock_additional_residuals,
            )
        ):
            raise ValueError("additional residuals (ControlNet, T2I-Adapter) are not read by a Space-Time U-Net")
        said: Said | None = (added_cond_kwargs or {}).get("said_of_given")  # type: ignore[assignment]
        if said is None and self.temporal.words is not None and sample.shape[1] > self.config.in_channels:
            said = self.say_given(sample[:, self.config.in_channels :])
        given: Tensor | None = (added_cond_kwargs or {}).get("given_elsewhere")
        if given is None and sample.shape[1] > self.config.in_channels:
            given = sample[:, self.config.in_channels :]

        def hear(timestep: Tensor | float | int) -> Heard:
            time, text = image_unet.hear(
                self,
                sample,
                timestep,
                encoder_hidden_states,
                class_labels=class_labels,
                timestep_cond=timestep_cond,
                added_cond_kwargs=added_cond_kwargs,
                said=said,
                mask=encoder_attention_mask,
            )
            return Heard(
                time,
                text,
                image_unet.score_bias(encoder_attention_mask, sample),
                image_unet.score_bias(attention_mask, sample),
                cross_attention_kwargs,
            )

        heard = hear(timestep)
        told = self._told(heard, encoder_attention_mask) if self.temporal.hears else None
        if said is not None:
            states = self.process_encoder_hidden_states(said.states.to(sample), added_cond_kwargs or {})
            heard = heard.with_words(states, said.is_said)
        seen = None
        if given is not None and self.temporal.frames is not None:
            clean = hear(0)
            seen = self._look_at(given, clean if said is None else clean.with_words(states, said.is_said))
        if self.temporal.forecast is not None and sample.shape[1] > self.config.in_channels:
            noisy, known = sample.tensor_split([self.config.in_channels], dim=1)
            ahead: Ahead | None = (added_cond_kwargs or {}).get("ahead")  # type: ignore[assignment]
            with torch.no_grad():
                if ahead is None:
                    ahead = self.look_ahead(known, encoder_hidden_states, encoder_attention_mask)
                if ahead is not None:
                    sample = torch.cat([noisy, self.temporal.forecast.shown(known, noisy, ahead)], dim=1)
        prediction = self._predict(sample, heard, told, seen)
        return UNet2DConditionOutput(prediction) if return_dict else (prediction,)

    def say_given(self, given: Tensor) -> Said:
        """What is given of clips, <C, M> [B, c, T, H, W], in states of text. Raises ValueError if it is not said."""
        if self.temporal.words is None:
            raise ValueError("this network does not say what is given in words (inflate.add_given_words)")
        return self.temporal.words(given)

    @apply_forward_hook
    def look_ahead(self, given: Tensor, states: Tensor, mask: Tensor | None = None) -> Ahead | None:
        """What whole frames of <C, M> [B, c, T, h, w] will look like at other moments, as texts [B, L, D] say, of which
        ``mask`` [B, L] keeps what is 1: the same at every step of sampling. None where this network forecasts
        nothing, or of these."""
        if self.temporal.forecast is None or given.shape[2] == 1:
            return None
        return self.temporal.forecast(given, mean_text(states, mask))

    @apply_forward_hook
    def carry(self, ahead: Ahead) -> Callable[[Tensor], Tensor]:
        """What makes clean clips [B, C, T, h, w] show the things that move as ``look_ahead`` has seen them. Raises
        ValueError for a network that forecasts nothing."""
        return self._forecaster().carry(ahead)

    @apply_forward_hook
    def shows_what_moves(self, given: Tensor) -> Tensor:
        """In which frames, <C, M> [B, c, 1, h, w], a thing is found that will move and is not tiny, [B]. Raises
        ValueError for a network that forecasts nothing."""
        found = (self._forecaster().whose_pixels(given) > 0).flatten(1).float().mean(1)
        return found >= LEAST_SHARE

    def _forecaster(self) -> Forecast:
        if self.temporal.forecast is None:
            raise ValueError("this network does not forecast given frames (inflate.add_forecast)")
        return self.temporal.forecast

    @contextmanager
    def drawing_openings(self) -> Iterator[None]:
        """Within it clips of one frame are drawn as the first ones of clips, where that was learned."""
        opening = self.temporal.opening
        with nullcontext() if opening is None else opening.worn(self):
            yield

    def _look_at(self, given: Tensor, heard: Heard) -> _Seen:
        """What the image network makes of given frames, <C, M> [B, c, T, H, W]."""
        assert self.temporal.frames is not None
        ends = self.temporal.frames.ends(given)
        count = ends.pictures.shape[2]
        kept: list[Tensor] = []
        self._predict(fold_time(ends.pictures)[:, :, None], heard.for_frames(count), None, keep=kept)
        return _Seen(ends, [unfold_time(frames, count) for frames in kept])

    def _predict(
        self,
        sample: Tensor,
        heard: Heard,
        told: Tensor | None,
        seen: _Seen | None = None,
        *,
        keep: list[Tensor] | None = None,
    ) -> Tensor:
        """The way down, through the middle and up: at each level image layers, then a layer that mixes frames.

        Features behind the first image layer of each level of the way up attend to what was ``seen`` of given frames,
        and are added to ``keep``, coarsest level first.
        """
        clip = _Clip(sample.shape[2], heard, told)
        shifts: Iterator[nn.Module] = iter(self.temporal.noise_level)
        temporal, run = self.temporal, self._run
        own = self.config.in_channels

        def through(layer: Callable[..., Tensor], what: Any, frames: Tensor) -> Tensor:
            return image_unet.in_parts(
                lambda part, heard: layer(what, part, heard, run), frames, clip.heard, self._most_frames
            )

        frames = image_unet.stem(self, fold_time(sample[:, :own]))
        if temporal.given is not None and sample.shape[1] > own:
            given = fold_time(sample[:, own:]).contiguous(memory_format=torch.channels_last)
            frames = frames + temporal.given(given)
            if temporal.blocks_see_given:
                clip.given = unfold_time(given, sample.shape[2])
        skips = [frames]
        for level, block in enumerate(self.down_blocks):
            if level:
                clip.tell(next(shifts, None))
            for layer in image_unet.layers(block):
                frames = through(image_unet.through, layer, frames)
                skips.append(frames)
            frames = skips[-1] = clip.mix(temporal.down[level], frames, run)
            if block.downsamplers is not None:
                frames = through(image_unet.downsample, block, frames)
                frames = clip.resize(temporal.halve_time[level], frames)
                skips.append(frames)
        clip.tell(next(shifts, None))
        frames = through(image_unet.middle, self, frames)
        frames = clip.mix(temporal.middle, frames, run)
        for level, block in enumerate(self.up_blocks):
            clip.tell(next(shifts, None))
            for index, layer in enumerate(image_unet.layers(block)):
                frames = through(image_unet.through, layer, torch.cat([frames, skips.pop()], dim=1))
                if index == 0 and keep is not None:
                    keep.append(frames)
                if index == 0 and seen is not None:
                    frames = self._look_up(level, clip.num_frames, frames, seen)
            frames = clip.mix(temporal.up[level], frames, run)
            if block.upsamplers is not None:
                frames = through(image_unet.upsample, block, frames)
                frames = clip.resize(temporal.double_time[level], frames)
        return unfold_time(image_unet.head(self, frames), sample.shape[2])

    def _look_up(self, level: int, num_frames: int, frames: Tensor, seen: _Seen) -> Tensor:
        """Frames [B*T, C, H, W] of a level of the way up (0: the coarsest) with what they find in given ones."""
        attention, finer = self.temporal.frames, len(self.up_blocks) - 1 - level
        assert attention is not None
        return fold_time(self._run(attention, finer, unfold_time(frames, num_frames), seen.features[level], seen.ends))

    def _run(self, module: nn.Module, *inputs: Any) -> Tensor:
        """Run a part; under gradient checkpointing its insides are computed again in the backward pass."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(module, *inputs)
        return module(*inputs)

    def _told(self, heard: Heard, mask: Tensor | None) -> Tensor:
        """What the temporal blocks hear, [B, E + D]: the noise level, and the mean text state over the real words."""
        return torch.cat([F.silu(heard.time), mean_text(heard.text, mask)], dim=-1)

    def _check_clip(self, sample: Tensor) -> None:
        """Raise ValueError for a clip whose shape the network cannot take."""
        if sample.ndim != 5:
            raise ValueError(
                f"sample has shape {list(sample.shape)}; needed is a clip [B, C, T, H, W]"
                " (one image is a clip of one frame: image[:, :, None])"
            )
        _, channels, frames, height, width = sample.shape
        own = self.config.in_channels
        given = self.temporal.given.in_channels if self.temporal.given is not None else 0
        if channels not in (own, own + given):
            allowed = f"{own}, or {own + given} with what is given" if given else str(own)
            raise ValueError(f"sample has {channels} channels; this network takes {allowed}")
        if frames == 0:
            raise ValueError("the clip has no frames")
        step = self.temporal_factor
        if frames % step and frames != 1:
            below, above = frames // step * step, -(-frames // step) * step
            raise ValueError(
                f"clip has {frames} frames; this network halves time {step.bit_length() - 1} times and needs a"
                f" multiple of {step} ({f'trim to {below} or ' if below else ''}pad to {above}), or one frame"
            )
        step = self.spatial_factor
        if height % step or width % step:
            raise ValueError(
                f"frames are {height} x {width}; this network halves height and width {step.bit_length() - 1} times"
                f" and needs multiples of {step} (nearest: {_nearest(height, step)} x {_nearest(width, step)})"
            )

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Refused: the walk over the image layers does not apply FreeU."""
        raise ValueError("FreeU is not applied by a Space-Time U-Net; leave it off")


class _Seen(NamedTuple):
    """Given frames, and what the image network made of them [B, C, N, H, W] at each level, coarsest first."""

    ends: Ends
    features: list[Tensor]


class _Clip:
    """How many frames the clip has at the level that is being worked on, and what its layers are told there."""

    def __init__(self, num_frames: int, heard: Heard, told: Tensor | None) -> None:
        self.is_image = num_frames == 1
        self.num_frames, self.told, self._whole = num_frames, told, num_frames
        # <C, M> [B, C, T, H, W], for blocks that see it.
        self.given: Tensor | None = None
        self._own, self._expanded = heard, {1: heard}

    @property
    def heard(self) -> Heard:
        """What each frame of this level is told."""
        if self.num_frames not in self._expanded:
            self._expanded[self.num_frames] = self._expanded[1].for_frames(self.num_frames)
        return self._expanded[self.num_frames]

    def tell(self, shift: nn.Module | None) -> None:
        """From here on the image layers hear the noise level as ``shift`` tells it."""
        if shift is not None and not self.is_image:
            told = F.silu(self._own.time) if self.told is None else self.told
            self._expanded = {1: replace(self._own, time=shift(self._own.time, told))}

    def mix(self, block: nn.Module, frames: Tensor, run: image_unet.Run) -> Tensor:
        """Frames [B*T, C, H, W] through a block that mixes them."""
        if self.is_image:
            return frames
        given = self.given
        if given is not None:
            given = given_at(given, self.num_frames, (frames.shape[-2], frames.shape[-1]))
        frame_step = self._whole // self.num_frames
        return fold_time(run(block, unfold_time(frames, self.num_frames), self.told, given, frame_step))

    def resize(self, resizer: nn.Module, frames: Tensor) -> Tensor:
        """Frames [B*T, C, H, W] through a temporal resizer."""
        if self.is_image or isinstance(resizer, nn.Identity):
            return frames
        clip = resizer(unfold_time(frames, self.num_frames))
        self.num_frames = clip.shape[2]
        return fold_time(clip)


def halvings(unet: UNet2DConditionModel, settings: TemporalSettings) -> tuple[bool, ...]:
    """For each halving of space, finest first, whether time is halved with it."""
    count = image_unet.num_spatial_halvings(unet)
    if settings.halve_time is None:
        return (True,) * count
    if len(settings.halve_time) != count:
        raise ValueError(
            f"halve_time has {len(settings.halve_time)} entries; this image network halves space {count} times and"
            f" needs one true or false for each, finest first"
        )
    return settings.halve_time


def _where(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of from_pretrained that say where a folder's files are."""
    keys = ("subfolder", "cache_dir", "local_files_only", "token", "revision", "force_download", "proxies")
    return {key: options[key] for key in keys if key in options}


def _nearest(size: int, step: int) -> int:
    return max(step, round(size / step) * step)


@contextmanager
def _seeded(generator: torch.Generator | None) -> Iterator[None]:
    """torch's own random numbers on the CPU come from ``generator``; afterwards they go on as if nothing was drawn."""
    if generator is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        yield
