"""Whole text-to-image models become text-to-video ones: a diffusers folder or a single file in, a pipeline folder out.

What a model came with is kept: its text encoders and tokenizers, its VAE, its noise schedule and its ways (how prompts
are read, how strongly they guide). Only the layers that mix frames are new.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open

from lumiere.codec import Latents
from lumiere.conditioning.text import DEEPFLOYD_READING, Reading
from lumiere.memory import peak_bytes, tensor_bytes
from lumiere.model import motion
from lumiere.model.architectures import architecture
from lumiere.model.inflate import Inflation, account
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from lumiere.model.weigh import FEW_FRAMES, on_meta, pass_bytes
from lumiere.pipeline import LumierePipeline
from lumiere.super_resolution import SuperResolutionStage, folder_index, load_component, pipeline_name

WEIGHTS = ("unet", "text_encoder", "text_encoder_2", "vae")
"""Components with weights; the others are configurations and vocabularies."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Family:
    """A kind of text-to-image pipeline: the components it cannot do without, and how it is used to be run."""

    parts: tuple[str, ...]
    steps: int
    guidance: float
    reading: Reading | None = None


_CLIP = ("unet", "scheduler", "text_encoder", "tokenizer")
FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": Family((*_CLIP, "vae"), 50, 7.5),
    "StableDiffusionXLPipeline": Family((*_CLIP, "text_encoder_2", "tokenizer_2", "vae"), 50, 5.0),
    "IFPipeline": Family(_CLIP, 100, 7.0, DEEPFLOYD_READING),
}
"""What can be inflated whole, by the class that model_index.json names; steps and guidance are diffusers' own."""

STAGES = ("StableDiffusionUpscalePipeline", "IFSuperResolutionPipeline")
"""What becomes a super-resolution stage."""

_REFUSED = {
    "StableDiffusionInpaintPipeline": "an inpainting model, whose image network wants a masked picture in 9 channels;"
    " take the text-to-image model it was made from: any base inpaints once it was trained for it (lumiere train"
    " conditional)",
    "StableDiffusionXLInpaintPipeline": "an inpainting model; take the text-to-image model it was made from",
    "StableDiffusionXLImg2ImgPipeline": "SDXL's refiner, which only finishes pictures; take SDXL's base model",
}


@dataclass(frozen=True)
class Source:
    """Where a part of an inflated model came from, how many weights it has, and whether training leaves it alone."""

    part: str
    origin: str
    num_weights: int
    is_frozen: bool


@dataclass(frozen=True)
class Backbone:
    """An inflated model: its pipeline or stage, where its parts came from, and the account of its U-Net."""

    model: LumierePipeline | SuperResolutionStage
    sources: tuple[Source, ...]
    inflation: Inflation
    notes: tuple[str, ...] = field(default=())


class InflateSettings(TemporalSettings):
    """What the command line can say of an inflation: of the model, beside the settings of its temporal layers."""

    num_frames: int = 16
    """Frames of a clip when a call does not say."""
    motion: str | None = None
    """File of trained temporal weights."""
    like: str | None = None
    """Folder of a model of the same family, for a single file."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Number format of the weights; None: that of the U-Net's file."""

    def temporal(self) -> TemporalSettings | None:
        """The settings of the temporal layers alone; None where none of them was said."""
        if not self.model_fields_set & set(TemporalSettings.model_fields):
            return None
        return TemporalSettings(**self.model_dump(include=set(TemporalSettings.model_fields)))

    def torch_dtype(self) -> torch.dtype | None:
        """The number format."""
        return None if self.dtype is None else DTYPES[self.dtype]


