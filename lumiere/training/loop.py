"""The one training loop: every stage is trained by it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from pydantic import Field
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lumiere.config import Settings
from lumiere.device import choose_placement, multiplies_bf16
from lumiere.training import distributed
from lumiere.training.checkpoint import Checkpoints, Trained
from lumiere.training.ema import Ema
from lumiere.training.log import Log
from lumiere.training.sharding import Sharding, chosen_sharding, shard, whole_network
from lumiere.training.stopping import EXIT_CODES, Stopped, StopSignals

if TYPE_CHECKING:
    from lumiere.model.stunet import STUNet


class LoopSettings(Settings):
    """How long and how fast a stage is trained, and how often it is looked at."""

    num_steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    """Clips (or stills) of one forward pass."""
    accumulation: int = Field(default=1, ge=1)
    """Forward passes of one optimiser step, on each rank."""
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    """The last steps, over which the learning rate falls linearly to zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    bf16: bool = True
    """Run the networks in bfloat16 autocast; weights and optimiser stay fp32. A device that only emulates bf16 computes
    in float32 instead, here and below."""
    bf16_weights: bool = False
    """Instead of autocast keep the network itself in bfloat16, and fp32 copies of what is trained in the optimiser: on
    a CPU up to twice as fast, as autocast runs group norms in fp32."""
    compile: bool | Literal["blocks"] = False
    """Compile the network (needs a C++ compiler on a CPU): as a whole (true), or block by block ("blocks"), which is
    sooner ready, as blocks that are alike are compiled once."""
    device: str = "auto"
    """Where to train; auto is the fastest of this machine. Of several processes each takes its own card."""
    sharding: Sharding = "auto"
    """Whether each of several processes holds all weights or a part of each; auto: parts where all would take more than
    half of a device's free memory."""
    seed: int = 0
    log_every: int = Field(default=20, ge=1)
    validate_every: int = Field(default=500, ge=1)
    save_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    async_save: bool = True
    """Write checkpoints while training goes on, from copies in the processor's memory (16 bytes for each weight that is
    trained, over all ranks)."""
    max_bad_steps: int = Field(default=10, ge=1)
    """So many steps in a row may have a loss or gradient that is no number, and are skipped, before the run stops."""

    @property
    def asks_for_bf16(self) -> bool:
        """Whether bfloat16 is to be computed in, one way or the other, where the device can."""
        return self.bf16 or self.bf16_weights

    @property
    def number_format(self) -> Literal["float32", "autocast", "bfloat16"]:
        """What networks compute in on the device of this process; "bfloat16" keeps their weights in it, too."""
        if not self.asks_for_bf16 or not multiplies_bf16(self.device):
            return "float32"
        return "bfloat16" if self.bf16_weights else "autocast"


class Stage(Protocol):
    """What is trained: a stage knows its networks and data, the loop knows neither."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters to train."""

    def losses(self, position: int, count: int) -> Tensor:
        """The loss of each of ``count`` examples [B]: a pure function of the weights and of the position, which counts
        the forward passes of all ranks."""

    def validate(self) -> dict[str, float]:
        """Held-out numbers, with fixed noise."""

    def show(self, folder: Path) -> dict[str, float] | None:
        """Write sample pictures or clips into ``folder``; numbers of them, if any are asked for."""

    def export(self, folder: Path) -> None:
        """Write the trained networks as a diffusers folder."""

    def shardable(self) -> STUNet | None:
        """The network whose weights may be spread over ranks: the only one trained, and used by its forward pass alone;
        None where that is not so."""

    def put(self, network: STUNet) -> None:
        """Use another network of the same kind instead of the ``shardable`` one from now on, to be exported."""


def learning_rate(settings: LoopSettings, step: int) -> float:
    """The learning rate of a step: linear warm-up, constant, linear fall to zero at the end."""
    rise = (step + 1) / settings.warmup_steps if settings.warmup_steps else 1.0
    fall = (settings.num_steps - step) / settings.decay_steps if settings.decay_steps else 1.0
    return settings.learning_rate * min(1.0, rise, fall)


