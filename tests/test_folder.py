"""A folder of videos: what is usable becomes clips in an order that (seed, step) decides; the rest has a reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from lumiere.data.folder import ClipFolder, ClipFolderSettings
from lumiere.media import write_clip
from lumiere.video import to_uint8
from tests.media_samples import CLIP_FOLDER, numbers_of, write_video

SETTINGS = ClipFolderSettings(size=8, num_frames=6, held_out_every=3)


def clip_of(film: int, count: int) -> np.ndarray:
    """Frames [T, 8, 8, 3] that say their film in green and their number in red."""
    frames = np.zeros((count, 8, 8, 3), np.uint8)
    frames[..., 0] = 5 * np.arange(count, dtype=np.uint8)[:, None, None]
    frames[..., 1] = 20 * film + 10
    return frames


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for film in range(6):
        path = write_video(tmp_path / f"film{film}.mp4", clip_of(film, 10 + film))
        path.with_suffix(".txt").write_text(f"film number\n {film} \n")
    return tmp_path


def film_of(frames: np.ndarray) -> int:
    return round((float(frames[0, 0, 0, 1]) - 10) / 20)


def test_every_clip_is_a_piece_of_one_film_with_its_caption(folder: Path) -> None:
    clips = ClipFolder(folder, SETTINGS, seed=0)
    for position in range(20):
        frames, caption = clips.example(position, num_frames=6)
        film, start = film_of(frames), numbers_of(frames)[0]
        assert caption == f"film number {film}"
        assert np.array_equal(frames, clip_of(film, 10 + film)[start : start + 6])


def test_every_third_film_is_held_out_and_never_trained_on(folder: Path) -> None:
    clips = ClipFolder(folder, SETTINGS, seed=0)
    trained = {film_of(clips.example(position, num_frames=6)[0]) for position in range(40)}
    measured = {film_of(clips.example(position, num_frames=6, held_out=True)[0]) for position in range(20)}
    assert (trained, measured) == ({0, 1, 3, 4}, {2, 5})


def test_at_least_one_film_is_held_out(folder: Path) -> None:
    clips = ClipFolder(folder, ClipFolderSettings(size=8, num_frames=6, held_out_every=50), seed=0)
    assert [entry.is_held_out for entry in clips.report.kept] == [False] * 5 + [True]


def test_each_pass_visits_every_film_once_in_a_new_order(folder: Path) -> None:
    clips = ClipFolder(folder, SETTINGS, seed=3)
    films = [film_of(clips.example(position, num_frames=6)[0]) for position in range(80)]
    passes = [tuple(films[start : start + 4]) for start in range(0, 80, 4)]
    assert all(sorted(one) == [0, 1, 3, 4] for one in passes)
    assert len(set(passes)) > 5


def test_every_start_is_reached(folder: Path) -> None:
    clips = ClipFolder(folder, SETTINGS, seed=0)
    pairs = [clips.example(position, num_frames=6)[0] for position in range(400)]
    starts = {(film_of(frames), int(numbers_of(frames)[0])) for frames in pairs}
    assert starts == {(film, start) for film in (0, 1, 3, 4) for start in range(10 + film - 6 + 1)}


def test_batches_depend_on_seed_and_step_alone(folder: Path) -> None:
    clips = ClipFolder(folder, SETTINGS, seed=1)
    later = clips.batch(7, 4)
    again = ClipFolder(folder, SETTINGS, seed=1).batch(7, 4)
    assert torch.equal(later.clips, again.clips)
    assert later.captions == again.captions
    assert not torch.equal(later.clips, ClipFolder(folder, SETTINGS, seed=2).batch(7, 4).clips)
    frames, caption = clips.example(7 * 4 + 2, num_frames=6)
    assert np.array_equal(to_uint8(later.clips[2]), frames)
    assert later.captions[2] == caption


def test_batches_have_the_shapes_of_clips_and_of_stills(folder: Path) -> None:
    clips = ClipFolder(folder, SETTINGS, seed=0)
    assert clips.batch(0, 3).clips.shape == (3, 3, 6, 8, 8)
    stills = clips.frame_batch(0, 5, held_out=True)
    assert stills.clips.shape == (5, 3, 1, 8, 8)
    assert stills.clips.dtype == torch.float32
    assert stills.clips.abs().max() <= 1


def test_without_memory_the_same_clips_are_read_from_the_files(folder: Path) -> None:
    settings = SETTINGS.model_copy(update={"cache_mb": 0})
    cached, read = ClipFolder(folder, SETTINGS, seed=0), ClipFolder(folder, settings, seed=0)
    assert not read._cache
    for step in range(4):
        assert torch.equal(cached.batch(step, 4).clips, read.batch(step, 4).clips)
        assert torch.equal(cached.frame_batch(step, 4).clips, read.frame_batch(step, 4).clips)


def test_films_of_other_rates_are_resampled(folder: Path) -> None:
    times_ms = [round(index * 1000 / 48) for index in range(48)]
    write_video(folder / "fast.mp4", clip_of(7, 48), times_ms=times_ms, rate=48).with_suffix(".txt").write_text("fast")
    clips = ClipFolder(folder, SETTINGS, seed=0)
    entry = next(entry for entry in clips.report.kept if entry.caption == "fast")
    assert entry.num_frames == 16


def test_what_is_left_out_has_a_reason_and_stops_nothing(folder: Path) -> None:
    def bad(name: str, content: bytes = b"", caption: str | None = "a caption") -> None:
        (folder / name).write_bytes(content)
        if caption is not None:
            (folder / name).with_suffix(".txt").write_text(caption)

    good = (folder / "film0.mp4").read_bytes()
    bad("a empty.mp4")
    bad("b noise.mkv", b"nothing of a video" * 100)
    bad("c mute.mp4", good, caption=None)
    bad("d blank.mp4", good, caption=" \n ")
    bad("e odd.mp4", good)
    (folder / "e odd.txt").write_bytes(b"\xff\xfe\xff")
    write_video(folder / "f short.mp4", clip_of(0, 5)).with_suffix(".txt").write_text("short")
    (folder / "g alone.txt").write_text("a caption")
    (folder / "h sheet.jpg").write_bytes(b"x")
    (folder / ".hidden").write_text("x")
    before = ClipFolder(folder, SETTINGS, seed=0)
    reasons = {entry.path.name: entry.dropped or "" for entry in before.report.dropped}
    expected = {
        "a empty.mp4": "is empty",
        "b noise.mkv": "cannot be opened",
        "c mute.mp4": "c mute.txt is missing",
        "d blank.mp4": "is empty",
        "e odd.mp4": "not UTF-8",
        "f short.mp4": "too short: 5 frames at 16 fps, and 6 are needed",
        "g alone.txt": "caption without a video",
        "h sheet.jpg": "not a video",
    }
    assert set(reasons) == set(expected)
    assert all(words in reasons[name] for name, words in expected.items()), reasons
    assert len(before.report.kept) == 6
    console = Console(width=200, record=True, file=(folder / ".table").open("w"))
    console.print(before.report.table())
    shown = console.export_text()
    assert all(name in shown for name in expected)
    assert "film number 3" in shown


def test_folder_without_anything_usable_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        ClipFolder(tmp_path / "missing", SETTINGS, seed=0)
    with pytest.raises(ValueError, match="it holds no files"):
        ClipFolder(tmp_path, SETTINGS, seed=0)
    (tmp_path / "a.mp4").write_bytes(b"")
    write_clip(clip_of(1, 20), tmp_path / "b.mp4").with_suffix(".txt").write_text("one clip")
    with pytest.raises(ValueError, match=r"has 1 usable videos.*a\.mp4: no caption: a\.txt is missing"):
        ClipFolder(tmp_path, SETTINGS, seed=0)


def test_damaged_film_is_used_up_to_the_damage(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    whole = write_clip(noise, folder / "whole.mp4").read_bytes()
    (folder / "whole.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "whole.txt").write_text("noise")
    clips = ClipFolder(folder, SETTINGS, seed=0)
    entry = next(entry for entry in clips.report.kept if entry.caption == "noise")
    assert 20 <= entry.num_frames <= 30
    assert "breaks off" in (entry.note or "")


def test_sub_folders_are_searched(folder: Path) -> None:
    (folder / "more").mkdir()
    write_video(folder / "more" / "x.mp4", clip_of(8, 9)).with_suffix(".txt").write_text("deeper")
    assert "deeper" in ClipFolder(folder, SETTINGS, seed=0).captions()


@pytest.mark.skipif(not CLIP_FOLDER.is_dir(), reason=f"{CLIP_FOLDER} is not there")
def test_real_films_are_all_usable(tmp_path: Path) -> None:
    for path in sorted((CLIP_FOLDER / "sign").glob("*.mkv"))[:4]:
        (tmp_path / path.name).symlink_to(path)
        (tmp_path / path.name).with_suffix(".txt").write_text(f"a person signs {path.stem}")
    clips = ClipFolder(tmp_path, ClipFolderSettings(size=32, num_frames=24), seed=0)
    assert not clips.report.dropped
    batch = clips.batch(0, 2)
    assert batch.clips.shape == (2, 3, 24, 32, 32)
    assert batch.clips.std() > 0.1


@pytest.mark.skipif(not CLIP_FOLDER.is_dir(), reason=f"{CLIP_FOLDER} is not there")
def test_example_makes_a_folder_of_sixteen_and_four_clips(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "examples" / "prepare_real_clips.py"
    arguments = [sys.executable, str(script), str(CLIP_FOLDER.parent), str(tmp_path / "sign")]
    subprocess.run(arguments, check=True, capture_output=True)
    clips = ClipFolder(tmp_path / "sign", ClipFolderSettings(size=8, num_frames=24), seed=0)
    held_out = [entry.is_held_out for entry in clips.report.kept]
    assert (held_out.count(False), held_out.count(True)) == (16, 4)
    assert "A man in a black jumper nods his raised fist" in clips.captions()
    wrong = subprocess.run([*arguments, "--under", "clip/"], check=False, capture_output=True, text=True)
    assert wrong.returncode and "lists nothing under 'clip/'" in wrong.stderr
