"""The verbs that are given part of a clip: what is given comes back in the file, inputs that cannot be are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lumiere.cli import main
from lumiere.cli.edit_maker import gliding_boxes, parsed_aspect
from lumiere.conditioning.frames import num_channels
from lumiere.media import probe, read_clip, read_recipe, write_clip
from lumiere.model.inflate import widen_input
from tests.test_media_remake import video_with_sound
from tests.test_openings import forecasting
from tests.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    pipeline = tiny_pipeline()
    widen_input(pipeline.unet, num_channels(pipeline.codec))
    pipeline.save_pretrained(folder / "told")
    return folder / "told"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture[::-1]).save(tmp_path / "b.png")
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    video = rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    write_clip(video, tmp_path / "v.webp", fps=10)
    return tmp_path


def run(model: Path, *words: str) -> int:
    return main([*words, "--model", str(model), "--device", "cpu", "--steps", "1"])


def frames_of(path: Path) -> np.ndarray:
    return read_clip(path, fps=probe(path).fps)[0]


def test_a_region_s_first_frame_is_made_first_as_is_said(here: Path) -> None:
    forecasting(opening_frames=1).save_pretrained(here / "model")
    made = {}
    for name, options in (("own", []), ("still", ["--opening-frames", "1"]), ("at_once", ["--opening-frames", "0"])):
        words = ["inpaint", "v.webp", "--mask", "mask.png", "a red ball", "--out", f"{name}.mp4", *options]
        assert run(here / "model", *words, "--lossless") == 0
        made[name] = frames_of(here / f"{name}.mp4")
    assert np.array_equal(made["own"], made["still"]) and not np.array_equal(made["own"], made["at_once"])
    assert read_recipe(here / "at_once.mp4")["opening_frames"] == 0


def test_a_name_that_a_video_cannot_have_is_refused_before_the_work(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, "inpaint", "v.webp", "--mask", "mask.png", "a red ball", "--out", "out.webp") == 2
    told = capsys.readouterr()
    assert "is written as .mp4" in told.err and "steps" not in told.out + told.err


def test_animate_begins_with_the_image_in_a_lossless_file(model: Path, here: Path) -> None:
    assert run(model, "animate", "a.png", "a red ball", "--lossless", "--out", "out.mp4") == 0
    frames = frames_of(here / "out.mp4")
    assert frames.shape == (8, 16, 16, 3)
    np.testing.assert_array_equal(frames[0], np.asarray(Image.open(here / "a.png")))
    assert (frames[1] != frames[0]).mean() > 0.5
    recipe = read_recipe(here / "out.mp4")
    assert recipe["verb"] == "animate" and recipe["prompt"] == "a red ball" and set(recipe["inputs"]) == {"image"}


def test_without_a_name_the_clip_lies_in_outputs_large_enough_to_see(model: Path, here: Path) -> None:
    assert run(model, "loop", "a.png", "a red ball", "--frames", "4") == 0
    made = probe(here / "outputs" / "a-loop.mp4")
    assert (made.num_frames, made.width) == (4, 256)


def test_cinemagraph_and_interpolate_keep_what_is_given(model: Path, here: Path) -> None:
    first, last = (np.asarray(Image.open(here / name)) for name in ("a.png", "b.png"))
    assert run(model, "cinemagraph", "a.png", "a red ball", "--mask", "mask.png", "--out", "c.apng") == 0
    frames = frames_of(here / "c.apng")[:, ::16, ::16]
    assert (frames == first[0, 0]).all(-1).mean() < 1 or len(frames) == 8
    assert run(model, "cinemagraph", "a.png", "x", "--mask", "mask.png", "--lossless", "--out", "c.mp4") == 0
    kept = frames_of(here / "c.mp4")[:, 8:]
    np.testing.assert_array_equal(kept, np.broadcast_to(first[8:], kept.shape))
    assert run(model, "interpolate", "a.png", "b.png", "a red ball", "--lossless", "--out", "i.mp4") == 0
    frames = frames_of(here / "i.mp4")
    np.testing.assert_array_equal(frames[0], first)
    np.testing.assert_array_equal(frames[-1], last)


HALF = "0:0,0,16,8"


@pytest.mark.parametrize(
    "region",
    [("--mask", "mask.png"), ("--mask", "mask.webp"), ("--box", HALF), ("--box", HALF, "--box", f"7{HALF[1:]}")],
)
def test_inpaint_keeps_every_pixel_outside(model: Path, here: Path, region: tuple[str, ...]) -> None:
    moving = np.zeros((8, 16, 16, 3), dtype=np.uint8)
    moving[:, :8] = 255
    moving[0, 0, 0] = 0  # So that the file holds more than one picture.
    write_clip(moving, here / "mask.webp", fps=10)
    assert run(model, "inpaint", *region, "v.webp", "a red ball", "--lossless", "--out", "o.mp4") == 0
    made, source = frames_of(here / "o.mp4"), frames_of(here / "v.webp")
    np.testing.assert_array_equal(made[:, 8:], source[:, 8:])
    assert (made[:, :8] != source[:, :8]).mean() > 0.5
    assert probe(here / "o.mp4").fps == pytest.approx(10)


def test_video_verbs_keep_rate_and_sound(model: Path, here: Path) -> None:
    video_with_sound(here / "s.mp4", "aac")
    assert run(model, "outpaint", "s.mp4", "a red ball", "--to", "2:1", "--out", "wide.mp4") == 0
    wide = probe(here / "wide.mp4")
    assert (wide.width, wide.height, wide.num_frames, wide.has_audio) == (96, 48, 12, True)
    assert run(model, "continue", "s.mp4", "a red ball", "--frames", "4", "--lossless", "--out", "on.mp4") == 0
    on = probe(here / "on.mp4")
    assert on.num_frames == 16 and on.has_audio
    np.testing.assert_array_equal(frames_of(here / "on.mp4")[:12], frames_of(here / "s.mp4"))
    assert run(model, "retime", "s.mp4", "a red ball", "--speed", "0.5", "--lossless", "--out", "slow.mp4") == 0
    slow = probe(here / "slow.mp4")
    assert slow.num_frames == 23 and not slow.has_audio and slow.fps == pytest.approx(12)
    np.testing.assert_array_equal(frames_of(here / "slow.mp4")[::2], frames_of(here / "s.mp4"))


def test_boxes_glide_between_key_frames() -> None:
    mask = gliding_boxes(("2:0,0,4,4", "6:8,0,12,4"), num_frames=9, size=(8, 16))[0, 0]
    assert [int(row.nonzero()[0, 1]) for row in mask] == [0, 0, 0, 2, 4, 6, 8, 8, 8]
    assert bool((mask.sum((1, 2)) == 16).all())
    box = gliding_boxes(("0:1,2,3,4",), num_frames=2, size=(8, 16))[0, 0, 1]
    assert torch.equal(box.nonzero()[0], torch.tensor([2, 1]))
    assert parsed_aspect("16:9") == pytest.approx(16 / 9) and parsed_aspect("1.5") == 1.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["animate", "none.png", "x"], "does not exist"),
        (["animate", "v.webp", "x"], "animation of 8 pictures"),
        (["cinemagraph", "a.png", "x", "--mask", "small.png"], "8x8 pixels for a picture of 16x16"),
        (["cinemagraph", "a.png", "x", "--mask", "black.png"], "all black"),
        (["interpolate", "a.png", "small.png", "x"], "different sizes"),
        (["inpaint", "v.webp", "x"], "either --mask FILE or --box"),
        (["inpaint", "v.webp", "x", "--mask", "mask.png", "--box", "0:0,0,1,1"], "either --mask FILE or --box"),
        (["inpaint", "v.webp", "x", "--box", "0:4,4,4,9"], "no area"),
        (["inpaint", "v.webp", "x", "--box", "0:4,4"], "write FRAME:LEFT"),
        (["inpaint", "v.webp", "x", "--mask", "slow.webp"], "16 frames of 16x16 at the video's rate; the video has 8"),
        (["inpaint", "v.webp", "x", "--mask", "short.webp"], "4 frames of 16x16 at the video's rate; the video has 8"),
        (["outpaint", "v.webp", "x", "--to", "0:9"], "write proportions"),
        (["outpaint", "v.webp", "x", "--to", "1:1"], "that shape already"),
        (["retime", "v.webp", "x", "--speed", "2"], "up to 1"),
        (["continue", "v.webp", "x", "--frames", "0"], "at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_done_is_refused(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    Image.new("L", (8, 8), 255).save(here / "small.png")
    Image.new("L", (16, 16), 0).save(here / "black.png")
    stripes = np.zeros((8, 16, 16, 3), dtype=np.uint8)
    for index in range(8):
        stripes[index, index] = 255
    write_clip(stripes, here / "slow.webp", fps=5)
    write_clip(stripes[:4], here / "short.webp", fps=10)
    assert run(model, *words) == 2
    assert said in capsys.readouterr().err
    assert not (here / "outputs").exists()


def test_edit_keeps_rate_size_and_length_and_says_how(model: Path, here: Path) -> None:
    assert run(model, "edit", "v.webp", "a red ball", "--strength", "0", "--lossless", "--out", "same.mp4") == 0
    np.testing.assert_array_equal(frames_of(here / "same.mp4"), frames_of(here / "v.webp"))
    assert run(model, "edit", "v.webp", "a red ball", "--strength", "1", "--lossless", "--out", "new.mp4") == 0
    assert (frames_of(here / "new.mp4") != frames_of(here / "v.webp")).mean() > 0.5
    assert probe(here / "new.mp4").fps == 10 and read_recipe(here / "new.mp4")["strength"] == 1
    local = ("--mask", "mask.png", "--lossless", "--out", "local.mp4")
    assert run(model, "edit", "v.webp", "a red ball", *local) == 0
    np.testing.assert_array_equal(frames_of(here / "local.mp4")[:, 8:], frames_of(here / "v.webp")[:, 8:])


def test_a_long_video_is_edited_in_windows_or_trimmed(model: Path, here: Path) -> None:
    video = np.random.default_rng(1).integers(0, 256, (13, 16, 16, 3), dtype=np.uint8)
    write_clip(video, here / "long.webp", fps=10)
    assert run(model, "edit", "long.webp", "a red ball", "--out", "whole.mp4") == 0
    assert run(model, "edit", "long.webp", "a red ball", "--trim", "--out", "start.mp4") == 0
    assert (probe(here / "whole.mp4").num_frames, probe(here / "start.mp4").num_frames) == (13, 8)


def test_an_edit_of_impossible_strength_is_refused(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "edit", "v.webp", "a red ball", "--strength", "2") == 2
    assert "--strength is 2" in capsys.readouterr().err
