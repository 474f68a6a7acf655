"""LumierePipeline: prompts to clips, in the folder format and the calling convention of diffusers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lumiere.codec import Codec, Latents, PixelBlocks
from lumiere.conditioning.frames import Conditioning, nothing
from lumiere.conditioning.seams import check_seam_reach, seam_remover
from lumiere.conditioning.text import Reading, TextEncoder, TextStates, text_encoder_for, text_notes
from lumiere.diffusion.denoiser import Beside, Denoiser, Guided, Known, bounded
from lumiere.diffusion.multidiffusion import Windowed, clip_windows
from lumiere.diffusion.sample import (
    Step,
    check_polish,
    check_restarts,
    draw_noise,
    sample,
)
from lumiere.diffusion.schedulers import check_scheduler, named_scheduler
from lumiere.model.forecast import whole_frames
from lumiere.model.stunet import STUNet
from lumiere.strengths import EDIT_STRENGTH
from lumiere.super_resolution import SuperResolution
from lumiere.video import resize_clip, to_uint8

OUTPUT_TYPES = ("np", "pt", "pil")
EVERYWHERE = (0.0, 1.0)
"""All of the noise schedule, from clean to noise."""

StepCallback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
"""(pipeline, step index, timestep, the tensors asked for by name) -> those of them to go on with."""


@dataclass
class LumiereOutput(BaseOutput):
    """The clips made: "np" [B, T, H, W, 3] or "pt" [B, T, 3, H, W], both in 0..1, or "pil" lists of pictures."""

    frames: np.ndarray | Tensor | list[list[Image.Image]]


class LumierePipeline(DiffusionPipeline):
    """Text to video: a text encoder, a Space-Time U-Net that makes all frames at once, and a scheduler; then, where
    there is one, super-resolution that makes the clip larger.

    With a ``vae`` the network works on its latents, else on pixels, in blocks of ``pixel_block_size``. SDXL has a
    second text encoder; ``reading`` (``conditioning.text.Reading``) is how its network was used to prompts being read.
    The other settings are what a call uses when
    it is not told otherwise; they belong to the weights and are saved with them. More than ``num_frames`` are made in
    windows of so many that overlap by half (temporal MultiDiffusion). ``height`` and ``width`` None mean
    the network's own size. ``guidance_interval`` is the part of the noise schedule, 0 (clean) to 1 (noise), in which
    guidance acts; None is all of it. A clip that starts from a video, or is made again, is guided at every step.
    ``restarts`` are strengths with which clips are made again, ``polish`` places in that schedule: see
    ``diffusion.sample``; no polish for networks that were not trained to doubt (``text_to_image``).
    ``seam_reach`` is how far, in pixels (or latents) and frames, what is made is moved to meet what is given: see
    ``conditioning.seams``; 0 leaves it as the network made it. For networks that forecast what whole given frames will
    look like (``model.forecast``), ``carry_given`` lets clips show the things that move as forecast, and where no frame
    is given whole, the first one of a clip of ``opening_frames`` is made first and then given, if something is found
    in it that will move; 0: it is not.
    """

    scheduler: Any
    super_resolution: Any
    vae: Any
    text_encoder_2: Any
    tokenizer_2: Any
    _optional_components: ClassVar[list[str]] = ["super_resolution", "vae", "text_encoder_2", "tokenizer_2"]
    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae->super_resolution"
    _callback_tensor_inputs = ("latents", "clean")

    def __init__(
        self,
        unet: STUNet,
        scheduler: SchedulerMixin,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        super_resolution: SuperResolution | None = None,
        vae: Any = None,
        text_encoder_2: PreTrainedModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        reading: dict[str, Any] | None = None,
        pixel_block_size: int = 1,
        num_frames: int = 80,
        height: int | None = None,
        width: int | None = None,
        default_steps: int = 30,
        default_guidance_scale: float = 3.0,
        guidance_interval: list[float] | None = None,
        guidance_rescale: float = 0.0,
        timestep_shift: float = 1.0,
        restarts: list[float] | None = None,
        polish: list[float] | None = None,
        seam_reach: float = 0.0,
        carry_given: bool = False,
        opening_frames: int = 0,
    ) -> None:
        super().__init__()
        check_restarts(restarts or [])
        check_polish(polish or [])
        check_seam_reach(seam_reach)
        low, high = guidance_interval or EVERYWHERE
        check_guidance_interval(low, high)
        if not 0 <= guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale is {guidance_rescale}; it lies in 0 (none) to 1")
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            super_resolution=super_resolution,
            vae=vae,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
        )
        self.register_to_config(
            reading=reading,
            pixel_block_size=pixel_block_size,
            num_frames=num_frames,
            height=height,
            width=width,
            default_steps=default_steps,
            default_guidance_scale=default_guidance_scale,
            guidance_interval=[low, high],
            guidance_rescale=guidance_rescale,
            timestep_shift=timestep_shift,
            restarts=list(restarts or []),
            polish=list(polish or []),
            seam_reach=seam_reach,
            carry_given=carry_given,
            opening_frames=opening_frames,
        )
        self._check_forecasts(carry_given, opening_frames)
        self.codec: Codec = PixelBlocks(pixel_block_size) if vae is None else Latents(vae)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None = None, **kwargs: Any) -> LumierePipeline:
        """The pipeline of a diffusers folder; without one, the default inside the package.

        Raises ValueError for a folder that is no pipeline, and for weights that are NaN or infinite.
        """
        folder = embedded_weights() if pretrained_model_name_or_path is None else Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder (give the folder of a pipeline, with its model_index.json)")
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{folder} holds no model_index.json, so it is no pipeline of diffusers' format")
        pipeline = super().from_pretrained(folder, **{"use_safetensors": True, "local_files_only": True, **kwargs})
        _refuse_broken_weights(pipeline, folder)
        return pipeline

    def set_progress_bar_config(self, **settings: Any) -> None:
        """tqdm's settings for this pipeline's bars and those of its super-resolution; ``disable=True``: none."""
        super().set_progress_bar_config(**settings)
        for stage in () if self.super_resolution is None else self.super_resolution.stages:
            stage.set_progress_bar_config(**settings)

    def use_scheduler(self, name: str) -> LumierePipeline:
        """The same pipeline, from now on with the sampler of that name (``lumiere.diffusion.schedulers.SAMPLERS``)."""
        self.scheduler = named_scheduler(name, self.scheduler)
        return self

    @property
    def text(self) -> TextEncoder:
        """What reads prompts as the image network was used to."""
        reading = None if self.config.reading is None else Reading(**self.config.reading)
        second = None if self.text_encoder_2 is None else (self.tokenizer_2, self.text_encoder_2)
        return text_encoder_for(self.tokenizer, self.text_encoder, second=second, reading=reading)

    def read(self, prompts: Sequence[str], height: int, width: int) -> TextStates:
        """What the network is told of prompts for clips of so many pixels."""
        return self.sized(self.text.encode(prompts), height, width)

    def sized(self, states: TextStates, height: int, width: int) -> TextStates:
        """What the text encoder said, with the size in pixels, where the network is told it."""
        is_told_sizes = self.unet.config.addition_embed_type == "text_time"
        return states.told_size(height, width) if is_told_sizes else states

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> tuple[TextStates, TextStates]:
        """What a call makes of prompts and negative ones, to be given to calls as ``prompt_embeds`` and
        ``negative_prompt_embeds``: encoded once, for any number of clips, after which large text encoders can go
        (``free_text_encoders``). ``height`` and ``width`` in pixels of the base's clips; None: its own."""
        prompts = _prompts(prompt, 1)
        own = self.default_size
        size = (own[0] if height is None else height, own[1] if width is None else width)
        negatives = self._negatives(negative_prompt, prompts, 1, scale=2)
        return self.read(prompts, *size), self.read(negatives, *size)

    def free_text_encoders(self) -> None:
        """Forget the text encoders, whose memory is then free; from now on calls take ``prompt_embeds``."""
        self.register_modules(text_encoder=None, text_encoder_2=None)

    def _checked_embeds(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        embeds: TextStates | None,
        negative_embeds: TextStates | None,
    ) -> tuple[TextStates, TextStates] | None:
        """The states of prompts and negative ones that a call was given, if any; refused beside prompts."""
        if embeds is None and negative_embeds is None:
            if prompt is None:
                raise ValueError("neither prompt nor prompt_embeds; give one of them")
            if self.text_encoder is None:
                raise ValueError("the text encoders were freed; give prompt_embeds and negative_prompt_embeds")
            return None
        if prompt is not None or negative_prompt is not None:
            raise ValueError("prompt_embeds take the place of prompts; give only one of both")
        if embeds is None or negative_embeds is None or len(embeds.states) != len(negative_embeds.states):
            raise ValueError("prompt_embeds and negative_prompt_embeds are given together, of as many prompts")
        stages = () if self.super_resolution is None else self.super_resolution.stages
        if any(stage.text_encoder is not None for stage in stages):
            raise ValueError("a super-resolution stage has a text encoder of its own and needs prompts")
        return embeds, negative_embeds

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the base's clips when a call does not say."""
        grid = self.unet.config.sample_size or 0
        rows, columns = (grid, grid) if isinstance(grid, int) else grid
        factor = self.codec.spatial_factor
        return self.config.height or rows * factor, self.config.width or columns * factor

    def frame_size(self, *, super_resolution: bool = True) -> tuple[int, int]:
        """(height, width) in pixels of the finished clips of a call that does not say, or of those of the base."""
        height, width = self.default_size
        scale = self.super_resolution.scale if super_resolution and self.super_resolution is not None else 1
        return height * scale, width * scale

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        timestep_shift: float | None = None,
        restarts: Sequence[float] | None = None,
        polish: Sequence[float] | None = None,
        seam_reach: float | None = None,
        carry_given: bool | None = None,
        opening_frames: int | None = None,
        super_resolution: bool = True,
        conditioning: Conditioning | None = None,
        video: Tensor | None = None,
        strength: float = EDIT_STRENGTH,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: TextStates | None = None,
        negative_prompt_embeds: TextStates | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        on_super_resolution_step: Callable[[Step], object] | None = None,
    ) -> LumiereOutput | tuple[Any]:
        """Clips of the prompts, each made from its own noise, whatever the batch.

        What is None is the model's own. ``generator``: one per clip, or one that was not drawn from yet, whose seed the
        first clip takes, seed + 1 the second, and so on. ``timestep_shift`` above 1 spends more of the steps where
        there is much noise (1 is even; some schedulers take no other). ``restarts`` are strengths, above 0 and below 1,
        with which the finished clip is noised and made again. ``polish`` are places in the noise schedule, 0 (clean) to
        1, at which the finished clip is looked at again and cleaned of grain. ``seam_reach`` is how far what is made is
        moved to meet what is given, ``carry_given`` whether things that move are shown as they are forecast from a
        whole given frame, ``opening_frames`` of how many frames the clip is whose first one is made before, where none
        is given whole (0: none is). ``latents`` [B, C, T, h, w] is standard normal noise in the network's space.
        ``super_resolution`` False leaves the clip as the base makes it. ``conditioning`` is what of the clips is given,
        in their final size, and comes back as it is. ``video`` [B, 3, T, H, W] in -1..1, in that size too, is a clip to
        start from instead of noise: it is noised, and the last ``strength`` (above 0, up to 1) of the steps are taken
        from there, without restarts; 1 is noise alone. A callback may ask for "latents" and for "clean", the clip that
        the network had in mind at that step; the latents that it returns are gone on with. ``prompt_embeds`` and
        ``negative_prompt_embeds``, as ``encode_prompt`` gives them for a prompt each, take the place of prompts.
        ``on_super_resolution_step`` is told of every step of super-resolution. Raises ValueError before long work for
        what cannot be done, and at the first step whose clip is not made of numbers.
        """
        embeds = self._checked_embeds(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        prompts = _prompts([""] * len(embeds[0].states) if embeds else prompt or [], num_videos_per_prompt)
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        negatives = self._negatives(negative_prompt, prompts, num_videos_per_prompt, scale)
        shape = self._latent_shape(len(prompts), num_frames, height, width)
        generators = clip_generators(generator, len(prompts))
        asked = self._checked_options(steps, output_type, callback_on_step_end_tensor_inputs)

        if embeds is None:
            states = self._states(prompts, negatives, shape)
        else:
            place = (self._execution_device, self.unet.dtype)
            told, not_told = (one.repeated(num_videos_per_prompt).to(*place) for one in embeds)
            states = told, not_told
        sharpener = self.super_resolution if super_resolution else None
        enlarged = 1 if sharpener is None else sharpener.scale
        given = self._checked_given(conditioning, shape, enlarged)
        source = self._checked_video(video, shape, enlarged)
        if source is not None and restarts:
            raise ValueError("restarts would make little of the video; leave them out, or give another strength")
        carries = self.config.carry_given if carry_given is None else carry_given
        opening = self.config.opening_frames if opening_frames is None else opening_frames
        self._check_forecasts(carries, opening)
        plan = _Plan(
            *states,
            scale=scale,
            steps=steps,
            timestep_shift=self.config.timestep_shift if timestep_shift is None else timestep_shift,
            generators=generators,
            # Of a video little but its finer part is made anew, and there the prompt has its say; so in a clip made
            # again.
            interval=self.config.guidance_interval if source is None else EVERYWHERE,
            restarts=() if source is not None else self.config.restarts if restarts is None else restarts,
            polish=self.config.polish if polish is None else polish,
            seam_reach=self.config.seam_reach if seam_reach is None else seam_reach,
            carries_given=carries,
        )
        check_seam_reach(plan.seam_reach)
        noise = self._noise(shape, generators, latents)
        opened = given
        with self.progress_bar(total=steps) as bar:
            if source is None and self._needs_opening(shape, given, opening):
                short = (*shape[:2], opening, *shape[3:])
                with self.unet.drawing_openings() if opening == 1 else nullcontext():
                    for step in self._steps(
                        plan, short, given and given.shortened(opening), draw_noise(short, generators)
                    ):
                        bar.set_postfix_str(f"first frame, {step.index + 1} of {step.num_steps}")
                bar.set_postfix_str("")
                made = self.codec.decode(step.clip).clamp(-1, 1)
                if given is None:
                    given = nothing((shape[0], 3, shape[2], *made.shape[3:])).to(made.device)
                still = Conditioning.of(made[:, :, :1], torch.ones_like(made[:, :1, :1])).encoded(self.codec)
                # Of one in which nothing is found to move nothing could be carried on.
                opened = given.opened_with(made[:, :, 0], self.unet.shows_what_moves(still.to(self.unet.dtype)))
            for step in self._steps(plan, shape, opened, noise, source=source, strength=strength):
                bar.total = step.num_steps  # Restarts, polish and strength count, and some schedulers look twice.
                self._tell(callback_on_step_end, step, asked)
                bar.update()
        clip = self.codec.decode(step.clip)
        if opened is not None:
            clip = opened.put_into(clip)
        if sharpener is not None:
            texts = (prompts, negatives)
            clip = clip.clamp(-1, 1)
            options = {"generator": generators, "on_step": on_super_resolution_step}
            clip = sharpener(clip, states=states, prompts=texts, given=conditioning, **options)
        self.maybe_free_model_hooks()
        frames = as_frames(clip, output_type)
        return LumiereOutput(frames=frames) if return_dict else (frames,)

    def _steps(
        self,
        plan: _Plan,
        shape: tuple[int, ...],
        given: Conditioning | None,
        noise: Tensor,
        *,
        source: Tensor | None = None,
        strength: float = 1.0,
    ) -> Iterator[Step]:
        """The steps of the base to clips of a shape, of which something is given."""
        guided = self._guided(plan, given)
        known = None if given is None else self._known(given, plan, guided, shape)
        frames = self.config.num_frames
        windows = clip_windows(shape, frames=frames, frames_overlap=frames // 2) if self._is_in_windows(shape) else None

        def denoiser(scale: float, interval: Sequence[float]) -> Denoiser:
            again = guided.again(scale=scale, timesteps=self._timesteps(interval))
            whole = again if windows is None else Windowed(again, windows)
            return bounded(whole, self.scheduler, is_limited=self.vae is None, known=known)

        return sample(
            denoiser(plan.scale, plan.interval),
            self.scheduler,
            noise=noise.to(self._execution_device),
            generators=plan.generators,
            num_steps=plan.steps,
            timestep_shift=plan.timestep_shift,
            clip=source,
            strength=1.0 if source is None else strength,
            restarts=plan.restarts,
            restarter=denoiser(plan.scale, EVERYWHERE) if plan.restarts else None,
            polish=plan.polish,
            # Guidance near the clean clip brings grain, which polishing is to take away.
            polisher=denoiser(1.0, plan.interval) if plan.polish else None,
        )

    def _check_forecasts(self, carries_given: bool, opening_frames: int) -> None:
        """Refuse what only a network that forecasts given frames can do, and an opening that it cannot make."""
        if (carries_given or opening_frames) and not self.unet.settings.forecasts:
            name, value = ("carry_given", True) if carries_given else ("opening_frames", opening_frames)
            raise ValueError(
                f"{name} is {value}, but this base does not forecast given frames (train it with `lumiere train"
                " forecast`, or leave it out)"
            )
        if opening_frames not in (0, 1):
            _refuse_indivisible("opening_frames", opening_frames, self.unet.temporal_factor, why="halves time")

    def _needs_opening(self, shape: tuple[int, ...], given: Conditioning | None, opening_frames: int) -> bool:
        """Whether the first frame of a shorter clip is made first: where one is wanted, and no frame that is given says
        more than others."""
        if given is not None:
            is_whole = whole_frames(given.mask)
            if bool((is_whole.any(1) & ~is_whole.all(1)).any()):
                return False
        return 0 < opening_frames < shape[2] and not self._is_in_windows(shape)

    def _tell(self, callback: StepCallback | None, step: Step, asked: Sequence[str]) -> None:
        """Let the callback see a step and change its clip."""
        if callback is None:
            return
        tensors = {"latents": lambda: step.clip, "clean": lambda: self.codec.decode(step.clean())}
        answer = callback(self, step.index, step.timestep, {name: tensors[name]() for name in asked})
        step.clip = (answer or {}).get("latents", step.clip)

    def _states(
        self, prompts: Sequence[str], negatives: Sequence[str], shape: tuple[int, ...]
    ) -> tuple[TextStates, TextStates]:
        """What the text encoder says of the prompts and of the negative ones, for clips of a shape."""
        height, width = (size * self.codec.spatial_factor for size in shape[3:])
        for note in text_notes(self.tokenizer, [*prompts, *negatives]):
            warnings.warn(note, stacklevel=1)
        told, not_told = (
            self.read(texts, height, width).to(self._execution_device, self.unet.dtype)
            for texts in (prompts, negatives)
        )
        return told, not_told

    def _checked_given(
        self, conditioning: Conditioning | None, shape: tuple[int, ...], enlarged: int
    ) -> Conditioning | None:
        """What of the base's clips is given, where it runs; refused when it does not fit the clips or the network.

        It comes for clips that super-resolution makes ``enlarged`` times larger.
        """
        if conditioning is None:
            return None
        if not self.unet.settings.conditioning_channels:
            raise ValueError(
                "this base was never told of given frames (train it with `lumiere train conditional`, or load one that"
                " was)"
            )
        factor = self.codec.spatial_factor * enlarged
        wanted = (shape[0], 3, shape[2], shape[3] * factor, shape[4] * factor)
        if tuple(conditioning.pixels.shape) != wanted:
            raise ValueError(f"given are clips {list(conditioning.pixels.shape)}; this call makes {list(wanted)}")
        return conditioning.made_small(enlarged).to(self._execution_device)

    def _checked_video(self, video: Tensor | None, shape: tuple[int, ...], enlarged: int) -> Tensor | None:
        """A video to start from, made small and in the network's space; refused when it does not fit the clips."""
        if video is None:
            return None
        factor = self.codec.spatial_factor * enlarged
        wanted = (shape[0], 3, shape[2], shape[3] * factor, shape[4] * factor)
        if tuple(video.shape) != wanted:
            raise ValueError(
                f"video is {list(video.shape)}; this call makes {list(wanted)}, and starts from such clips"
            )
        if not bool(torch.isfinite(video).all()):
            raise ValueError("video holds values that are NaN or infinite")
        small = resize_clip(video, (video.shape[-2] // enlarged, video.shape[-1] // enlarged))
        return self.codec.encode(small).to(self._execution_device)

    def _guided(self, plan: _Plan, given: Conditioning | None) -> Guided:
        """The network, told what to make and what not, and what is given."""
        return Guided(
            self.unet,
            plan.told,
            negative=plan.not_told,
            scale=plan.scale,
            timesteps=self._timesteps(plan.interval),
            rescale=self.config.guidance_rescale,
            is_batched=self._execution_device.type != "cpu",
            beside=None if given is None else Beside(given.encoded(self.codec)),
        )

    def _timesteps(self, interval: Sequence[float]) -> tuple[float, float]:
        """The first and the last timestep of a part of the noise schedule."""
        count = self.scheduler.config.num_train_timesteps
        low, high = interval
        return low * count - 1, high * count - 1

    def _known(self, given: Conditioning, plan: _Plan, guided: Guided, shape: tuple[int, ...]) -> Known:
        """What is given of the clips, as it is put back into them."""
        carries = plan.carries_given and not self._is_in_windows(shape)
        ahead = guided.conditional.look_ahead() if carries else None
        carry = None if ahead is None else self.unet.carry(ahead)
        return Known(*given.kept(self.codec), seam_remover(given, self.codec, reach=plan.seam_reach), carry)

    def _is_in_windows(self, shape: tuple[int, ...]) -> bool:
        """Whether clips of a shape are made in windows of the network's own length.

        A few frames more are no other clip to the network, such as a loop's first one again at the end.
        """
        return 1 < self.config.num_frames < shape[2] - self.unet.temporal_factor

    def _noise(self, shape: tuple[int, ...], generators: list[torch.Generator], latents: Tensor | None) -> Tensor:
        if latents is None:
            return draw_noise(shape, generators)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {list(latents.shape)}; this call needs {list(shape)}")
        return latents

    def _negatives(
        self, negative: str | Sequence[str] | None, prompts: Sequence[str], per_prompt: int, scale: float
    ) -> list[str]:
        """The negative prompt of every clip: the empty one where none was given."""
        if not (isinstance(scale, int | float) and math.isfinite(scale) and scale >= 0):
            raise ValueError(f"guidance_scale is {scale}; it is a number from 0 (1 is no guidance)")
        if negative is None:
            return [""] * len(prompts)
        if scale == 1:
            raise ValueError("a negative_prompt has no effect with guidance_scale=1; raise the scale or leave it out")
        if isinstance(negative, str):
            return [negative] * len(prompts)
        negatives = _prompts(negative, per_prompt)
        if len(negatives) != len(prompts):
            raise ValueError(
                f"{len(negative)} negative prompts for {len(prompts) // per_prompt} prompts; give one each"
            )
        return negatives

    def _latent_shape(self, batch: int, frames: int | None, height: int | None, width: int | None) -> tuple[int, ...]:
        """[B, C, T, h, w] in the network's space for a call's frames and size in pixels."""
        own_height, own_width = self.default_size
        frames = self.config.num_frames if frames is None else frames
        height = own_height if height is None else height
        width = own_width if width is None else width
        if frames != 1:
            _refuse_indivisible("frames", frames, self.unet.temporal_factor, why="halves time")
        factor = self.codec.spatial_factor
        step = factor * self.unet.spatial_factor
        _refuse_indivisible("pixels of height", height, step, why="halves space")
        _refuse_indivisible("pixels of width", width, step, why="halves space")
        return (batch, self.codec.channels, frames, height // factor, width // factor)

    def _checked_options(self, steps: int, output_type: str, asked: Sequence[str]) -> Sequence[str]:
        """The tensors a callback asks for; everything else that is cheap to refuse is refused here."""
        check_scheduler(self.scheduler)
        count = self.scheduler.config.num_train_timesteps
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= count:
            raise ValueError(f"num_inference_steps is {steps}; it is a whole number from 1 to {count}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; known are {', '.join(OUTPUT_TYPES)}")
        unknown = [name for name in asked if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(f"a callback cannot get {unknown[0]!r}, only {', '.join(self._callback_tensor_inputs)}")
        return asked


@dataclass(frozen=True)
class _Plan:
    """How a call makes clips: what the network is told to make and what not, and a call's settings by their names."""

    told: TextStates
    not_told: TextStates
    _: KW_ONLY
    scale: float
    steps: int
    timestep_shift: float
    generators: list[torch.Generator]
    interval: Sequence[float]
    restarts: Sequence[float]
    polish: Sequence[float]
    seam_reach: float
    carries_given: bool


def embedded_weights() -> Path:
    """The folder of the default model inside the package."""
    return Path(str(resources.files("lumiere"))) / "weights" / "base"


def check_guidance_interval(low: float, high: float) -> None:
    """Raise ValueError unless this is a part of the noise schedule."""
    if not 0 <= low < high <= 1:
        raise ValueError(
            f"guidance_interval is {low, high}; it is a part of 0 (clean) to 1 (noise), from a lower to a higher place"
        )


def clip_generators(given: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[torch.Generator]:
    """A generator for each of ``count`` clips; new ones, differently seeded, when none is given.

    One generator for several clips gives them its seed, seed + 1, ..., so that each can be made again alone.
    Raises ValueError when their number is wrong, or that one generator was already drawn from.
    """
    if given is None:
        return [_seeded(torch.Generator().seed()) for _ in range(count)]
    if isinstance(given, torch.Generator):
        if count == 1:
            return [given]
        seed = given.initial_seed()
        if not torch.equal(_seeded(seed).get_state(), given.get_state()):
            raise ValueError(f"one generator that was already drawn from cannot serve {count} clips; give one for each")
        return [_seeded((seed + index) % 2**63) for index in range(count)]
    generators = list(given)
    if len(generators) != count:
        raise ValueError(f"{len(generators)} generators for {count} clips; give one for each clip, or a single one")
    return generators


def as_frames(clip: Tensor, output_type: str) -> np.ndarray | Tensor | list[list[Image.Image]]:
    """A clip [B, 3, T, H, W] as diffusers' video pipelines return it; values outside -1..1 are clipped."""
    if output_type == "pil":
        return [[Image.fromarray(frame) for frame in frames] for frames in to_uint8(clip)]
    frames = (clip.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2)
    return frames if output_type == "pt" else frames.permute(0, 1, 3, 4, 2).cpu().numpy()


def _prompts(prompt: str | Sequence[str], per_prompt: int) -> list[str]:
    """The prompt of every clip."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("the list of prompts is empty; give at least one prompt")
    wrong = [one for one in prompts if not isinstance(one, str)]
    if wrong:
        raise ValueError(f"a prompt is a {type(wrong[0]).__name__}; prompts are text")
    if per_prompt < 1:
        raise ValueError(f"num_videos_per_prompt is {per_prompt}; it is 1 or more")
    return [one for one in prompts for _ in range(per_prompt)]


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _refuse_indivisible(what: str, count: int, step: int, *, why: str) -> None:
    """Raise ValueError, naming the two nearest that work, unless ``count`` is a multiple of ``step`` above 0."""
    if not isinstance(count, int) or isinstance(count, bool):
        raise ValueError(f"{count!r} {what}; it is a whole number")
    if count > 0 and count % step == 0:
        return
    below = max(count // step * step, step)
    raise ValueError(
        f"{count} {what}; this network {why} and needs a multiple of {step}: the nearest are {below} and {below + step}"
    )


def _refuse_broken_weights(pipeline: DiffusionPipeline, folder: Path) -> None:
    for part, module in pipeline.components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        for name, tensor in module.state_dict().items():
            # Quantized encoders keep more in their state than tensors.
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(
                    f"{folder / part}: the weight {name!r} holds NaN or infinite values (the file is damaged, or its"
                    " training diverged; load another checkpoint)"
                )
