"""Checkpoints: whole or not there, never lost, resumed from bit for bit; and what stops a run, or does not."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from benchmarks.kill_and_resume import differences
from lumiere.config import Settings, load_settings
from lumiere.training.changes import Change, changes, check_changes
from lumiere.training.checkpoint import Checkpoints, checkpoints, read_tensors
from lumiere.training.log import Log
from lumiere.training.loop import LoopSettings
from lumiere.training.stopping import Stopped, StopSignals
from tests.training_ranks import TinyStage, tiny_trainer


def contents(path: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    return {
        f"{what}/{name}": tensor for what in ("weights", "ema", "optimizer") for name, tensor in tensors(path, what)
    }


def tensors(path: Path, what: Any) -> Iterator[tuple[str, Tensor]]:
    yield from read_tensors(path, what).items()


def assert_equal(one: Path, other: Path) -> None:
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys() and any(name.startswith("optimizer/exp_avg/") for name in first)
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def losses(out: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[key]) for line in lines for key in ("loss", "held_out/loss") if key in line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of six steps."""
    out = tmp_path_factory.mktemp("whole")
    tiny_trainer(out, num_steps=6, validate_every=2, save_every=2, keep_checkpoints=3).run()
    return out


def test_a_checkpoint_holds_the_weights_the_averages_and_the_moments_as_they_are(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, num_steps=3, async_save=False)
    trainer.run()
    (path,) = checkpoints(tmp_path)
    stored = read_tensors(path, "weights")
    assert set(stored) == set(trainer.named) and all(torch.equal(stored[n], p) for n, p in trainer.named.items())
    averages = read_tensors(path, "ema")
    assert all(torch.equal(averages[n], a) for n, a in zip(trainer.named, trainer.ema.averages, strict=True))
    moments = read_tensors(path, "optimizer")
    for name, weight in trainer.named.items():
        for key, value in trainer.optimizer.state.get(weight, {}).items():
            assert torch.equal(moments[f"{key}/{name}"], value)
    # A weight that never had a gradient has no moments.
    assert not [name for name in moments if name.endswith("unused")] and "exp_avg/last.weight" in moments


def test_what_is_written_is_what_was_there_when_it_was_saved(tmp_path: Path) -> None:
    """The training goes on while a checkpoint is written."""
    trainer = tiny_trainer(tmp_path, num_steps=3)
    saved = Checkpoints(tmp_path, keep=2, is_async=True, tell=print)
    expected = {name: weight.detach().clone() for name, weight in trainer.named.items()}
    trainer._save(saved)
    for _ in range(3):
        trainer._step()
    saved.wait()
    stored = read_tensors(checkpoints(tmp_path)[-1], "weights")
    assert all(torch.equal(stored[name], weight) for name, weight in expected.items())
    assert not torch.equal(stored["last.weight"], trainer.named["last.weight"])


