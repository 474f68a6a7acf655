"""``lumiere upscale``: a video file made larger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from lumiere.cli.words import unset


@dataclass(frozen=True)
class Upscale:
    """Make a video larger with super-resolution, whatever its length and size; its sound and rate stay.

    A long video goes through in parts that overlap; where they do, their frames are faded into each other.
    """

    video: Annotated[Positional[Path], arg(metavar="VIDEO")]
    """The video file."""

    prompt: Annotated[str, arg(metavar="TEXT", help_behavior_hint="")] = ""
    """What the video shows, where the network can make use of it."""

    negative_prompt: Annotated[str, arg(metavar="TEXT", help_behavior_hint="")] = ""
    """What it should not show."""

    seed: Annotated[int, arg(metavar="N")] = 0
    """Another seed makes other details."""

    steps: Annotated[int | None, unset("N")] = None
    """Denoising steps."""

    guidance: Annotated[float | None, unset("X")] = None
    """How closely to follow the prompt; 1 is no guidance."""

    noise_level: Annotated[int | None, unset("N")] = None
    """How little to trust the pixels of the video, from 0 (entirely) to 999; more lets the network invent more."""

    back_projection: Annotated[float | None, unset("X")] = None
    """How far the large clip must say what the video says when it is made small again: 0 not at all, 1 wholly."""

    part: Annotated[int | None, unset("N", "what fits in half of the free memory, 80 at most")] = None
    """Frames in memory at a time."""

    window: Annotated[int | None, unset("N", "the model's, or 512 for larger pictures")] = None
    """Width and height in pixels of the large picture that go through the network at once; windows share a quarter."""

    overlap: Annotated[int, arg(metavar="N")] = 8
    """Frames that two parts share."""

    model: Annotated[Path | None, unset("FOLDER", "the model inside the package")] = None
    """A model with super-resolution, or the folder of a stage: one of ours, an x4 upscaler's or a DeepFloyd IF-II's."""

    device: Annotated[str | None, unset("NAME", "the fastest of this machine")] = None
    """cpu, cuda, cuda:1, mps, or auto."""

    dtype: Annotated[str | None, unset("NAME", "what the device does fast")] = None
    """float32, bfloat16, float16, or auto."""

    out: Annotated[Path | None, unset("FILE", "outputs/NAME-large.mp4")] = None
    """The file to write, an .mp4."""

    def run(self) -> None:
        """Make and write the video, checking first everything that can be checked."""
        from lumiere.cli.video_maker import upscale_file

        upscale_file(self, self.out or Path("outputs") / f"{self.video.stem}-large.mp4")
