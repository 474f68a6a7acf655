"""Make the gallery again, with the shipped weights: the README's clips, and docs/gallery.md with every application.

make gallery
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lumiere import LumierePipeline
from lumiere.applications.cinemagraph import cinemagraph
from lumiere.applications.image_to_video import animate
from lumiere.applications.inpainting import inpaint, outpaint
from lumiere.applications.known_frames import extend, interpolate, loop, retime
from lumiere.applications.stylization import apply_style, embedded_styles, remove_style
from lumiere.applications.video_to_video import edit
from lumiere.data.captions import caption, terse_caption
from lumiere.data.storybook import Actor, Scene, frame_times, object_region, render, without_actors
from lumiere.device import choose_placement
from lumiere.media import write_clip
from lumiere.media.write import under_temporary_name
from lumiere.progress import progress_bar
from lumiere.video import FPS, contact_sheet, to_uint8

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
SHOWN = ("bounce", "orbit", "slide")
"""Those that the README shows moving; the others are in the sheet."""
STYLED = "slide"
"""That which is made in every style."""
CLIP_PX = 128
"""Width of all clips and inputs, as the weights inside make them with super-resolution."""
SHOWN_PX = 256
"""Width of a clip of the gallery on the page."""
GAP_PX = 4
"""Between what is given and what was made."""
WEBP_QUALITY = 85
"""Of the gallery's clips, of 100: exact ones would be ten times as large."""
BAND = (28, 100)
"""The rows of a clip that outpainting is given."""
NOT_GIVEN = -0.4
"""The grey of what is to be made, where it is shown beside what was made of it."""

DOCS = Path(__file__).parents[1] / "docs"
TIMES = frame_times()


@dataclass(frozen=True)
class Given:
    """Part of a clip [1, 3, T, H, W] as it is shown (what is to be made in grey), and what makes the rest."""

    shown: Tensor
    make: Callable[[LumierePipeline, dict[str, Any]], Tensor]


@dataclass(frozen=True)
class Entry:
    """One picture of the gallery; ``given`` None makes a clip from the prompt alone."""

    name: str
    what: str
    prompt: str
    seed: int
    given: Given | None = None


def scene(background: str, thing: str, colour: str, motion: str, speed: str = "slow", **changes: Any) -> Scene:
    """A scene of one object whose motion begins with the clip."""
    return Scene(background, (Actor(thing, colour, motion, speed, **changes),), seed=0.3)


def clip_of(one: Scene) -> Tensor:
    """Its true clip [1, 3, 80, CLIP_PX, CLIP_PX]."""
    return render([one], TIMES, size=CLIP_PX)


def greyed(clip: Tensor, to_make: Tensor) -> Tensor:
    """The clip with grey where ``to_make`` (of a shape that expands to it) is 1."""
    return torch.where(to_make.expand_as(clip) > 0, torch.full_like(clip, NOT_GIVEN), clip)


def frames_to_make(given: Sequence[int], count: int = 80) -> Tensor:
    """1 [1, 1, T, 1, 1] in all frames but those that are given."""
    return torch.tensor([float(index not in given) for index in range(count)]).view(1, 1, -1, 1, 1)


