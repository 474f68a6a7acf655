"""A folder of the user's own pictures in one style, as stills to train on.

Each picture's caption is the text of the .txt file of the same name, or, where there is none, one caption for all that
the settings give. A folder without either is refused: without words a style would become what the network draws for
every prompt.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from lumiere.config import Settings
from lumiere.data.batches import Batch
from lumiere.data.folder import read_caption
from lumiere.media import read_image
from lumiere.video import from_uint8, resize_clip

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


class StillFolderSettings(Settings):
    """How the pictures of a folder become stills."""

    caption: str | None = Field(default=None, min_length=1)
    """What pictures without a .txt file show."""


class StillFolder:
    """Stills of a folder's pictures, drawn as a pure function of (seed, step); the middle of each is cut out.

    Raises ValueError for a folder without pictures, a picture that cannot be read, and one without a caption.
    """

    def __init__(self, folder: str | Path, settings: StillFolderSettings, *, size: tuple[int, int], seed: int) -> None:
        self.folder, self.seed = Path(folder), seed
        if not self.folder.is_dir():
            raise ValueError(
                f"{folder} is no folder (give one that holds pictures, each with a caption in a .txt file)"
            )
        paths = sorted(path for path in self.folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise ValueError(f"{folder} holds no pictures ({', '.join(IMAGE_SUFFIXES)})")
        untold = [path.name for path in paths if not path.with_suffix(".txt").exists()]
        if untold and settings.caption is None:
            raise ValueError(
                f"{folder}: {len(untold)} pictures have no .txt file that says what they show (the first is"
                f" {untold[0]}); write them, or give one caption for all with --stills.caption"
            )
        self._captions = [
            str(settings.caption) if path.name in untold else read_caption(path.with_suffix(".txt")) for path in paths
        ]
        self.pictures = torch.cat([_fitted(path, size) for path in paths])

    def __len__(self) -> int:
        return len(self.pictures)

    def captions(self) -> list[str]:
        """The captions of all pictures, in the order of names."""
        return list(self._captions)

    def batch(self, step: int, count: int, *, held_out: bool = False) -> Batch:
        """``count`` stills [B, 3, 1, H, W] of a step; each pass over the pictures visits all, in a new order.

        With ``held_out`` the pictures in the order of names: there are too few to keep some from training.
        """
        places = [self._place(step * count + index, in_order=held_out) for index in range(count)]
        return Batch(self.pictures[places], [self._captions[place] for place in places])

    def _place(self, position: int, *, in_order: bool) -> int:
        around, place = divmod(position, len(self))
        if in_order:
            return place
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + around)
        return int(torch.randperm(len(self), generator=generator)[place])


def _fitted(path: Path, size: tuple[int, int]) -> Tensor:
    """The middle of a picture [1, 3, 1, h, w], in -1..1."""
    picture = from_uint8(read_image(path)[None])[None]
    height, width = picture.shape[-2:]
    scale = min(height / size[0], width / size[1])
    high, wide = min(height, max(1, round(size[0] * scale))), min(width, max(1, round(size[1] * scale)))
    top, left = (height - high) // 2, (width - wide) // 2
    return resize_clip(picture[..., top : top + high, left : left + wide], size).clamp(-1, 1)
