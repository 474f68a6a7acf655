"""What of a clip is given: <C, M>, one builder for each application, and the random ones of training.

Here M = 1 means "given" and 0 "to be made", and C holds the given pixels and zeros elsewhere, as in the paper. People
paint the opposite, what is to be made or may move in white: the builders that take such a picture say so, and turn it.

Source: Lumiere, section 4 and figure 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lumiere.codec import Codec, PixelBlocks
from lumiere.config import Settings


@dataclass(frozen=True)
class Conditioning:
    """The given pixels [B, 3, T, H, W] in -1..1, zero where none is given, and their mask [B, 1, T, H, W], 0 or 1."""

    pixels: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.pixels.ndim != 5 or self.pixels.shape[1] != 3:
            raise ValueError(f"given pixels have shape {list(self.pixels.shape)}; needed are clips [B, 3, T, H, W]")
        wanted = (len(self.pixels), 1, *self.pixels.shape[2:])
        if tuple(self.mask.shape) != wanted:
            raise ValueError(f"the mask has shape {list(self.mask.shape)}; for these pixels it is {list(wanted)}")

    @classmethod
    def of(cls, clip: Tensor, given: Tensor) -> Conditioning:
        """``clip`` [B, 3, T, H, W] where ``given`` (0 or 1, of a shape that expands to its mask) is 1."""
        mask = given.to(clip).expand(len(clip), 1, *clip.shape[2:])
        # Not a product: what is not given may be anything, NaN too.
        return cls(torch.where(mask > 0, clip, torch.zeros_like(clip)), mask)

    def encoded(self, codec: Codec) -> Tensor:
        """<C, M> as the network sees it, [B, channels, T, h, w]; see ``num_channels``.

        The pixels are encoded after the masking, so that nothing of what is to be made shows through. A place of a
        VAE's grid counts as given where all of its pixels are.
        """
        return torch.cat([codec.encode(self.pixels), encoded_mask(self.mask, codec)], dim=1)

    def kept(self, codec: Codec) -> tuple[Tensor, Tensor]:
        """(values, mask) of what is given in the network's space: the mask has a channel for each value, or one."""
        if isinstance(codec, PixelBlocks):
            return codec.encode(self.pixels), codec.encode(self.mask.expand(-1, 3, -1, -1, -1))
        return codec.encode(self.pixels), encoded_mask(self.mask, codec)

    def made_small(self, factor: int) -> Conditioning:
        """The same for frames ``factor`` times smaller: a place is given where all of its pixels are, as their mean."""
        if factor == 1:
            return self
        window = (1, factor, factor)
        return Conditioning.of(F.avg_pool3d(self.pixels, window), -F.max_pool3d(-self.mask, window))

    def lengthened(self, num_frames: int) -> Conditioning:
        """The same with frames added at the end, of which nothing is given."""
        missing = (0, 0, 0, 0, 0, num_frames - self.mask.shape[2])
        return Conditioning(F.pad(self.pixels, missing), F.pad(self.mask, missing))

    def shortened(self, num_frames: int) -> Conditioning:
        """What is given of so many first frames."""
        return Conditioning(self.pixels[:, :, :num_frames], self.mask[:, :, :num_frames])

    def opened_with(self, frame: Tensor, is_wanted: Tensor) -> Conditioning:
        """The same with ``frame`` [B, 3, H, W] as the first one of the clips where ``is_wanted`` [B], all of it but for
        what was given of that already."""
        opened = self.put_into(first_frame(frame.to(self.pixels), self.mask.shape[2]).pixels)
        mask = self.mask.clone()
        mask[is_wanted, :, 0] = 1
        return Conditioning.of(opened, mask)

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on a device."""
        return Conditioning(self.pixels.to(device), self.mask.to(device))

    def put_into(self, clip: Tensor) -> Tensor:
        """The clip [B, 3, T, H, W] with the given pixels in their places, bit for bit."""
        return torch.where(self.mask.to(clip.device) > 0, self.pixels.to(clip), clip)


def num_channels(codec: Codec) -> int:
    """Channels of an encoded <C, M>: 4 for pixels, 16 for 2x2 blocks, one more than the latents' for a VAE."""
    return codec.channels + (codec.size**2 if isinstance(codec, PixelBlocks) else 1)


def encoded_mask(mask: Tensor, codec: Codec) -> Tensor:
    """The mask [B, 1, T, H, W] on the network's grid: blocks of it as channels, or the least of each place."""
    if isinstance(codec, PixelBlocks):
        return codec.encode(mask)
    factor = codec.spatial_factor
    return -F.max_pool3d(-mask, (1, factor, factor))


def nothing(shape: Sequence[int]) -> Conditioning:
    """Text-to-video: of a clip of ``shape`` [B, 3, T, H, W] nothing is given."""
    batch, _, frames, height, width = shape
    return Conditioning(torch.zeros(batch, 3, frames, height, width), torch.zeros(batch, 1, frames, height, width))


