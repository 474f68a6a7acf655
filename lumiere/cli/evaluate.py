"""``lumiere evaluate``: score a model by a named protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class Evaluate:
    """Score a model by a named protocol."""

    protocol: Positional[Literal["storybook"]]
    """storybook: do clips of held-out prompts show the object, colour, background, motion and speed that they name?"""

    def run(self) -> None:
        """Print the scores."""
