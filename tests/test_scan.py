"""Videos are looked at before training: where they come from, where they are cut, what is left out and why."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tarfile
import time
import types
from pathlib import Path

import numpy as np
import pytest

from lumiere.cli import main
from lumiere.data.cuts import changes_between, scene_starts, small_grey
from lumiere.data.scan import Bucket, ScanSettings, scan, scan_video
from lumiere.data.scan_report import page, summary, totals
from lumiere.data.sources import SourceVideo, read_captions, read_sources
from lumiere.data.workers import Failed, results
from tests.media_samples import CLIP_FOLDER, DECODER_FOLDER, numbered_frames, write_video

SETTINGS = ScanSettings(buckets=(Bucket(height=16, width=24, frames=16),), min_side=8, workers=1)


def video(path: Path, count: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, numbered_frames(count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos to use, and one of every trouble."""
    place = tmp_path_factory.mktemp("videos")
    video(place / "a.mkv").with_suffix(".txt").write_text("one  white\ncorner")
    video(place / "sub" / "b.mkv").with_suffix(".json").write_text('{"captions": ["a corner", "a white one"]}')
    video(place / "silent.mkv")
    video(place / "empty.mkv").with_suffix(".txt").write_text(" \n")
    video(place / "latin.mkv").with_suffix(".txt").write_bytes("café".encode("latin-1"))
    video(place / "short.mkv", 9).with_suffix(".txt").write_text("short")
    (place / "broken.mkv").write_bytes(b"no video at all")
    (place / "broken.txt").write_text("broken")
    (place / "alone.txt").write_text("nothing beside it")
    (place / "notes.pdf").write_bytes(b"%PDF")
    (place / ".hidden.txt").write_text("not looked at")
    return place


def test_a_folder_is_read_and_all_that_is_left_out_is_listed_with_the_reason(folder: Path) -> None:
    found = {one.name: one for one in scan(folder, SETTINGS, progress=False)}
    assert list(found) == sorted(found)
    used = [name for name, one in found.items() if one.dropped is None]
    assert used == ["a.mkv", "sub/b.mkv"]
    assert found["a.mkv"].captions == ("one white corner",)
    assert found["sub/b.mkv"].captions == ("a corner", "a white one")
    first = found["a.mkv"]
    assert (first.width, first.height, first.frames, first.fps, first.num_clips) == (24, 16, 40, 16.0, 2)
    assert [scene.clips for scene in first.scenes] == [[0, 16]] and first.thumbnail[:2] == b"\xff\xd8"
    reasons = {
        "silent.mkv": "no caption: silent.txt is missing",
        "empty.mkv": "no caption: empty.txt holds no caption",
        "latin.mkv": "not UTF-8",
        "short.mkv": "too short: 9 frames at 16 fps, and 16 are needed",
        "broken.mkv": "cannot be opened",
        "alone.txt": "a caption without a video",
        "notes.pdf": "not a video",
    }
    for name, reason in reasons.items():
        assert reason in (found[name].dropped or ""), (name, found[name].dropped)
    assert len(found) == len(reasons) + 2


def test_a_manifest_a_folder_and_a_tar_say_the_same(folder: Path, tmp_path: Path) -> None:
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "video", "caption"])
        writer.writerow([1, str(folder / "a.mkv"), "one white corner"])
        writer.writerow([2, str(folder / "gone.mkv"), "gone"])
        writer.writerow([3, "", "no path"])
        writer.writerow([4, str(folder / "sub" / "b.mkv"), ""])
        writer.writerow([5, str(folder / "a.mkv"), "once more"])
    rows = scan(tmp_path / "list.csv", SETTINGS, progress=False)
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": str(folder / "a.mkv"), "text": ["one white corner"]}))
    (line,) = scan(tmp_path / "list.jsonl", SETTINGS, progress=False)
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(folder / "a.mkv", "a.mkv")
        tar.add(folder / "a.txt", "a.txt")
        tar.add(folder / "a.mkv", "mute.mkv")
    in_tar, mute = scan(tmp_path / "some.tar", SETTINGS, progress=False)
    for one in (rows[0], line, in_tar):
        assert one.dropped is None and one.captions == ("one white corner",) and one.num_clips == 2
    assert [row.dropped and row.dropped.split(" (")[0] for row in rows[1:]] == [
        "no such file",
        "column 'video' is empty",
        "no caption: column 'caption' holds no caption",
        "the name is there twice",
    ]
    assert "mute.txt or mute.json is missing" in (mute.dropped or "")


