"""``lumiere train``: run a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional


@dataclass(frozen=True)
class Train:
    """Train what a recipe describes; the same command again goes on where it stopped.

    `lumiere train RECIPE --key value --group.key value` changes settings of the recipe;
    `lumiere info RECIPE` shows them all.
    """

    recipe: Positional[str]
    """A YAML file, or the name of a shipped recipe."""

    overrides: Positional[tuple[str, ...]] = ()
    """Settings to change, as --key value or key=value."""

    def run(self) -> None:
        """Train, and say where the result is."""
        from lumiere.training.run import train

        print(f"trained: {train(self.recipe, self.overrides)}")
