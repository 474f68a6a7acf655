"""The command line: one verb a module; each imports what it needs only when it runs, so that ``--help`` is instant."""

from __future__ import annotations

import os
import sys
import typing
import warnings
from collections.abc import Sequence

import tyro

from lumiere import __version__
from lumiere.cli.data import Data
from lumiere.cli.edits import (
    Animate,
    Cinemagraph,
    Continue,
    Edit,
    Inpaint,
    Interpolate,
    Loop,
    Outpaint,
    Retime,
)
from lumiere.cli.evaluate import Evaluate
from lumiere.cli.export import Export
from lumiere.cli.generate import Generate
from lumiere.cli.heap import keep_freed_memory
from lumiere.cli.inflate import Inflate
from lumiere.cli.info import Info
from lumiere.cli.train import Train
from lumiere.cli.upscale import Upscale
from lumiere.config import did_you_mean

GivenPart = Animate | Cinemagraph | Interpolate | Loop | Inpaint | Outpaint | Continue | Retime | Edit
Verb = Generate | GivenPart | Upscale | Data | Train | Export | Evaluate | Inflate | Info
VERBS = [verb.__name__.lower() for verb in typing.get_args(Verb)]
"""As tyro names them: by their classes."""

NUM_FIXED_WORDS = {"train": 1, "inflate": 2, "data": 2}
"""Words before the ``--key value`` settings of a verb."""

OWN_OPTIONS = {"train": {"--accept-changes": 0, "--plan": 0, "--plan-ranks": 1, "--plan-memory": 1}}
"""A verb's own options, which may stand among those settings, and how many words their values are."""

DESCRIPTION = (
    'Text to video with a Space-Time U-Net. Start with:  lumiere generate "a red ball bouncing on a beach"'
    "   Every verb takes --help; --debug shows where an error comes from; --version says the version."
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one command: 0, or 2 after one clear message when the command cannot be done as given."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"lumiere {__version__}")
        return 0
    is_debug = "--debug" in words
    with warnings.catch_warnings():
        _quiet_libraries(is_debug)
        keep_freed_memory()
        try:
            parse([word for word in words if word != "--debug"]).run()
        except (ValueError, OSError) as error:
            if is_debug:
                raise
            print(f"lumiere: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("lumiere: stopped", file=sys.stderr)
            return 130
    return 0


def parse(words: Sequence[str]) -> Verb:
    """The verb that the words after ``lumiere`` ask for, not yet run.

    Raises ValueError for an unknown verb; for unknown options tyro says the nearest and exits.
    """
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        raise ValueError(f"no verb {words[0]!r}{did_you_mean(words[0], VERBS)}; known are: {', '.join(VERBS)}")
    return tyro.cli(Verb, prog="lumiere", description=DESCRIPTION, args=_overrides_last(list(words)))  # type: ignore


def _overrides_last(words: list[str]) -> list[str]:
    """The words with ``--`` before the settings that follow the fixed words of ``train`` and ``inflate``.

    Their keys are those of a settings model, which the verb reads itself; tyro takes them for no options of its own.
    """
    start = 1 + NUM_FIXED_WORDS.get(words[0], len(words)) if words else 0
    if len(words) > start and not any(word.startswith("-") for word in words[:start]):
        options, rest = OWN_OPTIONS.get(words[0], {}), words[start:]
        own, others = list[str](), list[str]()
        while rest:
            count = 1 + options.get(rest[0], 0)
            (own if rest[0].partition("=")[0] in options else others).extend(rest[:count])
            rest = rest[count:]
        return [*words[:start], *own, "--", *others]
    return words


def _quiet_libraries(is_debug: bool) -> None:
    """Let only our own warnings through, each as one line, and never look for models on the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if is_debug:
        return
    for variable, value in (
        ("DIFFUSERS_VERBOSITY", "error"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(variable, value)
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", module=r"lumiere(\.|$)")
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: typing.Any, **__: typing.Any) -> None:
    print(f"note: {message}", file=sys.stderr)