def test_damaged_tars_give_what_they_hold(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        for name in ("a", "b"):
            for suffix in (".mkv", ".txt"):
                tar.add(folder / f"a{suffix}", f"{name}{suffix}")
    data = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: data.index(b"b.mkv") + 1500])
    found = scan(tmp_path / "cut.tar", SETTINGS, progress=False)
    assert found[0].dropped is None and all(one.dropped for one in found[1:]) and len(found) >= 2
    assert any("cut off" in (one.dropped or "") or "damaged" in (one.dropped or "") for one in found[1:])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for _ in range(2):
            tar.add(folder / "a.mkv", "a.mkv")
    (tmp_path / "twice.tar").write_bytes(buffer.getvalue())
    assert any("twice" in (one.problem or "") for one in read_sources(tmp_path / "twice.tar"))


def test_what_cannot_be_read_at_all_is_refused_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    def refused(path: Path, reason: str, **columns: str) -> None:
        with pytest.raises(ValueError, match=reason):
            read_sources(path, **columns)

    refused(tmp_path / "gone", "does not exist")
    refused(folder / "notes.pdf", "neither a folder nor")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no videos")
    (tmp_path / "list.csv").write_text("vidio,caption\nx.mp4,x\n")
    refused(tmp_path / "list.csv", "did you mean 'vidio'.*--video_column vidio")
    refused(tmp_path / "list.csv", "no column 'video'.*did you mean 'vidio'", video_column="video")
    (tmp_path / "list.jsonl").write_text('{"video": "x.mp4", "caption": "x"}\nno json\n')
    refused(tmp_path / "list.jsonl", "line 2")
    (tmp_path / "list.csv").write_text("video,caption\nx.mp4,a ball, red\n")
    refused(tmp_path / "list.csv", "line 2: 3 values for 2 columns.*in quotes")
    (tmp_path / "list.csv").write_bytes("video,caption\nx.mp4,café\n".encode("latin-1"))
    refused(tmp_path / "list.csv", "not UTF-8")
    (tmp_path / "list.jsonl").write_text('["x.mp4", "x"]\n')
    refused(tmp_path / "list.jsonl", "line 1: not an object")
    (tmp_path / "bare.csv").write_text("video,caption\n")
    refused(tmp_path / "bare.csv", "no rows")
    with pytest.raises(ValueError, match="names no caption"):
        read_captions(b'{"captoin": "x"}', name="x.json")


def test_captions_of_manifests_may_hold_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('video,caption\nx.mp4,"a ball,\nand a box"\n', newline="")
    (tmp_path / "list.jsonl").write_text('{"video": "x.mp4", "caption": "a ball,\u2028and a box"}\n', encoding="utf-8")
    for name in ("list.csv", "list.jsonl"):
        (found,) = read_sources(tmp_path / name)
        assert found.captions == ("a ball, and a box",)