@pytest.mark.parametrize("damage", ["cut", "flipped", "lost", "no list"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(
    whole: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    tiny_trainer(out, num_steps=6, validate_every=2, save_every=2, keep_checkpoints=3).run()
    newest = checkpoints(out)[-1]
    (file,) = newest.glob("*.distcp")
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "lost":
        file.unlink()
    else:
        (newest / "checksums.json").unlink()
    with pytest.raises(ValueError, match="no whole checkpoint"):
        read_tensors(newest, "weights")
    capsys.readouterr()
    again = tiny_trainer(out, num_steps=6, validate_every=2, save_every=2, keep_checkpoints=3)
    again.run()
    # Long paths are broken across the lines of a narrow terminal.
    said = "".join(capsys.readouterr().out.split())
    assert "isdamaged" in said and f"goingonfrom{out}/step-0000004" in said
    assert again.stage.asked == [4, 5]  # type: ignore[attr-defined]
    for one, other in zip(checkpoints(whole), checkpoints(out), strict=True):
        assert_equal(one, other)
    assert losses(out) == losses(whole)


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, num_steps=2, save_every=1).run()
    for path in checkpoints(tmp_path):
        (path / ".metadata").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole.*nothing was changed"):
        tiny_trainer(tmp_path, num_steps=3).run()
    assert len(checkpoints(tmp_path)) == 2


def test_a_failed_save_is_told_and_harms_nothing(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, turns = dcp.FileSystemWriter.write_data, []

    def full_disk(self: Any, plan: Any, planner: Any) -> Any:
        turns.append(None)
        if len(turns) == 2:
            (Path(self.path) / "__0_9.distcp").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return write(self, plan, planner)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", full_disk)
    tiny_trainer(tmp_path, num_steps=6, validate_every=2, save_every=2, keep_checkpoints=3).run()
    said = " ".join(capsys.readouterr().out.split())
    assert "step 4 could not be saved" in said and "No space left on device" in said
    assert [path.name for path in checkpoints(tmp_path)] == ["step-0000002", "step-0000006"]
    for path in checkpoints(tmp_path):
        assert_equal(path, whole / path.name)
    assert not list(tmp_path.glob(".writing-*"))


def test_files_that_the_system_does_not_let_grow_harm_nothing(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same by the system's own refusal (RLIMIT_FSIZE), in the middle of the file with the weights."""
    resource = pytest.importorskip("resource", reason="this system knows no limits of files")
    write, before = Checkpoints._write, resource.getrlimit(resource.RLIMIT_FSIZE)
    most = max(path.stat().st_size for path in checkpoints(whole)[-1].glob("*.distcp")) // 2

    def limited(self: Checkpoints, tensors: Any, facts: dict[str, Any]) -> None:
        if facts["step"] == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            write(self, tensors, facts)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(Checkpoints, "_write", limited)
    settings = {"validate_every": 2, "save_every": 2, "keep_checkpoints": 3, "async_save": False}
    tiny_trainer(tmp_path, num_steps=6, **settings).run()
    assert "step 4 could not be saved" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in checkpoints(tmp_path)] == ["step-0000002", "step-0000006"]
    for path in checkpoints(tmp_path):
        assert_equal(path, whole / path.name)
    assert not list(tmp_path.glob(".writing-*"))


def test_what_a_killed_run_left_is_cleared_away_and_old_checkpoints_are_removed(tmp_path: Path) -> None:
    left = tmp_path / ".writing-step-0000009"
    left.mkdir()
    (left / "__0_0.distcp").write_bytes(b"half")
    tiny_trainer(tmp_path, num_steps=5, save_every=1, keep_checkpoints=2).run()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-0000004", "step-0000005"]
    assert not list(tmp_path.glob(".writing-*"))


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    saved = Checkpoints(tmp_path, keep=1, is_async=False, tell=print)
    torch.manual_seed(7)
    trainer._save(saved)
    expected = torch.rand(3)
    torch.manual_seed(8)
    saved.load(checkpoints(tmp_path)[0], trainer.trained)
    assert torch.equal(torch.rand(3), expected)


class _Laid(TinyStage):
    """A stage with a convolution whose weights lie channels last, as the networks' do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        yield from self.conv.named_parameters()

    def losses(self, position: int, count: int) -> Tensor:
        clip = torch.randn(count, 2, 5, 5, generator=torch.Generator().manual_seed(position))
        return self.conv(clip).square().mean((1, 2, 3))

    def validate(self) -> dict[str, float]:
        return {}


def test_moments_lie_in_memory_as_their_weights_do(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "a", _Laid(), num_steps=4).run()
    tiny_trainer(tmp_path / "b", _Laid(), num_steps=2).run()
    again = tiny_trainer(tmp_path / "b", _Laid(), num_steps=4)
    again.run()
    weight = again.named["weight"]
    assert again.optimizer.state[weight]["exp_avg"].stride() == weight.stride() != (18, 9, 3, 1)
    assert_equal(checkpoints(tmp_path / "a")[-1], checkpoints(tmp_path / "b")[-1])


def test_a_step_without_numbers_changes_nothing_but_the_place_in_the_data(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, TinyStage(broken=[1]), num_steps=4)
    trainer._step()
    before = [weight.detach().clone() for weight in (*trainer.masters.values(), *trainer.ema.averages)]
    moments = {key: value.clone() for key, value in trainer.optimizer.state[trainer.masters["last.bias"]].items()}
    loss, _, _ = trainer._step()
    assert loss != loss and trainer.bad_steps == 1 and (trainer.step, trainer.position) == (2, 2)
    after = [*trainer.masters.values(), *trainer.ema.averages]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    for key, value in trainer.optimizer.state[trainer.masters["last.bias"]].items():
        assert torch.equal(value, moments[key])
    trainer._step()
    assert trainer.bad_steps == 0


def test_too_many_steps_without_numbers_stop_the_run_and_leave_the_last_good_checkpoint(tmp_path: Path) -> None:
    trainer = tiny_trainer(
        tmp_path, TinyStage(broken=[1, 3, 4, 5]), num_steps=9, save_every=1, max_bad_steps=3, keep_checkpoints=1
    )
    with pytest.raises(ValueError, match=r"the loss is no number.* for the last 3 steps, up to step 6"):
        trainer.run()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-0000003"]
    read_tensors(checkpoints(tmp_path)[0], "weights")


def test_a_last_step_without_numbers_does_not_keep_a_run_from_ending(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, TinyStage(broken=[3]), num_steps=4, async_save=False).run()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-0000004"] and (tmp_path / "export").is_dir()


class _Signalled(TinyStage):
    """A signal comes in the middle of the fourth step."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def losses(self, position: int, count: int) -> Tensor:
        if position == 3:
            os.kill(os.getpid(), self.number)
        return super().losses(position, count)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_step_end_and_saves_it(
    whole: Path, tmp_path: Path, number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped) as stopped:
        tiny_trainer(tmp_path, _Signalled(number), num_steps=6, validate_every=2, keep_checkpoints=9).run()
    assert stopped.value.code == code and "the same command again" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in checkpoints(tmp_path)] == ["step-0000004"]
    assert handlers == [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    tiny_trainer(tmp_path, num_steps=6, validate_every=2, save_every=2).run()
    assert_equal(checkpoints(whole)[-1], checkpoints(tmp_path)[-1])
    # The validation that was due when it was stopped is made up for.
    assert losses(tmp_path) == losses(whole)


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[Any] = []

    def look() -> None:
        with StopSignals().heard():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_line_that_a_kill_broke_off_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 2, "he')
    Log(tmp_path, 2).write(3, {"loss": 0.5})
    assert losses(tmp_path) == [(1, 2.0), (2, 1.0), (3, 0.5)]


class _Recipe(Settings):
    out: str
    data: dict[str, int] = {}
    newer: int = 3
    loop: LoopSettings


def _recipe(out: Path, data: int = 1, **loop: Any) -> _Recipe:
    fixed = {"num_steps": 9, "batch_size": 2, "learning_rate": 0.1}
    return load_settings(_Recipe, {"out": str(out), "data": {"size": data}, "loop": fixed | loop})


def _kept(out: Path, settings: _Recipe, ranks: int = 1) -> None:
    recipe = settings.model_dump(mode="json")
    del recipe["newer"]
    (out / "step-0000002").mkdir(parents=True, exist_ok=True)
    (out / "step-0000002" / "state.json").write_text(json.dumps({"step": 2, "ranks": ranks, "recipe": recipe}))


def test_the_benchmark_sees_what_differs_and_nothing_else(whole: Path, tmp_path: Path) -> None:
    often: dict[str, Any] = {"num_steps": 6, "validate_every": 2, "save_every": 3}
    tiny_trainer(tmp_path / "same", **often).run()
    assert not any(differences(whole, tmp_path / "same").values())
    tiny_trainer(tmp_path / "other", **often, ema_decay=0.1).run()
    found = differences(whole, tmp_path / "other")
    assert {what for what, names in found.items() if names} == {"ema", "curves"}, "held-out losses are the averages'"


def test_changed_recipes_are_listed_and_refused_unless_accepted(tmp_path: Path) -> None:
    _kept(tmp_path, _recipe(tmp_path))
    assert check_changes(_recipe(tmp_path), tmp_path, ranks=1, accept=False) == []
    free = _recipe(tmp_path, num_steps=20, save_every=7, device="cpu", keep_checkpoints=4, compile=True)
    assert len(check_changes(free, tmp_path, ranks=1, accept=False)) == 5
    changed = _recipe(tmp_path, 5, learning_rate=0.2, num_steps=20)
    with pytest.raises(
        ValueError, match=r"data\.size: 1 then, 5 now; loop\.learning_rate: 0\.1 then, 0\.2 now\..*--acc"
    ):
        check_changes(changed, tmp_path, ranks=1, accept=False)
    told = check_changes(changed, tmp_path, ranks=1, accept=True)
    assert "loop.learning_rate: 0.1 then, 0.2 now (accepted)" in told and len(told) == 3


def test_fewer_passes_on_more_ranks_are_the_same_batch(tmp_path: Path) -> None:
    _kept(tmp_path, _recipe(tmp_path, accumulation=4))
    (told, ranks) = check_changes(_recipe(tmp_path, accumulation=2), tmp_path, ranks=2, accept=False)
    assert told.startswith("loop.accumulation: 4 then") and "batch of a step stays" in ranks
    with pytest.raises(ValueError, match=r"loop\.accumulation"):
        check_changes(_recipe(tmp_path, accumulation=2), tmp_path, ranks=1, accept=False)
    (ranks,) = check_changes(_recipe(tmp_path, accumulation=4), tmp_path, ranks=2, accept=False)
    assert "changes with it" in ranks


def test_the_first_part_of_fine_tuning_does_not_mind_the_settings_of_the_second(tmp_path: Path) -> None:
    class Both(Settings):
        image: LoopSettings
        motion: LoopSettings

    def both(image: float, motion: float) -> Both:
        loops = {"image": image, "motion": motion}
        fixed: dict[str, Any] = {"num_steps": 9, "batch_size": 2}
        return load_settings(Both, {name: {**fixed, "learning_rate": rate} for name, rate in loops.items()})

    recipe = both(0.1, 0.1).model_dump(mode="json")
    (tmp_path / "image" / "step-0000002").mkdir(parents=True)
    (tmp_path / "image" / "step-0000002" / "state.json").write_text(json.dumps({"recipe": recipe}))
    assert check_changes(both(0.1, 0.2), tmp_path, ranks=1, accept=False) == []
    with pytest.raises(ValueError, match=r"image\.learning_rate: 0\.1 then, 0\.2 now"):
        check_changes(both(0.2, 0.1), tmp_path, ranks=1, accept=False)


def test_changes_name_what_came_and_what_went() -> None:
    found = list(changes({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "e": 3}, "d": [1, 2]}))
    assert found == [Change("a.e", None, 3), Change("a.c", 2, None), Change("d", [1], [1, 2])]
