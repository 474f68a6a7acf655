"""Checkpoints: everything a run needs to go on exactly where it stopped, written aside and renamed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lumiere.training.ema import Ema

Named = dict[str, nn.Parameter]


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    named: Named,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
    keep: int,
) -> Path:
    """Write ``folder/step-N`` with weights, averages and optimiser state; the ``keep`` newest stay."""
    target = folder / f"step-{step:07d}"
    aside = folder / f".writing-{target.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    names = list(named)
    save_file({name: tensor.detach().contiguous() for name, tensor in named.items()}, aside / "weights.safetensors")
    averages = dict(zip(names, ema.averages, strict=True))
    save_file({name: tensor.contiguous() for name, tensor in averages.items()}, aside / "ema.safetensors")
    save_file(_optimizer_tensors(optimizer, named), aside / "optimizer.safetensors")
    (aside / "state.json").write_text(json.dumps({"step": step, **facts}, indent=1))
    shutil.rmtree(target, ignore_errors=True)
    aside.replace(target)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").exists())


def read_tensors(path: Path, kind: Literal["weights", "ema"]) -> dict[str, Tensor]:
    """The trained weights of a checkpoint by name, as the last step left them or averaged, fp32 on the CPU."""
    return load_file(path / f"{kind}.safetensors")


def load_checkpoint(path: Path, *, named: Named, ema: Ema, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint's tensors where they belong and return its state (``step`` and the run's facts).

    Raises ValueError when the checkpoint is of another network.
    """
    weights = load_file(path / "weights.safetensors")
    if {name: tuple(t.shape) for name, t in weights.items()} != {name: tuple(t.shape) for name, t in named.items()}:
        odd = sorted(set(weights) ^ set(named))[:3]
        raise ValueError(f"{path} holds another network's weights (first differences: {odd}); choose another --out")
    averages = load_file(path / "ema.safetensors")
    tensors = load_file(path / "optimizer.safetensors")
    with torch.no_grad():
        for index, (name, parameter) in enumerate(named.items()):
            parameter.copy_(weights[name])
            ema.averages[index].copy_(averages[name])
            # The fused optimiser walks raw memory: its tensors must lie as the parameter does (channels last or not).
            state = {
                key.split("|")[0]: torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
                for key, value in tensors.items()
                if key.split("|")[1] == name
            }
            if state:
                optimizer.state[parameter] = state
    return json.loads((path / "state.json").read_text())


def _optimizer_tensors(optimizer: torch.optim.Optimizer, named: Named) -> dict[str, Tensor]:
    return {
        f"{key}|{name}": torch.as_tensor(value).contiguous()
        for name, parameter in named.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
