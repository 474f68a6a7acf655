"""Work spread over processes that may hang or crash: what does not come back in time is given up, nothing else."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failed:
    """An item that no result came of, and why."""

    reason: str


class _Worker(Generic[Item]):
    """One process that works on one item at a time."""

    def __init__(self, work: Callable[[Item], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.place: int | None = None
        self.started = 0.0

    def begin(self, place: int, item: Item) -> None:
        self.place, self.started = place, time.monotonic()
        self.connection.send(item)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def results(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int, timeout_s: float
) -> Iterator[tuple[int, Result | Failed]]:
    """(place, result) of every item, as they come; ``work`` runs in ``workers`` processes.

    An item that takes longer than ``timeout_s`` seconds, or whose process dies, comes back as Failed, and the others go
    on. ``work`` and items are picklable. An exception that ``work`` raises comes back as Failed too.
    """
    waiting = iter(enumerate(items))
    pool: list[_Worker[Item]] = []
    try:
        for place, item in waiting:
            pool.append(_Worker(work))
            pool[-1].begin(place, item)
            if len(pool) >= max(1, workers):
                break
        busy = list(pool)
        while busy:
            latest = min(worker.started for worker in busy) + timeout_s
            ready = wait([worker.connection for worker in busy], timeout=max(0.0, latest - time.monotonic()))
            for worker in list(busy):
                answer = _answer(worker, ready, timeout_s)
                if answer is None:
                    continue
                assert worker.place is not None
                yield worker.place, answer
                busy.remove(worker)
                following = next(waiting, None)
                if not worker.process.is_alive() or worker.connection.closed:
                    pool.remove(worker)
                    if following is None:
                        continue
                    worker = _Worker(work)
                    pool.append(worker)
                if following is not None:
                    worker.begin(*following)
                    busy.append(worker)
    finally:
        for worker in pool:
            worker.stop()


def _answer(worker: _Worker[Any], ready: Sequence[Any], timeout_s: float) -> Any:
    """What a worker has to say: its result, that it was given up, or nothing yet (None)."""
    if worker.connection in ready:
        try:
            return worker.connection.recv()
        except EOFError:
            worker.process.join()
            code = worker.process.exitcode
            worker.stop()
            return Failed(f"the process that read it died ({'signal' if (code or 0) < 0 else 'code'} {abs(code or 0)})")
    if time.monotonic() - worker.started > timeout_s:
        worker.stop()
        return Failed(f"given up after {timeout_s:g} s")
    return None


def _serve(work: Callable[[Any], Any], connection: Connection) -> None:
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer = work(item)
        except Exception as error:
            answer = Failed(f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error))
        connection.send(answer)
