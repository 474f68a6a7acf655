"""What cannot be read ends in a ValueError that names the file: never in a hang, a crash or a full memory."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from zlib import compress, crc32

import av
import numpy as np
import pytest
from PIL import Image

from lumiere.media import probe, read_clip, write_clip
from tests.media_samples import CLIP_FOLDER, DECODER_FOLDER, numbered_frames, numbers_of, psnr_db, write_video

pytestmark = pytest.mark.timeout(60)

needs_decoder_folder = pytest.mark.skipif(not DECODER_FOLDER.is_dir(), reason=f"{DECODER_FOLDER} is not there")


def gif_of_declared_size(width: int, height: int) -> bytes:
    """A whole GIF of one 8x8 picture on a canvas as large as one likes."""
    canvas = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    return canvas + b"\x2c" + struct.pack("<HHHH", 0, 0, 8, 8) + b"\0" + b"\x02\x02\x44\x01\0;"


def png_of_declared_size(width: int, height: int) -> bytes:
    """A PNG whose header promises a picture as large as one likes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.mp4", b"", "is empty"),
        ("text.mp4", b"this is no video at all\n" * 50, "cannot be opened as a video"),
        ("noise.mkv", bytes(range(256)) * 40, "cannot be opened|no picture"),
        ("cut.gif", b"GIF89a\x01\0\x01\0", "no picture|cannot be opened"),
        ("zero.gif", gif_of_declared_size(0, 8), "zero.gif"),
        ("bomb.gif", gif_of_declared_size(15000, 15000), "limit of"),
        ("bomb.apng", png_of_declared_size(20000, 20000), "limit of|at most"),
        ("bomb.png", png_of_declared_size(60000, 60000), "limit of|at most"),
        ("cut.webp", b"RIFF\x10\0\0\0WEBPVP8 ", "cannot be opened as a picture"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (probe, read_clip):
        with pytest.raises(ValueError, match=words) as refusal:
            read(path)
        assert name in str(refusal.value)


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gif"
    path.write_bytes(gif_of_declared_size(15000, 15000))  # 900 MB when decoded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="limit of"):
        read_clip(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_clip(tmp_path / "missing.mp4")
    with pytest.raises(ValueError, match="folder without PNG frames"):
        read_clip(tmp_path)
    with pytest.raises(ValueError, match=r"does not exist|cannot be read"):
        read_clip(tmp_path / ("x" * 300))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_without_writer_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        read_clip(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["index first", "index last", "mkv", "gif"])
def test_truncated_video_gives_its_sound_pictures_or_is_refused(tmp_path: Path, kind: str, kept: float) -> None:
    rng = np.random.default_rng(0)
    frames = np.concatenate([numbered_frames(48), rng.integers(0, 255, (48, 16, 24, 3), dtype=np.uint8)], axis=2)
    whole = tmp_path / {"mkv": "a.mkv", "gif": "a.gif"}.get(kind, "a.mp4")
    if kind == "gif":
        Image.fromarray(frames[0]).save(whole, save_all=True, append_images=[Image.fromarray(f) for f in frames[1:]])
    elif kind == "index first":
        write_clip(frames, whole)
    else:
        write_video(whole, frames)
    reference, _ = read_clip(whole)
    cut = tmp_path / f"cut{whole.suffix}"
    cut.write_bytes(whole.read_bytes()[: int(kept * whole.stat().st_size)])
    try:
        read, info = read_clip(cut)
    except ValueError as error:
        assert "cut" in str(error)
        return
    assert kind != "index last", "an MP4 without its index cannot be read"
    assert len(read) <= len(reference)
    sound = min(len(read), len(reference) - 2)
    assert np.array_equal(read[: sound - 2], reference[: sound - 2])
    assert info.damage or len(read) >= 0.9 * len(reference) * kept or kind in {"mkv", "gif"}


def test_damage_in_the_middle_keeps_what_is_before(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", numbered_frames(64), codec="ffv1", pix_fmt="bgr0", options={"slicecrc": "1"})
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    position, size = packets[40]
    content[position + size // 2 : position + size] = b"\xa5" * (size - size // 2)
    path.write_bytes(content)
    read, info = read_clip(path)
    assert list(numbers_of(read))[:38] == list(range(38))
    assert info.damage is not None or len(read) == 64


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="holds no video stream"):
        read_clip(path)


def test_playlists_open_nothing_else(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(4))
    for name, content in (
        ("list.ffconcat", "ffconcat version 1.0\nfile a.mp4\n"),
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://192.0.2.1/a.ts\n#EXT-X-ENDLIST\n"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=r"list\."):
            read_clip(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["with blank [s] _'\".mp4", "http:colon.mp4", "100%03d.mp4", "-i.mp4", "новый 视频.mp4", "line\nbreak.mp4"]
)
def test_odd_names_are_only_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(4)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read_clip(name)[0]) == 4


def test_a_name_that_is_no_text_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe.mp4")
    write_video(tmp_path / "a.mp4", numbered_frames(4)).rename(path)
    try:
        assert len(read_clip(path)[0]) == 4
    except ValueError as error:
        assert "cannot be opened" in str(error)


def test_one_bad_frame_file_ends_the_folder_there(tmp_path: Path) -> None:
    for index, frame in enumerate(numbered_frames(6)):
        Image.fromarray(frame).save(tmp_path / f"frame_{index:05d}.png")
    (tmp_path / "frame_00004.png").write_bytes(b"\x89PNG broken")
    read, info = read_clip(tmp_path)
    assert list(numbers_of(read)) == [0, 1, 2, 3]
    assert "frame_00004.png" in (info.damage or "")


def test_a_change_of_size_on_the_way_is_named(tmp_path: Path) -> None:
    for index, size in enumerate([(8, 8), (8, 8), (6, 8)]):
        Image.fromarray(np.full((*size, 3), 9, np.uint8)).save(tmp_path / f"frame_{index:05d}.png")
    with pytest.raises(ValueError, match="changes its picture from 8x8 to 8x6"):
        read_clip(tmp_path)
    assert read_clip(tmp_path, size=(4, 4))[0].shape == (3, 4, 4, 3)


# Width and height as shown, and frames at 16 a second by the packets' own times; None: must be refused.
DECODER_FILES: dict[str, tuple[int, int, int] | None] = {
    "corrupted_nal.mp4": (1280, 720, 45),
    "dali_cfr.mov": (1280, 720, 48),
    "fl_odd name [s] _.flv": (320, 240, 30),
    "gr_mpeg4.avi": (480, 270, 81),
    "moz_chunk_out_of_range.mp4": None,
    "moz_h264_white_frame_sar_16_9.mp4": (640, 480, 1),
    "moz_invalid_userdata.mp4": None,
    "moz_tiny_av1.mp4": (64, 64, 1),
    "mp_bitmap.mp4": (1, 1, 80),
    "mp_no_duration.webm": (1280, 720, 79),
    "mp_rotated_vfr.mp4": (1280, 720, 39),
    "mp_transparent.webm": (200, 200, 80),
    "mp_zero_bytes.webm": None,
    "pil_decompression_bomb.gif": None,
    "pil_dispose_bgnd.gif": (100, 100, 80),
    "pil_iss634.gif": (245, 245, 46),
    "pil_zero_width.gif": None,
    "rotate_90.mov": (320, 568, 2),
    "small_AudioVideoInterleave.avi": None,
    "small_Mpeg4.mp4": None,
    "small_gif.gif": None,
    "tc_av1_video.mkv": (640, 360, 80),
    "tc_h264_10bits.mp4": (200, 200, 16),
    "unordered_packets.mov": (50, 50, 2),
}


@needs_decoder_folder
def test_every_file_of_the_folder_is_known() -> None:
    assert {path.name for path in DECODER_FOLDER.iterdir()} <= set(DECODER_FILES)


@needs_decoder_folder
@pytest.mark.parametrize("name", DECODER_FILES)
def test_files_that_break_readers(name: str) -> None:
    expected = DECODER_FILES[name]
    path = DECODER_FOLDER / name
    if expected is None:
        with pytest.raises(ValueError) as refusal:
            read_clip(path, size=(16, 16))
        assert name in str(refusal.value)
        return
    frames, info = read_clip(path, size=(16, 16))
    assert (info.width, info.height, len(frames)) == expected
    assert frames.dtype == np.uint8


@needs_decoder_folder
def test_damaged_file_says_where_it_breaks_off() -> None:
    _, info = read_clip(DECODER_FOLDER / "corrupted_nal.mp4", size=(16, 16))
    assert "breaks off 2.70 s" in (info.damage or "")


@needs_decoder_folder
def test_two_codecs_of_one_film_look_alike() -> None:
    old, _ = read_clip(DECODER_FOLDER / "gr_mpeg4.avi", num_frames=40, size=(96, 96), start_s=1)
    new, _ = read_clip(CLIP_FOLDER / "earth_night.mp4", num_frames=40, size=(96, 96), start_s=1)
    assert psnr_db(old, new) > 30


@needs_decoder_folder
def test_phone_video_is_turned_the_right_way() -> None:
    frames, info = read_clip(DECODER_FOLDER / "mp_rotated_vfr.mp4", num_frames=1)
    with av.open(str(DECODER_FOLDER / "mp_rotated_vfr.mp4")) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert info.rotation == 180
    assert info.is_variable_rate
    assert psnr_db(frames[0], np.rot90(stored, 2)) > 30


def test_importing_media_is_quiet_and_opens_no_window() -> None:
    code = "import lumiere.media, av; assert av.logging.get_level() is None"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
