"""What is written plays as it was, carries its recipe, and is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lumiere.media import check_writable, probe, read_clip, read_recipe, write_clip
from tests.media_samples import numbered_frames, numbers_of, psnr_db, write_video

KINDS = ["clip.mp4", "clip.gif", "clip.webp", "clip.apng", "clip"]
RECIPE = {"prompt": 'a "red" fox — лиса, 狐\n', "seed": 2**40, "steps": [1, 2.5], "guidance": {"scale": 4.0}}


def smooth_frames(count: int = 24, *, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames [T, H, W, 3] of slowly turning colours."""
    t, y, x = np.meshgrid(np.arange(count) / 16, np.arange(height) / 20, np.arange(width) / 20, indexing="ij")
    waves = [np.sin(3 * t + x), np.cos(2 * t + y), np.sin(x - y + t)]
    return (np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8)


@pytest.mark.parametrize("name", ["clip.webp", "clip.apng", "clip"])
def test_exact_kinds_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 7, 5, 3), dtype=np.uint8)
    read, info = read_clip(write_clip(frames, tmp_path / name))
    assert np.array_equal(read, frames)
    assert info.num_frames == 9


def test_gif_looks_the_same_with_256_colours(tmp_path: Path) -> None:
    frames = smooth_frames()
    read, _ = read_clip(write_clip(frames, tmp_path / "clip.gif"))
    assert psnr_db(read, frames) > 30


def test_mp4_looks_the_same(tmp_path: Path) -> None:
    frames = smooth_frames()
    read, info = read_clip(write_clip(frames, tmp_path / "clip.mp4"))
    assert psnr_db(read, frames) > 38
    assert (info.codec, info.pixel_format) == ("h264", "yuv420p")


@pytest.mark.parametrize("colour", [(230, 20, 30), (20, 200, 40), (30, 40, 220), (250, 220, 10), (128, 128, 128)])
def test_mp4_keeps_colours(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    frames = np.full((8, 32, 32, 3), colour, np.uint8)
    read, _ = read_clip(write_clip(frames, tmp_path / "clip.mp4"))
    assert np.abs(read.astype(int) - colour).max() <= 3


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("fps", "count"), [(16, 80), (24, 30), (29.97, 31)])
def test_clip_lasts_as_long_as_it_should(tmp_path: Path, name: str, fps: float, count: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    path = write_clip(frames, tmp_path / name, fps=fps)
    info = probe(path)
    assert info.duration_s == pytest.approx(count / fps, abs=0.011)
    assert info.num_frames == count
    read, _ = read_clip(path, fps=fps)
    assert len(read) == count


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip"])
def test_still_clip_keeps_its_length(tmp_path: Path, name: str) -> None:
    frames = np.full((80, 16, 16, 3), 90, np.uint8)
    read, _ = read_clip(write_clip(frames, tmp_path / name))
    assert read.shape == frames.shape


@pytest.mark.parametrize("name", KINDS)
def test_single_frame_can_be_written(tmp_path: Path, name: str) -> None:
    assert len(read_clip(write_clip(numbered_frames(1), tmp_path / name))[0]) == 1


@pytest.mark.parametrize("name", KINDS)
def test_recipe_comes_back_from_inside_the_file(tmp_path: Path, name: str) -> None:
    path = write_clip(numbered_frames(6), tmp_path / name, recipe=RECIPE)
    assert json.loads((tmp_path / "clip.json").read_text()) == RECIPE
    assert read_recipe(tmp_path / "clip.json") == RECIPE
    (tmp_path / "clip.json").unlink()
    assert read_recipe(path) == RECIPE


def test_mp4_comment_is_what_other_programs_read(tmp_path: Path) -> None:
    path = write_clip(numbered_frames(6), tmp_path / "clip.mp4", recipe=RECIPE)
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["comment"]) == RECIPE


def test_long_recipe_fits(tmp_path: Path) -> None:
    recipe = {"prompts": ["a fox that runs"] * 5000}
    assert read_recipe(write_clip(numbered_frames(4), tmp_path / "clip.mp4", recipe=recipe)) == recipe


