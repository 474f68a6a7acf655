"""``lumiere data``: what is in a set of videos, before any training; and shards of their clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Data:
    """Look at videos before training on them, and pack their clips into shards.

    `lumiere data scan PATH` reads a folder (videos with same-name .txt or .json captions), a CSV, TSV, JSON-lines or
    Parquet manifest, or WebDataset tars, and says of every video what will be used of it, and if nothing, why: in a
    table, as JSON, and as a page with pictures. `--out FOLDER` (scan) and every setting of
    lumiere.data.scan.ScanSettings can follow, such as
    `--buckets "[{height: 128, width: 128, frames: 80}]" --workers 4`.

    `lumiere data pack PATH --out FOLDER` scans and then writes WebDataset tars of clips, cut at scene cuts, resized and
    encoded anew, with an index beside each. The same command again goes on where it stopped; `--part 2/8` does the
    second eighth of the tars, on as many machines as you like. More settings: lumiere.data.pack.PackSettings.

    `lumiere data cache SHARDS --model FOLDER` keeps what the text encoder of a model says of the captions of shards,
    and its VAE, if it has one, of their clips (`--latents false`: not of clips), for `lumiere train clips --cache`.
    It goes on where it stopped, and takes `--out`, `--part 2/8` and `--device` too.
    """

    action: Annotated[Positional[Literal["scan", "pack", "cache"]], arg(metavar="scan|pack|cache")]
    """What to do."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """A folder, a manifest, or a tar; for cache a folder of shards, or its URL."""

    overrides: Annotated[Positional[tuple[str, ...]], arg(metavar="--KEY VALUE ...", help_behavior_hint="")] = ()
    """Settings."""

    def run(self) -> None:
        """Scan, and write the report; or pack; or keep what networks say of shards."""
        {"scan": self._scan, "pack": self._pack, "cache": self._cache}[self.action]()

    def _cache(self) -> None:
        from lumiere.codec import Latents
        from lumiere.config import Settings, load_settings
        from lumiere.data.cache import text_digest, write_cache
        from lumiere.data.store import is_url
        from lumiere.device import choose_placement
        from lumiere.pipeline import LumierePipeline

        class CommandSettings(Settings):
            model: str | None = None
            out: str | None = None
            part: str = "1/1"
            latents: bool = True
            device: str = "auto"

        settings = load_settings(CommandSettings, {}, self.overrides)
        part = _part(settings.part)
        if settings.out is None and is_url(self.path):
            raise ValueError(f"{self.path} is a URL; give --out, a folder on a disk for what is kept")
        pipeline = LumierePipeline.from_pretrained(settings.model)
        text = pipeline.text
        out = settings.out or str(Path(self.path) / f"cache-{text_digest(text)[:12]}")
        codec = pipeline.codec if settings.latents and isinstance(pipeline.codec, Latents) else None
        device = choose_placement(settings.device).device
        for name in ("text_encoder", "text_encoder_2", "vae"):
            if getattr(pipeline, name) is not None:
                getattr(pipeline, name).to(device).eval()
        files = write_cache(self.path, out, text=text, codec=codec, part=part)
        size = sum(file.stat().st_size for file in files)
        what = "captions" if codec is None else "captions and clips"
        print(f"{out} holds {what} of {len(files)} tars of this part, {size / 2**20:.1f} MiB")

    def _pack(self) -> None:
        from lumiere.config import load_settings
        from lumiere.data.pack import PackSettings, pack

        class CommandSettings(PackSettings):
            out: str
            part: str = "1/1"

        settings = load_settings(CommandSettings, {}, self.overrides)
        told = PackSettings(**settings.model_dump(exclude={"out", "part"}))
        tars = pack(self.path, settings.out, told, part=_part(settings.part))
        size = sum(tar.stat().st_size for tar in tars)
        print(f"{settings.out} holds {len(tars)} tars of this part, {size / 2**20:.1f} MiB, and report.html")

    def _scan(self) -> None:
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


def _part(text: str) -> tuple[int, int]:
    """``2/8`` as (1, 8)."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"part is {text!r}; it says which of how many, such as 2/8")
    return int(number) - 1, int(count)