def entries() -> list[Entry]:
    """Every application, with inputs drawn by the storybook."""
    rise = scene("desert", "moon", "cyan", "rise")
    slide = scene("snow", "tree", "green", "slide left")
    pulse = scene("night", "star", "yellow", "pulse")
    bounce = scene("sea", "ball", "red", "bounce")
    fish = scene("dusk", "fish", "orange", "slide right")
    new = replace(slide, actors=(replace(slide.actors[0], object="mushroom", colour="purple"),))
    blue = replace(fish, actors=(replace(fish.actors[0], colour="blue"),))
    rise_clip, slide_clip, pulse_clip, bounce_clip, fish_clip = map(clip_of, (rise, slide, pulse, bounce, fish))
    around = object_region(slide_clip, clip_of(without_actors(slide)))
    stays = object_region(pulse_clip, clip_of(without_actors(pulse))).amax(2)
    stays[..., [0, -1], :], stays[..., [0, -1]] = 0, 0
    moon, star = rise_clip[:, :, 0], pulse_clip[:, :, 0]
    band = fish_clip[..., slice(*BAND), :]
    sides = torch.ones(CLIP_PX, 1)
    sides[slice(*BAND)] = 0
    return [
        Entry("text", "From text alone: `lumiere generate`", *CLIPS["rise"]),
        Entry(
            "animate",
            "From an image: `lumiere animate`",
            terse_caption(rise),
            1,
            Given(
                greyed(rise_clip, frames_to_make([0])), lambda p, call: animate(p, moon, terse_caption(rise), **call)
            ),
        ),
        Entry(
            "loop",
            "An image, in an endless loop: `lumiere loop`",
            terse_caption(pulse),
            2,
            Given(greyed(pulse_clip, frames_to_make([0])), lambda p, call: loop(p, star, terse_caption(pulse), **call)),
        ),
        Entry(
            "cinemagraph",
            "An image of which one region moves: `lumiere cinemagraph`",
            caption(pulse),
            3,
            Given(
                greyed(pulse_clip[:, :, :1].expand_as(pulse_clip), stays[:, :, None] * frames_to_make([0])),
                lambda p, call: cinemagraph(p, star, stays, caption(pulse), **call),
            ),
        ),
        Entry(
            "interpolate",
            "Between two images: `lumiere interpolate`",
            caption(fish),
            4,
            Given(
                greyed(fish_clip, frames_to_make([0, 79])),
                lambda p, call: interpolate(p, fish_clip[:, :, 0], fish_clip[:, :, -1], caption(fish), **call),
            ),
        ),
        Entry(
            "replace",
            "Another object in its place: `lumiere inpaint`",
            caption(new),
            5,
            Given(greyed(slide_clip, around), lambda p, call: inpaint(p, slide_clip, around, caption(new), **call)),
        ),
        Entry(
            "remove",
            "The object taken away: `lumiere inpaint`",
            "in the snow",
            6,
            Given(greyed(slide_clip, around), lambda p, call: inpaint(p, slide_clip, around, "in the snow", **call)),
        ),
        Entry(
            "outpaint",
            "What lies above and below: `lumiere outpaint --to 1:1`",
            caption(fish),
            7,
            Given(greyed(fish_clip, sides), lambda p, call: outpaint(p, band, 1.0, caption(fish), **call)),
        ),
        Entry(
            "continue",
            "How it goes on after the first 32 frames: `lumiere continue`",
            caption(bounce),
            8,
            Given(
                greyed(bounce_clip, frames_to_make(range(32))),
                lambda p, call: torch.cat(
                    [
                        bounce_clip[:, :, :32],
                        extend(p, bounce_clip[:, :, :32], caption(bounce), num_new=48, num_known=32, **call),
                    ],
                    dim=2,
                ),
            ),
        ),
        Entry(
            "retime",
            "40 frames at half their speed: `lumiere retime --speed 0.5`",
            caption(bounce),
            9,
            Given(
                greyed(bounce_clip[:, :, :79], frames_to_make(range(0, 79, 2), 79)),
                lambda p, call: retime(p, bounce_clip[:, :, :80:2], 0.5, caption(bounce), **call),
            ),
        ),
        Entry(
            "edit",
            "Made anew in another colour: `lumiere edit`",
            caption(blue),
            10,
            Given(fish_clip, lambda p, call: edit(p, fish_clip, caption(blue), **call)),
        ),
        Entry(
            "edit_style",
            "Made anew in a style: `lumiere edit --style watercolour --strength 0.6 --guidance 1`",
            caption(slide),
            11,
            Given(
                slide_clip,
                lambda p, call: _in_style(
                    p,
                    "watercolour",
                    lambda: edit(p, slide_clip, caption(slide), strength=0.6, guidance_scale=1.0, **call),
                ),
            ),
        ),
    ]


def _in_style(pipeline: LumierePipeline, style: str, make: Callable[[], Tensor]) -> Tensor:
    """What is made while the pipeline wears one of the package's styles."""
    apply_style(pipeline, style)
    try:
        return make()
    finally:
        remove_style(pipeline)


def styled_clips(pipeline: LumierePipeline, prompt: str, seed: int) -> list[Tensor]:
    """One prompt and seed plain and in every style of the package, [3, T, H, W] each."""

    def made() -> Tensor:
        output: Any = pipeline(prompt, generator=torch.Generator().manual_seed(seed), output_type="pt")
        return output.frames[0].transpose(0, 1) * 2 - 1

    return [made(), *(_in_style(pipeline, style, made) for style in embedded_styles())]


