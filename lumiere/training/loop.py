"""The one training loop: every stage is trained by it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field
from rich.console import Console
from torch import Tensor, nn

from lumiere.config import Settings
from lumiere.device import choose_placement
from lumiere.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from lumiere.training.ema import Ema


class LoopSettings(Settings):
    """How long and how fast a stage is trained, and how often it is looked at."""

    num_steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    """Clips (or stills) of one forward pass."""
    accumulation: int = Field(default=1, ge=1)
    """Forward passes of one optimiser step."""
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    """The last steps, over which the learning rate falls linearly to zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    bf16: bool = True
    """Run the networks in bfloat16 autocast; weights and optimiser stay fp32."""
    bf16_weights: bool = False
    """Instead of autocast keep the network itself in bfloat16, and fp32 copies of what is trained in the optimiser: on
    a CPU up to twice as fast, as autocast runs group norms in fp32."""
    compile: bool = False
    """Compile the network (needs a C++ compiler on a CPU)."""
    device: str = "auto"
    """Where to train; auto is the fastest of this machine."""
    seed: int = 0
    log_every: int = Field(default=20, ge=1)
    validate_every: int = Field(default=500, ge=1)
    save_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)


class Stage(Protocol):
    """What is trained: a stage knows its networks and data, the loop knows neither."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters to train."""

    def losses(self, step: int, count: int) -> Tensor:
        """The loss of each of the ``count`` examples [B] of a step: a pure function of step and weights."""

    def validate(self) -> dict[str, float]:
        """Held-out numbers, with fixed noise."""

    def show(self, folder: Path) -> None:
        """Write sample pictures or clips into ``folder``."""

    def export(self, folder: Path) -> None:
        """Write the trained networks as a diffusers folder."""


def learning_rate(settings: LoopSettings, step: int) -> float:
    """The learning rate of a step: linear warm-up, constant, linear fall to zero at the end."""
    rise = (step + 1) / settings.warmup_steps if settings.warmup_steps else 1.0
    fall = (settings.num_steps - step) / settings.decay_steps if settings.decay_steps else 1.0
    return settings.learning_rate * min(1.0, rise, fall)


class Trainer:
    """Trains one stage in one folder; the same command again goes on from the newest checkpoint."""

    def __init__(self, stage: Stage, settings: LoopSettings, out: Path, *, facts: dict[str, Any]) -> None:
        self.stage, self.settings, self.out, self.facts = stage, settings, out, facts
        self.named = {name: p for name, p in stage.named_parameters() if p.requires_grad}
        if not self.named:
            raise ValueError("the stage has no parameters to train; everything is frozen")
        self.masters = {name: _master(parameter) for name, parameter in self.named.items()}
        self.optimizer = torch.optim.AdamW(
            self.masters.values(),
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.ema = Ema(self.masters.values(), self.named.values(), decay=settings.ema_decay)
        self.step = 0
        self.seconds = 0.0
        self._marked = (0, 0.0)
        self.console = Console()

    def run(self) -> Path:
        """Train to the end and return the folder of the exported networks (with averaged weights)."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        log = _Log(self.out, self.step)
        count = sum(parameter.numel() for parameter in self.named.values())
        self.console.print(f"training {count / 1e6:.2f} M parameters, step {self.step} of {self.settings.num_steps}")
        started, seen_s = time.time(), self.seconds
        self._marked = (self.step, started)
        while self.step < self.settings.num_steps:
            loss, grad_norm = self._step()
            self.seconds = seen_s + time.time() - started
            if self.step % self.settings.log_every == 0:
                self._report(log, loss, grad_norm)
            if self.step % self.settings.validate_every == 0 or self.step == self.settings.num_steps:
                self._validate(log)
            if self.step % self.settings.save_every == 0 or self.step == self.settings.num_steps:
                self._save()
        with self.ema.applied():
            self.stage.export(self.out / "export")
        self.console.print(f"done; the networks are in {self.out / 'export'}")
        return self.out / "export"

    def _step(self) -> tuple[float, float]:
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step)
        total = 0.0
        for part in range(settings.accumulation):
            with autocast(self.settings):
                losses = self.stage.losses(self.step * settings.accumulation + part, settings.batch_size)
            loss = losses.mean() / settings.accumulation
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise ValueError(
                f"the loss is {total} at step {self.step}; the last good checkpoint is kept in {self.out}"
                " (lower learning_rate, or set bf16 to false, and run the same command again)"
            )
        self._hand_gradients_to_masters()
        norm = nn.utils.clip_grad_norm_(self.masters.values(), settings.max_grad_norm, foreach=True)
        self.optimizer.step()
        self._hand_weights_to_network()
        self.step += 1
        self.ema.update(self.step)
        return total, float(norm)

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

    def _resume(self) -> None:
        found = checkpoints(self.out)
        if found:
            state = load_checkpoint(found[-1], named=self.masters, ema=self.ema, optimizer=self.optimizer)
            self._hand_weights_to_network()
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.console.print(f"going on from {found[-1]}")

    def _save(self) -> None:
        facts = {"seconds": self.seconds, **self.facts}
        save_checkpoint(
            self.out,
            step=self.step,
            named=self.masters,
            ema=self.ema,
            optimizer=self.optimizer,
            facts=facts,
            keep=self.settings.keep_checkpoints,
        )

    def _report(self, log: _Log, loss: float, grad_norm: float) -> None:
        step_s = (time.time() - self._marked[1]) / (self.step - self._marked[0])
        self._marked = (self.step, time.time())
        rate = self.settings.batch_size * self.settings.accumulation / step_s
        left_s = (self.settings.num_steps - self.step) * step_s
        log.write(self.step, {"loss": loss, "grad_norm": grad_norm, "clips_per_s": rate, "seconds": self.seconds})
        self.console.print(
            f"step {self.step}/{self.settings.num_steps}  loss {loss:.4f}  {rate:.1f} clips/s"
            f"  {left_s / 60:.1f} min left"
        )

    def _validate(self, log: _Log) -> None:
        with torch.no_grad(), self.ema.applied(), autocast(self.settings):
            numbers = self.stage.validate()
            self.stage.show(self.out / "samples" / f"step-{self.step:07d}")
        log.write(self.step, {f"held_out/{name}": value for name, value in numbers.items()})
        self.console.print("held out  " + "  ".join(f"{name} {value:.4f}" for name, value in numbers.items()))


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """What the optimiser trains for a parameter: itself in fp32, else a copy that is."""
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())


def autocast(settings: LoopSettings) -> torch.autocast:
    """bfloat16 autocast where the settings ask for it, on the device that they name."""
    kind = choose_placement(settings.device).device.type
    return torch.autocast(kind, torch.bfloat16, enabled=settings.bf16 and not settings.bf16_weights)


class _Log:
    """Numbers as TensorBoard events and as lines of JSON; a resumed run drops the lines it will write again."""

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = out / "metrics.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        self.path.write_text("".join(f"{line}\n" for line in kept))
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
