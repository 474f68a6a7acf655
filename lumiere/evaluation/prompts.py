"""The committed list of prompts that the storybook score is taken on, and how it was drawn.

The list was fixed before any motion was trained. Every prompt is of the held-out tenth of the combinations, so no
training has seen it; one-object prompts come first and are the score, two-object prompts are reported apart.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import resources

import torch

from lumiere.data.captions import caption
from lumiere.data.drawing import BACKGROUNDS
from lumiere.data.storybook import COLOUR_NAMES, MOTIONS, OBJECTS, SPEEDS, Actor, Scene, is_held_out

PROMPT_FILE = "storybook_prompts.json"
NUM_ONE_OBJECT = 128
NUM_TWO_OBJECTS = 32


@dataclass(frozen=True)
class ActorWords:
    """What a prompt says of one actor."""

    object: str
    colour: str
    motion: str
    speed: str


@dataclass(frozen=True)
class Prompt:
    """A prompt and the facts that a clip of it must show; actors from left to right as the storybook would draw."""

    text: str
    background: str
    actors: tuple[ActorWords, ...]


def load_prompts() -> list[Prompt]:
    """The committed prompts: 128 of one object, then 32 of two."""
    text = resources.files("lumiere.evaluation").joinpath(PROMPT_FILE).read_text("utf-8")
    return [
        Prompt(one["text"], one["background"], tuple(ActorWords(**actor) for actor in one["actors"]))
        for one in json.loads(text)["prompts"]
    ]


def prompts_as_json(prompts: list[Prompt]) -> str:
    """The text of the committed file: one prompt a line."""
    lines = ",\n".join("  " + json.dumps(asdict(prompt)) for prompt in prompts)
    return '{\n "about": "lumiere.evaluation.prompts.draw_prompts(); fixed before training",\n "prompts": [\n' + (
        lines + "\n ]\n}\n"
    )


def draw_prompts(seed: int = 20240123) -> list[Prompt]:
    """The list as it was drawn: balanced over words and pairs of words by annealing, then worded at random."""
    wording = torch.Generator().manual_seed(seed)
    rng = random.Random(seed)
    alone = _all_facts()
    together = [pair for pair in itertools.combinations(alone, 2) if _can_share_a_page(*pair)]
    chosen = _anneal([(facts,) for facts in alone], NUM_ONE_OBJECT, rng)
    chosen += _anneal([tuple(rng.sample(pair, 2)) for pair in rng.sample(together, 2000)], NUM_TWO_OBJECTS, rng)
    return [_word(actors, wording) for actors in chosen]


Facts = tuple[str, str, str, str, str]
"""Background, object, colour, motion, speed."""
Counts = dict[tuple[int, ...], Counter[tuple[str, ...]]]


def _all_facts() -> list[Facts]:
    """Every held-out combination, at both speeds."""
    every = itertools.product(BACKGROUNDS, OBJECTS, COLOUR_NAMES, MOTIONS, SPEEDS)
    return [facts for facts in every if is_held_out(Actor(*facts[1:]), facts[0])]


def _can_share_a_page(first: Facts, second: Facts) -> bool:
    """One background, two objects, two colours."""
    return first[0] == second[0] and first[1] != second[1] and first[2] != second[2]


def _anneal(
    pool: list[tuple[Facts, ...]], count: int, rng: random.Random, *, num_swaps: int = 40_000
) -> list[tuple[Facts, ...]]:
    """``count`` different entries in which every word, and every pair of words, comes about equally often."""
    rng.shuffle(pool)
    chosen, unused = pool[:count], pool[count:]
    fields = [*((a,) for a in range(5)), *itertools.combinations(range(5), 2)]
    counts: Counts = {field: Counter() for field in fields}
    for entry in chosen:
        _count(counts, entry, 1)
    for step in range(num_swaps):
        inside, outside = rng.randrange(len(chosen)), rng.randrange(len(unused))
        change = _count(counts, chosen[inside], -1) + _count(counts, unused[outside], 1)
        temperature = 8.0 * (1 - step / num_swaps) + 1e-3
        if change <= 0 or rng.random() < math.exp(-change / temperature):
            chosen[inside], unused[outside] = unused[outside], chosen[inside]
        else:
            _count(counts, unused[outside], -1)
            _count(counts, chosen[inside], 1)
    return chosen


def _count(counts: Counts, entry: tuple[Facts, ...], sign: int) -> float:
    """Add or take away an entry; returns how the sum of squared counts changed, single words weighing more."""
    change = 0.0
    for fields, table in counts.items():
        weight = 8.0 if len(fields) == 1 else 1.0
        for facts in entry:
            words = tuple(facts[field] for field in fields)
            change += weight * (2 * sign * table[words] + 1)
            table[words] += sign
    return change


def _word(actors: tuple[Facts, ...], wording: torch.Generator) -> Prompt:
    words = tuple(ActorWords(*facts[1:]) for facts in actors)
    scene = Scene(actors[0][0], tuple(Actor(**asdict(actor)) for actor in words))
    return Prompt(caption(scene, wording), scene.background, words)
