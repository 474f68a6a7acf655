"""Real clips made small and four times larger again by the super-resolution inside, for docs/super_resolution.md.

The videos are read from a folder of shared data, whose index.tsv names their sources. Prints the PSNR of what was made
and of bicubic enlargement, and draws a sheet: small, bicubic, made, true.

    python examples/upscale_real.py ../shared/data
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from PIL import Image
from torch import Tensor

from lumiere import LumierePipeline
from lumiere.conditioning.text import text_encoder_for
from lumiere.device import choose_placement
from lumiere.media import read_clip
from lumiere.video import FPS, contact_sheet, from_uint8, in_blocks, psnr_db, resize_clip

CLIPS = {"drawn_mountains_moon.mp4": (128, 128), "flower_opening.mp4": (128, 224)}
"""File names and the (height, width) that the true clips are brought to; multiples of 16."""
NUM_FRAMES = 32


@dataclass(frozen=True)
class Arguments:
    """Make real clips small and large again."""

    data: tyro.conf.Positional[Path]
    """The shared data: a folder with clips/."""

    sheet: Path = Path("docs/super_resolution_real.png")
    """The picture to write."""

    noise_level: int = 0
    """How little to trust the small clip's pixels: 0 is entirely, as it is clean."""


def enlarged(pipeline: LumierePipeline, small: Tensor, noise_level: int) -> Tensor:
    """The clip [1, 3, T, 4H, 4W] that super-resolution makes of a small one without being told what it shows."""
    states = text_encoder_for(pipeline.tokenizer, pipeline.text_encoder).encode([""])
    return pipeline.super_resolution(
        small,
        states=(states, states),
        prompts=([""], [""]),
        generator=[torch.Generator().manual_seed(0)],
        noise_level=noise_level,
    )


def rows_of(pipeline: LumierePipeline, path: Path, size: tuple[int, int], noise_level: int) -> Tensor:
    """Two frames of a video, each a row: small, bicubic, made, true; prints how near the truth they are."""
    frames, _ = read_clip(path, fps=FPS)
    truth = resize_clip(from_uint8(frames[:NUM_FRAMES])[None], size)
    scale = pipeline.super_resolution.scale
    small = resize_clip(truth, (size[0] // scale, size[1] // scale))
    bicubic, made = resize_clip(small, size).clamp(-1, 1), enlarged(pipeline, small, noise_level)
    print(f"{path.name}: PSNR {float(psnr_db(made, truth)):.2f} dB, bicubic {float(psnr_db(bicubic, truth)):.2f} dB")
    side_by_side = torch.cat([in_blocks(small, scale), bicubic, made, truth], dim=-1)[0]
    return side_by_side[:, [0, NUM_FRAMES - 1]]


def main(arguments: Arguments) -> None:
    """Make every clip large and draw the sheet."""
    placement = choose_placement()
    pipeline = LumierePipeline.from_pretrained(dtype=placement.dtype).to(placement.device)
    level = arguments.noise_level
    rows = [rows_of(pipeline, arguments.data / "clips" / name, size, level) for name, size in CLIPS.items()]
    width = max(clip.shape[-1] for clip in rows)
    padded = [torch.nn.functional.pad(clip, (0, width - clip.shape[-1]), value=1.0) for clip in rows]
    arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(contact_sheet(torch.cat(padded, dim=1), columns=1)).save(arguments.sheet)
    print(f"wrote {arguments.sheet}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
