"""Shards: the same bytes whoever packs them, whole or not there, readable by others."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest

from lumiere.cli import main
from lumiere.data.pack import PackSettings, is_whole, pack, why_not_copied
from lumiere.data.scan import Bucket, Scanned, Scene, scan
from lumiere.media import read_clip, starts_with_key_frame, write_clip
from tests.media_samples import numbered_frames, write_video

SETTINGS = PackSettings(
    buckets=(Bucket(height=16, width=24, frames=8), Bucket(height=16, width=16, frames=8)),
    min_side=8,
    workers=1,
    videos_per_shard=2,
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos, of which one has a cut, one is square and one too short."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    write_video(folder / "a.mkv", numbered_frames(20))
    write_video(folder / "b.mkv", numbered_frames(16, height=32, width=32))
    joined = np.concatenate([rng.integers(0, 256, (1, 32, 48, 3), dtype=np.uint8).repeat(12, 0) for _ in range(2)])
    write_video(folder / "c.mkv", joined)
    write_video(folder / "d.mkv", numbered_frames(5))
    write_video(folder / "e.mkv", numbered_frames(8))
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text(f"this is {path.stem}")
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = [*folder.glob("*.tar"), *folder.glob("shard-*.json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def shards(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    pack(videos, out, SETTINGS, progress=False)
    return out


def test_clips_are_pieces_of_scenes_with_their_captions(videos: Path, shards: Path) -> None:
    found = []
    for tar in sorted(shards.glob("*.tar")):
        assert is_whole(tar)
        with tarfile.open(tar) as file:
            names = file.getnames()
            facts = [json.loads(file.extractfile(name).read()) for name in names if name.endswith(".json")]
            assert names == [
                f"{key}{suffix}" for key in dict.fromkeys(n[:12] for n in names) for suffix in (".mp4", ".json")
            ]
        found += [(one["source"], one["start"], one["height"], one["width"], one["captions"]) for one in facts]
    assert found == [
        ("a.mkv", 0, 16, 24, ["this is a"]),
        ("a.mkv", 8, 16, 24, ["this is a"]),
        ("b.mkv", 0, 16, 16, ["this is b"]),
        ("b.mkv", 8, 16, 16, ["this is b"]),
        ("c.mkv", 0, 16, 24, ["this is c"]),
        ("c.mkv", 12, 16, 24, ["this is c"]),
        ("e.mkv", 0, 16, 24, ["this is e"]),
    ]
    report = json.loads((shards / "report.json").read_text())
    assert report["totals"]["clips"] == 7 and "too short" in json.dumps(report)


def test_the_index_says_where_each_clip_lies_and_the_frames_are_the_video_s(shards: Path, tmp_path: Path) -> None:
    tar = shards / "shard-000000.tar"
    index = json.loads(tar.with_suffix(".json").read_text())
    data = tar.read_bytes()
    assert index["bytes"] == len(data) and index["sha256"] == hashlib.sha256(data).hexdigest()
    entry = index["clips"][1]
    offset, length = entry["video"]
    (tmp_path / "clip.mp4").write_bytes(data[offset : offset + length])
    frames, info = read_clip(tmp_path / "clip.mp4")
    assert frames.shape == (8, 16, 24, 3) and info.fps == 16
    true = numbered_frames(20)[8:16]
    assert np.abs(frames.astype(int) - true).mean() < 6
    assert [round(float(frame[2, 10, 0]) / 5) for frame in frames] == list(range(8, 16))
    offset, length = entry["facts"]
    assert json.loads(data[offset : offset + length])["start"] == 8


def test_bytes_do_not_depend_on_who_packs(videos: Path, shards: Path, tmp_path: Path) -> None:
    pack(videos, tmp_path / "two", SETTINGS.model_copy(update={"workers": 2}), progress=False)
    for part in (1, 0):
        pack(videos, tmp_path / "parts", SETTINGS, part=(part, 2), progress=False)
    assert digests(shards) == digests(tmp_path / "two") == digests(tmp_path / "parts")
    assert len(digests(shards)) == 4


def test_packing_goes_on_where_it_was_stopped(videos: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(videos, out, SETTINGS, progress=False)
    first, second = sorted(out.glob("*.tar"))
    stamp = first.stat().st_mtime_ns
    second.write_bytes(second.read_bytes()[:-100])
    (out / ".writing-shard-000001.tar").write_bytes(b"half")
    assert not is_whole(second)
    pack(videos, out, SETTINGS, progress=False)
    assert first.stat().st_mtime_ns == stamp and digests(out) == digests(shards)
    assert not list(out.glob(".writing*"))


def test_a_folder_of_other_shards_is_left_alone(videos: Path, shards: Path, tmp_path: Path) -> None:
    before = digests(shards)
    with pytest.raises(ValueError, match="other videos, captions or settings"):
        pack(videos, shards, SETTINGS.model_copy(update={"fps": 8.0}), progress=False)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x.tar").write_bytes(b"x")
    with pytest.raises(ValueError, match="not packed here"):
        pack(videos, tmp_path / "theirs", SETTINGS, progress=False)
    with pytest.raises(ValueError, match="part 2 of 2"):
        pack(videos, tmp_path / "out", SETTINGS, part=(2, 2), progress=False)
    assert digests(shards) == before


def test_shards_can_be_scanned_again(shards: Path) -> None:
    found = scan(shards, SETTINGS, progress=False)
    assert len(found) == 7 and all(one.dropped is None and one.num_clips == 1 for one in found)
    assert found[0].captions == ("this is a",)


def test_the_command_packs(videos: Path, tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    buckets = "[{height: 16, width: 24, frames: 8}, {height: 16, width: 16, frames: 8}]"
    words = ["--buckets", buckets, "--min_side", "8", "--workers", "1", "--videos_per_shard", "2"]
    assert main(["data", "pack", str(videos), "--out", str(tmp_path / "out"), "--part", "2/2", *words]) == 0
    assert "1 tars of this part" in capsys.readouterr().out
    assert digests(tmp_path / "out").items() <= digests(shards).items()
    assert main(["data", "pack", str(videos), "--out", str(tmp_path / "out"), "--part", "3/2", *words]) == 2
    assert "such as 2/8" in capsys.readouterr().err


def test_tars_are_what_tarfile_would_write(shards: Path) -> None:
    data = (shards / "shard-000000.tar").read_bytes()
    again = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as theirs,
        tarfile.open(fileobj=again, mode="w", format=tarfile.USTAR_FORMAT) as ours,
    ):
        for member in theirs:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            ours.addfile(member, theirs.extractfile(member))
    assert again.getvalue().startswith(data[:-1024])


def test_videos_that_are_a_clip_already_keep_their_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    fits = write_clip(255 - numbered_frames(8), folder / "a.mp4", threads=1).read_bytes()
    write_clip(numbered_frames(8, height=32, width=48), folder / "b.mp4")
    write_clip(numbered_frames(16), folder / "c.mp4")
    write_video(folder / "d.mkv", numbered_frames(8))
    write_clip(numbered_frames(8), folder / "e.mp4", fps=15)
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text(f"this is {path.stem}")
    settings = SETTINGS.model_copy(update={"copying": "where_possible"})
    pack(folder, tmp_path / "out", settings, progress=False)
    copied = {}
    for tar in (tmp_path / "out").glob("*.tar"):
        data = tar.read_bytes()
        for clip in json.loads(tar.with_suffix(".json").read_text())["clips"]:
            start, length = clip["video"]
            copied[clip["source"], clip["start"]] = clip.get("copied", False)
            assert (data[start : start + length] == fits) == (clip["source"] == "a.mp4")
    assert copied == {(name, 0): name == "a.mp4" for name in ("a.mp4", "b.mp4", "c.mp4", "d.mkv", "e.mp4")} | {
        ("c.mp4", 8): False
    }
    for part in (1, 0):
        pack(folder, tmp_path / "parts", settings.model_copy(update={"workers": 2}), part=(part, 2), progress=False)
    assert digests(tmp_path / "out") == digests(tmp_path / "parts")
    with pytest.raises(ValueError, match="other videos, captions or settings"):
        pack(folder, tmp_path / "out", SETTINGS, progress=False)
    only = settings.model_copy(update={"copying": "only", "videos_per_shard": 1})
    with pytest.raises(ValueError, match=r"4 of 5 tars.*b\.mp4 cannot be copied: it has 48x32 pixels, not 24x16"):
        pack(folder, tmp_path / "only", only, progress=False)
    assert [path.name for path in (tmp_path / "only").glob("*.tar")] == ["shard-000000.tar"]


def test_every_reason_not_to_copy_is_said(tmp_path: Path) -> None:
    def why_not(path: Path, frames: int = 8) -> str | None:
        bucket = Bucket(height=16, width=24, frames=8)
        scanned = Scanned(path.name, ("x",), frames=frames, scenes=(Scene(0, frames, bucket),))
        return why_not_copied(path, scanned, 16.0)

    whole = write_clip(numbered_frames(8), tmp_path / "whole.mp4")
    assert why_not(whole) is None
    assert why_not(whole, frames=16) == "2 clips are cut from it"
    assert "no MP4" in (why_not(write_video(tmp_path / "a.mkv", numbered_frames(8))) or "")
    assert why_not(write_clip(numbered_frames(8), tmp_path / "slow.mp4", fps=8)) == "it has 8 frames a second, not 16"
    assert why_not(write_clip(numbered_frames(9), tmp_path / "long.mp4")) == "it has 9 frames, not 8"
    # Its first packets taken away, so that it begins between two key frames.
    frames = numbered_frames(12)
    write_video(tmp_path / "late.mp4", frames, codec="libx264", pix_fmt="yuv420p", options={"g": "4", "bf": "0"})
    with av.open(str(tmp_path / "late.mp4")) as source, av.open(str(tmp_path / "cut.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(source.streams.video[0]))[2:10]:
            packet.stream = stream
            packet.pts, packet.dts = packet.pts - 125, packet.dts - 125
            target.mux(packet)
    assert not starts_with_key_frame(tmp_path / "cut.mp4") and starts_with_key_frame(tmp_path / "late.mp4")
