"""Checkpoints: everything a run needs to go on exactly where it stopped, on any number of ranks.

A checkpoint is the folder ``step-N``: tensors in the format of torch.distributed.checkpoint, each rank writing its own
files; ``state.json``, what is no tensor; and ``checksums.json``, the hash of every file, which is written last. All of
it is written into ``.writing-step-N`` and renamed, so a folder of that name was whole once, and hashes say whether it
still is. What is trained is copied to the processor's memory first and written behind the training's back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from lumiere.training.distributed import from_first, is_distributed, is_first, num_ranks, rank
from lumiere.training.ema import Ema

LIST, STATE = "checksums.json", "state.json"
WRITING = ".writing-"
BLOCK = 2**22


@dataclass(frozen=True)
class Trained:
    """The tensors of a run, by the names of the weights."""

    named: Mapping[str, nn.Parameter]
    """What the optimiser trains, in fp32; parts of it where it is sharded."""
    ema: Ema
    optimizer: torch.optim.Optimizer

    def tensors(self) -> dict[str, Tensor]:
        """Each by its place in a checkpoint: ``weights/NAME``, ``ema/NAME``, ``optimizer/MOMENT/NAME``."""
        found = {f"weights/{name}": weight.detach() for name, weight in self.named.items()}
        found |= {f"ema/{name}": mean for name, mean in zip(self.named, self.ema.averages, strict=True)}
        for name, weight in self.named.items():
            for key, value in self.optimizer.state.get(weight, {}).items():
                found[f"optimizer/{key}/{name}"] = value
        return found

    def make_optimizer_state(self, stored: Mapping[str, tuple[int, ...]]) -> None:
        """Give the optimiser an empty state tensor for each that is stored, for a checkpoint to be read into."""
        for place in stored:
            kind, _, rest = place.partition("/")
            if kind == "optimizer":
                key, _, name = rest.partition("/")
                weight = self.named[name]
                # The fused optimiser walks raw memory: moments must lie as the parameter does (channels last or not).
                empty = torch.zeros((), device=weight.device) if key == "step" else torch.zeros_like(weight)
                self.optimizer.state[weight][key] = empty.detach()


class Checkpoints:
    """The checkpoints of a run in its folder. Every rank makes one, and calls its methods in the same order.

    ``keep`` of them stay. What goes wrong in saving is told (``tell``) and harms neither the training nor an earlier
    checkpoint. With ``is_async`` ``save`` returns when the tensors are copied; ``wait`` waits until they are written.
    """

    def __init__(self, folder: Path, *, keep: int, is_async: bool, tell: Callable[[str], None]) -> None:
        self.folder, self.keep, self.is_async, self.tell = folder, keep, is_async, tell
        _hush()
        # Ranks talk from the thread that writes, so in groups of their own.
        self._group = dist.new_group(backend="gloo") if is_distributed() else None
        self._mesh = init_device_mesh("cpu", (num_ranks(),)) if is_distributed() else None
        self._thread: threading.Thread | None = None

    def save(self, trained: Trained, facts: Mapping[str, Any]) -> None:
        """Write ``step-N``, N being the ``step`` among the ``facts``, after the one before has been written."""
        self.wait()
        tensors = {place: _on_cpu(value, self._mesh) for place, value in self._own(trained.tensors()).items()}
        tensors |= _random_states()
        self._thread = threading.Thread(target=self._write, args=(tensors, dict(facts)), name="checkpoint")
        self._thread.start()
        if not self.is_async:
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def newest_whole(self) -> Path | None:
        """The newest checkpoint whose files are all as they were written; None where there never was one.

        Damaged ones are told. Raises ValueError when all are.
        """
        found = from_first(checkpoints(self.folder))
        for path in reversed(found):
            problem = self._first_problem(path)
            if problem is None:
                return path
            self.tell(f"{path} is damaged: {problem}; trying the one before")
        if found:
            raise ValueError(
                f"no checkpoint in {self.folder} is whole (see above; there are {len(found)}): nothing was changed;"
                " put one of them back as it was, or choose another --out to begin anew"
            )
        return None

    def load(self, path: Path, trained: Trained) -> dict[str, Any]:
        """Put a checkpoint's tensors where they belong and return its facts; random states, too, if this rank had one.

        Raises ValueError when the checkpoint is of another network.
        """
        stored = _stored(path)
        _check_network(path, stored, trained.named)
        trained.make_optimizer_state(stored)
        states = {one: torch.empty(stored[one], dtype=torch.uint8) for one in _random_states() if one in stored}
        dcp.load(
            trained.tensors() | states,
            storage_reader=dcp.FileSystemReader(path),
            process_group=self._group,
            no_dist=self._group is None,
        )
        _set_random_states(states)
        return json.loads((path / STATE).read_text())

    def _own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this rank writes: its part of each sharded tensor, and every so manieth of those that all have."""
        return {
            place: value
            for index, (place, value) in enumerate(tensors.items())
            if isinstance(value, DTensor) or index % num_ranks() == rank()
        }

    def _write(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write, hash and rename, together with the other ranks; told, not raised, when it fails anywhere."""
        target = self.folder / f"step-{facts['step']:07d}"
        aside = self.folder / f"{WRITING}{target.name}"
        try:
            self._together(lambda: _make_room(self.folder, aside) if is_first() else None)
            files = self._together(lambda: self._write_own(aside, tensors, facts))
            self._together(lambda: self._finish(aside, target, files) if is_first() else None)
        except Exception as error:  # Also of ranks that are no more: the training's own next word to them will say so.
            if is_first():
                shutil.rmtree(aside, ignore_errors=True)
                left = checkpoints(self.folder)
                last = f"{left[-1]} stays the last checkpoint" if left else "there is no earlier checkpoint"
                self.tell(f"step {facts['step']} could not be saved ({error}); training goes on, {last}")

    def _write_own(self, aside: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """This rank's files, and what they have to be like: their sizes and hashes."""
        dcp.save(
            tensors,
            storage_writer=dcp.FileSystemWriter(aside),
            process_group=self._group,
            no_dist=self._group is None,
        )
        own = list(aside.glob(f"__{rank()}_*"))
        if is_first():
            _write_json(aside / STATE, facts)
            own += [aside / STATE, aside / ".metadata"]
        return {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in own}

    def _finish(self, aside: Path, target: Path, parts: list[dict[str, dict[str, Any]]]) -> None:
        """Write the list of files, give the folder its name, and remove what is older than the newest ``keep``."""
        files = {name: one for part in parts for name, one in sorted(part.items())}
        for name, one in files.items():
            if not (aside / name).is_file() or (aside / name).stat().st_size != one["bytes"]:
                raise OSError(f"{aside / name} is not what another rank wrote: --out must be a folder that all share")
        _write_json(aside / LIST, {"files": files})
        _move_away(target)
        aside.replace(target)
        _flush_folder(self.folder)
        earlier = [path for path in checkpoints(self.folder) if path.name <= target.name]
        for old in earlier[: -self.keep]:
            _move_away(old)

    def _together(self, do: Callable[[], Any]) -> list[Any]:
        """What each rank's ``do`` returned. Raises SavingError on all of them when it failed on one."""
        result, problem = None, None
        try:
            result = do()
        except (Exception, CheckpointException) as error:
            # The library wraps what went wrong, with whole tracebacks.
            failures = error.failures.values() if isinstance(error, CheckpointException) else ()
            cause = next((one for one, _ in failures), error)
            problem = f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
        every: list[Any] = [(result, problem)]
        if self._group is not None:
            every = [None] * num_ranks()
            dist.all_gather_object(every, (result, problem), group=self._group)
        problems = [one for _, one in every if one is not None]
        if problems:
            raise SavingError(problems[0])
        return [one for one, _ in every]

    def _first_problem(self, path: Path) -> str | None:
        """What is wrong with a checkpoint; ranks share the hashing."""
        problem = next(_problems(path, rank(), num_ranks()), None)
        if not is_distributed():
            return problem
        every: list[str | None] = [None] * num_ranks()
        dist.all_gather_object(every, problem, group=self._group)
        return next((one for one in every if one is not None), None)


class SavingError(Exception):
    """A checkpoint could not be written."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first; whether each is whole is not looked at."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def read_tensors(path: Path, what: Literal["weights", "ema", "optimizer"]) -> dict[str, Tensor]:
    """One set of tensors of the checkpoint in ``step-N``, whole and on the CPU, by the names of the weights.

    Those of the optimiser are named ``MOMENT/NAME``. Needs no run and no other rank. Raises ValueError when the folder
    holds no checkpoint or one that is damaged.
    """
    _hush()
    problem = next(_problems(path, 0, 1), None)
    if problem is not None:
        raise ValueError(f"{path} is no whole checkpoint: {problem}")
    metadata = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {
        place: torch.empty(one.size, dtype=one.properties.dtype)
        for place, one in metadata.items()
        if isinstance(one, TensorStorageMetadata) and place.startswith(f"{what}/")
    }
    dcp.load(tensors, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    return {place.partition("/")[2]: tensor for place, tensor in tensors.items()}


def _hush() -> None:
    """That one process saves or reads alone, as it is told to, is nothing to warn of."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _on_cpu(value: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """A copy in the processor's memory, which training does not change; of a sharded tensor, the part of this rank."""
    if not isinstance(value, DTensor):
        return value.detach().to("cpu", copy=True)
    assert mesh is not None
    part = value.to_local().detach().to("cpu", copy=True)
    return DTensor.from_local(part, mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride())


def _random_states() -> dict[str, Tensor]:
    """The states of this rank's random numbers, the processor's and its card's."""
    states = {f"random/{rank()}/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"random/{rank()}/cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: Mapping[str, Tensor]) -> None:
    for place, state in states.items():
        (torch.cuda.set_rng_state if place.endswith("cuda") else torch.set_rng_state)(state)


def _stored(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a checkpoint."""
    metadata = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    return {place: tuple(one.size) for place, one in metadata.items() if isinstance(one, TensorStorageMetadata)}


def _check_network(path: Path, stored: Mapping[str, tuple[int, ...]], named: Mapping[str, nn.Parameter]) -> None:
    weights = {place.partition("/")[2]: shape for place, shape in stored.items() if place.startswith("weights/")}
    own = {name: tuple(weight.shape) for name, weight in named.items()}
    odd = sorted(name for name in weights.keys() | own.keys() if weights.get(name) != own.get(name))
    if odd:
        raise ValueError(f"{path} holds another network's weights (first differences: {odd[:3]}); choose another --out")


def _problems(path: Path, part: int, parts: int) -> Iterator[str]:
    """What is wrong with a checkpoint's folder; files are hashed by ``parts`` readers, this one being ``part``."""
    try:
        files: Mapping[str, Mapping[str, Any]] = json.loads((path / LIST).read_text())["files"]
    except OSError:
        yield f"it has no {LIST} (it is not a checkpoint, of an older version, or half removed)"
        return
    except (ValueError, KeyError):
        yield f"its {LIST} cannot be read"
        return
    for name, one in list(files.items())[part::parts]:
        try:
            size, found = (path / name).stat().st_size, None
            if size == one["bytes"]:
                found = _sha256(path / name)
        except OSError as error:
            yield f"{name} cannot be read ({error.strerror})"
            continue
        if found is None:
            yield f"{name} has {size} bytes, and {one['bytes']} were written"
        elif found != one["sha256"]:
            yield f"{name} is not what was written (its checksum differs)"


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write, and return when it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _make_room(folder: Path, aside: Path) -> None:
    """Remove what broken-off savings left, and make the folder to write into."""
    for left in folder.glob(f"{WRITING}*step-*"):
        shutil.rmtree(left)
    aside.mkdir(parents=True)


def _move_away(path: Path) -> None:
    """Remove a checkpoint; if that is broken off, no half of it is left under its name."""
    if path.exists():
        gone = path.with_name(f"{WRITING}away-{path.name}")
        shutil.rmtree(gone, ignore_errors=True)
        path.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _flush_folder(folder: Path) -> None:
    """Have the new name on the disk, not only in memory."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
