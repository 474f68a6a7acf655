"""The verbs that are given part of a clip, an image or more, or a video of which some is made anew.

White in a mask is what is to be made, or may move.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from lumiere.cli.styles import StyleOptions
from lumiere.cli.words import unset
from lumiere.strengths import EDIT_STRENGTH

Image = Annotated[Positional[Path], arg(metavar="IMAGE")]
Video = Annotated[Positional[Path], arg(metavar="VIDEO")]
Prompt = Annotated[Positional[str], arg(metavar="PROMPT", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class GivenOptions(StyleOptions):
    """What every verb takes that is given part of a clip."""

    negative_prompt: Annotated[str, arg(metavar="TEXT", help_behavior_hint="")] = ""
    """What the clip should not show."""

    seed: Annotated[int, arg(metavar="N")] = 0
    """Another seed makes another clip."""

    steps: Annotated[int | None, unset("N")] = None
    """Denoising steps."""

    guidance: Annotated[float | None, unset("X")] = None
    """How closely to follow the prompt; 1 is no guidance."""

    opening_frames: Annotated[int | None, unset("N")] = None
    """Where no frame is given whole, the first is made first, as that of so many (1: a still); 0 makes all at once."""

    base_only: bool = False
    """Leave the clip as the base makes it, without super-resolution."""

    model: Annotated[Path | None, unset("FOLDER", "the model inside the package")] = None
    """A model folder."""

    device: Annotated[str | None, unset("NAME", "the fastest of this machine")] = None
    """cpu, cuda, cuda:1, mps, or auto."""

    dtype: Annotated[str | None, unset("NAME", "what the device does fast")] = None
    """float32, bfloat16, float16, or auto."""

    out: Annotated[Path | None, unset("FILE", "outputs/NAME-VERB.mp4")] = None
    """The file to write: .mp4, and for verbs that start from images also .gif, .webp or .apng (exact), or a folder."""

    lossless: bool = False
    """Write H.264 without loss of a bit but that of its colour format, so that what was given can be compared."""

    def run(self) -> None:
        """Make and write the clip, checking first everything that can be checked."""
        from lumiere.cli.edit_maker import run_edit

        run_edit(self)

    @property
    def verb(self) -> str:
        """The verb's name."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class ImageOptions(GivenOptions):
    """What the verbs take that are given one image."""

    image: Image
    """The image: any size, mode and proportions."""
    prompt: Prompt
    """What happens."""
    frames: Annotated[int | None, unset("N")] = None
    """Frames that are made, at 16 a second."""


@dataclass(frozen=True)
class VideoOptions(GivenOptions):
    """What the verbs take that are given a video."""

    video: Video
    """The video."""
    prompt: Prompt
    """What the clip shows."""


@dataclass(frozen=True)
class Animate(ImageOptions):
    """Bring an image to life: it is the first frame of a clip."""


@dataclass(frozen=True)
class Cinemagraph(ImageOptions):
    """A still image of which one region moves."""

    mask: Annotated[Path, arg(metavar="IMAGE")] = field(kw_only=True)
    """A picture of the image's size, white where it may move."""


@dataclass(frozen=True)
class Interpolate(GivenOptions):
    """A clip from one image to another."""

    first: Image
    """The image that the clip begins with."""
    last: Image
    """The image that it ends with, of the same size."""
    prompt: Prompt
    """What happens between."""
    frames: Annotated[int | None, unset("N")] = None
    """Frames of the clip, at 16 a second."""


@dataclass(frozen=True)
class Loop(ImageOptions):
    """A clip that can be played over and over: it comes back to the image that it begins with, and its last frame,
    which is the image again, is left out."""


@dataclass(frozen=True)
class Edit(VideoOptions):
    """Make a video anew, from its own noised frames: what the prompt names changes, its course stays."""

    strength: Annotated[float, arg(metavar="S")] = EDIT_STRENGTH
    """How much is made anew: 0 gives the video back as the network's frames hold it, 1 keeps nothing of it."""
    mask: Annotated[Path | None, unset("FILE", "everything")] = None
    """Where to make it anew, in white: an image, or a video of as many frames."""
    trim: bool = False
    """Of a video longer than the network's clips, make only the beginning, without sound; otherwise all of it is made,
    in windows that overlap."""


@dataclass(frozen=True)
class Inpaint(VideoOptions):
    """Make a part of a video anew; every pixel outside stays, and so do its rate and sound."""

    mask: Annotated[Path | None, unset("FILE", "none")] = None
    """Where to make it, in white: an image, or a video of as many frames."""
    box: UseAppendAction[
        Annotated[tuple[str, ...], arg(metavar="FRAME:LEFT,TOP,RIGHT,BOTTOM", help_behavior_hint="")]
    ] = ()
    """Instead of a mask: a rectangle in pixels at one frame, and again at others, between which it glides."""


@dataclass(frozen=True)
class Outpaint(VideoOptions):
    """Make a video's picture wider or higher; every pixel of it stays, and so do its rate and sound."""

    to: Annotated[str, arg(metavar="W:H")] = "16:9"
    """The new proportions, width to height."""


@dataclass(frozen=True)
class Continue(VideoOptions):
    """Go on with a video where it ends; its sound ends where it ended."""

    frames: Annotated[int, arg(metavar="N")] = 64
    """New frames, at the video's own rate."""
    known: Annotated[int, arg(metavar="N")] = 16
    """Frames of the video's end that the network sees."""


@dataclass(frozen=True)
class Retime(VideoOptions):
    """Slow a video down, with the frames between made; it gets no sound."""

    speed: Annotated[float, arg(metavar="X")] = 0.5
    """The new speed, above 0 and below 1."""
