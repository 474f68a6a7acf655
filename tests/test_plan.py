"""The memory plan of a training run: what is counted agrees with what is known of public models and of optimisers."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lumiere.backbones import clip_memory, known_clip_memory
from lumiere.cli import main
from lumiere.config import find_recipe, load_settings
from lumiere.memory import tensor_bytes
from lumiere.model.architectures import ARCHITECTURES, architecture
from lumiere.model.stunet import STUNet
from lumiere.model.weigh import on_meta, pass_bytes
from lumiere.pipeline import LumierePipeline
from lumiere.training.jobs import job_of
from lumiere.training.loop import LoopSettings, Trainer
from lumiere.training.plan import (
    HEADROOM,
    Job,
    Model,
    flops_of,
    need_of,
    network_of,
    pass_seconds,
    remedies,
    report,
)
from lumiere.training.run import settings_of
from tests.tiny_pipeline import tiny_pipeline

PUBLISHED = {"sd15": 859_520_964, "sdxl": 2_567_463_684, "sd_x4": 473_398_020}
"""Weights of the image networks, as their model cards' files have them."""

GIB = 2**30


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pipeline's folder."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline().save_pretrained(folder)
    return folder


def tiny_job(folder: Path, **changes: object) -> Job:
    model = Model.in_folder(folder)
    known = {"config": model.config, "spatial_factor": model.spatial_factor, "beside": model.text + model.vae}
    return Job(**{**known, "frames": 8, "height": 32, "width": 32, "batch_size": 2, **changes})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_public_networks_have_their_published_size(name: str) -> None:
    model = Model.known(name)
    with torch.device("meta"):
        network = STUNet.from_config(model.config)
    count = sum(weight.numel() for weight in network.image_parameters())
    if name in PUBLISHED:
        assert count == PUBLISHED[name]
    if name == "if_xl":
        assert 4.2e9 < count < 4.4e9  # "4.3B"
    assert model.spatial_factor == {"sd15": 8, "sdxl": 8, "sd_x4": 4}.get(name, 1)


def test_what_is_held_is_counted_as_the_trainer_holds_it(tiny: Path, tmp_path: Path) -> None:
    job = tiny_job(tiny, bf16_weights=True)
    pipeline = LumierePipeline.from_pretrained(tiny)
    pipeline.unet.to(torch.bfloat16).freeze_image()

    class Stage:
        named_parameters = pipeline.unet.named_parameters

        def shardable(self) -> None:
            """Nothing."""

    loop = LoopSettings(num_steps=1, batch_size=1, learning_rate=1e-3, bf16_weights=True)
    trainer = Trainer(Stage(), loop, tmp_path, facts={})  # type: ignore[arg-type]
    for master in trainer.masters.values():
        master.grad = torch.zeros_like(master)
    trainer.optimizer.step()
    masters = tensor_bytes(trainer.masters.values())
    moments = sum(tensor_bytes([state["exp_avg"], state["exp_avg_sq"]]) for state in trainer.optimizer.state.values())
    need = need_of(job)
    assert need.weights == tensor_bytes(pipeline.unet.parameters())
    assert need.optimiser == masters + moments
    assert need.average == tensor_bytes(trainer.ema.averages)
    assert need.beside >= tensor_bytes(pipeline.text_encoder.parameters())
    assert need.total == need.weights + need.optimiser + need.average + need.activations + need.beside


