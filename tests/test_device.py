"""The device and number format are chosen by what the machine does fast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lumiere import device
from lumiere.device import choose_placement, free_bytes, has_fast_bfloat16


def test_bfloat16_is_fast_only_where_the_processor_multiplies_it() -> None:
    emulating = {"architecture": "x86_64", "avx512_f": True, "avx512_bw": True, "avx512_bf16": False}
    assert not has_fast_bfloat16(emulating)
    assert not has_fast_bfloat16({"architecture": "aarch64"})
    assert has_fast_bfloat16(emulating | {"avx512_bf16": True})
    assert has_fast_bfloat16(emulating | {"amx_bf16": True})


def test_automatic_choice_on_the_cpu_follows_the_processor() -> None:
    placement = choose_placement("cpu")
    fast = has_fast_bfloat16(torch.cpu.get_capabilities())
    assert placement.dtype == (torch.bfloat16 if fast else torch.float32)
    assert str(placement).startswith(f"cpu, {'bfloat16' if fast else 'float32'} (")


def test_automatic_device_is_one_that_computes() -> None:
    placement = choose_placement()
    assert float(torch.ones(2, device=placement.device, dtype=placement.dtype).sum()) == 2


def test_what_is_asked_for_is_taken() -> None:
    placement = choose_placement("cpu", "float32")
    assert (placement.device, placement.dtype) == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("device", "dtype", "said"),
    [
        ("cpu", "fp8", "known are auto, float32, bfloat16, float16"),
        ("cpu", "float16", "use bfloat16 or float32"),
        ("toaster", "auto", "this machine has auto, cpu"),
        ("cuda:99", "auto", "lacks"),
        ("meta", "auto", "lacks"),
    ],
)
def test_what_the_machine_cannot_do_is_refused_with_what_it_can(device: str, dtype: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        choose_placement(device, dtype)


def test_free_memory_is_the_machines_or_less_where_a_container_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device, "CONTAINER", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    whole = free_bytes(torch.device("cpu"))
    assert whole > 2**26
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert free_bytes(torch.device("cpu")) == 3000
