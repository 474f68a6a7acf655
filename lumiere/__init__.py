"""Lumiere: text to video with a Space-Time U-Net that makes the whole clip at once (arXiv 2401.12945)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lumiere.model.stunet import STUNet
    from lumiere.pipeline import LumierePipeline
    from lumiere.super_resolution import SuperResolution, SuperResolutionStage

__version__ = "0.1.0"
__all__ = ["LumierePipeline", "STUNet", "SuperResolution", "SuperResolutionStage", "__version__"]

# Imported at the first use: torch and diffusers take seconds, and `lumiere --help` needs neither.
_HOMES = {
    "STUNet": "lumiere.model.stunet",
    "LumierePipeline": "lumiere.pipeline",
    "SuperResolution": "lumiere.super_resolution",
    "SuperResolutionStage": "lumiere.super_resolution",
    # Not ours, and not public: diffusers asks the library of a component for it to learn how the component is loaded.
    "ModelMixin": "diffusers",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lumiere' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
