"""``lumiere generate``: prompts to clips."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from lumiere.cli.styles import StyleOptions
from lumiere.cli.words import unset

CLIP_SUFFIXES = (".mp4", ".gif", ".webp", ".apng")
CLEAR_WIDTH_PX = 256
"""Small clips are enlarged to at least this many pixels, because players blur small pictures."""

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Generate(StyleOptions):
    """Make a clip from each prompt.

    The file holds, and a JSON beside it repeats, everything needed to make the clip again with --like.
    """

    prompts: Annotated[Positional[tuple[str, ...]], arg(metavar="PROMPT ...", help_behavior_hint="")] = ()
    """What the clips show, each in quotes."""

    prompts_file: Annotated[Path | None, unset("FILE", "none")] = None
    """More prompts, one a line; empty lines and lines that start with # are skipped."""

    negative_prompt: Annotated[str | None, unset("TEXT", "none")] = None
    """What the clips should not show."""

    seed: Annotated[int | None, unset("N", "0")] = None
    """Another seed makes another clip of the same prompt."""

    seeds: Annotated[tuple[int, ...], arg(metavar="N ...", help_behavior_hint="")] = ()
    """Several seeds: every prompt is made once with each."""

    steps: Annotated[int | None, unset("N")] = None
    """Denoising steps."""

    guidance: Annotated[float | None, unset("X")] = None
    """How closely to follow the prompt; 1 is no guidance."""

    frames: Annotated[int | None, unset("N")] = None
    """Frames of a clip, at 16 a second."""

    sampler: Annotated[str | None, unset("NAME")] = None
    """ddim, ddpm, euler, euler-ancestral, dpm++, dpm++sde, unipc, lcm or tcd."""

    shift: Annotated[float | None, unset("X")] = None
    """Above 1 more of the steps fall where there is much noise, where motion is decided; 1 spreads them evenly."""

    opening_frames: Annotated[int | None, unset("N")] = None
    """The first frame is made first, as that of so many (1: a still), and brought to life; 0 makes all at once."""

    base_only: bool = False
    """Leave the clip as the base makes it, small, without super-resolution."""

    model: Annotated[Path | None, unset("FOLDER", "the model inside the package")] = None
    """A model folder."""

    device: Annotated[str | None, unset("NAME", "the fastest of this machine")] = None
    """cpu, cuda, cuda:1, mps, or auto."""

    dtype: Annotated[str | None, unset("NAME", "what the device does fast")] = None
    """float32, bfloat16, float16, or auto."""

    out: Annotated[Path, arg(metavar="PATH")] = Path("outputs")
    """A folder, or for a single clip a file that ends in .mp4, .gif, .webp or .apng."""

    format: Annotated[Literal["mp4", "gif", "webp", "apng", "png"] | None, unset("KIND", "mp4")] = None
    """What to write into the folder: mp4, gif, webp, apng, or png for a folder of frames."""

    scale: Annotated[int | None, unset("N", f"to at least {CLEAR_WIDTH_PX} pixels")] = None
    """How many times to enlarge the pictures; 1 keeps them as the network made them."""

    like: Annotated[Path | None, unset("FILE", "none")] = None
    """Make the clip of this file (or JSON) again; options given beside it replace what the file says."""

    def run(self) -> None:
        """Make and write the clips, checking first everything that can be checked."""
        from lumiere.cli.clip_recipe import load_clip_recipe

        repeated = load_clip_recipe(self.like) if self.like else None
        prompts = chosen_prompts(self.prompts, self.prompts_file) or ([repeated.prompt] if repeated else [])
        if not prompts:
            raise ValueError('there is no prompt (write it in quotes: lumiere generate "a red ball bouncing")')
        seeds = chosen_seeds(self.seed, self.seeds) or [repeated.seed if repeated else 0]
        jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
        paths = output_paths(jobs, self.out, self.format)

        from lumiere.cli.clip_maker import make_clips

        make_clips(self.wishes(), jobs, paths, like=repeated)

    def wishes(self) -> dict[str, Any]:
        """The options that were given, by their names in a ClipRecipe."""
        fields = {
            "negative_prompt": self.negative_prompt,
            "num_frames": self.frames,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "timestep_shift": self.shift,
            "opening_frames": self.opening_frames,
            "sampler": self.sampler,
            "super_resolution": False if self.base_only else None,
            "scale": self.scale,
            "model": None if self.model is None else str(self.model),
            "device": self.device,
            "dtype": self.dtype,
            "styles": self.chosen_styles() or None,
        }
        return {name: value for name, value in fields.items() if value is not None}


def chosen_prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """The prompts given and then those of the file.

    Raises ValueError for an empty prompt, or a file that cannot be read or holds none.
    """
    prompts = [prompt.strip() for prompt in given]
    if "" in prompts:
        raise ValueError(f"prompt {prompts.index('') + 1} is empty")
    if file is None:
        return prompts
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as a file of prompts ({error})") from None
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError(f"{file} holds no prompt (write one a line)")
    return prompts + found


def chosen_seeds(seed: int | None, seeds: Sequence[int]) -> list[int]:
    """The seeds given; none when none was.

    Raises ValueError for one that no generator takes, or when both options are given.
    """
    if seed is not None and seeds:
        raise ValueError("--seed and --seeds are both given (write all of them after --seeds)")
    chosen = [seed] if seed is not None else list(seeds)
    for number in chosen:
        if not 0 <= number <= MAX_SEED:
            raise ValueError(f"the seed {number} is not between 0 and {MAX_SEED}")
    return chosen


def output_paths(jobs: Sequence[tuple[str, int]], out: Path, format: str | None) -> list[Path]:
    """Where each clip goes: ``out`` itself when it names a file, else a free name of prompt and seed inside it.

    Raises ValueError when several clips should go into one file, or its ending and the format disagree.
    """
    suffix = out.suffix.lower()
    if suffix in CLIP_SUFFIXES and not out.is_dir():
        if len(jobs) > 1:
            raise ValueError(f"{len(jobs)} clips cannot go into one file {out} (give a folder with --out)")
        if format and suffix != f".{format}":
            raise ValueError(f"--out {out} and --format {format} disagree (leave one of them out)")
        return [out]
    if suffix and not out.is_dir() and format is None:
        raise ValueError(
            f"--out ends in {suffix}; files end in {', '.join(CLIP_SUFFIXES)} (a folder of that name needs --format)"
        )
    ending = "" if format == "png" else f".{format or 'mp4'}"
    taken: set[Path] = set()
    return [_free_path(out / clip_name(prompt, seed), ending, taken) for prompt, seed in jobs]


def clip_name(prompt: str, seed: int) -> str:
    """A file name that tells the clip: the words of the prompt and the seed."""
    words = re.sub(r"[\W_]+", "-", prompt.lower())[:48].strip("-")
    return f"{words or 'clip'}-seed{seed}"


def _free_path(stem: Path, ending: str, taken: set[Path]) -> Path:
    """The first of stem, stem-2, stem-3, ... that neither exists nor is taken; it is then taken."""
    number = 1
    while True:
        path = stem.with_name(f"{stem.name}{f'-{number}' if number > 1 else ''}{ending}")
        if path not in taken and not path.exists():
            taken.add(path)
            return path
        number += 1
