"""Motion files: the weights that mix frames, alone, for any copy of the image network that they were trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lumiere.config import load_settings
from lumiere.model.temporal import TemporalSettings

FORMAT = "lumiere-motion"

ARCHITECTURE = (
    "in_channels",
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "up_block_types",
    "cross_attention_dim",
    "addition_embed_type",
)
"""What of an image network's configuration tells it from one that motion does not fit; fine-tunes share it."""


def save(
    path: str | PathLike[str], temporal: nn.Module, settings: TemporalSettings, image_config: Mapping[str, Any]
) -> None:
    """Write the weights of temporal layers with the settings they were made with (safetensors).

    ``image_config`` is the configuration of the image network that they were trained on.
    """
    weights = {name: weight.detach().contiguous() for name, weight in temporal.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "version": "1",
        "temporal_settings": settings.model_dump_json(),
        "image_network": json.dumps(_architecture(image_config)),
    }
    save_file(weights, path, metadata=metadata)


def load(
    path: str | PathLike[str], temporal: nn.Module, settings: TemporalSettings, image_config: Mapping[str, Any]
) -> None:
    """Put the weights of a motion file into temporal layers, in their dtype.

    Raises ValueError for a file of another kind, other settings, another image network, or broken weights.
    """
    theirs, trained_on, own = read_settings(path), _metadata(path).get("image_network"), _architecture(image_config)
    # Files of version 0.1 did not say.
    others = {} if trained_on is None else json.loads(trained_on)
    differing = [
        f"{key} is {others[key]}, this one's {own[key]}" for key in own if others.get(key, own[key]) != own[key]
    ]
    if differing:
        raise ValueError(f"{path} holds the motion of another image network: its {'; its '.join(differing)}")
    differing = [
        f"{key} is {getattr(theirs, key)!r}, the network's {getattr(settings, key)!r}"
        for key in type(settings).model_fields
        if getattr(theirs, key) != getattr(settings, key)
    ]
    if differing:
        raise ValueError(
            f"{path} does not fit: its {'; its '.join(differing)}"
            " (inflate the image network with the file's own settings)"
        )
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    _check_shapes(path, weights, temporal.state_dict())
    check_finite(weights.items(), path)
    temporal.load_state_dict(weights)


def read_settings(path: str | PathLike[str]) -> TemporalSettings:
    """The settings of the temporal layers that a motion file was saved from."""
    return load_settings(TemporalSettings, json.loads(_metadata(path)["temporal_settings"]))


def _metadata(path: str | PathLike[str]) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as a motion file ({error})") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a motion file (STUNet.save_motion writes one)")
    return metadata


def _architecture(image_config: Mapping[str, Any]) -> dict[str, Any]:
    """The telling part of a configuration, as JSON gives it back."""
    return json.loads(json.dumps({key: image_config.get(key) for key in ARCHITECTURE}))


def check_finite(weights: Iterable[tuple[str, Tensor]], source: str | PathLike[str]) -> None:
    """Raise ValueError that names the first of the weights that is NaN or infinite."""
    for name, weight in weights:
        # One pass without a mask in memory; in double, so that large weights cannot overflow to infinity.
        if weight.device.type != "meta" and not bool(torch.isfinite(weight.sum(dtype=torch.float64))):
            raise ValueError(f"{source}: the weight {name} is NaN or infinite; the file is broken or training diverged")


def _check_shapes(path: str | PathLike[str], given: dict[str, Tensor], needed: dict[str, Tensor]) -> None:
    problems = [f"it has no {name}" for name in needed.keys() - given.keys()]
    problems += [f"the network has no {name}" for name in given.keys() - needed.keys()]
    problems += [
        f"{name} is {list(given[name].shape)}, the network's {list(needed[name].shape)}"
        for name in given.keys() & needed.keys()
        if given[name].shape != needed[name].shape
    ]
    if problems:
        raise ValueError(
            f"{path} was made for another image network: {min(problems)} ({len(problems)} differences in all)"
        )
