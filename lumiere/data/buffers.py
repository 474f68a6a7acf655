"""Memory for batches, used again when nothing holds them any more: being given new memory takes as long as decoding."""

from __future__ import annotations

from math import prod
from threading import Lock

import numpy as np
import torch
from torch import Tensor


class Buffers:
    """Lends memory, which comes back by itself when the last tensor in it is gone.

    There are never more pieces than were lent at one time, each as large as the largest that it was ever lent for.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = Lock()

    def bytes(self, *shape: int) -> Tensor:
        """A tensor of 8-bit numbers of that shape, filled with anything."""
        wanted = prod(shape)
        with self._lock:
            # The smallest that is large enough; else the largest, which makes room for a larger one.
            place = min(
                range(len(self._free)),
                key=lambda one: (len(self._free[one]) < wanted, abs(len(self._free[one]) - wanted)),
                default=None,
            )
            piece = None if place is None else self._free.pop(place)
        if piece is None or len(piece) < wanted:
            piece = np.empty(wanted, dtype=np.uint8)
        lent = np.asarray(_Lent(piece, self._free))
        return torch.from_numpy(lent)[:wanted].view(shape)


class _Lent:
    """What an array's memory belongs to; gives it back in the end."""

    def __init__(self, piece: np.ndarray, free: list[np.ndarray]) -> None:
        self._piece, self._free = piece, free
        self.__array_interface__ = piece.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._piece)
