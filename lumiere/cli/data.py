"""``lumiere data``: what is in a set of videos, before any training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Data:
    """Look at videos before training on them.

    `lumiere data scan PATH` reads a folder (videos with same-name .txt or .json captions), a CSV, TSV, JSON-lines or
    Parquet manifest, or WebDataset tars, and says of every video what will be used of it, and if nothing, why: in a
    table, as JSON, and as a page with pictures. `--out FOLDER` (scan) and every setting of
    lumiere.data.scan.ScanSettings can follow, such as
    `--buckets "[{height: 128, width: 128, frames: 80}]" --workers 4`.
    """

    action: Annotated[Positional[Literal["scan"]], arg(metavar="scan")]
    """What to do."""

    path: Annotated[Positional[Path], arg(metavar="PATH")]
    """A folder, a manifest, or a tar."""

    overrides: Annotated[Positional[tuple[str, ...]], arg(metavar="--KEY VALUE ...", help_behavior_hint="")] = ()
    """Settings."""

    def run(self) -> None:
        """Scan, and write the report."""
        from rich.console import Console

        from lumiere.config import load_settings
        from lumiere.data.scan import ScanSettings, scan
        from lumiere.data.scan_report import summary, table, totals, write

        class CommandSettings(ScanSettings):
            out: str = "scan"

        settings = load_settings(CommandSettings, {}, self.overrides)
        told = ScanSettings(**settings.model_dump(exclude={"out"}))
        videos = scan(self.path, told)
        console = Console()
        console.print(table(videos, str(self.path)))
        print(summary(totals(videos)))
        report, page = write(Path(settings.out), videos, told, str(self.path))
        print(f"wrote {report} and {page}")
