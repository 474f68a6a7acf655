"""Making the files of the verbs that are given part of a clip: inputs read, the application called, outputs written."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from torch import Tensor

from lumiere.applications.cinemagraph import cinemagraph
from lumiere.applications.image_to_video import animate
from lumiere.applications.inpainting import inpaint, outpaint
from lumiere.applications.known_frames import extend, interpolate, loop, retime
from lumiere.applications.video_to_video import edit
from lumiere.cli.clip_maker import num_late_steps, num_steps
from lumiere.cli.clip_recipe import file_hashes
from lumiere.cli.edits import (
    Animate,
    Cinemagraph,
    Continue,
    Edit,
    GivenOptions,
    Inpaint,
    Interpolate,
    Loop,
    Outpaint,
    Retime,
)
from lumiere.cli.generate import CLEAR_WIDTH_PX
from lumiere.cli.loading import load_pipeline
from lumiere.cli.styles import put_on
from lumiere.device import choose_placement, installed_versions
from lumiere.diffusion.sample import num_steps_taken
from lumiere.media import (
    VideoInfo,
    check_writable,
    check_writable_like,
    probe,
    read_clip,
    read_image,
    read_mask_image,
    write_clip,
    write_like,
)
from lumiere.media.image import WHITE_FROM, checked_mask
from lumiere.pipeline import LumierePipeline, embedded_weights
from lumiere.progress import progress_bar
from lumiere.video import from_uint8, to_uint8

STYLE = ("style", "style_strength")
"""Options that the recipe tells in another form."""

Make = Callable[[LumierePipeline, dict[str, Any]], Tensor]
"""(pipeline, options of its call) -> the clip [1, 3, T, H, W] of one verb."""


def run_edit(wishes: GivenOptions) -> None:
    """Make the clip that a verb asks for and write it.

    Raises ValueError, before the network is loaded, for inputs that cannot be used and a path that cannot be written.
    """
    make, source = prepared(wishes)
    out = wishes.out or Path("outputs") / f"{_name(wishes)}-{wishes.verb}.mp4"
    (check_writable if source is None else check_writable_like)(out)
    styles = wishes.chosen_styles()
    placement = choose_placement(wishes.device or "auto", wishes.dtype or "auto")
    pipeline = load_pipeline(wishes.model, placement)
    style_files = put_on(pipeline, styles)
    started = time.monotonic()
    steps = wishes.steps or pipeline.config.default_steps
    with progress_bar("steps") as progress:
        task = progress.add_task(
            escape(f"{wishes.verb}: {_name(wishes)}"), total=_num_all_steps(pipeline, wishes, steps)
        )

        def advance(*_: object) -> dict[str, Tensor]:
            progress.advance(task)
            return {}

        call = {
            "negative_prompt": wishes.negative_prompt or None,
            "num_inference_steps": steps,
            "guidance_scale": wishes.guidance,
            "opening_frames": wishes.opening_frames,
            "generator": torch.Generator().manual_seed(wishes.seed),
            "super_resolution": not wishes.base_only,
            "callback_on_step_end": advance,
            "on_super_resolution_step": advance,
        }
        clip = make(pipeline, call)
    frames = to_uint8(clip[0])
    recipe = _recipe(wishes, str(placement.device), placement.dtype_name)
    _write(wishes, frames, out, source, recipe | {"styles": styles, "style_files": style_files})
    count, height, width, _ = frames.shape
    print(f"wrote {out} ({count} frames of {width}x{height}; made in {time.monotonic() - started:.1f} s)", flush=True)


def _num_all_steps(pipeline: LumierePipeline, wishes: GivenOptions, steps: int) -> int:
    """The steps of all networks that a verb takes; none where the video is to stay as it is."""
    strength = getattr(wishes, "strength", None)  # Of what starts from a video.
    if strength == 0:
        return 0
    of_base = num_steps(pipeline, steps) if strength is None else num_steps_taken(steps, strength)
    return of_base + num_late_steps(pipeline, not wishes.base_only)


@singledispatch
def prepared(wishes: GivenOptions) -> tuple[Make, VideoInfo | None]:
    """What makes the clip of a verb, its inputs read and checked; the source video whose rate and sound it keeps."""
    raise NotImplementedError(type(wishes).__name__)


@prepared.register
def _(wishes: Animate | Loop) -> tuple[Make, VideoInfo | None]:
    application = animate if isinstance(wishes, Animate) else loop
    image = _image(wishes.image)
    return lambda pipe, call: application(pipe, image, wishes.prompt, num_frames=wishes.frames, **call), None


@prepared.register
def _(wishes: Cinemagraph) -> tuple[Make, VideoInfo | None]:
    image = _image(wishes.image)
    mask = torch.from_numpy(read_mask_image(wishes.mask, size=(image.shape[2], image.shape[3])))[None, None].float()
    return lambda pipe, call: cinemagraph(pipe, image, mask, wishes.prompt, num_frames=wishes.frames, **call), None


@prepared.register
def _(wishes: Interpolate) -> tuple[Make, VideoInfo | None]:
    first, last = _image(wishes.first), _image(wishes.last)
    return lambda pipe, call: interpolate(pipe, first, last, wishes.prompt, num_frames=wishes.frames, **call), None


@prepared.register
def _(wishes: Inpaint) -> tuple[Make, VideoInfo | None]:
    clip, info = _video(wishes.video)
    if (wishes.mask is None) == (not wishes.box):
        raise ValueError("give either --mask FILE or --box FRAME:LEFT,TOP,RIGHT,BOTTOM, to say what to make")
    size = (clip.shape[3], clip.shape[4])
    if wishes.mask is None:
        to_make = gliding_boxes(wishes.box, num_frames=clip.shape[2], size=size)
    else:
        to_make = _mask(wishes.mask, num_frames=clip.shape[2], size=size, fps=info.fps)
    return lambda pipe, call: inpaint(pipe, clip, to_make, wishes.prompt, **call), info


@prepared.register
def _(wishes: Edit) -> tuple[Make, VideoInfo | None]:
    clip, info = _video(wishes.video)
    if not 0 <= wishes.strength <= 1:
        raise ValueError(f"--strength is {wishes.strength}; it lies in 0 (the video stays) to 1 (nothing of it does)")
    to_make = None
    if wishes.mask is not None:
        to_make = _mask(wishes.mask, num_frames=clip.shape[2], size=(clip.shape[3], clip.shape[4]), fps=info.fps)

    def make(pipe: LumierePipeline, call: dict[str, Any]) -> Tensor:
        count = int(pipe.config.num_frames) if wishes.trim else clip.shape[2]
        region = None if to_make is None else to_make[:, :, :count]
        return edit(pipe, clip[:, :, :count], wishes.prompt, strength=wishes.strength, to_make=region, **call)

    return make, info


@prepared.register
def _(wishes: Outpaint) -> tuple[Make, VideoInfo | None]:
    clip, info = _video(wishes.video)
    aspect = parsed_aspect(wishes.to) / info.pixel_aspect
    return lambda pipe, call: outpaint(pipe, clip, aspect, wishes.prompt, **call), info


@prepared.register
def _(wishes: Continue) -> tuple[Make, VideoInfo | None]:
    clip, info = _video(wishes.video)

    def make(pipe: LumierePipeline, call: dict[str, Any]) -> Tensor:
        new = extend(pipe, clip, wishes.prompt, num_new=wishes.frames, num_known=wishes.known, **call)
        return torch.cat([clip, new], dim=2)

    return make, info


@prepared.register
def _(wishes: Retime) -> tuple[Make, VideoInfo | None]:
    clip, info = _video(wishes.video)
    return lambda pipe, call: retime(pipe, clip, wishes.speed, wishes.prompt, **call), info


def gliding_boxes(boxes: tuple[str, ...], *, num_frames: int, size: tuple[int, int]) -> Tensor:
    """The mask [1, 1, T, H, W] of rectangles at key frames, FRAME:LEFT,TOP,RIGHT,BOTTOM, gliding between them.

    Before the first and after the last key frame they stay. Raises ValueError for what is no box in the picture.
    """
    keys: dict[int, list[float]] = {}
    for text in boxes:
        found = re.fullmatch(r"(\d+):(\d+),(\d+),(\d+),(\d+)", text.replace(" ", ""))
        if not found:
            raise ValueError(f"--box {text!r}: write FRAME:LEFT,TOP,RIGHT,BOTTOM, such as 0:10,20,50,60")
        frame, left, top, right, bottom = map(int, found.groups())
        height, width = size
        if not (left < right <= width and top < bottom <= height and frame < num_frames):
            raise ValueError(
                f"--box {text!r} has no area inside the {width}x{height} picture, or is beyond frame {num_frames - 1}"
            )
        keys[frame] = [left, top, right, bottom]
    frames = sorted(keys)
    edges = [np.interp(np.arange(num_frames), frames, [keys[frame][side] for frame in frames]) for side in range(4)]
    left_x, top_y, right_x, bottom_y = (torch.from_numpy(edge).view(-1, 1, 1) for edge in edges)
    y, x = torch.arange(size[0]).view(1, -1, 1) + 0.5, torch.arange(size[1]).view(1, 1, -1) + 0.5
    return ((x > left_x) & (x < right_x) & (y > top_y) & (y < bottom_y)).float()[None, None]


def parsed_aspect(text: str) -> float:
    """Width over height of "16:9" or "1.78". Raises ValueError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?::\s*(\d+(?:\.\d+)?))?\s*", text)
    if not found or not float(found[1]) or (found[2] and not float(found[2])):
        raise ValueError(f"--to is {text!r}; write proportions such as 16:9 or 1.5")
    return float(found[1]) / float(found[2] or 1)