def frames_given(frames: Tensor, places: Sequence[int], num_frames: int) -> Conditioning:
    """``frames`` [B, 3, N, H, W] at ``places`` (N frame numbers) of a clip of ``num_frames``.

    Raises ValueError for places outside the clip, given twice, or of another number than the frames.
    """
    batch, _, count, height, width = frames.shape
    if len(places) != count:
        raise ValueError(f"{count} frames for {len(places)} places; give one place for each")
    outside = [place for place in places if not 0 <= place < num_frames]
    if outside or len(set(places)) != count:
        raise ValueError(f"places are {list(places)}; each is used once and lies from 0 to {num_frames - 1}")
    clip = frames.new_zeros(batch, 3, num_frames, height, width)
    mask = frames.new_zeros(batch, 1, num_frames, height, width)
    clip[:, :, list(places)], mask[:, :, list(places)] = frames, 1
    return Conditioning(clip, mask)


def first_frame(image: Tensor, num_frames: int) -> Conditioning:
    """Image-to-video: ``image`` [B, 3, H, W] is frame 0."""
    return frames_given(image[:, :, None], [0], num_frames)


def last_frame(image: Tensor, num_frames: int) -> Conditioning:
    """``image`` [B, 3, H, W] is where the clip ends."""
    return frames_given(image[:, :, None], [num_frames - 1], num_frames)


def first_and_last(first: Tensor, last: Tensor, num_frames: int) -> Conditioning:
    """Interpolation between two images [B, 3, H, W]; the same one twice makes a loop."""
    return frames_given(torch.stack([first, last], dim=2), [0, num_frames - 1], num_frames)


def kept_region(clip: Tensor, to_make: Tensor) -> Conditioning:
    """Inpainting and outpainting: ``clip`` [B, 3, T, H, W] is kept but where ``to_make`` [B, 1, T or 1, H, W] is 1."""
    return Conditioning.of(clip, 1 - to_make.to(clip))


def cinemagraph(image: Tensor, may_move: Tensor, num_frames: int) -> Conditioning:
    """Frame 0 is ``image`` [B, 3, H, W]; in all others it is kept but where ``may_move`` [B, 1, H, W] is 1."""
    given = (1 - may_move.to(image))[:, :, None].repeat(1, 1, num_frames, 1, 1)
    given[:, :, 0] = 1
    return Conditioning.of(image[:, :, None].expand(-1, -1, num_frames, -1, -1), given)


def continuation(end: Tensor, num_frames: int) -> Conditioning:
    """``end`` [B, 3, N, H, W], the last frames of a clip, are the first of the next one."""
    return frames_given(end, range(end.shape[2]), num_frames)


def slowed_down(clip: Tensor, factor: float) -> Conditioning:
    """Frame k of ``clip`` [B, 3, N, H, W] falls on frame round(k * ``factor``); those between are to be made.

    Raises ValueError for a factor below 1, which would give frames away.
    """
    if not factor >= 1:
        raise ValueError(f"a clip is slowed down {factor} times; frames can only be put between others from 1 on")
    places = [math.floor(index * factor + 0.5) for index in range(clip.shape[2])]
    return frames_given(clip, places, places[-1] + 1)


class MaskMix(Settings):
    """How often training is given what; the shares are relative to each other."""

    nothing: float = Field(default=0.35, ge=0)
    first_frame: float = Field(default=0.2, ge=0)
    several_frames: float = Field(default=0.15, ge=0)
    """First and last, a beginning, or any frames."""
    outside_boxes: float = Field(default=0.1, ge=0)
    """Everything outside a box that moves (inpainting)."""
    outside_blobs: float = Field(default=0.1, ge=0)
    """The same with a blob of random outline."""
    outside_objects: float = Field(default=0.05, ge=0)
    """The same with the regions of the clip's own objects, where it is known where they are; boxes elsewhere."""
    inside_boxes: float = Field(default=0.05, ge=0)
    """Only what is inside of a box (outpainting)."""
    cinemagraph: float = Field(default=0.05, ge=0)
    """The first frame everywhere outside a region, all of it in frame 0."""

    def kinds(self) -> dict[str, float]:
        """The shares by name; raises ValueError when all are 0."""
        shares = self.model_dump()
        if not sum(shares.values()):
            raise ValueError("every share of the mask mix is 0; give at least one kind of mask a share")
        return shares


