"""Several processes train as one would: same order, same gradients, same checkpoints, replicated or sharded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lumiere.training import distributed
from lumiere.training.checkpoint import checkpoints, read_tensors
from lumiere.training.run import train
from lumiere.training.sharding import chosen_sharding
from tests.training_ranks import ROOT, on_ranks, tiny_runs, tiny_trainer

OFTEN = {"save_every": 2, "keep_checkpoints": 9}
Runs = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of one process that two are compared with, unbroken and up to its second step."""
    place = tmp_path_factory.mktemp("ranks")
    tiny_trainer(place / "alone", accumulation=2, **OFTEN).run()
    for name in ("grown", "grown sharded"):
        tiny_trainer(place / name, accumulation=2, num_steps=2).run()
    return place


@pytest.fixture(scope="module")
def runs(place: Path) -> Runs:
    """What each of two ranks said of a run, by its name; all are of the same two processes."""
    kinds: dict[str, dict[str, Any]] = {
        "replicated": OFTEN | {"sharding": "replicated"},
        "sharded": OFTEN | {"sharding": "sharded"},
        "grown": {"sharding": "replicated"},
        "grown sharded": {"sharding": "sharded"},
        "shrunk": {"sharding": "replicated", "num_steps": 2},
        "shrunk sharded": {"sharding": "sharded", "num_steps": 2},
        "broken": {"broken": [3], "num_steps": 3, "save_every": 1, "keep_checkpoints": 9},
        "stopped": {"stop_at": 3, "num_steps": 9},
    }
    said = tiny_runs(2, *((place / name, settings) for name, settings in kinds.items()))
    return lambda name: [one[list(kinds).index(name)] for one in said]


def assert_close(one: Path, other: Path) -> None:
    """The newest checkpoints of two runs hold the same, to rounding."""
    for what in ("weights", "ema", "optimizer"):
        first, second = (read_tensors(checkpoints(run)[-1], what) for run in (one, other))  # type: ignore[arg-type]
        assert first.keys() == second.keys()
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6, msg=f"{what} {name}")


@pytest.mark.parametrize("mode", ["replicated", "sharded"])
def test_two_ranks_are_one_that_accumulates_twice(place: Path, runs: Runs, mode: str) -> None:
    assert [one["asked"] for one in runs(mode)] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert_close(place / "alone", place / mode)
    assert [path.name for path in checkpoints(place / mode)] == ["step-0000002", "step-0000004"]


@pytest.mark.parametrize("mode", ["grown", "grown sharded"])
def test_a_run_goes_on_with_more_ranks(place: Path, runs: Runs, mode: str) -> None:
    assert [one["asked"] for one in runs(mode)] == [[4, 6], [5, 7]]
    assert_close(place / "alone", place / mode)


@pytest.mark.parametrize("mode", ["shrunk", "shrunk sharded"])
def test_a_run_goes_on_with_fewer_ranks(place: Path, runs: Runs, mode: str) -> None:
    runs(mode)
    trainer = tiny_trainer(place / mode, accumulation=2)
    trainer.run()
    assert trainer.stage.asked == [4, 5, 6, 7]  # type: ignore[attr-defined]
    assert_close(place / "alone", place / mode)


def test_what_is_no_number_on_one_rank_is_skipped_on_all(place: Path, runs: Runs) -> None:
    assert [one["step"] for one in runs("broken")] == [3, 3]
    saved = [path.name for path in checkpoints(place / "broken")]
    assert saved == ["step-0000001", "step-0000003"], "nothing is saved after a bad step"
    lines = [json.loads(line) for line in (place / "broken" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] == line["loss"] for line in lines if "loss" in line] == [True, False, True]


def test_a_signal_to_one_rank_stops_all_after_the_same_step(place: Path, runs: Runs) -> None:
    assert [(one["step"], one["code"]) for one in runs("stopped")] == [(2, 143), (2, 143)]
    assert [path.name for path in checkpoints(place / "stopped")] == ["step-0000002"]