def _image(path: Path) -> Tensor:
    """The image [1, 3, H, W] of a file, in -1..1."""
    return from_uint8(read_image(path)[None])[None, :, 0]


def _video(path: Path) -> tuple[Tensor, VideoInfo]:
    """Every frame [1, 3, T, H, W] of a video at its own rate, and what the file holds."""
    info = probe(path)
    frames, info = read_clip(path, fps=info.fps)
    return from_uint8(frames)[None], info


def _mask(path: Path, *, num_frames: int, size: tuple[int, int], fps: float) -> Tensor:
    """The mask [1, 1, T or 1, H, W] of an image, or of a video: of any rate, its picture nearest in time to each frame.

    Raises ValueError when it has another size, is not as long, or is all of one value.
    """
    try:
        single = read_mask_image(path, size=size)
        return torch.from_numpy(single)[None, None, None].float()
    except ValueError as error:
        if "animation" not in str(error) and "cannot be read" not in str(error):
            raise
    frames, _ = read_clip(path, fps=fps)
    if frames.shape[:3] != (num_frames, *size):
        found, wanted = (f"{t} frames of {w}x{h}" for t, h, w in (frames.shape[:3], (num_frames, *size)))
        raise ValueError(f"{path} has {found} at the video's rate; the video has {wanted} (make them the same)")
    return torch.from_numpy(checked_mask(frames.mean(-1) >= WHITE_FROM, path))[None, None].float()


