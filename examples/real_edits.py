"""Edits of real pictures and clips, for docs/edits.md: cars taken away, a photograph animated, a painting in motion.

The videos and pictures are not part of the project: they are read from a folder of shared data, whose index.tsv names
their sources. The network is one that has learned real clips (lumiere train finetune_clips).

    python examples/real_edits.py ../shared/data runs/finetune_clips/motion/export
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import Tensor

from lumiere import LumierePipeline
from lumiere.applications.cinemagraph import cinemagraph
from lumiere.applications.image_to_video import animate
from lumiere.applications.inpainting import inpaint
from lumiere.device import choose_placement
from lumiere.media import read_clip, read_image
from lumiere.video import contact_sheet, from_uint8, psnr_db, resize_clip

HEIGHT = 108
"""Height in pixels that the videos are edited at; the network's own is below."""
NUM_SHOWN = 8


@dataclass(frozen=True)
class Arguments:
    """Edit real pictures and clips and draw a sheet of them."""

    data: tyro.conf.Positional[Path]
    """The shared data: a folder with clips/, images/ and masks/."""

    model: tyro.conf.Positional[Path]
    """A pipeline folder that can be told of given frames."""

    sheet: Path = Path("docs/edits.png")
    """The picture to write."""

    guidance: float = 1.0
    """How closely to follow the prompts; 1: as the network says, which is calmer after little training."""

    grow: int = 4
    """How many pixels of the video's own the masks are widened by: they leave a rim of the object out."""


def filled_from_border(clip: Tensor, hole: Tensor) -> Tensor:
    """``clip`` [1, 3, T, H, W] with its ``hole`` [1, 1, T, H, W] filled ring by ring, from its neighbours."""
    frames, known = clip[0].transpose(0, 1) * (1 - hole[0].transpose(0, 1)), 1 - hole[0].transpose(0, 1)
    while bool((known == 0).any()):
        weight = F.avg_pool2d(known, 3, stride=1, padding=1)
        near = F.avg_pool2d(frames, 3, stride=1, padding=1) / weight.clamp(min=1e-6)
        ring = (known == 0) & (weight > 0)
        frames = torch.where(ring, near, frames)
        known = torch.where(ring, torch.ones_like(known), known)
    return frames.transpose(0, 1)[None]


def psnr_in(made: Tensor, truth: Tensor, hole: Tensor) -> float:
    """PSNR in dB inside the hole of clips [1, 3, T, H, W] in -1..1."""
    inside = hole.expand_as(made) > 0
    return float(psnr_db(made[inside][None], truth[inside][None]))


def options(seed: int, guidance: float) -> dict[str, Any]:
    """What the edits' calls are told."""
    return {"guidance_scale": guidance, "generator": torch.Generator().manual_seed(seed)}


def without_cars(pipeline: LumierePipeline, data: Path, *, grow: int, guidance: float) -> list[Tensor]:
    """(source, hole in grey, made, its border copied inward) of the car park; prints the PSNR in the hole."""
    folder = data / "masks" / "cars_parking_cc-by"
    frames, _ = read_clip(folder / "video.mp4", fps=12.5)
    masks = np.stack([np.asarray(Image.open(path).convert("L")) >= 128 for path in sorted((folder / "mask").iterdir())])
    count = min(len(frames), len(masks))
    size = (HEIGHT, round(frames.shape[2] * HEIGHT / frames.shape[1] / 2) * 2)
    clip = resize_clip(from_uint8(frames[:count])[None], size)
    wide = F.max_pool2d(torch.from_numpy(masks[:count])[:, None].float(), 2 * grow + 1, stride=1, padding=grow)
    hole = (F.interpolate(wide, size, mode="area") > 0).float().transpose(0, 1)[None]
    plate = resize_clip(from_uint8(read_image(folder / "background.png")[None])[None], size).expand_as(clip)
    made = inpaint(pipeline, clip, hole, "an empty car park", **options(0, guidance))
    border = filled_from_border(clip, hole)
    for name, one in (("made", made), ("border copied inward", border), ("nothing done", clip)):
        print(f"cars: PSNR in the hole, {name}: {psnr_in(one, plate, hole):.1f} dB")
    return [clip, torch.where(hole.expand_as(clip) > 0, torch.full_like(clip, -0.4), clip), made, border]


def still(path: Path) -> Tensor:
    """A picture [1, 3, H, W] in -1..1."""
    return from_uint8(read_image(path)[None])[None, :, 0]


def shown(clip: Tensor) -> Tensor:
    """Eight frames [3, 8, 96, W] spread over a clip [1, 3, T, H, W]."""
    at = torch.linspace(0, clip.shape[2] - 1, NUM_SHOWN).round().long()
    width = round(clip.shape[4] * 96 / clip.shape[3])
    return resize_clip(clip[:, :, at], (96, width))[0].clamp(-1, 1)


def main(arguments: Arguments) -> None:
    """Make all edits and the sheet."""
    placement = choose_placement()
    pipeline = LumierePipeline.from_pretrained(arguments.model, dtype=placement.dtype).to(placement.device)
    images = arguments.data / "images"
    rows = [
        shown(clip) for clip in without_cars(pipeline, arguments.data, grow=arguments.grow, guidance=arguments.guidance)
    ]
    photo = still(images / "flag_i2v.jpg")
    rows.append(shown(animate(pipeline, photo, "a flag waves", **options(1, arguments.guidance))))
    painting = still(images / "the_great_wave.jpg")
    region = torch.zeros_like(painting[:, :1])
    height, width = region.shape[-2:]
    region[..., height // 3 : height - 4, 4 : width - 4] = 1
    rows.append(shown(cinemagraph(pipeline, painting, region, "waves move", **options(2, arguments.guidance))))
    sheets = [contact_sheet(row, columns=NUM_SHOWN) for row in rows]
    widest = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(sheet, ((0, 4), (0, widest - sheet.shape[1]), (0, 0)), constant_values=255) for sheet in sheets]
    Image.fromarray(np.concatenate(padded)).save(arguments.sheet)
    print(f"wrote {arguments.sheet}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
