"""Make a folder to fine-tune on out of clips of the shared data with their captions: the 20 of sign language, or all.

The sign-language clips are Intel's sample-videos (https://github.com/intel-iot-devkit/sample-videos), CC-BY-4.0;
sources and licences of all are in the shared data's index.tsv.

    python examples/prepare_real_clips.py ../shared/data sign
    lumiere train finetune_clips --data sign
"""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Arguments:
    """Make a folder of videos and captions."""

    data: tyro.conf.Positional[Path]
    """The shared data: a folder with index.tsv and the files that it lists."""

    out: tyro.conf.Positional[Path]
    """The folder to make."""

    under: str = "clips/sign/"
    """Only files whose path in the index begins so: clips/ takes the others, too."""


def prepare(data: Path, out: Path, *, under: str = "clips/sign/") -> int:
    """Copy the clips ``under`` a folder of ``data`` into ``out``, a caption in a .txt beside each; returns how many."""
    index = data / "index.tsv"
    if not index.is_file():
        raise ValueError(f"{index} does not exist (give the folder of the shared data, which holds index.tsv)")
    with index.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["path"].startswith(under)]
    if not rows:
        raise ValueError(f"{index} lists nothing under {under!r}; there are clips/ and clips/sign/, for example")
    out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        clip = out / Path(row["path"]).name
        shutil.copyfile(data / row["path"], clip)
        clip.with_suffix(".txt").write_text(row["caption"] + "\n", encoding="utf-8")
    return len(rows)


if __name__ == "__main__":
    arguments = tyro.cli(Arguments)
    print(f"{prepare(arguments.data, arguments.out, under=arguments.under)} clips with captions are in {arguments.out}")