def _write(
    wishes: GivenOptions, frames: np.ndarray, out: Path, source: VideoInfo | None, recipe: dict[str, Any]
) -> None:
    if source is not None:
        has_sound = not isinstance(wishes, Retime) and not getattr(wishes, "trim", False)
        write_like(
            iter(frames),
            out,
            source,
            fps=source.fps,
            recipe=recipe,
            with_sound=has_sound,
            lossless=wishes.lossless,
        )
        return
    scale = 1 if wishes.lossless else max(1, -(-CLEAR_WIDTH_PX // max(frames.shape[1:3])))
    # Players need even sides; doubled they are.
    if out.suffix.lower() == ".mp4" and not wishes.lossless and any(side * scale % 2 for side in frames.shape[1:3]):
        scale *= 2
    write_clip(frames, out, recipe=recipe, scale=scale, smooth=True, lossless=wishes.lossless)


def _recipe(wishes: GivenOptions, device: str, dtype: str) -> dict[str, Any]:
    """Everything that decided the pixels: the options, the input files' hashes, the model's, the versions."""
    options = asdict(wishes)
    inputs = {name: path for name, path in options.items() if isinstance(path, Path) and name not in ("out", "model")}
    return {
        "verb": wishes.verb,
        **{
            name: str(value) if isinstance(value, Path) else value
            for name, value in options.items()
            if name not in STYLE
        },
        "inputs": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in inputs.items()},
        "device": device,
        "dtype": dtype,
        "model_files": file_hashes(wishes.model or embedded_weights()),
        "versions": installed_versions(),
    }


def _name(wishes: GivenOptions) -> str:
    """The name of the verb's first input, without its ending."""
    paths = [getattr(wishes, name, None) for name in ("image", "first", "video")]
    return next(path.stem for path in paths if path is not None)
