"""Videos made again picture by picture: sound, rate, pixel shape and upright pictures stay, half a file never does."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from lumiere.media import iterate_frames, probe, read_clip, read_recipe, write_clip, write_like

RATE = 22_050


def tone() -> np.ndarray:
    return (np.sin(np.arange(RATE) * 2 * np.pi * 440 / RATE) * 12_000).astype(np.int16)[None]


def video_with_sound(path: Path, codec: str, *, aspect: Fraction = Fraction(1)) -> Path:
    """One second of 12 frames a second of 64x48 pixels with a tone of 440 Hz."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        sound = container.add_stream(codec, rate=RATE)
        sound.layout = "mono"
        for index in range(12):
            picture = np.full((48, 64, 3), 20 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
        frame = av.AudioFrame.from_ndarray(tone(), format="s16", layout="mono")
        frame.sample_rate = RATE
        for part in [frame, None]:
            for resampled in av.AudioResampler(sound.format.name, "mono", RATE).resample(part) if part else [None]:
                container.mux(sound.encode(resampled))
    return path


def sound_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("s16", "mono", RATE)
        frames = [made for frame in container.decode(audio=0) for made in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(float)


def pitch_hz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples))
    return float(np.argmax(spectrum) * RATE / len(samples))


def doubled(path: Path, fps: float) -> Iterator[np.ndarray]:
    return (frame.repeat(2, 0).repeat(2, 1) for frame in iterate_frames(path, fps=fps))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "pcm_s16le"), ("a.mkv", "aac")])
def test_sound_rate_and_pixel_shape_stay(name: str, codec: str, tmp_path: Path) -> None:
    source = probe(video_with_sound(tmp_path / name, codec, aspect=Fraction(4, 3)))
    out = write_like(doubled(source.path, source.fps), tmp_path / "out.mp4", source, fps=source.fps, recipe={"x": 1})
    made = probe(out)
    assert (made.width, made.height, made.num_frames) == (128, 96, 12)
    assert made.has_audio and made.fps == pytest.approx(12) and made.pixel_aspect == pytest.approx(4 / 3)
    frames, _ = read_clip(out, fps=12)
    assert np.abs(frames[:, 40, 40, 0].astype(int) - 20 * np.arange(12)).max() <= 4
    samples = sound_of(out)
    assert len(samples) == pytest.approx(RATE, rel=0.12) and pitch_hz(samples) == pytest.approx(440, abs=3)
    assert read_recipe(out) == {"x": 1}


def test_sound_that_mp4_can_hold_is_copied_as_it_is(tmp_path: Path) -> None:
    source = probe(video_with_sound(tmp_path / "a.mp4", "aac"))
    out = write_like(doubled(source.path, source.fps), tmp_path / "out.mp4", source, fps=source.fps)

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    assert packets(out) == packets(source.path)


def test_a_silent_video_stays_silent_and_an_older_file_stays_when_writing_fails(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    source = probe(write_clip(frames, tmp_path / "a.webp", fps=10))
    out = write_like(iter(frames), tmp_path / "out.mp4", source, fps=10)
    assert not probe(out).has_audio
    before = out.read_bytes()

    def broken() -> Iterator[np.ndarray]:
        yield frames[0]
        raise ValueError("the network gave up")

    with pytest.raises(ValueError, match="gave up"):
        write_like(broken(), out, source, fps=10)
    with pytest.raises(ValueError, match="no picture"):
        write_like(iter([]), out, source, fps=10)
    assert out.read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.webp", "out.mp4"}
    with pytest.raises(ValueError, match=r"ends in \.mp4"):
        write_like(iter(frames), tmp_path / "out.gif", source, fps=10)