def test_cuts_are_where_pictures_were_joined_and_not_where_they_move(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scenes = [rng.integers(0, 256, (1, 36, 64, 3), dtype=np.uint8).repeat(20, 0) for _ in range(3)]
    joined = np.concatenate(scenes)
    greys = [small_grey(frame) for frame in joined]
    assert scene_starts(changes_between(greys), least=18, times=4) == [0, 20, 40]
    # A pan over the same texture changes as much from frame to frame, but all the time.
    wide = rng.integers(0, 256, (36, 400, 3), dtype=np.uint8)
    pan = [small_grey(wide[:, 4 * place : 4 * place + 64]) for place in range(60)]
    assert changes_between(pan).min() > 18 and scene_starts(changes_between(pan), least=18, times=4) == [0]
    write_video(tmp_path / "joined.mkv", joined)
    found = scan_video(SourceVideo("joined", tmp_path / "joined.mkv", ("x",)), SETTINGS)
    assert [(scene.start, scene.frames, scene.clips) for scene in found.scenes] == [
        (0, 20, [0]),
        (20, 20, [20]),
        (40, 20, [40]),
    ]


class FakeTimecode:
    def __init__(self, frame_num: int, fps: float) -> None:
        self.frame_num, self.fps = frame_num, fps


class FakeDetector:
    """Finds a cut where blue, as OpenCV orders channels, jumps."""

    def __init__(self) -> None:
        self.last: float | None = None

    def process_frame(self, timecode: FakeTimecode, frame_img: np.ndarray) -> list[FakeTimecode]:
        assert timecode.fps == 16 and frame_img.flags.c_contiguous
        now, last = float(frame_img[..., 0].mean()), self.last
        self.last = now
        return [timecode] if last is not None and abs(now - last) > 50 else []

    def post_process(self, timecode: FakeTimecode) -> list[FakeTimecode]:
        return []


def test_the_other_detector_is_asked_or_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    monkeypatch.setattr("lumiere.data.scan.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lumiere\[prep\]"):
        ScanSettings(detector="scenedetect")
    # Stands in for a library that is not installed here; its interface is that of version 0.7.
    fake = types.ModuleType("scenedetect")
    fake.FrameTimecode, fake.ContentDetector = FakeTimecode, FakeDetector  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scenedetect", fake)
    monkeypatch.setattr("lumiere.data.scan.find_spec", lambda name: object())
    frames = np.zeros((32, 16, 24, 3), np.uint8)
    frames[:12, ..., 2], frames[20:, ..., 0] = 200, 200
    path = write_video(tmp_path / "a.mkv", frames)
    settings = SETTINGS.model_copy(update={"detector": "scenedetect"})
    found = scan_video(SourceVideo("a.mkv", path, ("x",)), settings)
    assert [(scene.start, scene.frames) for scene in found.scenes] == [(0, 12), (12, 20)]
    with pytest.raises(ValueError, match="cut_times has no effect"):
        ScanSettings(detector="scenedetect", cut_times=3)


def test_cuts_of_the_library_itself(tmp_path: Path) -> None:
    pytest.importorskip("scenedetect")
    rng = np.random.default_rng(0)
    scenes = [rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8).repeat(40, 0) for _ in range(2)]
    path = write_video(tmp_path / "a.mkv", np.concatenate(scenes))
    settings = SETTINGS.model_copy(update={"detector": "scenedetect"})
    found = scan_video(SourceVideo("a.mkv", path, ("x",)), settings)
    assert [scene.start for scene in found.scenes] == [0, 40]


@pytest.mark.skipif(not CLIP_FOLDER.is_dir(), reason="the shared data is not here")
def test_the_library_finds_the_cuts_of_real_footage_at_the_clips_rate() -> None:
    library = pytest.importorskip("scenedetect")
    path = CLIP_FOLDER / "city_bikes_cuts.mp4"
    settings = SETTINGS.model_copy(update={"detector": "scenedetect"})
    starts = [scene.start for scene in scan_video(SourceVideo(path.name, path, ("x",)), settings).scenes]
    # By itself it reads the file at its own rate, and says seconds.
    true = [round(16 * scene[0].seconds) for scene in library.detect(str(path), library.ContentDetector())]
    assert starts == true and len(starts) > 2


