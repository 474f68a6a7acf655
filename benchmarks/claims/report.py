"""What every claim's benchmark writes: its numbers as JSON, and a picture of them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def write_claim(
    out: Path, report: dict[str, Any], draw: Callable[[Figure], None], *, size: tuple[float, float]
) -> None:
    """Write ``report``, dated, to ``out``.json and what ``draw`` puts on a figure of ``size`` inches to ``out``.png."""
    out.parent.mkdir(parents=True, exist_ok=True)
    dated = {"date": datetime.date.today().isoformat(), **report}
    out.with_suffix(".json").write_text(json.dumps(dated) + "\n", encoding="utf-8")
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    figure.savefig(out.with_suffix(".png"), dpi=120)