def write_readme_clips(pipeline: LumierePipeline) -> None:
    """docs/gallery/*.gif of the README, and docs/gallery.png: a row for each clip, every tenth frame."""
    rows = []
    with progress_bar("clips") as progress:
        for name, (prompt, seed) in progress.track(CLIPS.items(), description="the README's clips"):
            output = pipeline(prompt, generator=torch.Generator().manual_seed(seed), output_type="pt")
            clip = output.frames[0].transpose(0, 1) * 2 - 1
            if name in SHOWN:
                recipe = {"prompt": prompt, "seed": seed}
                write_clip(to_uint8(clip), DOCS / "gallery" / f"{name}.gif", recipe=recipe)
                (DOCS / "gallery" / f"{name}.json").unlink()
            rows.append(clip[:, ::10])
    sheet = contact_sheet(torch.cat(rows, dim=1), columns=rows[0].shape[1])
    Image.fromarray(sheet).save(DOCS / "gallery.png")


def write_applications(pipeline: LumierePipeline) -> None:
    """docs/gallery.md: every application, what was given on the left and what was made on the right."""
    lines = [
        "# Every application, with the weights inside",
        "",
        "Made by `make gallery`, uncurated. Left: what is given, with what is to be made in grey. Right: the clip.",
    ]
    with progress_bar("clips") as progress:
        for entry in progress.track(entries(), description="applications"):
            call = {"generator": torch.Generator().manual_seed(entry.seed)}
            if entry.given is None:
                output: Any = pipeline(entry.prompt, output_type="pt", **call)
                shown = output.frames.transpose(1, 2) * 2 - 1
            else:
                made = entry.given.make(pipeline, call)
                gap = made.new_ones(*made.shape[:4], GAP_PX)
                shown = torch.cat([entry.given.shown[:, :, : made.shape[2]], gap, made], dim=-1)
            path = DOCS / "gallery" / f"{entry.name}.webp"
            write_small(to_uint8(shown[0]), path)
            width = SHOWN_PX if entry.given is None else 2 * SHOWN_PX
            lines += [
                "",
                f"## {entry.what}",
                "",
                f'"{entry.prompt}", seed {entry.seed}',
                "",
                f'<img src="gallery/{path.name}" width="{width}" alt="{entry.name}">',
            ]
    lines += _styles_side_by_side(pipeline)
    (DOCS / "gallery.md").write_text("\n".join(lines) + "\n")


def write_small(frames: np.ndarray, path: Path) -> None:
    """Frames [T, H, W, 3] as an animated WebP that a page loads quickly, and that is not exact."""
    pictures = [Image.fromarray(frame) for frame in frames]
    more = {"append_images": pictures[1:], "duration": round(1000 / FPS), "quality": WEBP_QUALITY}
    with under_temporary_name(path) as temporary:
        pictures[0].save(temporary, "WEBP", save_all=True, loop=0, **more)


def _styles_side_by_side(pipeline: LumierePipeline) -> list[str]:
    """The gallery's lines about styles; writes their sheet, with super-resolution: a row each, every tenth frame."""
    prompt, seed = CLIPS[STYLED]
    rows = [clip[:, ::10] for clip in styled_clips(pipeline, prompt, seed)]
    Image.fromarray(contact_sheet(torch.cat(rows, dim=1), columns=rows[0].shape[1])).save(
        DOCS / "gallery" / "styles.png"
    )
    return [
        "",
        "## The styles inside, one seed: `lumiere generate --style`",
        "",
        f'"{prompt}", seed {seed}; plain, {", ".join(embedded_styles())}, at the usual strength; every tenth frame',
        "",
        "![the styles](gallery/styles.png)",
    ]


def main() -> None:
    """Make both."""
    placement = choose_placement()
    pipeline = LumierePipeline.from_pretrained(dtype=placement.dtype).to(placement.device)
    pipeline.set_progress_bar_config(disable=True)
    (DOCS / "gallery").mkdir(parents=True, exist_ok=True)
    write_readme_clips(pipeline)
    if pipeline.unet.settings.conditioning_channels:
        write_applications(pipeline)


if __name__ == "__main__":
    main()
