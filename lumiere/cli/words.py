"""How the options of the verbs are shown in their help."""

from __future__ import annotations

from typing import Any

from tyro.conf import arg


def unset(metavar: str, otherwise: str = "the model's own") -> Any:
    """How the help shows an option that may stay unset, and what then holds."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {otherwise})")
