"""``lumiere inflate``: a text-to-image model in, a text-to-video one out; or an image U-Net and a Space-Time U-Net."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from rich.table import Table

    from lumiere.backbones import InflateSettings
    from lumiere.model.inflate import Inflation


@dataclass(frozen=True)
class Inflate:
    """Make a text-to-video model from a text-to-image one, and say what came from where and what is new.

    `lumiere inflate stable-diffusion-v1-5 my-video-model --num_frames 16` reads a whole pipeline's folder (Stable
    Diffusion 1.x, 2.x and XL, DeepFloyd IF I; the x4 upscaler and IF II become super-resolution stages), or one file:
    `lumiere inflate model.safetensors OUT --like stable-diffusion-v1-5`. `--motion FILE` adds trained temporal
    weights, `--dtype bf16` chooses the number format. Of a bare U-Net's folder a Space-Time U-Net's is made.
    `--kernel_frames 5 --halve_time "[true, true, false]"` change settings of the temporal layers
    (lumiere.model.temporal.TemporalSettings).
    """

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """A diffusers folder (a whole pipeline's, or a UNet2DConditionModel's), or a Stable Diffusion safetensors file."""

    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """A new folder."""

    overrides: Annotated[Positional[tuple[str, ...]], arg(metavar="--KEY VALUE ...", help_behavior_hint="")] = ()
    """num_frames, motion, like, dtype, and settings of the temporal layers."""

    def run(self) -> None:
        """Inflate, and print the account."""
        from lumiere.backbones import InflateSettings
        from lumiere.config import load_settings

        settings = load_settings(InflateSettings, {}, self.overrides)
        is_bare = self.source.is_dir() and not (self.source / "model_index.json").is_file()
        (self._inflate_unet if is_bare else self._inflate_model)(settings)

    def _inflate_unet(self, settings: InflateSettings) -> None:
        from rich.console import Console

        from lumiere.model.inflate import inflate_folder

        for name in ("motion", "like", "dtype"):
            if getattr(settings, name) is not None:
                raise ValueError(f"{name} is for whole models; {self.source} holds a bare U-Net (no model_index.json)")
        inflation = inflate_folder(self.source, self.out, temporal=settings.temporal())
        Console().print(_table(inflation))
        _say_sizes(self.out, inflation)

    def _inflate_model(self, settings: InflateSettings) -> None:
        from rich.console import Console
        from rich.table import Table

        from lumiere.backbones import clip_memory, inflate_model
        from lumiere.memory import gib
        from lumiere.pipeline import LumierePipeline

        backbone = inflate_model(
            self.source,
            self.out,
            temporal=settings.temporal(),
            num_frames=settings.num_frames,
            motion_file=settings.motion,
            like=settings.like,
            dtype=settings.torch_dtype(),
        )
        table = Table("part", "from")
        table.add_column("weights", justify="right")
        table.add_column("in training")
        for source in backbone.sources:
            kind = "frozen" if source.is_frozen else "trained"
            table.add_row(source.part, source.origin, f"{source.num_weights:,}", kind)
        console = Console()
        console.print(table)
        console.print(_table(backbone.inflation))
        for note in backbone.notes:
            print(f"note: {note}")
        _say_sizes(self.out, backbone.inflation)
        model = backbone.model
        if isinstance(model, LumierePipeline):
            height, width = model.default_size
            for frames in sorted({model.config.num_frames, 80}):
                need = clip_memory(model, frames, height, width)
                print(
                    f"{frames} frames of {width}x{height} need {gib(need.whole)} (a pass {gib(need.step)}), or"
                    f" {gib(need.offloaded)} with one component at a time on the device and few frames at once"
                )


def _say_sizes(out: Path, inflation: Inflation) -> None:
    print(
        f"wrote {out}: clips need a multiple of {inflation.temporal_factor} frames,"
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
