"""Counts of what was read right, with intervals, and what was read instead."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lumiere.evaluation.storybook import UNREADABLE, ActorReading, Reading

ATTRIBUTES = ("object", "colour", "background", "motion", "speed")
ACTOR_ATTRIBUTES = ("object", "colour", "motion", "speed")


class Words(Protocol):
    """What is true, or was asked for, of one actor."""

    @property
    def object(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def motion(self) -> str: ...
    @property
    def speed(self) -> str: ...


@dataclass(frozen=True)
class Answer:
    """One word: what was asked for and what was read."""

    attribute: str
    asked: str
    read: str

    @property
    def is_right(self) -> bool:
        """Whether the reading is what was asked for."""
        return self.asked == self.read


def answers(background: str, actors: Sequence[Words], reading: Reading) -> list[Answer]:
    """Each word of a scene beside what was read; the order of two actors is the one that fits better."""
    assert len(actors) == len(reading.actors), (actors, reading)
    orders = [reading.actors, reading.actors[::-1]] if len(actors) == 2 else [reading.actors]
    every = [_actor_answers(actors, order) for order in orders]
    best = max(every, key=lambda found: sum(answer.is_right for answer in found))
    return [*best, Answer("background", background, reading.background)]


def _actor_answers(actors: Sequence[Words], read: Iterable[ActorReading]) -> list[Answer]:
    return [
        Answer(name, getattr(actor, name), getattr(seen, name))
        for actor, seen in zip(actors, read, strict=True)
        for name in ACTOR_ATTRIBUTES
    ]


@dataclass
class Tally:
    """How often each attribute was read right, was unreadable, and was asked for; and what was read instead."""

    right: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)
    mistakes: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)

    def add(self, found: Iterable[Answer]) -> None:
        """Count the words of one more clip."""
        for answer in found:
            self.total[answer.attribute] += 1
            self.right[answer.attribute] += answer.is_right
            self.unreadable[answer.attribute] += answer.read == UNREADABLE
            if not answer.is_right:
                self.mistakes.setdefault(answer.attribute, Counter())[answer.asked, answer.read] += 1

    def share(self, attribute: str) -> float:
        """Share of clips on which the attribute was read right; NaN when it was never asked for."""
        total = self.total[attribute]
        return self.right[attribute] / total if total else math.nan

    def as_dict(self) -> dict[str, dict[str, object]]:
        """Everything for a report: counts, share, interval, and the mistakes from the most frequent on."""
        return {
            name: {
                "right": self.right[name],
                "total": self.total[name],
                "unreadable": self.unreadable[name],
                "share": self.share(name),
                "interval": wilson_interval(self.right[name], self.total[name]),
                "mistakes": [
                    {"asked": asked, "read": read, "count": count}
                    for (asked, read), count in self.mistakes.get(name, Counter()).most_common()
                ],
            }
            for name in ATTRIBUTES
            if self.total[name]
        }


def wilson_interval(right: int, total: int, *, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share. Source: Wilson, 1927, doi:10.1080/01621459.1927.10502953."""
    if not 0 <= right <= total or total == 0:
        raise ValueError(f"{right} right of {total}; an interval needs 0 <= right <= total and one trial or more")
    share = right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, middle - half), min(1.0, middle + half)
