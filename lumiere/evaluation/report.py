"""What an evaluation leaves behind: tables on the console, a JSON report, contact sheets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from lumiere.evaluation.edits import Bar
from lumiere.evaluation.tally import ATTRIBUTES, Tally, wilson_interval
from lumiere.evaluation.wrong_words import MIN_RATIO, WrongWord

ROWS_PER_SHEET = 16
FRAMES_PER_ROW = 10
STILLS_PER_ROW = 16
SHOWN_PX = 96
"""Small pictures are enlarged to about this width on sheets."""
TEXT_PX = 14


def score_table(title: str, tally: Tally, bars: Mapping[str, float]) -> Table:
    """Each attribute's counts, share, 95 % interval and whether its bar is reached."""
    table = Table(title=title)
    for heading in ("", "right", "share", "95 % interval", "unreadable", "bar", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for name in ATTRIBUTES:
        if not tally.total[name]:
            continue
        low, high = wilson_interval(tally.right[name], tally.total[name])
        bar = bars.get(name)
        table.add_row(
            name,
            f"{tally.right[name]} of {tally.total[name]}",
            f"{tally.share(name):.1%}",
            f"{low:.1%} to {high:.1%}",
            str(tally.unreadable[name]),
            "" if bar is None else f"{bar:.0%}",
            "" if bar is None else ("reached" if tally.share(name) >= bar else "missed"),
        )
    return table


def mistakes_text(tally: Tally, *, most: int = 8) -> str:
    """A line for each attribute: what was asked for, what was read instead, how often."""
    lines = []
    for name in ATTRIBUTES:
        found = tally.mistakes.get(name)
        if found:
            listed = [f"{asked} as {read} {count}x" for (asked, read), count in found.most_common(most)]
            rest = len(found) - len(listed)
            lines.append(f"{name}: {', '.join(listed)}{f' and {rest} other kinds' if rest > 0 else ''}")
    return "\n".join(lines)


def print_scores(title: str, tally: Tally, bars: Mapping[str, float], console: Console | None = None) -> None:
    """The table and, below it, what was misread."""
    console = console or Console()
    console.print(score_table(title, tally, bars))
    if tally.mistakes:
        console.print("Misread: " + mistakes_text(tally).replace("\n", "\n         "), highlight=False)


def print_wrong_words(found: Mapping[str, WrongWord], console: Console | None = None) -> None:
    """The table of what one wrong word costs."""
    table = Table(title="Held-out loss with one word of the caption wrong, over the true caption's")
    for heading in ("", "ratio", "standard error", "bar", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, one in found.items():
        verdict = "reached" if one.ratio >= MIN_RATIO else "missed"
        table.add_row(name, f"{one.ratio:.3f}", f"{one.error:.3f}", f"{MIN_RATIO:.2f}", verdict)
    (console or Console()).print(table)


def print_closeness(found: Mapping[str, Any], bar_db: float, console: Console | None = None) -> None:
    """How near to the truth clips came that were made small and large again, beside bicubic enlargement."""
    verdict = "reached" if found["gain_db"] >= bar_db else "missed"
    (console or Console()).print(
        f"{len(found['clips'])} true clips made small and large again: PSNR {found['psnr_db']:.2f} dB, bicubic"
        f" {found['bicubic_psnr_db']:.2f} dB, {found['gain_db']:.2f} dB more (bar {bar_db:.1f}: {verdict}; least"
        f" {found['least_gain_db']:.2f}); {found['seconds_a_clip']:.1f} s a clip",
        highlight=False,
    )


def print_bars(
    title: str,
    found: Mapping[str, Mapping[str, float]],
    bars: Mapping[str, Mapping[str, Bar]],
    console: Console | None = None,
) -> None:
    """A table of measures by what was done, each with its bar."""
    table = Table(title=title)
    for heading in ("", "measure", "value", "bar", ""):
        table.add_column(heading, justify="right" if heading in ("value", "bar") else "left")
    for group, values in found.items():
        for name, value in values.items():
            bar = bars[group][name]
            table.add_row(group, name, f"{value:.3f}", str(bar), "reached" if bar.holds(value) else "missed")
    (console or Console()).print(table)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """The report as a file, written under a temporary name first, so that it is whole or not there."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def write_clip_sheets(folder: Path, frames: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Contact sheets: each clip [T, H, W, 3] a row of frames spread over its time, under its title."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(frames), ROWS_PER_SHEET):
        rows = [
            _titled(_strip(clip), title)
            for clip, title in zip(frames[first : first + ROWS_PER_SHEET], titles[first:], strict=False)
        ]
        Image.fromarray(np.concatenate(rows)).save(folder / f"clips_{first // ROWS_PER_SHEET:02}.png")


def _strip(clip: np.ndarray) -> np.ndarray:
    """A clip's frames side by side, evenly spread over its time."""
    chosen = np.linspace(0, len(clip) - 1, min(FRAMES_PER_ROW, len(clip))).round().astype(int)
    framed = np.pad(clip[chosen], ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
    return _enlarged(np.concatenate(list(framed), axis=1), clip.shape[2])


def _enlarged(sheet: np.ndarray, picture_width: int) -> np.ndarray:
    """A sheet of pictures of that width, so many times larger that they can be seen."""
    scale = max(1, SHOWN_PX // picture_width)
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def _titled(strip: np.ndarray, title: str) -> np.ndarray:
    page = Image.new("RGB", (strip.shape[1], strip.shape[0] + TEXT_PX), "white")
    page.paste(Image.fromarray(strip), (0, TEXT_PX))
    colour = "red" if "MISREAD" in title else "black"
    ImageDraw.Draw(page).text((2, 1), title.encode("ascii", "replace").decode(), fill=colour)
    return np.asarray(page)


def write_still_sheet(path: Path, stills: Sequence[np.ndarray], is_right: Sequence[bool]) -> None:
    """One sheet of all stills [H, W, 3] in order; those misread are framed in red."""
    cells = []
    for still, right in zip(stills, is_right, strict=True):
        cell = np.full((still.shape[0] + 2, still.shape[1] + 2, 3), 255 if right else (255, 0, 0), dtype=np.uint8)
        cell[1:-1, 1:-1] = still
        cells.append(cell)
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % STILLS_PER_ROW)
    rows = [np.concatenate(cells[i : i + STILLS_PER_ROW], axis=1) for i in range(0, len(cells), STILLS_PER_ROW)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_enlarged(np.concatenate(rows), stills[0].shape[1])).save(path)
