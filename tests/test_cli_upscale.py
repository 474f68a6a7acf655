"""``lumiere upscale``: a file of any length and size, its sound kept, the same again with the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lumiere.cli import main
from lumiere.media import probe, read_clip, read_recipe
from lumiere.super_resolution import SuperResolution
from tests.test_media_remake import video_with_sound
from tests.test_super_resolution import stage
from tests.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(folder / "base")
    pipeline.register_modules(super_resolution=SuperResolution.of(stage()))
    pipeline.save_pretrained(folder / "sharp")
    return folder


def upscale(model: Path, video: Path, *words: str) -> int:
    return main(["upscale", str(video), "--model", str(model), "--device", "cpu", "--steps", "1", *words])


def test_a_file_becomes_larger_in_parts_and_keeps_its_sound(model: Path, tmp_path: Path) -> None:
    video = video_with_sound(tmp_path / "a.mp4", "aac")
    words = ("--part", "6", "--overlap", "2", "--seed", "3", "--prompt", "a red ball")
    assert upscale(model / "sharp", video, *words, "--out", str(tmp_path / "b.mp4")) == 0
    made = probe(tmp_path / "b.mp4")
    assert (made.width, made.height, made.num_frames, made.has_audio) == (128, 96, 12, True)
    recipe = read_recipe(tmp_path / "b.mp4")
    assert recipe["seed"] == 3 and recipe["model_files"] and recipe["video"] == str(video)
    assert upscale(model / "sharp", video, *words, "--out", str(tmp_path / "c.mp4")) == 0
    again, first = (read_clip(tmp_path / name, fps=12)[0] for name in ("c.mp4", "b.mp4"))
    np.testing.assert_array_equal(again, first)


def test_what_does_not_fit_into_memory_is_refused_and_small_memory_means_small_parts(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = video_with_sound(tmp_path / "a.mp4", "aac")
    words = ("--overlap", "2", "--dtype", "float32", "--out", str(tmp_path / "b.mp4"))
    need = SuperResolution.of(stage()).memory_bytes
    monkeypatch.setattr("lumiere.cli.video_maker.free_bytes", lambda device: 2 * need(6, 48, 64))
    assert upscale(model / "sharp", video, *words) == 0
    assert read_recipe(tmp_path / "b.mp4")["part"] == 6
    monkeypatch.setattr("lumiere.cli.video_maker.free_bytes", lambda device: need(1, 48, 64))
    assert upscale(model / "sharp", video, *words, "--part", "8") == 2
    assert "parts of 8 frames of this size need about" in capsys.readouterr().err


def test_a_window_of_the_picture_can_be_asked_for(model: Path, tmp_path: Path) -> None:
    video = video_with_sound(tmp_path / "a.mp4", "aac")
    assert upscale(model / "sharp", video, "--window", "32", "--out", str(tmp_path / "b.mp4")) == 0
    assert read_recipe(tmp_path / "b.mp4")["window"] == 32


def test_what_cannot_be_done_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    video = video_with_sound(tmp_path / "a.mp4", "aac")
    for folder, words, said in (
        ("sharp", ["--overlap", "80"], "--overlap is 80; it lies from 0 to 79"),
        ("sharp", ["--back-projection", "2"], "back_projection is 2.0; it lies from 0"),
        ("sharp", ["--overlap", "6", "--part", "6"], "--overlap is 6; it lies from 0 to 5"),
        ("base", [], "has no super-resolution"),
        ("sharp", ["--noise-level", "1000"], "from 0 to 999"),
        ("sharp", ["--out", "b.gif"], "ends in .mp4"),
        ("nowhere", [], "model_index.json"),
    ):
        assert upscale(model / folder, video, *words) == 2
        assert said in capsys.readouterr().err
    assert upscale(model / "sharp", tmp_path / "none.mp4") == 2
    assert "does not exist" in capsys.readouterr().err
    assert not list((tmp_path / "outputs").glob("*"))
