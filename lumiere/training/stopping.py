"""Being asked to stop: a run finishes its step and saves, instead of dying in the middle of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
"""What a process ends with that a signal has ended."""


class Stopped(SystemExit):
    """The run was asked to stop, and has been saved; its code says by which signal."""


class StopSignals:
    """Which signals have come: SIGTERM, as cluster schedulers send it, or SIGINT, which Ctrl-C is."""

    def __init__(self) -> None:
        self.came = dict.fromkeys(EXIT_CODES, False)

    @contextmanager
    def heard(self) -> Iterator[StopSignals]:
        """Within the block a signal is noted instead of obeyed; the second Ctrl-C is obeyed.

        Only a program's main thread hears signals; elsewhere nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before: dict[signal.Signals, Any] = {one: signal.getsignal(one) for one in EXIT_CODES}
        for one in EXIT_CODES:
            signal.signal(one, self._note(before))
        try:
            yield self
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _note(self, before: dict[signal.Signals, Any]) -> Callable[[int, FrameType | None], None]:
        def note(number: int, _: FrameType | None) -> None:
            self.came[signal.Signals(number)] = True
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, before[signal.SIGINT])

        return note