def inflate_model(
    source: str | Path,
    target: str | Path,
    *,
    temporal: TemporalSettings | None = None,
    num_frames: int = 16,
    motion_file: str | Path | None = None,
    like: str | Path | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Backbone:
    """Inflate the text-to-image model at ``source`` and write the text-to-video one to the folder ``target``.

    ``source`` is a pipeline's folder, or a Stable Diffusion checkpoint in one safetensors file; as such a file holds
    neither vocabulary nor configurations, ``like`` names the folder of a model of the same family that does. An
    upscaler's folder becomes a super-resolution stage. ``motion_file`` are trained temporal weights (``save_motion``),
    whose settings are taken where ``temporal`` is None.
    ``num_frames`` is what the pipeline makes when it is not told otherwise. ``dtype`` None is that of the U-Net's file.
    Raises ValueError before the weights are loaded for what cannot be inflated, naming what is missing.
    """
    source, target = Path(source), Path(target)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(f"{target} exists already; give a new folder, so that nothing is overwritten")
    if source.is_file() or source.suffix in (".safetensors", ".ckpt", ".bin"):
        parts, name, index = _single_file(source, like, dtype)
    else:
        parts, name, index = _folder(source, dtype)
    if temporal is None and motion_file is not None:
        temporal = motion.read_settings(motion_file)
    if name in STAGES:
        notes: tuple[str, ...]
        model: LumierePipeline | SuperResolutionStage = SuperResolutionStage.from_folder(
            source, temporal=temporal, **_typed(dtype)
        )
        unet, notes = model.unet, ("every frame is made by itself: its temporal layers are to be trained",)
    else:
        unet = STUNet.from_image_unet(parts["unet"], temporal=temporal, generator=torch.Generator().manual_seed(seed))
        _check_frames(num_frames, unet)
        parts["scheduler"], notes = _own_schedule(parts["scheduler"])
        model = _pipeline(unet, parts, FAMILIES[name], index, num_frames)
    if motion_file is not None:
        unet.load_motion(motion_file)
    _save(model, target)
    trained = None if motion_file is None else str(motion_file)
    return Backbone(model, _sources(model, str(source), trained), account(unet), notes)


@dataclass(frozen=True)
class ClipMemory:
    """What a clip of some size takes, in bytes: each component's weights, and the tensors of the two hungriest moments.

    Attention is counted as the fused kernels do it. What allocators, compilers and libraries keep comes on top.
    """

    weights: dict[str, int]
    step: int
    """One pass of the base, without guidance' second clip."""
    step_in_parts: int
    """The same with ``FEW_FRAMES`` frames at once through the image layers."""
    decode: int
    """One frame through the VAE; 0 without a VAE."""
    clips: int
    """The finished clip and the noisy ones that the sampler holds, in fp32."""

    @property
    def whole(self) -> int:
        """Everything on the device."""
        return sum(self.weights.values()) + max(self.step, self.decode) + self.clips

    @property
    def offloaded(self) -> int:
        """One component at a time on the device (``pipeline.enable_model_cpu_offload()``), in parts."""
        moments = {**self.weights, "unet": self.weights["unet"] + self.step_in_parts}
        if "vae" in moments:
            moments["vae"] += self.decode
        return max(moments.values()) + self.clips


def clip_memory(pipeline: LumierePipeline, num_frames: int, height: int, width: int) -> ClipMemory:
    """What a clip of that size in pixels takes, counted on the meta device in about a second."""
    weights = {
        name: tensor_bytes(part.parameters())
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
    }
    unet, vae, codec = on_meta(pipeline.unet.config, pipeline.unet.dtype), None, pipeline.codec
    if isinstance(codec, Latents):
        # As the codec runs it.
        is_upcast = pipeline.vae.dtype == torch.float16 and pipeline.vae.config.get("force_upcast")
        vae = on_meta(pipeline.vae.config, torch.float32 if is_upcast else pipeline.vae.dtype, type(pipeline.vae))
    return _counted(weights, unet, vae, codec.spatial_factor, (num_frames, height, width))


def known_clip_memory(name: str, num_frames: int, height: int, width: int) -> ClipMemory:
    """The same for a public model (``model.architectures``) in bfloat16, inflated, without its weights at hand."""
    known = architecture(name)
    unet = on_meta(known.stunet, torch.bfloat16)
    vae = None if known.vae is None else on_meta(known.vae, torch.bfloat16, AutoencoderKL)
    networks = {"unet": unet} if vae is None else {"unet": unet, "vae": vae}
    weights = {part: tensor_bytes(network.parameters()) for part, network in networks.items()}
    weights["text_encoder"] = torch.bfloat16.itemsize * known.text_parameters
    return _counted(weights, unet, vae, known.spatial_factor, (num_frames, height, width))


def _counted(weights: dict[str, int], unet: STUNet, vae: Any, factor: int, clip: tuple[int, int, int]) -> ClipMemory:
    """The memory of a clip [T, H, W] in pixels, of networks on meta; the VAE takes one frame at a time."""
    frames, height, width = clip
    places = (1, frames, height // factor, width // factor)
    decode = 0
    if vae is not None:
        latents = torch.empty(
            1, vae.config.latent_channels, *places[2:], dtype=next(vae.parameters()).dtype, device="meta"
        )
        with torch.no_grad():
            decode = peak_bytes(lambda: vae.decode(latents).sample)
    return ClipMemory(
        weights=weights,
        step=pass_bytes(unet, places),
        step_in_parts=pass_bytes(unet, places, chunk=FEW_FRAMES),
        decode=decode,
        clips=4 * (3 * unet.config.in_channels * math.prod(places) + 3 * math.prod(clip)),
    )


def _folder(source: Path, dtype: torch.dtype | None) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The components of a pipeline's folder, the class it names, and its model_index.json."""
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder or file (give a text-to-image model's folder, or a .safetensors)")
    index, name = folder_index(source), pipeline_name(source)
    if name in STAGES:
        return {}, name, index
    if name in _REFUSED:
        raise ValueError(f"{source} is {_REFUSED[name]}")
    if name not in FAMILIES:
        known = ", ".join([*FAMILIES, *STAGES])
        raise ValueError(f"{source} holds a {name}, which cannot be inflated; known are {known}")
    needed = FAMILIES[name].parts
    missing = [part for part in needed if not (source / part).is_dir() or (index.get(part) or [None])[0] is None]
    if missing:
        raise ValueError(f"{source} has no {' and no '.join(missing)}; a {name} needs {', '.join(needed)}")
    _check_unet(source)
    options = {part: _weight_options(source / part) for part in needed if part in WEIGHTS}
    chosen = dtype or _stored_dtype(source / "unet")
    parts = {
        part: load_component(source, part, dtype=chosen, use_safetensors=True, **options[part])
        if part in WEIGHTS
        else load_component(source, part)
        for part in needed
    }
    for part in options:
        motion.check_finite(parts[part].named_parameters(), source / part)
    return parts, name, index


def _single_file(
    source: Path, like: str | Path | None, dtype: torch.dtype | None
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The components of a Stable Diffusion checkpoint in one file, with the vocabulary of a folder like it."""
    from importlib import import_module

    if not source.is_file():
        raise ValueError(f"{source} does not exist")
    if source.suffix != ".safetensors":
        raise ValueError(
            f"{source} is no safetensors file; pickled checkpoints can run any code and are not opened (convert it"
            " where that does no harm: load it with torch and write it with safetensors.torch.save_file)"
        )
    try:
        with safe_open(source, framework="pt") as file:
            names = set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{source} cannot be read as safetensors ({error})") from None
    if not any(name.startswith("model.diffusion_model.") for name in names):
        raise ValueError(
            f"{source} holds no whole Stable Diffusion checkpoint (model.diffusion_model...); a LoRA or a bare network"
            " is given where it belongs: --style, or a folder with its config.json"
        )
    if like is None:
        raise ValueError(
            f"{source} holds weights alone; give --like FOLDER, a diffusers folder of the same family, whose"
            " configurations and vocabulary are used"
        )
    like = Path(like)
    name, index = pipeline_name(like), folder_index(like)
    if name not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        raise ValueError(f"{like} holds a {name}; a single file is like a StableDiffusionPipeline or XLPipeline")
    loader = getattr(import_module("diffusers"), name)
    nothing = {"safety_checker": None} if name == "StableDiffusionPipeline" else {}
    loaded = loader.from_single_file(source, config=str(like), local_files_only=True, **nothing, **_typed(dtype))
    return {part: getattr(loaded, part) for part in FAMILIES[name].parts}, name, index


def _check_unet(source: Path) -> None:
    """Raise ValueError for an image network that is none of text to image alone."""
    config = json.loads((source / "unet" / "config.json").read_text(encoding="utf-8"))
    channels, expected = config.get("in_channels"), 3
    if (source / "vae" / "config.json").is_file():
        vae = json.loads((source / "vae" / "config.json").read_text(encoding="utf-8"))
        expected = vae.get("latent_channels", 4)
    if channels != expected:
        raise ValueError(
            f"the image network in {source} takes {channels} channels, not {expected}: it is one for inpainting or"
            " depth; take the text-to-image model it was made from"
        )


def _weight_options(folder: Path) -> dict[str, Any]:
    """from_pretrained's options for the weights in a folder. Raises ValueError where there are none in safetensors."""
    files = [path.name for path in folder.glob("*.safetensors")]
    plain = [name for name in files if ".fp16." not in name]
    if plain:
        return {}
    if files:
        return {"variant": "fp16"}
    pickled = [path.name for path in folder.glob("*.bin")]
    if pickled:
        raise ValueError(
            f"{folder} holds only pickled weights ({pickled[0]}), which can run any code and are not opened; where that"
            ' does no harm, convert it: python -c "from diffusers import DiffusionPipeline as P;'
            " P.from_pretrained('FOLDER').save_pretrained('NEW')\""
        )
    raise ValueError(f"{folder} holds no weights (*.safetensors)")


def _stored_dtype(folder: Path) -> torch.dtype:
    """The number format of a folder's weights, from their header."""
    path = min(folder.glob("*.safetensors"))
    with safe_open(path, framework="pt") as file:
        name = min(file.keys())
        kind = file.get_slice(name).get_dtype()
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)


def _own_schedule(scheduler: Any) -> tuple[Any, tuple[str, ...]]:
    """The scheduler that a model came with, and what had to be changed in it."""
    if not str(scheduler.config.get("variance_type")).startswith("learned"):
        return scheduler, ()
    kept = type(scheduler).from_config(scheduler.config, variance_type="fixed_small")
    return kept, (
        "the learned variance is not used (fixed_small): temporal layers are trained on the prediction alone",
    )


def _pipeline(
    unet: STUNet, parts: Mapping[str, Any], family: Family, index: Mapping[str, Any], num_frames: int
) -> LumierePipeline:
    reading = family.reading
    if "text_encoder_2" in parts:
        reading = Reading(zeros_for_nothing=bool(index.get("force_zeros_for_empty_prompt", True)))
    others = {name: part for name, part in parts.items() if name != "unet"}
    return LumierePipeline(
        unet=unet,
        **others,
        reading=None if reading is None else reading.as_dict(),
        num_frames=num_frames,
        default_steps=family.steps,
        default_guidance_scale=family.guidance,
    )


def _check_frames(num_frames: int, unet: STUNet) -> None:
    step = unet.temporal_factor
    if num_frames < 1 or (num_frames > 1 and num_frames % step):
        below = max(step, num_frames // step * step)
        raise ValueError(
            f"num_frames is {num_frames}; this network halves time and needs a multiple of {step}: the nearest are"
            f" {below} and {below + step}"
        )


def _save(model: LumierePipeline | SuperResolutionStage, target: Path) -> None:
    """Write a folder under another name and then rename it, so that there is never half of one."""
    aside = target.parent / f".writing-{target.name}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(aside, safe_serialization=True)
        if target.is_dir():
            target.rmdir()
        aside.rename(target)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise ValueError(f"{target} cannot be written ({error})") from error


def _sources(model: LumierePipeline | SuperResolutionStage, origin: str, motion_file: str | None) -> tuple[Source, ...]:
    found = []
    for name, part in model.components.items():
        if not isinstance(part, torch.nn.Module) or name == "super_resolution":
            continue
        if isinstance(part, STUNet):
            image = sum(weight.numel() for weight in part.image_parameters())
            new = sum(weight.numel() for weight in part.temporal_parameters())
            found += [
                Source("unet, image layers", origin, image, True),
                Source("unet, temporal layers", motion_file or "new, to be trained", new, False),
            ]
        else:
            found.append(Source(name, origin, sum(weight.numel() for weight in part.parameters()), True))
    return tuple(found)


def _typed(dtype: torch.dtype | None) -> dict[str, Any]:
    return {} if dtype is None else {"dtype": dtype}
