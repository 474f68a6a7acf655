"""A video made again, picture by picture: rate, pixel shape and sound of its source, never more than a picture held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from lumiere.media.container import opened_video
from lumiere.media.picture import VideoInfo
from lumiere.media.recipe import beside, recipe_json
from lumiere.media.write import check_writable, h264_stream, under_temporary_name, video_frame

COPIED_SOUND = frozenset({"aac", "ac3", "eac3", "mp3", "alac", "opus", "flac"})
"""Codecs of sound that MP4 holds as they are; every other is encoded as AAC."""
AAC_RATE = 48_000
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
"""Names of FFmpeg for so many channels; files often tell only their number. Others are mixed down to two."""


def check_writable_like(path: str | Path) -> None:
    """Raise ValueError unless a video made again can be written there: as ``check_writable``, and only to ``.mp4``."""
    if Path(path).suffix.lower() != ".mp4":
        raise ValueError(f"{path}: a video with its sound is written as .mp4 (give a name that ends in .mp4)")
    check_writable(path)


def write_like(
    pictures: Iterator[np.ndarray],
    path: str | Path,
    source: VideoInfo,
    *,
    fps: float,
    recipe: dict[str, Any] | None = None,
    with_sound: bool = True,
    lossless: bool = False,
) -> Path:
    """Write pictures [H, W, 3], 8-bit, as they come, as an MP4 with the sound and the pixel shape of ``source``.

    The sound is copied where MP4 can hold it. ``lossless`` keeps every bit of every pixel, in RGB. The file takes its
    name only when all is written. Raises ValueError when the path cannot be written or is no ``.mp4``, and when no
    picture comes.
    """
    check_writable_like(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(100_000)
    comment = recipe_json(recipe) if recipe is not None else ""
    with (
        under_temporary_name(path) as temporary,
        _sound_of(source if with_sound else replace(source, has_audio=False)) as sound,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        if comment:
            container.metadata["comment"] = comment
        _mux(container, pictures, sound, rate=rate, source=source, lossless=lossless)
    if recipe is not None:
        with under_temporary_name(beside(path)) as temporary:
            temporary.write_text(comment + "\n", encoding="utf-8")
    return path


def _mux(
    container: Any,
    pictures: Iterator[np.ndarray],
    sound: Any,
    *,
    rate: Fraction,
    source: VideoInfo,
    lossless: bool,
) -> None:
    """Pictures and sound in the order of their times, so that the muxer has little to hold back."""
    stream, copy = None, None
    for index, picture in enumerate(pictures):
        if stream is None:
            height, width = picture.shape[:2]
            stream = h264_stream(container, rate, height=height, width=width, lossless=lossless)
            stream.codec_context.sample_aspect_ratio = Fraction(source.pixel_aspect).limit_denominator(1000)
            copy = None if sound is None else _SoundCopy(container, *sound)
        container.mux(stream.encode(video_frame(picture, lossless=lossless)))
        if copy is not None:
            copy.until((index + 1) / float(rate))
    if stream is None:
        raise ValueError(f"{source.path} gave no picture, so there is nothing to write")
    container.mux(stream.encode(None))
    if copy is not None:
        copy.until(float("inf"))


class _SoundCopy:
    """The packets of a source's first sound stream, put into another container up to a time."""

    def __init__(self, out: Any, container: Any, stream: Any) -> None:
        self.out, self.time_s = out, float("-inf")
        name = stream.codec_context.name
        self.is_copied = name in COPIED_SOUND
        if self.is_copied:
            self.made = out.add_stream_from_template(stream)
        else:
            layout = LAYOUTS.get(stream.codec_context.channels, "stereo")
            self.made = out.add_stream("aac", rate=AAC_RATE, layout=layout)
            self.resampler = av.AudioResampler("fltp", layout, AAC_RATE)
        self.packets = container.demux(stream)

    def until(self, time_s: float) -> None:
        """Copy what is heard before ``time_s``."""
        while self.time_s < time_s:
            packet = next(self.packets, None)
            if packet is None:
                self.time_s = float("inf")
                if not self.is_copied:
                    for resampled in self.resampler.resample(None):
                        self.out.mux(self.made.encode(resampled))
                    self.out.mux(self.made.encode(None))
                return
            self._put(packet)

    def _put(self, packet: Any) -> None:
        if packet.dts is not None:
            self.time_s = float(packet.dts * packet.time_base)
        if not self.is_copied:
            for frame in packet.decode():
                for resampled in self.resampler.resample(frame):
                    self.out.mux(self.made.encode(resampled))
        elif packet.dts is not None:
            packet.stream = self.made
            self.out.mux(packet)


@contextmanager
def _sound_of(source: VideoInfo) -> Iterator[tuple[Any, Any] | None]:
    """The open container and the first sound stream of a file; None where there is no sound."""
    if not source.has_audio:
        yield None
        return
    with opened_video(source.path) as (container, _):
        yield container, container.streams.audio[0]