def test_recipe_is_found_beside_a_file_with_another_comment(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", numbered_frames(4))
    with pytest.raises(ValueError, match=r"carries no recipe, and there is none in .*clip\.json"):
        read_recipe(path)
    (tmp_path / "clip.json").write_text('{"seed": 3}')
    assert read_recipe(path) == {"seed": 3}
    Image.new("RGB", (4, 4)).save(tmp_path / "b.gif", comment=b"made by hand")
    with pytest.raises(ValueError, match="carries no recipe"):
        read_recipe(tmp_path / "b.gif")


def test_index_comes_before_the_pictures_in_mp4(tmp_path: Path) -> None:
    content = write_clip(smooth_frames(), tmp_path / "clip.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_enlarging_makes_squares(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    read, _ = read_clip(write_clip(frames, tmp_path / "clip.webp", scale=3))
    assert np.array_equal(read, np.kron(frames, np.ones((1, 3, 3, 1), np.uint8)))
    smooth, _ = read_clip(write_clip(frames, tmp_path / "smooth.webp", scale=3, smooth=True))
    assert smooth.shape == read.shape
    assert not np.array_equal(smooth, read)


def test_odd_sides_can_be_enlarged_into_mp4(tmp_path: Path) -> None:
    frames = numbered_frames(5, height=15, width=23)
    assert read_clip(write_clip(frames, tmp_path / "clip.mp4", scale=2))[0].shape == (5, 30, 46, 3)


REFUSED_FRAMES = [
    (np.zeros((2, 8, 8, 3), np.float32), "8-bit"),
    (np.ones((8, 8, 3), np.uint8), "8-bit"),
    (np.ones((2, 8, 8, 4), np.uint8), "8-bit"),
    ([[1]], "8-bit"),
    (np.ones((0, 8, 8, 3), np.uint8), "nothing to write"),
    (np.zeros((2, 8, 8, 3), np.uint8), "black"),
    (np.ones((2, 7, 8, 3), np.uint8), "odd side"),
]


@pytest.mark.parametrize(("frames", "words"), REFUSED_FRAMES)
def test_frames_that_make_no_clip_are_refused(tmp_path: Path, frames: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_clip(frames, tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"fps": 0}, {"fps": float("nan")}, {"scale": 0}, {"scale": 1.5}])
def test_impossible_settings_are_refused(tmp_path: Path, settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        write_clip(numbered_frames(2), tmp_path / "clip.mp4", **settings)


def test_recipe_that_is_no_json_is_refused_before_writing(tmp_path: Path) -> None:
    for recipe in ({"loss": float("nan")}, {"unet": object()}):
        with pytest.raises(ValueError, match="not JSON"):
            write_clip(numbered_frames(2), tmp_path / "clip.mp4", recipe=recipe)
    assert not list(tmp_path.iterdir())


def test_unknown_ending_is_refused_with_those_allowed(tmp_path: Path) -> None:
    for name in ("clip.avi", "clip.png", "clip.v2"):
        with pytest.raises(ValueError, match=r"\.mp4, \.gif, \.webp, \.apng"):
            check_writable(tmp_path / name)


def test_missing_folders_are_made_when_writing_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "clip.gif"
    check_writable(path)
    assert not (tmp_path / "new").exists()
    write_clip(numbered_frames(2), path)
    assert path.is_file()


def test_places_that_cannot_hold_the_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    for name, words in (
        ("file/clip.mp4", "is not a folder"),
        ("file/deep/clip.mp4", "is not a folder"),
        ("folder.mp4", "is a folder"),
        ("file", "is a file"),
        ("mine", "letter.txt"),
        ("x" * 300 + ".mp4", "cannot be written"),
    ):
        with pytest.raises(ValueError, match=words):
            check_writable(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.mp4", "mine"}


def test_read_only_places_are_refused(tmp_path: Path) -> None:
    if Path("/proc/self").is_dir():
        with pytest.raises(ValueError, match="cannot be written"):
            check_writable("/proc/clip.mp4")
    if os.geteuid() == 0:
        return  # nothing is read-only to the administrator
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="Permission denied"):
        check_writable(tmp_path / "clip.mp4")


def test_full_disk_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(2**30, 2**30 - 2**20, 2**20))
    check_writable(tmp_path / "clip.mp4", clip_shape=(16, 64, 64))
    with pytest.raises(ValueError, match="has 1 MiB free"):
        check_writable(tmp_path / "clip.mp4", clip_shape=(80, 256, 256))
    with pytest.raises(ValueError, match="MiB free"):
        check_writable(tmp_path / "clip.mp4", clip_shape=(80, 32, 32), scale=8)


@pytest.mark.parametrize("name", KINDS)
def test_rewriting_replaces_the_old_clip(tmp_path: Path, name: str) -> None:
    write_clip(numbered_frames(9), tmp_path / name, recipe={"seed": 1})
    path = write_clip(numbered_frames(4)[:, ::-1], tmp_path / name, recipe={"seed": 2})
    assert len(read_clip(path)[0]) == 4
    assert read_recipe(path) == {"seed": 2}
    assert {entry.name for entry in tmp_path.iterdir()} == {name, "clip.json"}


FAILING_WRITE = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from lumiere.media import write_clip
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
for path in sys.argv[1:]:
    try:
        write_clip(noise, Path(path), recipe={"seed": 2})
    except OSError as error:
        print(Path(path).name, "failed")
"""


def test_failing_write_keeps_the_old_clip_and_leaves_no_part(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    old = {}
    for kind in KINDS:
        folder = tmp_path / f"for {kind}"
        write_clip(numbered_frames(6), folder / kind, recipe={"seed": 1})
        old[folder / kind] = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    script = [sys.executable, "-c", FAILING_WRITE, *map(str, old)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:-1] == [f"{kind} failed" for kind in KINDS], done.stderr
    for path, contents in old.items():
        left = {entry: entry.read_bytes() for entry in path.parent.rglob("*") if entry.is_file()}
        assert left == contents
        assert numbers_of(read_clip(path)[0]).shape == (6,)


def test_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = write_clip(numbered_frames(2), tmp_path / "clip.gif")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
