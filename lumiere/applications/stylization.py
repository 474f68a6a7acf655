"""Stylised generation: what was fine-tuned for the image network is lent to the video network."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lumiere.config import did_you_mean
from lumiere.model.motion import check_finite
from lumiere.model.style import LowRank, Style, Worn, wear
from lumiere.pipeline import LumierePipeline, embedded_weights
from lumiere.strengths import STYLE_STRENGTH

WHOLE_NETWORK = "diffusion_pytorch_model"
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_STYLES = "worn_styles"


def apply_style(pipeline: LumierePipeline, style: str | Path | Style, strength: float = STYLE_STRENGTH) -> None:
    """Blend a style's weights into the pipeline's image network; a second style is added to the first.

    ``style`` is the name of an embedded one, the folder of a fine-tuned image U-Net or of a LoRA, or a LoRA's file
    (safetensors: PEFT's, diffusers' or kohya's names). ``strength`` is alpha of the paper, 0 to 1; all of it (1) often
    costs motion. The temporal weights stay. Raises ValueError, with nothing changed, for what cannot be read or does
    not fit.
    """
    found = style if isinstance(style, Style) else load_style(style, pipeline)
    worn = [*worn_styles(pipeline), (found, strength)]
    wear(pipeline.unet, worn)
    setattr(pipeline.unet, _STYLES, worn)


def remove_style(pipeline: LumierePipeline) -> None:
    """Give the image network its own weights back, bit for bit."""
    wear(pipeline.unet, [])
    setattr(pipeline.unet, _STYLES, [])


def worn_styles(pipeline: LumierePipeline) -> list[Worn]:
    """The styles that were applied, with their strengths."""
    return list(getattr(pipeline.unet, _STYLES, []))


def embedded_styles() -> dict[str, Path]:
    """The styles inside the package, by name."""
    return {path.stem: path for path in sorted((embedded_weights().parent / "styles").glob("*.safetensors"))}


def style_path(source: str | Path) -> Path:
    """The file or folder of a style: an embedded one by its name, or a path. Raises ValueError when there is none."""
    known = embedded_styles()
    if str(source) in known:
        return known[str(source)]
    path = Path(source)
    if path.exists():
        return path
    names = ", ".join(known) or "none"
    raise ValueError(
        f"no style {str(source)!r}{did_you_mean(str(source), known)}: it is neither one of the package's ({names}) nor"
        " a file or folder"
    )


def load_style(source: str | Path, pipeline: LumierePipeline) -> Style:
    """The style of that name, file or folder, for the pipeline's image network.

    Raises ValueError for what is no safetensors file, for keys that are not understood (named), for broken values,
    and for another network's weights. Changes of a LoRA for the text encoder are left out, with a warning.
    """
    path = style_path(source)
    files = weight_files(path)
    weights: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for file in files:
        found, metadata = _read(file)
        weights |= found
        facts |= metadata
    facts |= _adapter_config(path if path.is_dir() else path.parent) if files[0].name == LORA_FILES[1] else {}
    check_finite(weights.items(), path)
    name = path.stem if path.is_file() else path.name
    if any("lora" in key for key in weights):
        style = Style(name, low_rank=low_rank_changes(weights, facts, path, unet_config=pipeline.unet.config))
    else:
        whole = {key: weight for key, weight in weights.items() if not key.startswith("temporal.")}
        style = Style(name, whole=whole)
    style.check_fits(pipeline.unet)
    return style


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a style: of a file itself, a LoRA's folder, or the folder of an image U-Net or pipeline.

    Raises ValueError for anything else; pickled files are never opened.
    """
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(
                f"{path} is no safetensors file; others may run code when they are opened (convert it first, on a"
                " machine that you trust: safetensors.torch.save_file)"
            )
        return [path]
    for folder in (path, path / "unet"):
        for name in LORA_FILES:
            if (folder / name).is_file():
                return [folder / name]
        index = folder / f"{WHOLE_NETWORK}.safetensors.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise ValueError(f"{folder} lacks {missing[0]}, which its index names")
            return [folder / name for name in names]
        for name in (f"{WHOLE_NETWORK}.safetensors", f"{WHOLE_NETWORK}.fp16.safetensors"):
            if (folder / name).is_file():
                return [folder / name]
    pickled = [found.name for kind in ("*.bin", "*.pt", "*.ckpt", "*.pth") for found in path.rglob(kind)]
    reason = f"; {pickled[0]} is pickled and is not opened (convert it to safetensors first)" if pickled else ""
    raise ValueError(f"{path} holds no {WHOLE_NETWORK}.safetensors and none of {', '.join(LORA_FILES)}{reason}")


def low_rank_changes(
    weights: Mapping[str, Tensor], facts: Mapping[str, Any], source: Path, *, unet_config: Any = None
) -> dict[str, LowRank]:
    """The changes of a LoRA by the names of the weights that they change.

    ``facts`` may say ``lora_alpha`` and ``use_rslora``; a module's own ``.alpha`` comes first. Raises ValueError that
    names the first keys that are not understood.
    """
    state, alphas = _with_our_names(weights, source, unet_config)
    skipped = sorted(key for key in state if key.startswith(("text_encoder", "te_", "lora_te")))
    if skipped:
        warnings.warn(
            f"{source.name}: {len(skipped)} weights for a text encoder are left out (the first is {skipped[0]})",
            stacklevel=2,
        )
    modules: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, weight in state.items():
        if key in skipped:
            continue
        if key.endswith(".alpha"):
            alphas[key.removesuffix(".alpha")] = float(weight)
            continue
        module, _, part = key.replace(".default.", ".").rpartition(".lora_")
        if part not in ("A.weight", "B.weight"):
            unknown.append(key)
            continue
        modules.setdefault(module, {})[part[0]] = weight
    unknown += [f"{module}.lora_*" for module, parts in modules.items() if len(parts) < 2]
    if unknown:
        raise ValueError(
            f"{source}: a LoRA's weights come in pairs lora_A and lora_B (or down and up); not understood:"
            f" {', '.join(sorted(unknown)[:3])} ({len(unknown)} in all)"
        )
    return {
        f"{module}.weight": LowRank(parts["A"], parts["B"], _scale(len(parts["A"]), alphas.get(module), facts))
        for module, parts in modules.items()
    }


def _with_our_names(
    weights: Mapping[str, Tensor], source: Path, unet_config: Any
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The weights with PEFT's names below the U-Net, whoever's they had, and alphas that came apart from them."""
    alphas: dict[str, float] = {}
    state = dict(weights)
    if all(key.startswith(("lora_te", "lora_unet_")) for key in state):
        try:
            state, found = StableDiffusionLoraLoaderMixin.lora_state_dict(state, unet_config=unet_config)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{source}: kohya's names cannot be read: {error}") from None
        for key, value in (found or {}).items():
            alphas[_module_of(key.removesuffix(".alpha"))] = float(value)
    return {_our_name(key): weight for key, weight in convert_unet_state_dict_to_peft(state).items()}, alphas


def _our_name(key: str) -> str:
    return key.removeprefix("base_model.model.").removeprefix("unet.").replace(".processor.", ".")


def _module_of(key: str) -> str:
    """The module that an alpha of diffusers' converter belongs to; its key may be that of the weight ``down``."""
    (name,) = convert_unet_state_dict_to_peft({key: None})
    return _our_name(name).partition(".lora_")[0]


def _scale(rank: int, alpha: float | None, facts: Mapping[str, Any]) -> float:
    if alpha is None:
        alpha = float(facts.get("lora_alpha") or rank)
    return alpha / (rank**0.5 if facts.get("use_rslora") else rank)


def _adapter_config(folder: Path) -> dict[str, Any]:
    """PEFT's settings beside its weights. Raises ValueError for kinds that are no plain LoRA."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return {}
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    odd = [key for key in ("use_dora", "alpha_pattern", "fan_in_fan_out") if config.get(key)]
    if config.get("peft_type", "LORA") != "LORA" or odd:
        raise ValueError(f"{file}: {odd[0] if odd else config['peft_type']} is not read; a style is a plain LoRA")
    return config


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file, and what diffusers says of a LoRA in its header."""
    try:
        with safe_open(file, framework="pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            header = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as safetensors ({error})") from None
    if not weights:
        raise ValueError(f"{file} holds no weights")
    said = json.loads(header.get("lora_adapter_metadata", "{}"))
    return weights, {key.removeprefix("unet."): value for key, value in said.items()}
