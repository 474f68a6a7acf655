"""Which device and which number format to compute in, what this machine does fast, and the versions it does it with."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from lumiere import __version__

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_CHOICES = ("auto", *DTYPES)

CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use."""

LIBRARIES = ("torch", "diffusers", "transformers", "numpy")


@dataclass(frozen=True)
class Placement:
    """Where to compute, in what number format, and why, in words for a person."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def dtype_name(self) -> str:
        """The number format's name as ``choose_placement`` takes it."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.device}, {self.dtype_name} ({self.reason})"


def choose_placement(device: str = "auto", dtype: str = "auto") -> Placement:
    """The device and number format asked for; ``auto`` is the fastest of this machine.

    Raises ValueError for a device that this machine lacks, or a format that is unknown or that the device cannot do.
    """
    if dtype not in DTYPE_CHOICES:
        raise ValueError(f"dtype is {dtype!r}; known are {', '.join(DTYPE_CHOICES)}")
    chosen = _fastest_device() if device == "auto" else _checked_device(device)
    if dtype == "auto":
        fast, reason = _fast_dtype(chosen)
        return Placement(chosen, fast, reason)
    if dtype == "float16" and chosen.type == "cpu":
        raise ValueError("dtype is float16, which a processor only emulates; use bfloat16 or float32 on the cpu")
    return Placement(chosen, DTYPES[dtype], "as asked")


def installed_versions() -> dict[str, str]:
    """The versions that can change a clip's pixels."""
    found = {name: metadata.version(name) for name in LIBRARIES}
    return {"lumiere": __version__, "python": platform.python_version(), **found}


def has_fast_bfloat16(capabilities: Mapping[str, Any]) -> bool:
    """Whether a processor with these ``torch.cpu.get_capabilities()`` multiplies bf16 in hardware.

    torch itself calls bf16 supported on any AVX-512 machine, also where it converts to fp32 and back and is slower.
    ARM's ``bf16`` is not counted: torch's convolutions do not use it in every build.
    """
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def multiplies_bf16(device: str = "auto") -> bool:
    """Whether that device does bf16 arithmetic in hardware; one that only emulates it is several times slower in it.

    Raises ValueError for a device that this machine lacks.
    """
    return choose_placement(device).dtype == torch.bfloat16


def free_bytes(device: torch.device) -> int:
    """The memory that can still be taken on a device, in bytes: the card's, or this machine's or its container's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = (_number_in(CONTAINER / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, max(0, limit - used))


def _number_in(path: Path) -> int | None:
    """The number that a file of the control group holds; None without one, or for "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _fastest_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _checked_device(name: str) -> torch.device:
    """The torch device of that name; ValueError when it is no name, or not in this machine."""
    kinds = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    present = ", ".join(["auto", *(kind for kind, count in kinds.items() if count)])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}; this machine has {present}") from None
    if (device.index or 0) >= kinds.get(device.type, 0):
        raise ValueError(f"device is {name!r}, which this machine (or this build of torch) lacks; it has {present}")
    return device


def _fast_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The fastest number format that keeps the range of fp32, and why."""
    if device.type == "cpu":
        if has_fast_bfloat16(torch.cpu.get_capabilities()):
            return torch.bfloat16, "this processor multiplies bf16 in hardware"
        return torch.float32, "this processor has no bf16 arithmetic"
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16, "this card multiplies bf16 in hardware"
        return torch.float32, "this card only emulates bf16"
    return torch.float32, "bf16 is emulated on some Apple chips"
