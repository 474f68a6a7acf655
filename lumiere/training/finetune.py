"""Fine-tuning on a folder of videos: the data report, both parts in turn, held-out losses before and after."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lumiere.data.folder import ClipFolder, FolderReport
from lumiere.training.distributed import from_first, is_first
from lumiere.training.loop import Trainer, autocast
from lumiere.training.stages.finetune_clips import FinetuneClips, FinetuneSettings, Part


class FineTuning:
    """A run on the videos of a folder; run again, it goes on where it stopped.

    ``held_out.json`` in the run's folder holds the loss on clips of the held-out videos at the start and after each
    part. Raises ValueError when the folder holds too few usable videos, or the network cannot take such clips.
    """

    def __init__(self, settings: FinetuneSettings) -> None:
        self.settings = settings
        self.clips = ClipFolder(settings.data, settings.clips, seed=settings.motion.seed)
        self.parts: list[Part] = ["motion"] if settings.image is None else ["image", "motion"]
        self.first = FinetuneClips(settings, self.parts[0], model=settings.model, clips=self.clips)

    def run(self) -> Path:
        """Train the image network, then the motion; returns the folder of the finished pipeline."""
        settings, console = self.settings, Console(quiet=not is_first())
        out = Path(settings.out)
        _tell(self.clips.report, out)
        if self.first.new_words:
            console.print(f"{len(self.first.new_words)} new words: {', '.join(self.first.new_words)}")
        losses = _HeldOutLosses(settings, self.clips, out / "held_out.json")
        losses.measure("start", settings.model)
        stage, model = self.first, settings.model
        for part in self.parts:
            if part != self.parts[0]:
                stage = FinetuneClips(settings, part, model=model, clips=self.clips)
            facts = {"recipe": settings.model_dump(mode="json")}
            model = str(Trainer(stage, stage.loop, out / part, facts=facts).run())
            losses.measure(f"after {part}", model)
        console.print(losses.table())
        assert model is not None, self.parts
        return Path(model)


def _tell(report: FolderReport, out: Path) -> None:
    """Show what is used of the folder, and keep it with the run."""
    if not is_first():
        return
    Console().print(report.table())
    with (out / "data.txt").open("w", encoding="utf-8") as file:
        Console(file=file, width=160).print(report.table())


class _HeldOutLosses:
    """The losses on clips of held-out videos, each measured once for a run, with the same noise."""

    def __init__(self, settings: FinetuneSettings, clips: ClipFolder, path: Path) -> None:
        self.settings, self.clips, self.path = settings, clips, path
        self.losses: dict[str, dict[str, float]] = from_first(json.loads(path.read_text()) if path.exists() else {})

    def measure(self, when: str, model: str | None) -> None:
        """Measure the pipeline in a folder, unless an earlier part of the run has."""
        if when in self.losses:
            return
        stage = FinetuneClips(self.settings, "motion", model=model, clips=self.clips)
        with torch.no_grad(), autocast(self.settings.motion):
            self.losses[when] = stage.validate()
        if is_first():
            self.path.write_text(json.dumps(self.losses, indent=1))

    def table(self) -> Table:
        """One row for each measurement."""
        names = {"loss": "loss", "loss_noisy_half": "loss, noisier half", "loss_given": "loss with parts given"}
        shown = [name for name in names if any(name in numbers for numbers in self.losses.values())]
        table = Table("held-out clips", *(names[name] for name in shown))
        for when, numbers in self.losses.items():
            table.add_row(when, *(f"{numbers[name]:.4f}" if name in numbers else "" for name in shown))
        return table
