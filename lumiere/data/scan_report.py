"""The report of a scan: a table for the terminal, JSON for programs, a page with pictures for people."""

from __future__ import annotations

import base64
import html
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lumiere.data.scan import Scanned, ScanSettings

MOST_ROWS = 40
"""Rows of the terminal's table; the files hold all of them."""


def totals(videos: Sequence[Scanned]) -> dict[str, Any]:
    """What all videos come to: how many are used, hours, clips by bucket, and why the others are not."""
    used = [video for video in videos if video.dropped is None]
    clips: Counter[str] = Counter()
    for video in used:
        for scene in video.scenes:
            if scene.clips:
                clips[str(scene.bucket)] += len(scene.clips)
    reasons = Counter((video.dropped or "").partition(":")[0] for video in videos if video.dropped)
    return {
        "videos": len(videos),
        "used": len(used),
        "hours": sum(video.duration_s for video in videos) / 3600,
        "hours_used": sum(video.duration_s for video in used) / 3600,
        "cuts": sum(max(0, len(video.scenes) - 1) for video in used),
        "clips": sum(clips.values()),
        "clips_by_bucket": dict(clips.most_common()),
        "left_out": dict(reasons.most_common()),
    }


def table(videos: Sequence[Scanned], title: str) -> Table:
    """A row for each video, those that are left out last; of many the first, and a count."""
    found = Table("video", "size", "fps", "seconds", "frames", "cuts", "clips", "caption, or why left out", title=title)
    ordered = sorted(videos, key=lambda video: video.dropped is not None)
    for video in ordered[:MOST_ROWS]:
        text = video.dropped or (video.captions[0] + (f" (note: {video.note})" if video.note else ""))
        size = f"{video.width}x{video.height}" if video.width else ""
        numbers = (f"{video.fps:.4g}", f"{video.duration_s:.2f}", str(video.frames)) if video.width else ("", "", "")
        cuts = str(max(0, len(video.scenes) - 1)) if video.scenes else ""
        style = "red" if video.dropped else ""
        found.add_row(video.name, size, *numbers, cuts, str(video.num_clips or ""), text, style=style)
    if len(ordered) > MOST_ROWS:
        found.add_row(f"and {len(ordered) - MOST_ROWS} more", *[""] * 7)
    return found


def summary(found: dict[str, Any]) -> str:
    """The totals in two or three lines."""
    lines = [
        f"{found['used']} of {found['videos']} videos are used ({found['hours_used']:.2f} of {found['hours']:.2f}"
        f" hours, {found['cuts']} cuts): {found['clips']} clips"
    ]
    lines += [f"  {count} of {bucket}" for bucket, count in found["clips_by_bucket"].items()]
    lines += [f"  left out: {count} ({reason})" for reason, count in found["left_out"].items()]
    return "\n".join(lines)


def write(folder: Path, videos: Sequence[Scanned], settings: ScanSettings, source: str) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html`` into a folder, each whole or not at all; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "source": source,
        "settings": settings.model_dump(mode="json"),
        "totals": totals(videos),
        "videos": [video.as_dict() for video in videos],
    }
    paths = folder / "report.json", folder / "report.html"
    for path, text in zip(paths, (json.dumps(report, indent=1, ensure_ascii=False), page(videos, source)), strict=True):
        aside = path.with_name(f".writing-{path.name}")
        aside.write_text(text + "\n", encoding="utf-8")
        aside.replace(path)
    return paths


def page(videos: Sequence[Scanned], source: str) -> str:
    """The page: totals, then every video with pictures of it, those that are left out last."""
    rows = []
    for video in sorted(videos, key=lambda video: video.dropped is not None):
        picture = ""
        if video.thumbnail:
            data = base64.b64encode(video.thumbnail).decode()
            picture = f'<img alt="" src="data:image/jpeg;base64,{data}">'
        facts = []
        if video.width:
            facts = [
                f"{video.width}x{video.height}, {video.fps:.4g} fps, {video.duration_s:.2f} s, {video.frames} frames",
                f"{max(0, len(video.scenes) - 1)} cuts, {video.num_clips} clips",
            ]
            facts += sorted({str(scene.bucket) for scene in video.scenes if scene.clips})
        said = "<br>".join(html.escape(caption) for caption in video.captions)
        why = f"<b>left out: {html.escape(video.dropped)}</b><br>" if video.dropped else ""
        note = f"<br>note: {html.escape(video.note)}" if video.note else ""
        rows.append(
            f'<tr class="{"out" if video.dropped else "used"}"><td>{picture}</td><td>{html.escape(video.name)}<br>'
            f"{'<br>'.join(map(html.escape, facts))}</td><td>{why}{said}{note}</td></tr>"
        )
    return _PAGE.format(title=html.escape(source), summary=html.escape(summary(totals(videos))), rows="\n".join(rows))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222; }}
pre {{ background: #f4f4f0; padding: 1em; overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; }}
td {{ border-top: 1px solid #ddd; padding: .5em; vertical-align: top; }}
tr.out {{ color: #a33; }}
img {{ display: block; max-width: 100%; }}
</style></head>
<body><h1>{title}</h1><pre>{summary}</pre>
<table>
{rows}
</table></body></html>
"""
