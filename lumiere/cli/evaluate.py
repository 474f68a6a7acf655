"""``lumiere evaluate``: score a model by a named protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from lumiere.cli.words import unset
from lumiere.strengths import EDIT_STRENGTH


@dataclass(frozen=True)
class Evaluate:
    """Score a model by a named protocol. The same command again goes on where it was interrupted."""

    protocol: Annotated[
        Positional[Literal["storybook", "stills", "super_resolution", "edits"]],
        arg(metavar="storybook|stills|super_resolution|edits"),
    ]
    """storybook: do clips of held-out prompts show what their words say, and what does a wrong word cost?
    stills: the same for single frames. super_resolution: how near to the truth are clips that are made large, and do
    they still show what their words say? edits: is what is given kept, and what is to be made what was asked for?"""

    out: Annotated[Path | None, unset("FOLDER", "outputs/evaluation-PROTOCOL")] = None
    """Where the report, the clips and their contact sheets go."""

    model: Annotated[Path | None, unset("FOLDER", "the model inside the package")] = None
    """A model folder."""

    num_prompts: Annotated[int | None, unset("N", "all 128")] = None
    """The first N prompts only; of edits, the first N scenes; of super_resolution N instead of 64, 0 for none."""

    num_pairs: Annotated[int | None, unset("N", "a quarter as many")] = None
    """The first N prompts of two objects, which are reported apart."""

    num_seeds: Annotated[int, arg(metavar="N")] = 2
    """Clips of each prompt; edits are made once."""

    steps: Annotated[int | None, unset("N")] = None
    """Denoising steps; those of super-resolution, where that is what is scored."""

    guidance: Annotated[float | None, unset("X")] = None
    """How closely to follow the prompt; 1 is no guidance."""

    edits: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """Only these edits: animate, replace, remove, reconstruct, cinemagraph, loop, interpolate, recolour,
    recolour_briefly."""

    strength: Annotated[float, arg(metavar="S")] = EDIT_STRENGTH
    """How much is made anew where a clip is recoloured."""

    compile: bool = False
    """Compile the network first (needs a C++ compiler on a CPU): minutes at the start, then faster; frames agree to
    rounding."""

    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""

    dtype: Annotated[str, arg(metavar="NAME")] = "auto"
    """float32, bfloat16, float16, or auto."""

    def run(self) -> None:
        """Make, read and count; prints the tables."""
        from lumiere.cli.loading import load_pipeline
        from lumiere.device import choose_placement
        from lumiere.evaluation.edit_protocol import evaluate_edits
        from lumiere.evaluation.edits import BARS
        from lumiere.evaluation.protocols import evaluate_stills, evaluate_storybook, evaluate_wrong_words
        from lumiere.evaluation.super_resolution_protocol import evaluate_super_resolution

        pipeline = load_pipeline(self.model, choose_placement(self.device, self.dtype))
        if self.compile:
            pipeline.unet.compile()
        out = self.out or Path("outputs") / f"evaluation-{self.protocol}"
        if self.protocol == "edits":
            evaluate_edits(
                pipeline,
                out=out,
                edits=self.edits or tuple(BARS),
                num_scenes=self.num_prompts,
                steps=self.steps,
                guidance=self.guidance,
                strength=self.strength,
            )
            print(f"wrote {out}/report.json")
            return
        if self.protocol == "super_resolution":
            prompts: dict[str, Any] = {} if self.num_prompts is None else {"num_prompts": self.num_prompts}
            evaluate_super_resolution(pipeline, out=out, steps=self.steps, **prompts)
            print(f"wrote {out}/report.json")
            return
        asked: dict[str, Any] = {
            "num_seeds": self.num_seeds,
            "num_prompts": self.num_prompts,
            "steps": self.steps,
            "guidance": self.guidance,
        }
        if self.protocol == "storybook":
            evaluate_storybook(pipeline, out=out, num_pairs=self.num_pairs, **asked)
            evaluate_wrong_words(pipeline, out=out)
        else:
            evaluate_stills(pipeline, out=out, **asked)
        print(f"wrote {out}/report.json")
