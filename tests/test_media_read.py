"""Any video, read at any rate and size, shows the right picture at the right time, upright and opaque."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumiere.media import iterate_frames, probe, read_clip
from lumiere.media.container import container_pictures
from lumiere.media.picture import BrokenOff, Picture, crop_and_resize
from lumiere.media.read import nearest_pictures
from tests.media_samples import numbered_frames, numbers_of, write_video


def nearest_numbers(times_s: np.ndarray, *, fps: float, count: int, start_s: float = 0.0) -> list[int]:
    """For each moment the number of the nearest time, the slow way; the first of two."""
    moments = start_s + np.arange(count) / fps
    return [int(np.argmin(np.abs(times_s - moment).round(9))) for moment in moments]


def pictures_at(times_s: list[float], last_duration_s: float | None) -> list[Picture]:
    def picture(index: int) -> Picture:
        is_last = index == len(times_s) - 1
        pixels = np.full((1, 1, 3), index, np.uint8)
        return Picture(times_s[index], last_duration_s if is_last else None, convert=lambda: pixels)

    return [picture(index) for index in range(len(times_s))]


@settings(max_examples=150, deadline=None)
@given(
    gaps=st.lists(st.floats(0.004, 0.5), min_size=1, max_size=30),
    fps=st.sampled_from([1, 7.5, 16, 24, 29.97]),
    start_s=st.sampled_from([0.0, 0.13, 1.0]),
)
def test_each_frame_is_the_picture_nearest_in_time(gaps: list[float], fps: float, start_s: float) -> None:
    times = np.concatenate([[0], np.cumsum(gaps)]).round(6)
    end_s = times[-1] + 0.1
    found = [int(p.rgb[0, 0, 0]) for p in nearest_pictures(pictures_at(list(times), 0.1), fps=fps, start_s=start_s)]
    assert len(found) == sum(start_s + count / fps <= end_s - 0.0015 for count in range(2000))
    assert found == nearest_numbers(times, fps=fps, count=len(found), start_s=start_s)


def test_pictures_before_damage_are_all_shown() -> None:
    def damaged():
        yield from pictures_at([0.0, 0.1, 0.2], None)
        raise BrokenOff("cut")

    shown = []
    with pytest.raises(BrokenOff):
        shown.extend(nearest_pictures(damaged(), fps=10))
    whole = nearest_pictures(damaged(), fps=10)
    assert [int(next(whole).rgb[0, 0, 0]) for _ in range(3)] == [0, 1, 2]


def test_video_of_its_own_rate_comes_back_exactly(tmp_path: Path) -> None:
    frames = numbered_frames(20)
    read, info = read_clip(write_video(tmp_path / "a.mp4", frames))
    assert np.array_equal(read, frames)
    assert (info.fps, info.num_frames, info.duration_s) == (
        pytest.approx(16, rel=1e-3),
        20,
        pytest.approx(1.25, abs=0.002),
    )
    assert (info.width, info.height, info.is_variable_rate, info.damage) == (24, 16, False, None)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate_is_read_by_its_times(tmp_path: Path, suffix: str) -> None:
    times_ms = [0, 20, 90, 300, 310, 333, 700, 1500, 1530, 1600]
    path = write_video(tmp_path / f"a{suffix}", numbered_frames(10), times_ms=times_ms)
    read, info = read_clip(path)
    expected = nearest_numbers(np.array(times_ms) / 1000, fps=16, count=len(read))
    assert info.is_variable_rate
    assert list(numbers_of(read)) == expected
    assert len(read) >= 26  # the last picture appears at 1.6 s


def test_times_count_from_the_first_picture(tmp_path: Path) -> None:
    times_ms = [5000 + round(index * 62.5) for index in range(8)]
    read, _ = read_clip(write_video(tmp_path / "a.mkv", numbered_frames(8), times_ms=times_ms))
    assert list(numbers_of(read)) == list(range(8))


@pytest.mark.parametrize(("start_s", "num_frames"), [(0.0, 5), (0.5, 8), (1.03, 3)])
def test_window_is_a_piece_of_the_whole(tmp_path: Path, start_s: float, num_frames: int) -> None:
    path = write_video(tmp_path / "a.mkv", numbered_frames(40))
    window, _ = read_clip(path, start_s=start_s, num_frames=num_frames)
    expected = nearest_numbers(np.arange(40) / 16, fps=16, count=num_frames, start_s=start_s)
    assert list(numbers_of(window)) == expected


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_seeking_finds_the_same_pictures_as_decoding_all(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 16, 16, 3), dtype=np.uint8)
    path = write_video(tmp_path / f"a{suffix}", noise, options={"qp": "0", "g": "24", "bf": "2"})
    sought = next(container_pictures(path, start_s=8.0))
    assert 0 < sought.time_s <= 8.0, "the seek was not used"
    window, _ = read_clip(path, start_s=8.0, num_frames=30)
    assert np.array_equal(window, noise[128:158])


def test_too_short_a_clip_is_refused_with_the_numbers(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(20))
    with pytest.raises(ValueError, match=r"a\.mp4 has 20 frames at 16 fps from 0 s on, and 24 are needed"):
        read_clip(path, num_frames=24)
    with pytest.raises(ValueError, match="has 0 frames"):
        read_clip(path, start_s=9)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fps": 0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"start_s": -1}, "start_s"),
        ({"size": (0, 8)}, "size"),
        ({"num_frames": 0}, "num_frames"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, settings: dict, words: str) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(4))
    with pytest.raises(ValueError, match=words):
        read_clip(path, **settings)


def test_single_picture_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", numbered_frames(1))
    read, info = read_clip(path)
    assert read.shape == (1, 16, 24, 3)
    assert info.num_frames == 1


# A point (x, y) is shown at (a x + c y, b x + d y); y points down.
@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda frames: np.rot90(frames, -1, axes=(1, 2))),
        ((-1, 0, 0, -1), lambda frames: np.rot90(frames, 2, axes=(1, 2))),
        ((0, -1, 1, 0), lambda frames: np.rot90(frames, 1, axes=(1, 2))),
        ((-1, 0, 0, 1), lambda frames: frames[:, :, ::-1]),
        ((1, 0, 0, -1), lambda frames: frames[:, ::-1]),
        ((0, 1, 1, 0), lambda frames: frames.swapaxes(1, 2)),
    ],
    ids=["clockwise", "half", "counterclockwise", "mirror", "upside down", "transpose"],
)
def test_turned_video_is_upright(tmp_path: Path, matrix: tuple[int, int, int, int], turn) -> None:
    frames = numbered_frames(4)
    read, info = read_clip(write_video(tmp_path / "a.mp4", frames, display_matrix=matrix))
    assert np.array_equal(read, turn(frames))
    assert (info.height, info.width) == read.shape[1:3]


def test_rotation_is_said_in_degrees_clockwise(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(2), display_matrix=(0, 1, -1, 0))
    assert probe(path).rotation == 90


def area_resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Exact area averages: each pixel is repeated as often as makes the blocks whole, and the blocks are averaged."""
    tall = picture.astype(float).repeat(size[0], axis=0).repeat(size[1], axis=1)
    height, width = picture.shape[:2]
    return tall.reshape(size[0], height, size[1], width, 3).mean(axis=(1, 3))


