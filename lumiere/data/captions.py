"""Captions of storybook scenes: varied wording for the same facts, and the words they are made of."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from lumiere.data.storybook import Actor, Scene

OBJECT_WORDS = {
    "ball": ("ball", "ball", "sphere"),
    "box": ("box", "box", "square"),
    "star": ("star",),
    "heart": ("heart",),
    "moon": ("moon", "moon", "crescent"),
    "tree": ("tree", "tree", "fir"),
    "fish": ("fish",),
    "mushroom": ("mushroom", "mushroom", "toadstool"),
}
COLOUR_WORDS = {
    "red": ("red", "red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "yellow", "golden"),
    "green": ("green",),
    "cyan": ("cyan", "cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink",),
}
MOTION_WORDS = {
    "bounce": (("bounces", "bouncing"), ("hops", "hopping")),
    "swing": (("swings", "swinging"), ("sways", "swaying")),
    "orbit": (("orbits", "orbiting"), ("circles", "circling")),
    "spin": (("spins", "spinning"), ("rotates", "rotating")),
    "pulse": (("pulses", "pulsing"), ("throbs", "throbbing")),
    "slide right": (("slides right", "sliding right"), ("moves right", "moving right")),
    "slide left": (("slides left", "sliding left"), ("moves left", "moving left")),
    "rise": (("rises", "rising"), ("floats up", "floating up")),
    "fall": (("falls", "falling"), ("sinks down", "sinking down")),
    "grow": (("grows", "growing"), ("swells", "swelling")),
}
SPEED_WORDS = {"slow": ("slowly", "slowly", "gently"), "fast": ("quickly", "quickly", "fast")}
BACKGROUND_WORDS = {
    "sea": ("at sea", "over the sea", "by the ocean"),
    "snow": ("in the snow", "in a snowfall"),
    "meadow": ("in a meadow", "on the meadow", "over green hills"),
    "night": ("at night", "in the night"),
    "desert": ("in the desert", "over the desert"),
    "dusk": ("at dusk", "at sunset"),
}


def caption(scene: Scene, generator: torch.Generator | None = None) -> str:
    """A caption that states every fact of the scene; without a generator, always the plainest wording."""
    place = _pick(BACKGROUND_WORDS[scene.background], generator)
    order = 0 if generator is None else int(torch.randint(4, (), generator=generator))
    actors = [_actor_words(actor, generator, as_noun=order == 3) for actor in scene.actors]
    what = " and ".join(actors)
    if not what:
        return place
    if order == 2:
        return f"{place}, {what}"
    return f"{what} {place}"


def still_caption(scene: Scene) -> str:
    """What a picture of the scene shows, in the plainest wording: all but how the actors move."""
    return f"{brief_caption(scene)} {BACKGROUND_WORDS[scene.background][0]}".strip()


def terse_caption(scene: Scene, generator: torch.Generator | None = None) -> str:
    """Only how the actors move, for where a picture says the rest."""
    return " and ".join(_motion_words(actor, generator, as_noun=False) for actor in scene.actors)


def brief_caption(scene: Scene) -> str:
    """What the actors are, and no more: what a prompt names that asks for a change of a clip."""
    return " and ".join(_thing_words(actor, None) for actor in scene.actors)


def _actor_words(actor: Actor, generator: torch.Generator | None, *, as_noun: bool) -> str:
    return f"{_thing_words(actor, generator)} {_motion_words(actor, generator, as_noun=as_noun)}"


def _thing_words(actor: Actor, generator: torch.Generator | None) -> str:
    thing = f"{_pick(COLOUR_WORDS[actor.colour], generator)} {_pick(OBJECT_WORDS[actor.object], generator)}"
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _motion_words(actor: Actor, generator: torch.Generator | None, *, as_noun: bool) -> str:
    speed = _pick(SPEED_WORDS[actor.speed], generator)
    verb, participle = _pick(MOTION_WORDS[actor.motion], generator)
    return f"{participle if as_noun else verb} {speed}"


def words(text: str) -> list[str]:
    """The lower-case words of a caption, without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    tables: Sequence[dict] = (OBJECT_WORDS, COLOUR_WORDS, SPEED_WORDS, BACKGROUND_WORDS)  # type: ignore[type-arg]
    phrases = [phrase for table in tables for options in table.values() for phrase in options]
    phrases += [phrase for options in MOTION_WORDS.values() for pair in options for phrase in pair]
    return sorted({word for phrase in [*phrases, "a an and"] for word in words(phrase)})


def _pick(options: Sequence, generator: torch.Generator | None):  # type: ignore[type-arg,no-untyped-def]
    return options[0 if generator is None else int(torch.randint(len(options), (), generator=generator))]
