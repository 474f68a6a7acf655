"""The benchmarks of the network run, and measure the network that they say they measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import stunet as benchmark
from benchmarks.claims import identity_init
from lumiere.conditioning.text import small_t5, word_tokenizer
from lumiere.data.captions import vocabulary
from lumiere.model.stunet import STUNet
from lumiere.model.temporal import TemporalSettings
from tests.tiny_unets import FAMILIES, conditions, embedded


@pytest.mark.parametrize("family", ["embedded", "if1"])
def test_naive_network_computes_the_same(family: str) -> None:
    stunet = STUNet.from_image_unet(FAMILIES[family](2), temporal=TemporalSettings(hears_time_and_text=True))
    for weight in stunet.temporal_parameters():
        nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    clip = torch.randn(2, stunet.config.in_channels, 8, 16, 16)
    inputs = conditions(stunet, 2)
    with torch.no_grad():
        expected = stunet(clip, **inputs).sample
        torch.testing.assert_close(benchmark.naive(stunet)(clip, **inputs).sample, expected, atol=1e-4, rtol=1e-4)


def test_operations_are_those_of_the_layers() -> None:
    conv = nn.Conv2d(3, 5, (3, 1), padding=(1, 0), bias=False)
    frames = torch.randn(1, 3, 4, 6)
    forward = 2 * 3 * 5 * 3 * 4 * 6 / 1e9
    assert benchmark.count_gflop(conv, lambda: conv(frames), backward=False) == pytest.approx(forward)
    assert benchmark.count_gflop(conv, lambda: conv(frames), backward=True) == pytest.approx(2 * forward)


def test_benchmark_reports_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    STUNet.from_image_unet(embedded()).save_pretrained(tmp_path / "unet")
    options = benchmark.Options(network=tmp_path / "unet", frames=4, repeats=1, out=tmp_path / "report.json")
    benchmark.main(options)
    printed = capsys.readouterr().out
    assert "of the matrix product" in printed and "times as fast as the naive way" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["timings"]) == 4 and all(timing["seconds"] > 0 for timing in report["timings"])
    forward, training = (timing["gflop"] for timing in report["timings"][:2])
    assert 1.5 * forward < training < 3 * forward


def test_comparison_of_starts_writes_both_curves(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(vocabulary(), max_length=24)
    embedded().save_pretrained(tmp_path / "unet")
    small_t5(len(tokenizer), width=12, num_layers=1, num_heads=2).save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = identity_init.Options(
        image=tmp_path, num_steps=2, seeds=(0,), recipe="text_to_video_smoke", out=tmp_path / "plot"
    )
    identity_init.main(options)
    losses = json.loads((tmp_path / "plot.json").read_text())["losses"]
    assert {start: len(runs[0]) for start, runs in losses.items()} == {"identity": 2, "standard": 2}
    assert losses["identity"] != losses["standard"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
