"""``lumiere inflate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Inflate:
    """Make a Space-Time U-Net from an image U-Net."""

    source: Positional[Path]
    out: Positional[Path]

    def run(self) -> None:
        """Inflate."""
