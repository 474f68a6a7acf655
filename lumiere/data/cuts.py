"""Scene cuts: from small grey pictures of every frame, or as PySceneDetect finds them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

SMALL = (36, 64)
"""Height and width that pictures are compared at."""

NEIGHBOURS = 8
"""Frames before and after with whose changes a change is compared."""


class SmallCuts:
    """Finds cuts by how small grey pictures change (``scene_starts``)."""

    def __init__(self, *, least: float, times: float) -> None:
        self.least, self.times = least, times
        self._greys: list[np.ndarray] = []

    def see(self, frame: np.ndarray) -> None:
        """Look at the next frame [H, W, 3]."""
        self._greys.append(small_grey(frame))

    def starts(self) -> list[int]:
        """The first frames of scenes, when all frames were seen."""
        return scene_starts(changes_between(self._greys), least=self.least, times=self.times)


class ContentCuts:
    """Finds cuts as PySceneDetect's ContentDetector does, with its own defaults, on frames at ``fps``.

    Needs scenedetect (version 0.7).
    """

    def __init__(self, fps: float) -> None:
        import scenedetect

        self._timecode: Any = scenedetect.FrameTimecode
        self._detector: Any = scenedetect.ContentDetector()
        self._fps, self._count = fps, 0
        self._cuts: list[int] = []

    def see(self, frame: np.ndarray) -> None:
        """Look at the next frame [H, W, 3]."""
        now = self._timecode(self._count, fps=self._fps)
        # It wants BGR, as OpenCV reads.
        self._keep(self._detector.process_frame(now, np.ascontiguousarray(frame[..., ::-1])))
        self._count += 1

    def starts(self) -> list[int]:
        """The first frames of scenes, when all frames were seen."""
        self._keep(self._detector.post_process(self._timecode(max(0, self._count - 1), fps=self._fps)))
        return sorted({0, *(cut for cut in self._cuts if 0 < cut < self._count)})

    def _keep(self, found: Iterable[Any]) -> None:
        self._cuts += [int(cut.frame_num) for cut in found]


def small_grey(frame: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3] of 8 bits as a small grey one [36, 64], by averages, 0..255."""
    height, width = frame.shape[:2]
    grey = frame.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    rows = np.add.reduceat(grey, _starts(height, SMALL[0]), axis=0)
    cells = np.add.reduceat(rows, _starts(width, SMALL[1]), axis=1)
    counts = np.outer(_counts(height, SMALL[0]), _counts(width, SMALL[1]))
    return cells / counts


def scene_starts(changes: np.ndarray, *, least: float, times: float) -> list[int]:
    """The first frames of scenes, 0 among them, from the ``changes`` [T - 1] between neighbouring frames.

    A cut is a change of at least ``least`` grey values on average that is ``times`` as large as the others around it:
    a fast pan changes much too, but so do its neighbours. Two cuts in a row are one (a flash, or a half-decoded frame).
    """
    starts = [0]
    for place, change in enumerate(changes):
        around = np.concatenate([changes[max(0, place - NEIGHBOURS) : place], changes[place + 1 :][:NEIGHBOURS]])
        usual = float(np.median(around)) if len(around) else 0.0
        if change >= least and change >= times * usual and place + 1 - starts[-1] > 1:
            starts.append(place + 1)
    return starts


def changes_between(frames: Iterable[np.ndarray]) -> np.ndarray:
    """The mean absolute differences [T - 1] between neighbouring small pictures."""
    return np.array([float(np.abs(one - other).mean()) for one, other in pairwise(frames)])


def _starts(length: int, cells: int) -> np.ndarray:
    return (np.arange(min(cells, length)) * length) // min(cells, length)


def _counts(length: int, cells: int) -> np.ndarray:
    return np.diff(np.append(_starts(length, cells), length))