class Trainer:
    """Trains one stage in one folder; the same command again goes on from the newest whole checkpoint.

    Every rank makes one. ``position`` counts the forward passes of all ranks so far: at a step, part ``a`` of rank
    ``r`` trains position ``position + a * ranks + r``, so the order of the data is the same for any number of ranks.
    Raises ValueError when nothing is to be trained, or sharding is asked for and cannot be.
    """

    def __init__(self, stage: Stage, settings: LoopSettings, out: Path, *, facts: dict[str, Any]) -> None:
        self.stage, self.settings, self.out, self.facts = stage, settings, out, facts
        distributed.check_device(settings.device)
        trained = [p for _, p in stage.named_parameters() if p.requires_grad]
        if not trained:
            raise ValueError("the stage has no parameters to train; everything is frozen")
        distributed.start_alike(trained)
        self.sharded = self._shard(trained)
        self.named = {name: p for name, p in stage.named_parameters() if p.requires_grad}
        self.masters = {name: _master(parameter) for name, parameter in self.named.items()}
        self.optimizer = torch.optim.AdamW(
            self.masters.values(),
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.ema = Ema(self.masters.values(), self.named.values(), decay=settings.ema_decay)
        self.trained = Trained(self.masters, self.ema, self.optimizer)
        self.step = self.position = self.bad_steps = 0
        self.seconds = 0.0
        self._marked = (0, 0.0)
        self._owes_validation, self._is_sound = False, False
        self.signals = StopSignals()
        self.console = Console(quiet=not distributed.is_first())

    def run(self) -> Path:
        """Train to the end and return the folder of the exported networks (with averaged weights).

        Raises Stopped when it was asked to stop, and has been saved; ValueError when too many steps in a row were bad,
        and when no checkpoint of the run is whole.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        settings = self.settings
        checkpoints = Checkpoints(
            self.out, keep=settings.keep_checkpoints, is_async=settings.async_save, tell=self.console.print
        )
        self._resume(checkpoints)
        log = Log(self.out, self.step)
        try:
            with self.signals.heard():
                self._train(log, checkpoints)
        finally:
            checkpoints.wait()
        self._export(self.out / "export")
        self.console.print(f"done; the networks are in {self.out / 'export'}")
        return self.out / "export"

    def _train(self, log: Log, checkpoints: Checkpoints) -> None:
        """Step after step, with what is due after each."""
        settings = self.settings
        self.console.print(self._plan())
        if settings.asks_for_bf16 and settings.number_format == "float32":
            self.console.print(f"bf16 is left out: computing on {choose_placement(settings.device)}")
        started, seen_s = time.time(), self.seconds
        self._marked = (self.step, started)
        if self._owes_validation:
            self._validate(log)
        while self.step < settings.num_steps:
            loss, grad_norm, stop = self._step()
            self.seconds = seen_s + time.time() - started
            if self.step % settings.log_every == 0:
                self._report(log, loss, grad_norm)
            is_last = self.step == settings.num_steps
            self._owes_validation = self.step % settings.validate_every == 0 or is_last
            if self._owes_validation and stop is None:
                self._validate(log)
            is_due = stop is not None or self.step % settings.save_every == 0 or is_last
            # Weights that give no numbers any more must not take a good checkpoint's place.
            if is_due and (not self.bad_steps or (is_last and self._is_sound)):
                self._save(checkpoints)
            if stop is not None:
                checkpoints.wait()
                self.console.print(
                    f"stopped by a signal after step {self.step}; the same command again goes on from the last"
                    f" checkpoint in {self.out}"
                )
                raise Stopped(stop)
        if self.bad_steps and not self._is_sound:
            raise ValueError(self._no_numbers())

    def _step(self) -> tuple[float, float, int | None]:
        """(loss over all ranks, norm of the gradient, exit code if a rank was asked to stop) of one step.

        A step whose loss or gradient is no number anywhere is skipped everywhere.
        """
        settings, ranks = self.settings, distributed.num_ranks()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step)
        total = 0.0
        for part in range(settings.accumulation):
            with self._autocast():
                position = self.position + part * ranks + distributed.rank()
                losses = self.stage.losses(position, settings.batch_size)
            loss = losses.mean() / settings.accumulation
            loss.backward()
            total += float(loss.detach())
        self._hand_gradients_to_masters()
        if not self.sharded:
            distributed.average_gradients(list(self.masters.values()))
        norm = self._gradient_norm()
        asked = [float(self.signals.came[one]) for one in EXIT_CODES]
        # The gradient is the same on all ranks; the loss is nan if it is on one.
        summed = distributed.summed([total, float(not math.isfinite(float(norm))), *asked])
        total = summed[0] / ranks
        if math.isfinite(total) and not summed[1]:
            nn.utils.clip_grads_with_norm_(self.masters.values(), settings.max_grad_norm, norm, foreach=True)
            self.optimizer.step()
            self.bad_steps = 0
        else:
            self.bad_steps += 1
        self._hand_weights_to_network()
        self.step += 1
        self.position += settings.accumulation * ranks
        if self.bad_steps:
            self._tell_bad_step(total, float(norm))
        else:
            self.ema.update(self.step)
        stop = next((code for code, came in zip(EXIT_CODES.values(), summed[2:], strict=True) if came), None)
        return total, float(norm), stop

    def _gradient_norm(self) -> Tensor:
        """The norm of all gradients, of all their parts."""
        norm = nn.utils.get_total_norm([p.grad for p in self.masters.values() if p.grad is not None], foreach=True)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _tell_bad_step(self, loss: float, norm: float) -> None:
        self.console.print(
            f"step {self.step} is skipped: the loss is {loss}, the gradient's norm {norm}"
            f" ({self.bad_steps} in a row; the run stops at {self.settings.max_bad_steps})"
        )
        if self.bad_steps >= self.settings.max_bad_steps:
            raise ValueError(self._no_numbers())

    def _no_numbers(self) -> str:
        return (
            f"the loss is no number, nor its gradient, for the last {self.bad_steps} steps, up to step {self.step};"
            f" the last good checkpoint is kept in {self.out} (lower learning_rate, or set bf16 to false, and run the"
            " same command again with --accept-changes)"
        )

    def _hand_gradients_to_masters(self) -> None:
        for parameter, master in zip(self.named.values(), self.masters.values(), strict=True):
            if master is not parameter and parameter.grad is not None:
                master.grad = parameter.grad.float()

    @torch.no_grad()
    def _hand_weights_to_network(self) -> None:
        for parameter, master in zip(self.named.values(), self.masters.values(), strict=True):
            if master is not parameter:
                parameter.copy_(master)
            parameter.grad = master.grad = None

    def _shard(self, trained: list[nn.Parameter]) -> STUNet | None:
        """The stage's network, if its weights are spread over the ranks from now on."""
        settings, network = self.settings, self.stage.shardable()
        if not chosen_sharding(settings.sharding, network, trained):
            return None
        if settings.compile:
            raise ValueError("loop.compile is for networks that every rank holds whole; set it to false, or sharding")
        assert network is not None
        shard(network, bf16=settings.number_format != "float32")
        return network

    def _autocast(self) -> AbstractContextManager[Any]:
        """Sharded networks bring their own number format."""
        return nullcontext() if self.sharded else autocast(self.settings)

    def _resume(self, checkpoints: Checkpoints) -> None:
        newest = checkpoints.newest_whole()
        if newest is not None:
            state = checkpoints.load(newest, self.trained)
            self._hand_weights_to_network()
            self.step, self.position = int(state["step"]), int(state["position"])
            self.seconds, self._owes_validation = float(state["seconds"]), bool(state["owes_validation"])
            self.console.print(f"going on from {newest}")

    def _save(self, checkpoints: Checkpoints) -> None:
        now = {
            "step": self.step,
            "position": self.position,
            "ranks": distributed.num_ranks(),
            "seconds": self.seconds,
            "owes_validation": self._owes_validation,
        }
        checkpoints.save(self.trained, now | self.facts)

    def _plan(self) -> str:
        count = sum(parameter.numel() for parameter in self.named.values())
        ranks = distributed.num_ranks()
        together = f" on {ranks} ranks ({'sharded' if self.sharded else 'replicated'})" if ranks > 1 else ""
        return f"training {count / 1e6:.2f} M parameters{together}, step {self.step} of {self.settings.num_steps}"

    def _report(self, log: Log, loss: float, grad_norm: float) -> None:
        step_s = (time.time() - self._marked[1]) / (self.step - self._marked[0])
        self._marked = (self.step, time.time())
        rate = self.settings.batch_size * self.settings.accumulation * distributed.num_ranks() / step_s
        left_s = (self.settings.num_steps - self.step) * step_s
        log.write(self.step, {"loss": loss, "grad_norm": grad_norm, "clips_per_s": rate, "seconds": self.seconds})
        self.console.print(
            f"step {self.step}/{self.settings.num_steps}  loss {loss:.4f}  {rate:.1f} clips/s"
            f"  {left_s / 60:.1f} min left"
        )

    def _validate(self, log: Log) -> None:
        with torch.no_grad(), self.ema.applied(), self._autocast():
            numbers = self.stage.validate()
            is_odd = float(not all(math.isfinite(value) for value in numbers.values()))
            self._is_sound = distributed.summed([is_odd]) == [0.0]
            # Weights that give no numbers have nothing to show. A sharded network answers only when all ranks ask it;
            # the others' sheets are the first one's again.
            measured = None
            if self._is_sound and distributed.is_first():
                measured = self.stage.show(self.out / "samples" / f"step-{self.step:07d}")
            elif self._is_sound and self.sharded:
                with TemporaryDirectory() as folder:
                    self.stage.show(Path(folder))
            distributed.barrier()
        self._owes_validation = False
        for kind, found in (("held_out", numbers), ("samples", measured or {})):
            if found:
                log.write(self.step, {f"{kind}/{name}": value for name, value in found.items()})
                told = "  ".join(f"{name} {value:.4f}" for name, value in found.items())
                self.console.print(f"{kind.replace('_', ' ')}  {told}")

    def _export(self, folder: Path) -> None:
        with self.ema.applied():
            if self.sharded:
                whole = whole_network(self.sharded)
                if whole is not None:
                    self.stage.put(whole)
            if distributed.is_first():
                self.stage.export(folder)
            distributed.barrier()


def compiled(network: Any, how: bool | Literal["blocks"]) -> nn.Module:
    """A network of diffusers' kind as ``loop.compile`` asks for it; "blocks" changes it in place."""
    if how == "blocks":
        network.compile_repeated_blocks()
        return network
    made: Any = torch.compile(network) if how else network
    return made


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """What the optimiser trains for a parameter: itself in fp32, else a copy that is."""
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())


def autocast(settings: LoopSettings) -> torch.autocast:
    """bfloat16 autocast where the settings ask for it and the device that they name does it fast."""
    kind = choose_placement(settings.device).device.type
    return torch.autocast(kind, torch.bfloat16, enabled=settings.number_format == "autocast")
