"""``lumiere inflate``: an image U-Net's folder in, a Space-Time U-Net's folder out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from rich.table import Table

    from lumiere.model.inflate import Inflation


@dataclass(frozen=True)
class Inflate:
    """Make a Space-Time U-Net from an image U-Net, and say what is new and what is frozen.

    `lumiere inflate SOURCE OUT --kernel_frames 5 --halve_time "[true, true, false]"` changes settings of the
    temporal layers (lumiere.model.temporal.TemporalSettings).
    """

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """Folder of a diffusers UNet2DConditionModel (config.json and safetensors), or of a pipeline that has one."""

    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """A new folder."""

    overrides: Annotated[Positional[tuple[str, ...]], arg(metavar="--KEY VALUE ...", help_behavior_hint="")] = ()
    """Settings of the temporal layers."""

    def run(self) -> None:
        """Inflate, and print the account."""
        from rich.console import Console

        from lumiere.config import load_settings
        from lumiere.model.inflate import inflate_folder
        from lumiere.model.temporal import TemporalSettings

        settings = load_settings(TemporalSettings, {}, self.overrides)
        inflation = inflate_folder(self.source, self.out, temporal=settings)
        Console().print(_table(inflation))
        print(
            f"wrote {self.out}: clips need a multiple of {inflation.temporal_factor} frames,"
            f" and of {inflation.spatial_factor} places in height and width"
        )


def _table(inflation: Inflation) -> Table:
    from rich.table import Table

    table = Table(show_footer=True)
    table.add_column("part", "all")
    table.add_column("from the image network, frozen", f"{inflation.num_frozen:,}", justify="right")
    table.add_column("temporal, new", f"{inflation.num_new:,}", justify="right")
    for part in inflation.parts:
        table.add_row(part.name, f"{part.num_frozen:,}", f"{part.num_new:,}")
    return table
