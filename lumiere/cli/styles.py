"""The styles that a command asks for: found before the network is loaded, put on, and told in the recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from lumiere.strengths import STYLE_STRENGTH

if TYPE_CHECKING:
    from lumiere.pipeline import LumierePipeline

_USUAL = f"(default: {STYLE_STRENGTH})"

Styles = dict[str, float]
"""Names, files or folders of styles, and their strengths."""


@dataclass(frozen=True, kw_only=True)
class StyleOptions:
    """What every verb takes that makes clips."""

    style: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """Draw in a style: one of the package's by name, or the file or folder of a LoRA or of a fine-tuned image U-Net."""

    style_strength: Annotated[
        tuple[float, ...], arg(metavar="X ...", help_behavior_hint=f"(default: {STYLE_STRENGTH})")
    ] = ()
    """How much of the style, 0 to 1: one for all styles, or one for each."""

    def chosen_styles(self) -> Styles:
        """The styles that were asked for, with their strengths; refused when they are not there."""
        return chosen_styles(self.style, self.style_strength)


def chosen_styles(styles: Sequence[str], strengths: Sequence[float]) -> Styles:
    """The styles of a command line with their strengths: one for each, one for all, or none for the usual one.

    Raises ValueError for a style that is not there, one named twice, and strengths of another number or outside 0..1.
    """
    from lumiere.applications.stylization import style_path, weight_files

    if strengths and not styles:
        raise ValueError("--style-strength without --style (name a style, or leave the strength out)")
    if len(strengths) not in (0, 1, len(styles)):
        raise ValueError(f"{len(strengths)} strengths for {len(styles)} styles; give one for each, or one for all")
    if len(set(styles)) < len(styles):
        raise ValueError("a style is named twice (name it once, with a higher --style-strength)")
    each = list(strengths) * len(styles) if len(strengths) == 1 else list(strengths)
    chosen = dict(zip(styles, each or [STYLE_STRENGTH] * len(styles), strict=True))
    for name, strength in chosen.items():
        if not 0 <= strength <= 1:
            raise ValueError(f"--style-strength is {strength}; it lies in 0 (not at all) to 1 (nothing else)")
        weight_files(style_path(name))
    return chosen


def put_on(pipeline: LumierePipeline, styles: Mapping[str, float]) -> dict[str, str]:
    """Blend the styles into the pipeline's image network; the SHA-256 of their files, by name."""
    if not styles:
        return {}
    from lumiere.applications.stylization import apply_style

    for name, strength in styles.items():
        apply_style(pipeline, name, strength)
    return {name: style_hash(name) for name in styles}


def style_hash(name: str | Path) -> str:
    """The SHA-256 of a style's weight files."""
    from lumiere.applications.stylization import style_path, weight_files

    found = hashlib.sha256()
    for file in weight_files(style_path(name)):
        found.update(file.read_bytes())
    return found.hexdigest()