@pytest.mark.parametrize(("source", "size"), [((12, 12), (4, 4)), ((9, 15), (6, 10)), ((10, 14), (5, 7))])
def test_shrinking_takes_the_mean_of_the_area(source: tuple[int, int], size: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 255, (*source, 3), dtype=np.uint8)
    assert np.abs(crop_and_resize(picture, size) - area_resize(picture, size)).max() <= 1.01


def test_the_middle_is_kept_when_proportions_differ() -> None:
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, 4:12] = 100
    assert (crop_and_resize(picture, (4, 4)) == 100).all()
    assert (crop_and_resize(picture.swapaxes(0, 1).copy(), (4, 4)) == 100).all()


def test_pixels_that_are_not_square_come_out_square(tmp_path: Path) -> None:
    frames = np.full((4, 16, 16, 3), 30, np.uint8)
    frames[:, 4:12, 6:10] = 220  # 8 high and, as pixels are shown twice as wide, 8 wide
    path = write_video(tmp_path / "a.mkv", frames, sample_aspect_ratio=2)
    read, info = read_clip(path, size=(16, 16))
    assert info.pixel_aspect == 2
    bright = read[0, ..., 0] > 125
    assert bright.any(axis=0).sum() == bright.any(axis=1).sum() == 8


@pytest.mark.parametrize(("height", "matrix"), [(64, "ITU601"), (720, "ITU709")])
def test_colours_without_a_stated_matrix_are_read_as_players_do(tmp_path: Path, height: int, matrix: str) -> None:
    colours = np.array([[200, 30, 40], [30, 180, 60], [40, 50, 210]], np.uint8)
    picture = np.ascontiguousarray(np.broadcast_to(colours.repeat(32, axis=0), (height, 96, 3)))
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = height, 96, "yuv444p"
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv444p", dst_colorspace=matrix)
        frame.colorspace = 2
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    read, _ = read_clip(path)
    assert np.abs(read[0].astype(int) - picture).max() <= 3


def test_ten_bits_become_eight(tmp_path: Path) -> None:
    frames = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None], (2, 32, 64, 3)).copy()
    path = write_video(tmp_path / "a.mkv", frames, codec="libx264", pix_fmt="yuv444p10le")
    read, info = read_clip(path)
    assert info.pixel_format == "yuv444p10le"
    assert np.abs(read.astype(int) - frames).max() <= 2


def test_transparent_parts_lie_over_white(tmp_path: Path) -> None:
    frames = np.zeros((3, 32, 32, 4), np.uint8)
    frames[:, :, :16] = (0, 0, 255, 255)
    frames[:, :, 16:24] = (0, 0, 255, 128)
    path = write_video(
        tmp_path / "a.webm",
        frames,
        codec="libvpx-vp9",
        pix_fmt="yuva420p",
        options={"lossless": "1"},
    )
    read, info = read_clip(path)
    assert info.has_alpha
    for column, colour in ((4, (0, 0, 255)), (20, (127, 127, 255)), (30, (255, 255, 255))):
        assert np.abs(read[1, 16, column].astype(int) - colour).max() <= 4


def test_streaming_holds_few_pictures(tmp_path: Path) -> None:
    frames = np.zeros((120, 240, 320, 3), np.uint8)
    frames[..., 1] = np.arange(120, dtype=np.uint8)[:, None, None]
    path = write_video(tmp_path / "a.mp4", frames)
    tracemalloc.start()
    count = sum(1 for _ in iterate_frames(path, size=(16, 16)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 120
    assert peak < 10 * frames[0].nbytes
