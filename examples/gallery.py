"""Make the README's clips again, with the shipped weights: docs/gallery/*.gif and a contact sheet of them.

python examples/gallery.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from lumiere import LumierePipeline
from lumiere.device import choose_placement
from lumiere.media import write_clip
from lumiere.video import contact_sheet, to_uint8

CLIPS = {
    "bounce": ("a red ball bounces slowly by the ocean", 0),
    "spin": ("a yellow star spins quickly at night", 1),
    "swing": ("a purple heart swings slowly at dusk", 2),
    "orbit": ("an orange fish circles quickly over the sea", 3),
    "pulse": ("a pink heart pulses quickly on the meadow", 4),
    "rise": ("a cyan moon rises slowly in the desert", 5),
    "slide": ("a green tree slides left slowly in the snow", 6),
    "grow": ("a blue mushroom grows slowly in a meadow", 7),
}
SHOWN = ("slide", "rise", "grow")
"""Those that the README shows moving; the others are in the sheet."""
SCALE = 4


def main() -> None:
    """Write the clips and the sheet: a row for each clip, every fifth frame."""
    placement = choose_placement()
    pipeline = LumierePipeline.from_pretrained(dtype=placement.dtype).to(placement.device)
    pipeline.set_progress_bar_config(disable=True)
    docs = Path(__file__).parents[1] / "docs"
    (docs / "gallery").mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (prompt, seed) in CLIPS.items():
        output = pipeline(prompt, generator=torch.Generator().manual_seed(seed), output_type="pt")
        clip = output.frames[0].transpose(0, 1) * 2 - 1
        recipe = {"prompt": prompt, "seed": seed}
        if name in SHOWN:
            write_clip(to_uint8(clip), docs / "gallery" / f"{name}.gif", recipe=recipe, scale=SCALE, smooth=True)
            (docs / "gallery" / f"{name}.json").unlink()
        rows.append(clip[:, ::5])
    sheet = contact_sheet(torch.cat(rows, dim=1), columns=rows[0].shape[1], scale=2)
    Image.fromarray(sheet).save(docs / "gallery.png")


if __name__ == "__main__":
    main()
