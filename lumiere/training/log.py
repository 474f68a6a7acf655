"""The numbers of a run, kept beside it."""

from __future__ import annotations

import json
from pathlib import Path

from lumiere.training.distributed import is_first


class Log:
    """Numbers as TensorBoard events and as lines of JSON; a resumed run drops the lines it will write again.

    Only the first of several ranks writes.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.path = out / "metrics.jsonl"
        self.is_open = is_first()
        if not self.is_open:
            return
        from torch.utils.tensorboard import SummaryWriter

        lines = self.path.read_text().splitlines() if self.path.exists() else []
        aside = self.path.with_name(f".writing-{self.path.name}")
        aside.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= step))
        aside.replace(self.path)
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Note numbers of a step."""
        if not self.is_open:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)


def _step_of(line: str) -> float:
    """The step of a line; a line that was broken off when the run was killed is dropped with those after it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
