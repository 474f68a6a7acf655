"""``lumiere train``: run a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from lumiere.cli.words import unset


@dataclass(frozen=True)
class Train:
    """Train what a recipe describes; the same command again goes on where it stopped.

    `lumiere train RECIPE --loop.num_steps 100` changes a setting of the recipe; `lumiere info RECIPE` shows them all.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """A YAML file, or the name of a shipped recipe."""

    overrides: Annotated[Positional[tuple[str, ...]], arg(metavar="--KEY VALUE ...", help_behavior_hint="")] = ()
    """Settings to change."""

    accept_changes: Annotated[bool, FlagCreatePairsOff] = False
    """Go on with an earlier run although settings have changed that change what is learned."""

    plan: Annotated[bool, FlagCreatePairsOff] = False
    """Do not train: say what each rank will need in memory, whether it fits, and what to change if not."""

    plan_ranks: Annotated[int, arg(metavar="N")] = 1
    """Of a plan: processes that will train, each with a device of its own."""

    plan_memory: Annotated[float | None, unset("GIB", "what is free on this machine's device")] = None
    """Of a plan: memory of such a device in GiB."""

    def run(self) -> None:
        """Train, and say where the result is."""
        if self.plan:
            from lumiere.training.jobs import print_plan

            print_plan(self.recipe, self.overrides, ranks=self.plan_ranks, memory_gib=self.plan_memory)
            return
        from lumiere.training.run import train

        print(f"trained: {train(self.recipe, self.overrides, accept_changes=self.accept_changes)}")