def random_conditioning(
    clip: Tensor, mix: MaskMix, generator: torch.Generator, *, objects: Tensor | None = None
) -> Conditioning:
    """What is given of each of the training clips [B, 3, T, H, W], drawn by ``mix``.

    ``objects`` [B, 1, T, H, W] is 1 where the clips' objects are, None where nobody knows.

    Made with the builders above, so that training sees what the applications will ask for. What then has to be made
    is ``put_into(clip)``: outside the region of a cinemagraph the clip stands still.
    """
    shares = mix.kinds()
    weights = torch.tensor(list(shares.values()))
    drawn = torch.multinomial(weights, len(clip), replacement=True, generator=generator)
    names = list(shares)
    parts = []
    for index, kind in enumerate(drawn.tolist()):
        one = slice(index, index + 1)
        if names[kind] == "outside_objects" and objects is not None and bool(objects[one].any()):
            parts.append(kept_region(clip[one], objects[one]))
        else:
            parts.append(_KINDS[names[kind]](clip[one], generator))
    return Conditioning(torch.cat([part.pixels for part in parts]), torch.cat([part.mask for part in parts]))


def moving_boxes(frames: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A box [1, 1, T, H, W] of 1 that glides from one random place and size to another."""
    low, high = _corners(frames, generator)
    y, x = _grid(height, width)
    inside = (y >= low[0]) & (y <= high[0]) & (x >= low[1]) & (x <= high[1])
    return inside.float()[None, None]


def moving_blobs(frames: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A blob [1, 1, T, H, W] of 1 of random outline that glides from one place to another."""
    low, high = _corners(frames, generator)
    y, x = _grid(height, width)
    middle, half = (low + high) / 2, (high - low) / 2
    angle = torch.atan2(y - middle[0], x - middle[1])
    waves = torch.rand(4, 2, generator=generator)
    bumps = sum(
        float(size) * 0.25 * torch.cos(order * angle + 2 * math.pi * float(phase))
        for order, (size, phase) in enumerate(waves, start=2)
    )
    distance = ((y - middle[0]) / half[0]) ** 2 + ((x - middle[1]) / half[1]) ** 2
    return (distance.sqrt() <= 0.8 + bumps).float()[None, None]


def _corners(frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Upper left and lower right [2, T, 1, 1] of something that glides, in picture heights and widths."""
    ends = torch.rand(2, 4, generator=generator)
    share = torch.linspace(0, 1, frames).view(-1, 1)
    place = torch.lerp(ends[:1], ends[1:] if float(ends[0, 3]) > 0.4 else ends[:1], share)
    half = 0.12 + 0.28 * place[:, 2:4]
    middle = 0.1 + 0.8 * place[:, :2]
    low, high = middle - half, middle + half
    return low.T[..., None, None], high.T[..., None, None]


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Middles of the pixels [1, H, 1] and [1, 1, W], 0..1."""
    y, x = ((torch.arange(size) + 0.5) / size for size in (height, width))
    return y.view(1, -1, 1), x.view(1, 1, -1)


def _first_frame(clip: Tensor, generator: torch.Generator) -> Conditioning:
    return first_frame(clip[:, :, 0], clip.shape[2])


def _several_frames(clip: Tensor, generator: torch.Generator) -> Conditioning:
    count = clip.shape[2]
    luck = float(torch.rand((), generator=generator))
    if luck < 0.4:
        return first_and_last(clip[:, :, 0], clip[:, :, -1], count)
    if luck < 0.6:
        return last_frame(clip[:, :, -1], count)
    known = int(torch.randint(1, max(2, count // 2), (), generator=generator))
    if luck < 0.8:
        return continuation(clip[:, :, :known], count)
    places = sorted(torch.randperm(count, generator=generator)[:known].tolist())
    return frames_given(clip[:, :, places], places, count)


def _region(
    make: Callable[[int, int, int, torch.Generator], Tensor], *, is_given: bool
) -> Callable[[Tensor, torch.Generator], Conditioning]:
    """What keeps the clip inside of a random region, or outside of it."""

    def kept(clip: Tensor, generator: torch.Generator) -> Conditioning:
        frames, height, width = clip.shape[2:]
        region = make(frames, height, width, generator)
        return kept_region(clip, 1 - region if is_given else region)

    return kept


def _cinemagraph(clip: Tensor, generator: torch.Generator) -> Conditioning:
    """As the application, but of a clip: outside the region it must stand still, so all of it is the first frame's."""
    make = moving_boxes if float(torch.rand((), generator=generator)) < 0.5 else moving_blobs
    height, width = clip.shape[3:]
    region = make(1, height, width, generator)[:, :, 0]
    return cinemagraph(clip[:, :, 0], region, clip.shape[2])


_KINDS: dict[str, Callable[[Tensor, torch.Generator], Conditioning]] = {
    "nothing": lambda clip, _: nothing(clip.shape),
    "first_frame": _first_frame,
    "several_frames": _several_frames,
    "outside_boxes": _region(moving_boxes, is_given=False),
    "outside_blobs": _region(moving_blobs, is_given=False),
    "outside_objects": _region(moving_boxes, is_given=False),
    "inside_boxes": _region(moving_boxes, is_given=True),
    "cinemagraph": _cinemagraph,
}
