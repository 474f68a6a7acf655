"""A run small enough for several processes in a test: a network of a few weights, and the program that each rank runs.

RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 ... python -m tests.training_ranks OUT loop.num_steps=4 loop.sharding=sharded
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lumiere.config import load_settings
from lumiere.training.distributed import process_group, rank
from lumiere.training.loop import LoopSettings, Trainer
from lumiere.training.stopping import Stopped

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "num_steps": 4,
    "batch_size": 3,
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "weight_decay": 0.1,
    "bf16": False,
    "device": "cpu",
    "log_every": 1,
    "validate_every": 100,
    "save_every": 100,
}


class Block(nn.Module):
    """A layer that is gathered by itself; one of its weights does not divide by two."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 5] -> [B, 5]."""
        return x + self.outer(torch.tanh(self.inner(x)))


class Network(nn.Module):
    """Two blocks between a frozen layer and a last one; ``unused`` never gets a gradient."""

    _no_split_modules = ["Block"]

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.blocks, self.last = nn.Linear(5, 5), nn.ModuleList([Block(), Block()]), nn.Linear(5, 1)
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.last.weight.device

    def forward(self, x: Tensor) -> Tensor:
        """[B, 5] -> [B]."""
        x = self.frozen(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x).squeeze(-1)


class TinyStage:
    """Learns a sum; notes the positions that it was asked for.

    ``broken`` positions have a loss that is no number; at ``stop_at`` a signal comes.
    """

    def __init__(self, broken: Sequence[int] = (), stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.network, self.broken, self.stop_at = Network(), broken, stop_at
        self.asked: list[int] = []

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All of the network."""
        yield from self.network.named_parameters()

    def losses(self, position: int, count: int) -> Tensor:
        """The squared error [B]."""
        self.asked.append(position)
        if position == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn(count, 5, generator=torch.Generator().manual_seed(position))
        losses = (self.network(x) - x.sum(1)).square()
        return losses * float("nan") if position in self.broken else losses

    def validate(self) -> dict[str, float]:
        """The error on numbers of its own."""
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(10**6))
        return {"loss": float((self.network(x) - x.sum(1)).square().mean())}

    def show(self, folder: Path) -> None:
        """One file."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "shown.txt").write_text(str(self.validate()))

    def export(self, folder: Path) -> None:
        """One file."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "done.txt").write_text("done")

    def shardable(self) -> Any:
        """The network."""
        return self.network

    def put(self, network: nn.Module) -> None:
        """Not needed: nothing of the network is exported."""


def tiny_trainer(out: Path, stage: TinyStage | None = None, **settings: Any) -> Trainer:
    """A run of the tiny stage."""
    return Trainer(stage or TinyStage(), load_settings(LoopSettings, SETTINGS | settings), out, facts={})


def tiny_runs(ranks: int, *runs: tuple[Path, dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What each rank said after each of several runs of the tiny stage, (folder, settings)."""
    words = [word for out, settings in runs for word in (str(out), json.dumps(settings))]
    said = on_ranks(ranks, "-m", "tests.training_ranks", *words)
    return [[json.loads(line) for line in one.splitlines() if line.startswith("{")] for one in said]


def on_ranks(ranks: int, *words: str, timeout: float = 1500) -> list[str]:
    """What ``python WORDS`` printed on each of several processes that train together. Fails if one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    started = [
        subprocess.Popen(
            [sys.executable, *words],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(process.returncode for process in started), "\n".join(said)
    return said


def main(words: Sequence[str]) -> None:
    """Run the tiny stage several times in turn, each with settings of its own, and say what each rank trained.

    Words are OUT and, after each, its settings as JSON.
    """
    torch.set_num_threads(1)
    with process_group():
        for out, settings in zip(words[::2], words[1::2], strict=True):
            given = json.loads(settings)
            stage = TinyStage(given.pop("broken", ()), given.pop("stop_at", None))
            trainer = tiny_trainer(Path(out), stage, **given)
            if trainer.sharded is not None:
                trainer._export = lambda folder: None  # type: ignore[method-assign]
            code = 0
            try:
                trainer.run()
            except Stopped as stopped:
                code = int(stopped.code)  # type: ignore[arg-type]
            # On a line of its own, after whatever the run says.
            print("\n" + json.dumps({"rank": rank(), "asked": stage.asked, "step": trainer.step, "code": code}))


if __name__ == "__main__":
    main(sys.argv[1:])