def test_manifests_in_parquet_are_those_in_csv(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet, table

    videos = [str(folder / "a.mkv"), str(folder / "sub" / "b.mkv"), None, str(folder / "gone.mkv")]
    captions = [["one", "another"], ["two"], ["three"], None]
    parquet.write_table(table({"video": videos, "captions": captions}), tmp_path / "list.PARQUET")
    found = read_sources(tmp_path / "list.PARQUET")
    assert [one.captions for one in found[:2]] == [("one", "another"), ("two",)]
    assert [one.problem for one in found[:2]] == [None, None]
    assert [one.problem for one in found[2:]] == [
        "column 'video' is empty",
        "no caption: column 'captions' holds no caption",
    ]
    parquet.write_table(table({"vidio": ["x"], "caption": ["x"]}), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match="did you mean 'vidio'"):
        read_sources(tmp_path / "list.parquet")
    (tmp_path / "list.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"list\.parquet cannot be read as Parquet"):
        read_sources(tmp_path / "list.parquet")


def test_parquet_without_its_library_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "list.parquet").touch()
    with pytest.raises(ValueError, match=r"lumiere\[parquet\]"):
        read_sources(tmp_path / "list.parquet")


def test_small_pictures_are_averages() -> None:
    frame = np.zeros((72, 128, 3), np.uint8)
    frame[:36, :64] = 100
    grey = small_grey(frame)
    assert grey.shape == (36, 64) and np.allclose(grey[:18, :32], 100, atol=1e-3) and not grey[18:].any()
    assert np.isclose(small_grey(np.full((5, 7, 3), 30, np.uint8)), 30, atol=1e-4).all()
    assert np.isclose(small_grey(np.full((100, 99, 3), 30, np.uint8)), 30, atol=1e-3).all()


def test_scenes_go_where_their_shape_and_length_fit(tmp_path: Path) -> None:
    wide, tall = Bucket(height=16, width=32, frames=8), Bucket(height=32, width=16, frames=8)
    long, square = Bucket(height=16, width=32, frames=24), Bucket(height=24, width=24, frames=8)
    settings = ScanSettings(buckets=(tall, wide, square, long), min_side=8)

    def bucket(height: int, width: int, count: int) -> Bucket | None:
        write_video(tmp_path / "x.mkv", numbered_frames(count, height=height, width=width))
        return scan_video(SourceVideo("x", tmp_path / "x.mkv", ("x",)), settings).scenes[0].bucket

    assert bucket(20, 40, 30) == long and bucket(20, 40, 12) == wide
    assert bucket(40, 20, 30) == tall and bucket(40, 36, 30) == square and bucket(40, 36, 7) is None


def behave(how: str) -> str:
    if how == "hang":
        time.sleep(60)
    if how == "crash":
        os._exit(3)
    if how == "raise":
        raise ValueError("as told")
    return how.upper()


def test_what_hangs_or_crashes_is_given_up_and_the_rest_goes_on() -> None:
    items = ["a", "hang", "b", "crash", "raise", "c", "d"]
    found = dict(results(behave, items, workers=2, timeout_s=15))
    assert [found[place] for place in (0, 2, 5, 6)] == ["A", "B", "C", "D"]
    for place, reason in ((1, "given up after 15 s"), (3, "died (code 3)"), (4, "as told")):
        answer = found[place]
        assert isinstance(answer, Failed) and reason in answer.reason


def test_the_report_is_a_table_a_file_and_a_page(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--buckets", "[{height: 16, width: 24, frames: 16}]", "--min_side", "8", "--workers", "1"]
    assert main(["data", "scan", str(folder), "--out", str(tmp_path / "out"), *words]) == 0
    said = capsys.readouterr().out
    assert "2 of 9 videos are used" in said and "4 of 24x16, 16 frames" in said and "not a video" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["totals"]["clips"] == 4 and len(report["videos"]) == 9
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count("data:image/jpeg") == 3 and "too short" in html and "one white corner" in html
    assert not list((tmp_path / "out").glob(".writing*"))
    assert main(["data", "scan", str(folder), "--bukets", "[]"]) == 2
    assert "did you mean 'buckets'" in capsys.readouterr().err


def test_captions_cannot_break_the_page(tmp_path: Path) -> None:
    video(tmp_path / "<b>.mkv")
    (tmp_path / "<b>.txt").write_text("<script>alert(1)</script>")
    found = scan(tmp_path, SETTINGS, progress=False)
    text = page(found, "<i>")
    assert "<script>" not in text and "<b>.mkv" not in text and "&lt;script&gt;" in text
    assert "1 of 1 videos" in summary(totals(found))


@pytest.mark.skipif(not DECODER_FOLDER.is_dir(), reason="the shared data is not here")
def test_every_corner_of_the_shared_data_ends_in_a_row(tmp_path: Path) -> None:
    files = sorted(DECODER_FOLDER.iterdir())
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["video", "caption"], *([str(path), path.stem] for path in files)])
    settings = ScanSettings(buckets=(Bucket(height=16, width=16, frames=1),), min_side=1, workers=1, timeout_s=60)
    found = scan(tmp_path / "list.csv", settings, progress=False)
    assert len(found) == len(files)
    assert sum(one.dropped is None for one in found) >= 10 and any(one.dropped for one in found)
    assert not any("given up" in (one.dropped or "") or "died" in (one.dropped or "") for one in found)


@pytest.mark.skipif(not CLIP_FOLDER.is_dir(), reason="the shared data is not here")
def test_cuts_of_real_footage(tmp_path: Path) -> None:
    def starts(name: str) -> list[int]:
        source = SourceVideo(name, CLIP_FOLDER / name, ("x",))
        return [scene.start for scene in scan_video(source, SETTINGS).scenes]

    assert len(starts("city_bikes_cuts.mp4")) > 2
    for name in ("highway_lane.mp4", "football_juggle.mp4", "carphone.mp4", "cups_shuffle.mp4"):
        assert starts(name) == [0], name