def test_ranks_write_files_of_their_own_and_one_log(place: Path, runs: Runs) -> None:
    runs("sharded")
    for mode in ("replicated", "sharded"):
        files = json.loads((checkpoints(place / mode)[-1] / "checksums.json").read_text())["files"]
        assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "state.json"} <= set(files)
        steps = [json.loads(line)["step"] for line in (place / mode / "metrics.jsonl").read_text().splitlines()]
        assert steps == [1, 2, 3, 4, 4]
        assert (place / mode / "samples" / "step-0000004" / "shown.txt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["replicated", "sharded"])
def test_one_two_four_and_one_rank_again_are_one_run(tmp_path: Path, mode: str) -> None:
    """Eight passes a step in all."""
    tiny_trainer(tmp_path / "alone", accumulation=4, num_steps=8).run()
    tiny_trainer(tmp_path / "run", accumulation=4, num_steps=2).run()
    for ranks, num_steps in ((2, 4), (4, 6)):
        settings = {"sharding": mode, "num_steps": num_steps, "accumulation": 4 // ranks}
        said = tiny_runs(ranks, (tmp_path / "run", settings))
        asked = sorted(position for one in said for position in one[0]["asked"])
        assert asked == list(range(4 * (num_steps - 2), 4 * num_steps))
    tiny_trainer(tmp_path / "run", accumulation=4, num_steps=8).run()
    assert_close(tmp_path / "alone", tmp_path / "run")


RECIPE_RUNS = """
import sys
from lumiere.training.distributed import process_group
from lumiere.training.run import train
with process_group():
    for mode in ("replicated", "sharded"):
        train("text_to_video_smoke", [*sys.argv[2:], "--out", f"{sys.argv[1]}/{mode}", "--loop.sharding", mode])
"""


@pytest.mark.slow
def test_a_space_time_network_is_trained_by_two_ranks_as_by_one(tmp_path: Path, image_network: Path) -> None:
    words = ["--image", str(image_network), "--loop.bf16", "false", "--loop.bf16_weights", "false"]
    words += ["--num_validation_clips", "3", "--loop.num_steps", "2", "--loop.weight_decay", "0.1"]
    train("text_to_video_smoke", [*words, "--out", str(tmp_path / "alone"), "--loop.accumulation", "2"])
    on_ranks(2, "-c", RECIPE_RUNS, str(tmp_path), *words)
    alone = _held_out(tmp_path / "alone")
    for mode in ("replicated", "sharded"):
        assert_moved_alike(tmp_path / "alone", tmp_path / mode)
        assert _held_out(tmp_path / mode) == pytest.approx(alone, rel=1e-4)
        assert _export_is_of(tmp_path / mode)


def assert_moved_alike(one: Path, other: Path) -> None:
    """The first moments, which are sums of gradients, are the same to rounding."""
    first, second = (read_tensors(checkpoints(run)[-1], "optimizer") for run in (one, other))
    assert first.keys() == second.keys()
    for name in (name for name in first if name.startswith("exp_avg/")):
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-6, msg=name)


def _held_out(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def _export_is_of(run: Path) -> bool:
    """Whether the exported pipeline holds the averages of the last checkpoint, in bfloat16."""
    from lumiere.model.stunet import STUNet

    exported = STUNet.from_pretrained(run / "export" / "unet").state_dict()
    averages = read_tensors(checkpoints(run)[-1], "ema")
    return all(torch.equal(exported[name].bfloat16(), mean.bfloat16()) for name, mean in averages.items())


@pytest.mark.slow
def test_torchrun_trains_a_recipe(tmp_path: Path) -> None:
    words = ["-m", "lumiere", "train", "text_to_image_smoke", "--out", str(tmp_path), "--loop.num_steps", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    assert "on 2 ranks (replicated)" in ended.stdout and (tmp_path / "export" / "unet").is_dir()
    assert ended.stdout.count("held out") == 1, "only the first rank speaks"


def test_alone_nothing_is_made_and_everything_means_itself() -> None:
    with distributed.process_group():
        assert not distributed.is_distributed() and distributed.is_first() and distributed.num_ranks() == 1
        assert distributed.share(3) == [0, 1, 2] and distributed.summed([1.5, 2]) == [1.5, 2.0]
        assert distributed.from_first("x") == "x"
        assert torch.equal(distributed.gathered(torch.arange(3.0), 3), torch.arange(3.0))


@pytest.mark.parametrize(("count", "ranks"), [(7, 3), (2, 4), (4, 4), (1, 2), (16, 5)])
def test_shares_cover_everything_and_are_of_one_length(count: int, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "num_ranks", lambda: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.share(count))
    assert len({len(one) for one in shares}) == 1
    # What ``gathered`` puts together: place i of rank r is number i * ranks + r.
    assert torch.tensor(shares).T.flatten()[:count].tolist() == list(range(count))


def test_half_an_environment_and_a_numbered_card_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="sets RANK and WORLD_SIZE but not LOCAL_RANK"), distributed.process_group():
        pass
    distributed.check_device("cuda:1")
    monkeypatch.setattr(distributed, "num_ranks", lambda: 2)
    distributed.check_device("auto")
    with pytest.raises(ValueError, match="each takes its own card"):
        distributed.check_device("cuda:1")


def test_sharding_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nobody to share with"):
        tiny_trainer(tmp_path, sharding="sharded")
    with pytest.raises(ValueError, match="more than one Space-Time U-Net"):
        chosen_sharding("sharded", None, [nn.Parameter(torch.zeros(1))])
    assert not chosen_sharding("auto", None, [])


@pytest.mark.parametrize(("free", "is_sharded"), [(10**9, False), (100, True)])
def test_auto_shards_what_would_fill_over_half_of_the_memory(
    free: int, is_sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lumiere.training import sharding
    from tests.training_ranks import Network

    monkeypatch.setattr(sharding, "num_ranks", lambda: 2)
    monkeypatch.setattr(sharding, "free_bytes", lambda device: free)
    network: Any = Network()
    assert chosen_sharding("auto", network, list(network.parameters())) is is_sharded
    assert not chosen_sharding("replicated", network, list(network.parameters()))


def test_two_damaged_copies_are_one_problem_for_all_ranks(place: Path, runs: Runs, tmp_path: Path) -> None:
    """Ranks share the hashing, and what one finds stops all."""
    runs("replicated")
    shutil.copytree(place / "replicated", tmp_path / "run")
    file = checkpoints(tmp_path / "run")[-1] / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    trainer = tiny_trainer(tmp_path / "run", accumulation=2)
    trainer.run()
    assert trainer.stage.asked == [4, 5, 6, 7]  # type: ignore[attr-defined]
