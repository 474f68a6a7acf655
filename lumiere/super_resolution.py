"""Super-resolution: stages that make a clip larger, each a folder in diffusers' layout, held in order by one component.

A stage is a Space-Time U-Net that sees the noisy large clip and, beside it on the channel axis, the small one with a
little noise of its own (noise-conditioning augmentation), whose level it is told. A long or large clip goes through in
windows that are merged at every step (``diffusion/multidiffusion.py``), so the memory is one window's.

Source: Lumiere, section 3.2; the augmentation: Ho et al., arXiv 2106.15282.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, DDPMScheduler, DiffusionPipeline, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from lumiere.codec import Codec, Latents, PixelBlocks
from lumiere.conditioning.frames import Conditioning
from lumiere.conditioning.text import DEEPFLOYD_READING, Reading, TextEncoder, TextStates, text_encoder_for
from lumiere.diffusion.back_projection import back_projected, check_back_projection
from lumiere.diffusion.denoiser import Beside, Correct, Denoiser, Guided, Known, Window, bounded
from lumiere.diffusion.multidiffusion import WindowDenoiser, Windowed, clip_windows
from lumiere.diffusion.sample import Step, check_polish, draw_frame_noise, mixed_generator, sample
from lumiere.diffusion.schedulers import check_scheduler
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from lumiere.video import fold_time, unfold_time

Upsampling = Literal["bicubic", "bilinear corners", "none"]
"""How the small clip gets to the network's grid: to the large clip's size and through the codec; as DeepFloyd IF does
it (bilinear, the corners of both pictures one upon the other); or as it lies, beside latents of its own size."""


Merge = Callable[[WindowDenoiser, Sequence[Window]], Denoiser]
"""(what predicts one window, the windows) -> what predicts the whole clip."""

CLIPS_HELD, FEATURES_HELD = 13, 10
"""At its fullest a stage holds so many large clips in fp32, and so many times the finest features of a window
(``benchmarks/super_resolution.py`` measures both)."""


class SuperResolutionStage(DiffusionPipeline):
    """Clips in, larger clips out; in diffusers' layout, so that published upscalers are stages as they lie.

    ``scale`` is how many times wider the clip gets. ``window_frames`` and ``window_px`` (of the large clip; None: do
    not cut) with their overlaps are how much goes through the network at once. ``noise_level`` is the timestep of
    ``low_res_scheduler`` to which the small clip is noised. With ``predicts_change`` the network says how the clean
    large clip differs from the small one's enlargement; with ``tapers_windows`` a window counts less toward its borders
    where it is merged with others. ``back_projection`` is how far the large clip is moved at every step so that, made
    small, it is the small one (``diffusion.back_projection``; 0: not at all, 1: wholly). ``polish`` are places in the
    noise schedule at which the finished clip is looked at again (``diffusion.sample``). Without a text encoder of its
    own a stage is given states; ``reading`` is how its network was used to prompts being read.
    """

    # What model_index.json names, and diffusers looks up on loading: saved folders outlive a move of this file.
    __module__ = "lumiere"
    unet: STUNet
    scheduler: Any
    low_res_scheduler: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    _optional_components: ClassVar[list[str]] = ["vae", "text_encoder", "tokenizer"]
    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        unet: STUNet,
        scheduler: Any,
        low_res_scheduler: Any,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        scale: int = 4,
        pixel_block_size: int = 1,
        upsampling: str = "bicubic",
        noise_before_upsampling: bool = True,
        noise_level: int = 100,
        window_frames: int | None = 16,
        window_frames_overlap: int = 4,
        window_px: int | None = None,
        window_px_overlap: int = 0,
        default_steps: int = 8,
        default_guidance_scale: float = 1.0,
        timestep_shift: float = 1.0,
        predicts_change: bool = False,
        tapers_windows: bool = True,
        back_projection: float = 0.0,
        polish: list[float] | None = None,
        reading: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            low_res_scheduler=low_res_scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.register_to_config(
            scale=scale,
            pixel_block_size=pixel_block_size,
            upsampling=upsampling,
            noise_before_upsampling=noise_before_upsampling,
            noise_level=noise_level,
            window_frames=window_frames,
            window_frames_overlap=window_frames_overlap,
            window_px=window_px,
            window_px_overlap=window_px_overlap,
            default_steps=default_steps,
            default_guidance_scale=default_guidance_scale,
            timestep_shift=timestep_shift,
            predicts_change=predicts_change,
            tapers_windows=tapers_windows,
            back_projection=back_projection,
            polish=list(polish or []),
            reading=reading,
        )
        check_back_projection(back_projection)
        check_polish(self.config.polish)
        if predicts_change and scheduler.config.prediction_type != "sample":
            raise ValueError(
                f"predicts_change is for networks that predict the clean clip (prediction_type sample), not"
                f" {scheduler.config.prediction_type}"
            )
        self.codec: Codec = PixelBlocks(pixel_block_size) if vae is None else Latents(vae)
        # How the windows of one step become one prediction; experiments put others in its place.
        self.merge: Merge = partial(Windowed, is_tapered=tapers_windows)

    @classmethod
    def from_folder(
        cls, folder: str | PathLike[str], *, temporal: TemporalSettings | None = None, **options: Any
    ) -> SuperResolutionStage:
        """The stage in a folder: one of ours, a Stable Diffusion x4 upscaler's, or a DeepFloyd IF-II's.

        The image network of a published one is inflated, with the ``temporal`` layers that are asked for, or with ones
        that do not halve time; until they are trained every frame is its own. Raises ValueError for any other folder,
        and where temporal layers are asked for that are there already.
        """
        place = Path(folder)
        name = pipeline_name(place)
        if temporal is not None and (name == cls.__name__ or _is_inflated(place / "unet")):
            raise ValueError(f"{place} has temporal layers already; their settings cannot be chosen any more")
        if name == cls.__name__:
            return cls.from_pretrained(place, local_files_only=True, use_safetensors=True, **options)
        if name not in _PUBLISHED:
            known = ", ".join([cls.__name__, *_PUBLISHED])
            raise ValueError(f"{place} holds a {name}, which is no super-resolution stage; known are {known}")
        return _published(place, name, temporal, **options)

    @property
    def text(self) -> TextEncoder | None:
        """What reads prompts, if it has a text encoder of its own."""
        if self.text_encoder is None:
            return None
        reading = None if self.config.reading is None else Reading(**self.config.reading)
        return text_encoder_for(self.tokenizer, self.text_encoder, reading=reading)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what becomes of clips of that size."""
        return height * self.config.scale, width * self.config.scale

    def memory_bytes(self, num_frames: int, height: int, width: int) -> int:
        """About the memory, in bytes, that making clips of that small size larger takes at its fullest."""
        config, sides = self.config, self.output_size(height, width)
        rows, columns = (side if config.window_px is None else min(side, config.window_px) for side in sides)
        frames = num_frames if config.window_frames is None else min(num_frames, config.window_frames)
        places = frames * rows * columns // self.codec.spatial_factor**2
        features = places * self.unet.config.block_out_channels[0] * self.unet.dtype.itemsize
        return CLIPS_HELD * num_frames * 3 * 4 * sides[0] * sides[1] + FEATURES_HELD * features

    @torch.no_grad()
    def __call__(
        self,
        clip: Tensor,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        states: tuple[TextStates, TextStates] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        noise_level: int | None = None,
        back_projection: float | None = None,
        polish: Sequence[float] | None = None,
        generator: Sequence[torch.Generator] | None = None,
        given: Conditioning | None = None,
        salt: str = "",
        first_frame: int = 0,
        on_step: Callable[[Step], object] | None = None,
    ) -> Tensor:
        """The larger clips [B, 3, T, scale*H, scale*W] of clips [B, 3, T, H, W], both in -1..1, on the CPU in fp32.

        ``states`` (of the prompts, of the negative prompts) take the place of prompts for a stage without a text
        encoder. What is None is the stage's own. ``given`` are pixels of the larger clips that are known, and come
        back as they are. Of the generators, one a clip, only the seed is used: every frame has
        its own noise, by its place in the clip, so that parts of a long clip agree (``first_frame``: that of the
        first frame here; ``salt``: what tells apart stages of one seed). Raises ValueError before long work for what
        cannot be done.
        """
        config = self.config
        steps = config.default_steps if num_inference_steps is None else num_inference_steps
        scale = config.default_guidance_scale if guidance_scale is None else guidance_scale
        level = config.noise_level if noise_level is None else noise_level
        share = config.back_projection if back_projection is None else back_projection
        check_back_projection(share)
        polish = config.polish if polish is None else polish
        self._check(clip, level, given)
        seeds = [one.initial_seed() for one in generator or [torch.Generator() for _ in clip]]
        if len(seeds) != len(clip):
            raise ValueError(f"{len(seeds)} generators for {len(clip)} clips; give one for each")

        def noise_of(shape: tuple[int, ...], what: str) -> Tensor:
            return draw_frame_noise(shape, seeds, salt=f"{salt} {what}", first_frame=first_frame)

        length = clip.shape[2]
        clip = _lengthened(clip.float(), self._whole_frames(length))
        shape = self._latent_shape(clip)
        windows = self._windows(shape)
        told, not_told = states or self._states(len(clip), prompt, negative_prompt)
        beside = self._beside(clip, level, noise_of)
        known = None if given is None else given.lengthened(clip.shape[2]).to(self._execution_device)
        denoiser = bounded(
            self.merge(self._guided(told, not_told, beside, scale), windows),
            self.scheduler,
            correct=self._back_projection(clip, share) if self.vae is None else None,
            is_limited=self.vae is None,
            known=None if known is None else Known(*known.kept(self.codec)),
        )
        noise = noise_of(shape, "start").to(self._execution_device)
        with self.progress_bar(total=steps + len(polish)) as bar:
            for step in sample(
                denoiser,
                self.scheduler,
                noise=noise,
                generators=[mixed_generator(seed, salt, "steps", first_frame) for seed in seeds],
                num_steps=steps,
                timestep_shift=config.timestep_shift,
                polish=polish,
            ):
                bar.update()
                if on_step is not None:
                    on_step(step)
        self.maybe_free_model_hooks()
        made = self.codec.decode(step.clip)[:, :, :length].float().cpu()
        if self.vae is not None and share:
            # Latents are too dear to be decoded at every step.
            made = back_projected(made, clip[:, :, :length], share=share).clamp(-1, 1)
        return made if given is None else given.put_into(made)

    def _back_projection(self, small: Tensor, share: float) -> Correct | None:
        """What makes the large clips in blocks of pixels say what the small ones do; None for no share."""
        if not share:
            return None
        small = small.to(self._execution_device)
        return lambda clean, _: self.codec.encode(back_projected(self.codec.decode(clean), small, share=share))

    def _check(self, clip: Tensor, level: int, given: Conditioning | None) -> None:
        config, factor = self.config, self.unet.temporal_factor
        check_scheduler(self.scheduler)
        if clip.ndim != 5 or clip.shape[1] != 3:
            raise ValueError(f"clip has shape {list(clip.shape)}; a stage takes clips [B, 3, T, H, W] in -1..1")
        wanted = (*clip.shape[:3], *self.output_size(*clip.shape[-2:]))
        if given is not None and tuple(given.pixels.shape) != wanted:
            raise ValueError(f"given are clips {list(given.pixels.shape)}; this stage makes {list(wanted)}")
        count = self.low_res_scheduler.config.num_train_timesteps
        if not 0 <= level < count:
            raise ValueError(f"noise_level is {level}; it lies from 0 to {count - 1}")
        frames = config.window_frames
        if frames is not None and frames % factor:
            raise ValueError(
                f"windows have {frames} frames, but the network needs a multiple of {factor}"
                f" (the nearest: {max(factor, frames // factor * factor)} and {-(-frames // factor) * factor})"
            )
        step = self.unet.spatial_factor * self.codec.spatial_factor
        sizes = {"height": clip.shape[3] * config.scale, "width": clip.shape[4] * config.scale}
        if config.window_px is not None:
            sizes = {"windows' side": config.window_px}
        for name, size in sizes.items():
            if size % step:
                raise ValueError(
                    f"the {name} would be {size} pixels in the large clip; the network needs a multiple of {step}"
                    f" there, so a multiple of {max(1, step // config.scale)} in the small one: crop or resize it"
                )

    def _states(
        self, count: int, prompt: str | Sequence[str] | None, negative: str | Sequence[str] | None
    ) -> tuple[TextStates, TextStates]:
        """The states of the prompts and of the negative ones, one of each for every clip."""
        encoder = self.text
        if encoder is None:
            raise ValueError("this stage has no text encoder of its own; give it the states of another's")
        texts = [
            [given or ""] * count if isinstance(given, str | None) else list(given) for given in (prompt, negative)
        ]
        if any(len(text) != count for text in texts):
            raise ValueError(f"{count} clips need as many prompts; got {', '.join(str(len(text)) for text in texts)}")
        told, not_told = (encoder.encode(text) for text in texts)
        return told, not_told

    def _whole_frames(self, length: int) -> int:
        """``length``, or as many frames more as the network needs to halve them."""
        factor = self.unet.temporal_factor
        return length if length == 1 else -(-length // factor) * factor

    def _latent_shape(self, clip: Tensor) -> tuple[int, ...]:
        height, width = (size // self.codec.spatial_factor for size in self.output_size(*clip.shape[-2:]))
        return (len(clip), self.codec.channels, clip.shape[2], height, width)

    def _beside(self, clip: Tensor, level: int, noise_of: Callable[[tuple[int, ...], str], Tensor]) -> Beside:
        """What the network sees beside the noisy clip: the small one, noised and brought to its grid, and the level."""
        size = self.output_size(*clip.shape[-2:])
        low = augmented(
            clip,
            size,
            scheduler=self.low_res_scheduler,
            levels=torch.full((len(clip),), level),
            draw=lambda shape: noise_of(shape, "small clip"),
            upsampling=self.config.upsampling,
            noise_first=self.config.noise_before_upsampling,
        )
        if self.config.upsampling != "none":
            low = self.codec.encode(low)
        device = self._execution_device
        levels = torch.full((len(clip),), level, device=device)
        start = None
        if self.config.predicts_change:
            start = (signal_left(self.low_res_scheduler, levels.cpu()) * low).to(device)
        return Beside(low.to(device, self.unet.dtype), levels, start)

    def _windows(self, shape: tuple[int, ...]) -> list[Window]:
        """The windows in which clips of a shape in the network's space go through it."""
        config, factor = self.config, self.codec.spatial_factor
        return clip_windows(
            shape,
            frames=config.window_frames,
            frames_overlap=config.window_frames_overlap,
            side=None if config.window_px is None else config.window_px // factor,
            side_overlap=config.window_px_overlap // factor,
        )

    def _guided(self, told: TextStates, not_told: TextStates, beside: Beside, scale: float) -> Guided:
        """The network, told what to make and what not, and the small clip."""
        device, dtype = self._execution_device, self.unet.dtype
        return Guided(
            self.unet,
            told.to(device, dtype),
            negative=not_told.to(device, dtype),
            scale=scale,
            is_batched=device.type != "cpu",
            beside=beside,
        )


class SuperResolution(ModelMixin, ConfigMixin):
    """The super-resolution stages of a pipeline, in the order in which they are applied."""

    __module__ = "lumiere"

    @register_to_config
    def __init__(self, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.stages: list[SuperResolutionStage] = []
        self.networks = nn.ModuleList()

    @classmethod
    def of(cls, *stages: SuperResolutionStage) -> SuperResolution:
        """The component that applies ``stages`` one after the other. Raises ValueError when there is none."""
        if not stages:
            raise ValueError("super-resolution without a stage; leave it out instead")
        made = cls(stages=[f"stage_{index + 1}" for index in range(len(stages))])
        made.stages = list(stages)
        # As sub-modules they follow the pipeline to its device.
        parts = ([part for part in stage.components.values() if isinstance(part, nn.Module)] for stage in stages)
        made.networks.extend(nn.ModuleList(part) for part in parts)
        return made

    @property
    def scale(self) -> int:
        """How many times wider a clip gets by all the stages."""
        total = 1
        for stage in self.stages:
            total *= stage.config.scale
        return total

    @property
    def num_steps(self) -> int:
        """Denoising steps of all the stages together, their polishing included, when a call does not say."""
        return self.steps_of(None)

    def steps_of(self, num_inference_steps: int | None) -> int:
        """The same when each stage takes so many (None: its own), to which its polishing comes."""
        return sum(
            (num_inference_steps or stage.config.default_steps) + len(stage.config.polish) for stage in self.stages
        )

    def memory_bytes(self, num_frames: int, height: int, width: int) -> int:
        """About the memory, in bytes, that the fullest stage takes for clips of that small size."""
        most = 0
        for stage in self.stages:
            most = max(most, stage.memory_bytes(num_frames, height, width))
            height, width = stage.output_size(height, width)
        return most

    def forward(
        self,
        clip: Tensor,
        *,
        states: tuple[TextStates, TextStates],
        prompts: tuple[list[str], list[str]],
        given: Conditioning | None = None,
        **options: Any,
    ) -> Tensor:
        """The large clips [B, 3, T, H', W'] of small ones, in -1..1; a stage with its own encoder takes the prompts.

        ``given`` is what of the large clips is known.
        """
        left = self.scale
        for name, stage in zip(self.config.stages, self.stages, strict=True):
            left //= stage.config.scale
            known = None if given is None else given.made_small(left)
            told: dict[str, Any] = {"given": known, "salt": name, **options}
            clip = stage(clip, *prompts, **told) if stage.text_encoder else stage(clip, states=states, **told)
        return clip

    def save_pretrained(self, save_directory: str | PathLike[str], **options: Any) -> None:
        """Write a folder with ``config.json`` and a sub-folder for each stage."""
        folder = Path(save_directory)
        self.save_config(folder)
        for name, stage in zip(self.config.stages, self.stages, strict=True):
            stage.save_pretrained(folder / name, **{"safe_serialization": True, **_known(options)})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **options: Any) -> SuperResolution:
        """The component in a folder that ``save_pretrained`` wrote; its stages may be published upscalers' folders.

        Raises ValueError when a stage is missing or is no stage.
        """
        folder = Path(pretrained_model_name_or_path) / (options.get("subfolder") or "")
        config = cls.load_config(folder)
        dtype = options.get("dtype") or options.get("torch_dtype")
        return cls.of(*(SuperResolutionStage.from_folder(folder / name, **_typed(dtype)) for name in config["stages"]))


def augmented(
    clip: Tensor,
    size: tuple[int, int],
    *,
    scheduler: Any,
    levels: Tensor,
    draw: Callable[[tuple[int, ...]], Tensor],
    upsampling: Upsampling = "bicubic",
    noise_first: bool = True,
) -> Tensor:
    """The small clips [B, 3, T, h, w], noised to ``levels`` [B] of ``scheduler`` and brought to ``size``.

    ``draw`` gives standard normal noise of a shape: of the small clip's, or of the large one's when the noise comes
    after the upsampling.
    """
    steps: list[Callable[[Tensor], Tensor]] = [
        lambda low: scheduler.add_noise(low, draw(tuple(low.shape)).to(low), levels.to(low.device)),
        lambda low: _upsampled(low, size, upsampling),
    ]
    for step in steps if noise_first else reversed(steps):
        clip = step(clip)
    return clip


def signal_left(scheduler: Any, levels: Tensor) -> Tensor:
    """How much of the small clips is left at ``levels`` [B] of ``scheduler``: [B, 1, 1, 1, 1], 1 to 0.

    So much of its enlargement is the best guess of the large clip where nothing else is known (for unit variances).
    """
    return scheduler.alphas_cumprod[levels].sqrt().view(-1, 1, 1, 1, 1)


def low_res_schedule() -> DDPMScheduler:
    """The schedule by which our stages noise their small clip."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def _upsampled(clip: Tensor, size: tuple[int, int], how: Upsampling) -> Tensor:
    if how == "none":
        return clip
    frames = fold_time(clip)
    mode, corners = ("bicubic", False) if how == "bicubic" else ("bilinear", True)
    return unfold_time(F.interpolate(frames, size, mode=mode, align_corners=corners), clip.shape[2])


def _lengthened(clip: Tensor, length: int) -> Tensor:
    """The clip with its last frame repeated up to ``length`` frames."""
    missing = length - clip.shape[2]
    return clip if not missing else torch.cat([clip, clip[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)


# What a published upscaler calls its parts, and how it treats the small picture.
_PUBLISHED: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "StableDiffusionUpscalePipeline": (
        {"low_res_scheduler": "low_res_scheduler", "vae": "vae"},
        {"upsampling": "none", "noise_level": 20, "default_steps": 75, "default_guidance_scale": 9.0},
    ),
    "IFSuperResolutionPipeline": (
        {"low_res_scheduler": "image_noising_scheduler"},
        {
            "upsampling": "bilinear corners",
            "noise_before_upsampling": False,
            "noise_level": 250,
            "default_steps": 50,
            "default_guidance_scale": 4.0,
            "reading": DEEPFLOYD_READING.as_dict(),
        },
    ),
}


def _published(folder: Path, name: str, temporal: TemporalSettings | None, **options: Any) -> SuperResolutionStage:
    """The stage of a published upscaler's folder."""
    renamed, settings = _PUBLISHED[name]
    parts = {**renamed, "scheduler": "scheduler", "text_encoder": "text_encoder", "tokenizer": "tokenizer"}
    loaded = {part: load_component(folder, theirs, **options) for part, theirs in parts.items()}
    scheduler = loaded["scheduler"]
    if str(scheduler.config.get("variance_type")).startswith("learned"):
        # The temporal layers are trained on the prediction alone, so the learned variance is not used.
        loaded["scheduler"] = type(scheduler).from_config(scheduler.config, variance_type="fixed_small")
    return SuperResolutionStage(unet=_network(folder / "unet", temporal, **options), **loaded, **settings)


def _network(folder: Path, temporal: TemporalSettings | None, **options: Any) -> STUNet:
    """The Space-Time U-Net in a folder, or the image network there, inflated so that every frame is its own."""
    if _is_inflated(folder):
        return STUNet.from_pretrained(folder, **options)
    unet = UNet2DConditionModel.from_pretrained(folder, **options)
    return STUNet.from_image_unet(unet, temporal=temporal or still_time(len(unet.config.block_out_channels)))


def still_time(num_levels: int) -> TemporalSettings:
    """Temporal layers that halve time nowhere, as windows of a few frames need them."""
    return TemporalSettings(halve_time=(False,) * (num_levels - 1))


def _is_inflated(folder: Path) -> bool:
    return "temporal_settings" in STUNet.load_config(folder)


def load_component(folder: Path, name: str, **options: Any) -> Any:
    """A part of a diffusers folder by the class that its model_index.json names; None where there is none.

    ``options`` are for those with weights.
    """
    library, class_name = folder_index(folder).get(name) or (None, None)
    if library is None or class_name is None or not (folder / name).is_dir():
        return None
    options = {} if "Scheduler" in class_name or "Tokenizer" in class_name else options
    return getattr(import_module(library), class_name).from_pretrained(folder / name, local_files_only=True, **options)


def folder_index(folder: Path) -> dict[str, Any]:
    """What a folder's model_index.json says. Raises ValueError where there is none."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no model_index.json, so it is no model in diffusers' layout")
    return json.loads(path.read_text(encoding="utf-8"))


def pipeline_name(folder: Path) -> str:
    """The class of diffusers, or ours, whose folder this is."""
    return str(folder_index(folder).get("_class_name"))


def _typed(dtype: Any) -> dict[str, Any]:
    """``from_pretrained``'s options for a dtype, which a pipeline may give for each component."""
    if isinstance(dtype, dict):
        dtype = dtype.get("super_resolution", dtype.get("default"))
    return {} if dtype is None else {"dtype": dtype}


def _known(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("safe_serialization", "variant", "max_shard_size") if key in options}