def test_a_plan_grows_with_what_is_asked_and_shrinks_by_its_remedies(tiny: Path) -> None:
    job = tiny_job(tiny)
    network = network_of(job)
    one, two = (need_of(tiny_job(tiny, batch_size=count), network).activations for count in (1, 2))
    # Features double with the clips, gradients do not.
    assert 1.5 * one < two <= 2 * one
    found = list(remedies(job, need_of(job, network).total // 4, network))
    totals = [need.total for _, need in found]
    assert totals == sorted(totals, reverse=True) and "checkpointing" in found[1][0]
    assert "bfloat16" in found[0][0]
    emulating = tiny_job(tiny, bf16=False, emulates_bf16=True)
    assert not any("bfloat16" in name for name, _ in remedies(emulating, 0, network))
    enough = totals[1] * 2
    assert len(list(remedies(job, enough, network))) <= 2
    shared = need_of(tiny_job(tiny, ranks=4, is_sharded=True), network)
    alone = need_of(job, network)
    assert shared.weights == alone.weights // 4 and shared.optimiser == alone.optimiser // 4


def test_the_plan_says_whether_it_fits(tiny: Path) -> None:
    job = tiny_job(tiny)
    network = network_of(job)
    need = need_of(job, network)

    def said(available: int) -> str:
        file = io.StringIO()
        Console(file=file, width=120).print(report(job, need, available, network=network))
        return file.getvalue()

    assert "It fits into 100.0 GiB" in said(100 * GIB)
    assert "does not fit" in said(need.total) and "gradient checkpointing" in said(need.total)
    assert "that is not enough" in said(GIB // 1000)


def test_a_clip_of_a_public_model_is_planned_part_by_part() -> None:
    small, long, large = (known_clip_memory("sd15", *clip) for clip in ((8, 256, 256), (40, 256, 256), (8, 512, 512)))
    assert small.weights["unet"] > 2 * PUBLISHED["sd15"] and small.weights == large.weights
    # Passes grow with what they are over, the VAE with the picture alone.
    assert 4.5 * small.step < long.step < 5.5 * small.step and long.decode == small.decode
    assert 3 * small.step < large.step < 5 * small.step and 3 * small.decode < large.decode
    assert small.step_in_parts < small.step
    assert small.offloaded < small.whole == sum(small.weights.values()) + small.step + small.clips
    pixels = known_clip_memory("if_xl", 8, 64, 64)
    assert pixels.decode == 0 and "vae" not in pixels.weights


def test_a_pipelines_clip_is_planned_by_its_own_networks() -> None:
    pipeline = LumierePipeline.from_pretrained(None)
    need = clip_memory(pipeline, 80, 32, 32)
    assert need.weights["unet"] == tensor_bytes(pipeline.unet.parameters())
    assert need.step == pass_bytes(on_meta(pipeline.unet.config, pipeline.unet.dtype), (1, 80, 16, 16))
    assert need.decode == 0 and clip_memory(pipeline, 16, 32, 32).step < need.step


@pytest.mark.parametrize(
    ("name", "gib"),
    [("sd15", 24), ("sdxl", 48), ("if_xl", 48), ("paper", 80), ("sd_x4_ssr", 16), ("if_xl_ssr", 24), ("paper_ssr", 48)],
)
def test_the_large_recipes_are_as_their_headers_say(name: str, gib: int) -> None:
    path = find_recipe(name)
    settings, header = load_settings(settings_of(path), path), path.read_text().split("stage:")[0].replace("\n#", "")
    job = job_of(settings, ranks=8)
    # What text encoders say comes from a cache where the recipe names one: nothing of them is on the device.
    model = Model.known(settings.like)
    assert job.beside == model.vae + (model.text if settings.cache is None else 0)
    network = network_of(job)
    need = need_of(job, network)
    assert f"of {gib} GB" in header and need.total < HEADROOM * gib * GIB
    assert f"by plan {need.total / GIB:.1f} GiB each" in header
    passes = settings.loop.num_steps * settings.loop.accumulation
    hours = passes * pass_seconds(flops_of(job, network)) / 3600
    assert f"by plan {hours:.0f} hours" in header
    assert need.activations < need_of(replace(job, checkpointing=False), network).activations / 2


def test_plans_are_printed_and_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "conditional_smoke", "--plan", "--start_from", "null", "--plan-memory", "1"]) == 0
    said = capsys.readouterr().out
    assert "It fits into 1.0 GiB" in said and "TFLOP" in said and "1 rank," in said
    assert main(["train", "sd15", "--plan", "--like", "null", "--model", str(tmp_path / "none")]) == 2
    assert "lumiere inflate makes one" in capsys.readouterr().err
    assert main(["train", "text_to_image_smoke", "--plan"]) == 2
    assert "plans are made for" in capsys.readouterr().err
    assert main(["train", "conditional_smoke", "--plan", "--plan-ranks", "0"]) == 2
    assert "more than nothing" in capsys.readouterr().err


def test_unknown_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="known are sd15"):
        architecture("sd14")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(ValueError, match="inflate it first"):
        Model.in_folder(tmp_path)
