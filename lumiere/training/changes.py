"""What of a recipe has changed since a run's last checkpoint, and whether a run may go on with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumiere.config import Settings
from lumiere.training.checkpoint import STATE, checkpoints

FREE = {
    # Where the run lies and what it computes with.
    *("out", "device", "compile", "sharding", "readers", "batches_ahead"),
    # When it ends, is looked at and saved.
    *("num_steps", "log_every", "validate_every", "save_every", "keep_checkpoints", "async_save", "max_bad_steps"),
    *("num_validation_clips", "num_samples", "sample_steps", "metrics"),
    # What the exported networks do when they are not told otherwise.
    *("default_steps", "default_sampler", "default_timestep_shift", "default_guidance_scale"),
    *("default_guidance_interval", "default_noise_level", "default_back_projection", "default_polish"),
    *("window_frames", "window_frames_overlap", "window_px", "window_px_overlap"),
}
"""Settings that a run may go on with changed, wherever in a recipe they stand: they do not change what is learned.
(``num_steps`` moves the end, and with it the last steps' falling learning rate.)"""

BOTH_PARTS: Mapping[str, tuple[str, ...]] = {".": (), "image": ("motion", "motion_noise", "given"), "motion": ()}
"""The folders below a run's own that may hold its checkpoints, and what of the recipe those do not depend on: the first
part of fine-tuning is done before the second begins."""


@dataclass(frozen=True)
class Change:
    """A setting that is not what it was."""

    key: str
    """Dotted."""
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.then)} then, {_shown(self.now)} now"


def check_changes(settings: Settings, out: Path, *, ranks: int, accept: bool) -> list[str]:
    """What has changed since the newest checkpoints of the run in ``out``, a line each, if it may go on with that.

    Raises ValueError that lists what changes what is learned, unless that is accepted.
    """
    lines: dict[str, None] = {}
    weighty: dict[str, None] = {}
    for name, without in BOTH_PARTS.items():
        state = _newest_state(out / name)
        if state is None or "recipe" not in state:
            continue
        is_same_batch = "ranks" in state and _passes(state["recipe"], state["ranks"]) == _passes(_dump(settings), ranks)
        for change in changes(_read_again(settings, state["recipe"]), _dump(settings)):
            if change.key.split(".")[0] in without:
                continue
            last = change.key.rpartition(".")[2]
            is_free = last in FREE or (last == "accumulation" and is_same_batch)
            (lines if is_free else weighty)[str(change)] = None
        if state.get("ranks", ranks) != ranks:
            batch = "the batch of a step stays" if is_same_batch else "the batch of a step changes with it"
            lines[f"ranks: {state['ranks']} then, {ranks} now ({batch})"] = None
    if weighty and not accept:
        raise ValueError(
            f"the recipe has changed since the last checkpoint in {out}: {'; '.join(weighty)}. Undo it, choose another"
            " --out to begin anew, or go on with the weights as they are and the new settings: --accept-changes"
        )
    return [*lines, *(f"{line} (accepted)" for line in weighty)]


def changes(then: Any, now: Any, key: str = "") -> Iterator[Change]:
    """The settings in which two recipes differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in [*now, *(name for name in then if name not in now)]:
            yield from changes(then.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif then != now:
        yield Change(key, then, now)


def _dump(settings: Settings) -> dict[str, Any]:
    return json.loads(settings.model_dump_json())


def _read_again(settings: Settings, recipe: dict[str, Any]) -> dict[str, Any]:
    """A stored recipe with the defaults of settings that are newer than it, if it can still be read."""
    try:
        return _dump(type(settings).model_validate_json(json.dumps(recipe)))
    except ValueError:
        return recipe


def _passes(recipe: Mapping[str, Any], ranks: int) -> Sequence[int]:
    """How many forward passes of all ranks make a step, in each of a recipe's loops."""
    loops = [value for value in recipe.values() if isinstance(value, dict) and "accumulation" in value]
    return [loop["accumulation"] * ranks for loop in loops]


def _newest_state(folder: Path) -> dict[str, Any] | None:
    """What the newest checkpoint that can be read says of itself."""
    for path in reversed(checkpoints(folder)):
        try:
            return json.loads((path / STATE).read_text())
        except (OSError, ValueError):
            continue
    return None


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)
