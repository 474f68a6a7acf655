"""Make folders of stills in the storybook's drawing styles, to train the embedded styles on: 32 each, never a clip.

They are as large as finished clips; training makes them small, as it does with anybody's pictures.

python examples/draw_style_stills.py runs/style_stills
lumiere train style --data runs/style_stills/neon --out runs/style_neon
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from PIL import Image

from lumiere.data.captions import caption
from lumiere.data.drawing import STYLES
from lumiere.data.storybook import draw_scene, render
from lumiere.video import to_uint8


@dataclass(frozen=True)
class Arguments:
    """Draw the stills."""

    out: tyro.conf.Positional[Path]
    """The folder that gets a folder for each style."""
    count: int = 32
    size: int = 128


def main(arguments: Arguments) -> None:
    """A picture and a text file for each still."""
    for index, style in enumerate(style for style in STYLES if style != "flat"):
        folder = arguments.out / style
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(4_000 + index)
        for place in range(arguments.count):
            scene = draw_scene(generator, style=style)
            clip = render([scene], torch.rand(1, generator=generator) * 5, size=arguments.size)
            Image.fromarray(to_uint8(clip[0])[0]).save(folder / f"{place:02}.png")
            (folder / f"{place:02}.txt").write_text(caption(scene, generator) + "\n")
        print(f"{arguments.count} stills are in {folder}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
