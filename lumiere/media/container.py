"""Video containers through PyAV: every limit set before decoding, times as the file gives them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from lumiere.media.picture import MAX_PIXELS, BrokenOff, Picture, VideoInfo, check_picture_size, over_background
from lumiere.video import FPS

# These decoders see the alpha plane that FFmpeg's own VP8 and VP9 decoders leave out.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

PLAYLISTS = frozenset({"concat", "dash", "hls", "imf"})

# Below this, decoding from the start is as fast as seeking.
SEEK_FROM_S = 2.0

# FFmpeg's AVCOL_SPC_UNSPECIFIED, which PyAV does not name.
UNSPECIFIED_COLORSPACE = 2

HD_HEIGHT = 720


def container_pictures(path: Path, *, start_s: float = 0.0, may_seek: bool = True) -> Iterator[Picture]:
    """Yield the pictures in order of time, the file's first at 0 s, from one at or before ``start_s`` on.

    Raises ValueError when nothing can be decoded, and BrokenOff after the last picture before damage.
    """
    with opened_video(path) as (container, stream):
        frames = _frames(container, stream, path=path)
        first = next(frames, None)
        if first is None:
            raise ValueError(_nothing_decoded(path, stream, "empty or cut off"))
        origin_s = first[0]
        # One for all pictures: what it sets up for a size and format takes as long as converting some small pictures.
        reformatter = VideoReformatter()
        if may_seek and start_s > SEEK_FROM_S and _seeks_well(container, stream):
            landed = _seek(container, stream, origin_s + start_s, path=path)
            if landed is None:
                yield from container_pictures(path, start_s=start_s, may_seek=False)
                return
            first, frames = landed
        for time_s, frame in chain([first], frames):
            yield Picture(
                time_s - origin_s,
                float(frame.duration * frame.time_base) if frame.duration else None,
                pixel_aspect=_upright_aspect(stream, _orientation(frame, path)[0]),
                convert=partial(_upright_rgb, frame, path, reformatter),
            )


def describe_container(path: Path) -> VideoInfo:
    """What a video file holds: one picture is decoded, all packets are counted.

    Raises ValueError when no picture can be decoded.
    """
    with opened_video(path) as (container, stream):
        first = next(_frames(container, stream, path=path), None)
        if first is None:
            raise ValueError(_nothing_decoded(path, stream, "empty or cut off"))
        frame = first[1]
        is_turned, _, _ = _orientation(frame, path)
        width, height = (frame.height, frame.width) if is_turned else (frame.width, frame.height)
        return VideoInfo(
            path=path,
            format=container.format.name,
            codec=_codec_name(stream),
            pixel_format=frame.format.name,
            width=width,
            height=height,
            pixel_aspect=_upright_aspect(stream, is_turned),
            rotation=-frame.rotation % 360,
            has_audio=bool(container.streams.audio),
            has_alpha=_has_alpha(frame),
            **_timing(path, stream),
        )


def starts_with_key_frame(path: Path) -> bool:
    """Whether the first coded picture of a video file needs no other one to be decoded."""
    with opened_video(path) as (container, stream):
        return next((bool(packet.is_keyframe) for packet in container.demux(stream) if packet.size), False)


@contextmanager
def opened_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """The open container and its video stream; raises ValueError when there is none that can be read."""
    # The prefix keeps names with a colon from being read as network addresses, and the list keeps
    # playlists from opening anything else.
    options = {"protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
    try:
        container = av.open(f"file:{path.absolute()}", options=options, metadata_errors="replace")
    except (av.error.FFmpegError, UnicodeError) as error:
        raise ValueError(f"{path} cannot be opened as a video: {reason(error)}") from error
    with container:
        if container.format.name in PLAYLISTS:
            raise ValueError(f"{path} is a list of other files ({container.format.name}); give the videos themselves")
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            raise ValueError(f"{path} holds no video stream (only {len(container.streams)} of other kinds)")
        stream = streams[0]
        if stream.codec_context is None:
            raise ValueError(f"{path} uses a codec that this FFmpeg cannot decode (convert it to H.264 first)")
        if stream.codec_context.width or stream.codec_context.height:
            check_picture_size(stream.codec_context.width, stream.codec_context.height, path=path)
        yield container, stream


def reason(error: Exception) -> str:
    """FFmpeg's own words for what went wrong."""
    log = getattr(error, "log", None)
    words = log[2].strip() if log else getattr(error, "strerror", None) or str(error)
    return words.rstrip(".")


def _frames(container: Any, stream: Any, *, path: Path) -> Iterator[tuple[float, Any]]:
    """Yield (time in seconds, frame) with times that grow; raises BrokenOff at the first damage after a picture."""
    decoder = _decoder(stream)
    step_s = 1 / float(stream.average_rate or FPS)
    last_s: float | None = None
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise BrokenOff("a packet is cut off")
            for frame in decoder.decode(packet):
                if frame.is_corrupt:
                    raise BrokenOff("a picture is incomplete")
                time_s = frame.time
                if time_s is None:
                    time_s = 0.0 if last_s is None else last_s + step_s
                if last_s is None or time_s > last_s:
                    last_s = time_s
                    yield time_s, frame
    except (av.error.FFmpegError, BrokenOff) as error:
        why = reason(error)
        if last_s is None:
            raise ValueError(_nothing_decoded(path, stream, why)) from error
        raise BrokenOff(f"{path} is damaged: it breaks off {last_s:.2f} s into it: {why}") from error


def _nothing_decoded(path: Path, stream: Any, why: str) -> str:
    message = f"{path}: no picture in it can be decoded: {why} ({_codec_name(stream)})"
    if not stream.codec_context.width:
        message += f"; it declares no picture size, or one above the limit of {MAX_PIXELS} pixels"
    return message


def _decoder(stream: Any) -> Any:
    """The codec context that decodes the stream, with the limit on picture size set."""
    context = stream.codec_context
    if _has_alpha_layer(stream):
        context = av.CodecContext.create(ALPHA_DECODERS[context.codec.canonical_name], "r")
    if not context.is_open:
        context.options = {"max_pixels": str(MAX_PIXELS)}
    return context


def _has_alpha_layer(stream: Any) -> bool:
    decoder = ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
    marked = any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items())
    return marked and decoder in av.codecs_available


def _seeks_well(container: Any, stream: Any) -> bool:
    """Whether a seek lands on a key frame from which the pictures are right: not so in GIF or in bare streams."""
    return any(name in container.format.name for name in ("mp4", "matroska")) and not _has_alpha_layer(stream)


def _seek(container: Any, stream: Any, target_s: float, *, path: Path) -> tuple[Any, Iterator[Any]] | None:
    """The first frame after a seek and the frames that follow, or None when it landed behind the target."""
    try:
        container.seek(int(target_s / stream.time_base), stream=stream)
        frames = _frames(container, stream, path=path)
        landed = next(frames, None)
    except (av.error.FFmpegError, ValueError):
        return None
    return (landed, frames) if landed is not None and landed[0] <= target_s else None


def decode_mp4(data: bytes, *, name: str) -> Iterator[np.ndarray]:
    """The pictures [H, W, 3] of an MP4 in memory, in their order, whatever their times, decoded by this thread alone.

    Each may lie in memory of the decoder: copy what is to be kept. Raises ValueError, in which the clip has this
    ``name``, when it cannot be decoded or a picture is incomplete.
    """
    path, reformatter, is_plain = Path(name), VideoReformatter(), None
    # Opening decodes a picture to see what it is like, unless told not to; that takes as long as opening itself.
    options, skipped = {"max_pixels": str(MAX_PIXELS)}, [{"skip_frame": "all"}]
    try:
        # With the format said, nothing in the data can make FFmpeg take it for a list of other files.
        with av.open(io.BytesIO(data), format="mp4", options=options, stream_options=skipped) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise ValueError(f"{name} is damaged: a picture is incomplete")
                if is_plain is None:  # Of one clip all pictures are alike, and asking takes time.
                    is_plain = not _has_alpha(frame) and not any(_orientation(frame, path))
                yield (_stored_rgb if is_plain else _upright_rgb)(frame, path, reformatter)
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{name} cannot be decoded: {reason(error)}") from error


def _upright_rgb(frame: Any, path: Path, reformatter: Any) -> np.ndarray:
    """Pixels [H, W, 3] of a decoded frame: turned as its display matrix says, over white where it is transparent."""
    pixels = _stored_rgb(frame, path, reformatter)
    is_turned, flips_x, flips_y = _orientation(frame, path)
    if is_turned:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if flips_y else 1, :: -1 if flips_x else 1])


def _stored_rgb(frame: Any, path: Path, reformatter: Any) -> np.ndarray:
    """The same as they are stored, not turned."""
    source = {}
    if not frame.format.is_rgb and frame.colorspace == UNSPECIFIED_COLORSPACE:
        # What players assume: BT.709 for high definition, BT.601 below.
        source["src_colorspace"] = "ITU709" if frame.height >= HD_HEIGHT else "ITU601"
    has_alpha = _has_alpha(frame)
    try:
        converted = reformatter.reformat(frame, format="rgba" if has_alpha else "rgb24", threads=1, **source)
    except (av.error.FFmpegError, ValueError) as error:
        raise ValueError(f"{path}: pixel format {frame.format.name} cannot be converted: {reason(error)}") from error
    pixels = converted.to_ndarray()
    return over_background(pixels) if has_alpha else pixels


def _orientation(frame: Any, path: Path) -> tuple[bool, bool, bool]:
    """(rows become columns, then mirror left-right, then mirror up-down), from the frame's display matrix."""
    try:
        matrix = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), dtype="<i4")
    except KeyError:
        return False, False, False
    # A point (p, q) is shown at (a p + c q, b p + d q).
    a, b, c, d = (int(value) for value in matrix[[0, 1, 3, 4]])
    if not b and not c and a and d:
        return False, a < 0, d < 0
    if not a and not d and b and c:
        return True, c < 0, b < 0
    raise ValueError(f"{path} is to be shown turned by {frame.rotation} degrees; only quarter turns are supported")


def _upright_aspect(stream: Any, is_turned: bool) -> float:
    aspect = float(stream.sample_aspect_ratio or 1)
    return 1 / aspect if is_turned else aspect


def _has_alpha(frame: Any) -> bool:
    return _format_has_alpha(frame.format.name)


@cache
def _format_has_alpha(name: str) -> bool:
    return name == "pal8" or any(component.is_alpha for component in av.VideoFormat(name).components)


def _timing(path: Path, stream: Any) -> dict[str, Any]:
    """Rate, number and duration of the pictures from the times of all packets, and what shows that some are lost."""
    times, last_duration_s, damage = _packet_times(path)
    declared_rate = float(stream.average_rate or 0)
    declared_s = float(stream.duration * stream.time_base) if stream.duration else None
    gaps = np.diff(times)
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else declared_rate or FPS
    if abs(rate - declared_rate) < 0.01 * rate:
        rate = declared_rate  # exact, where times are rounded to milliseconds
    duration_s = times[-1] - times[0] + (last_duration_s or (gaps[-1] if len(gaps) else 1 / rate))
    if damage is None and declared_s is not None and duration_s < 0.98 * declared_s - 2 / rate:
        damage = f"its header declares {declared_s:.2f} s, but it holds {duration_s:.2f} s"
    uneven = bool(len(gaps)) and float(np.ptp(gaps)) > max(0.1 * float(np.median(gaps)), 2.01 * float(stream.time_base))
    return {
        "fps": float(rate),
        "num_frames": len(times),
        "duration_s": float(duration_s),
        "is_variable_rate": uneven,
        "damage": damage,
    }


def _packet_times(path: Path) -> tuple[np.ndarray, float | None, str | None]:
    """Presentation times of all packets in seconds, sorted; the last one's duration; where reading broke off."""
    times: dict[float, float | None] = {}
    damage = None
    with opened_video(path) as (container, stream):
        step_s = 1 / float(stream.average_rate or FPS)
        try:
            for packet in container.demux(stream):
                if not packet.size or packet.is_discard:
                    continue
                stamp = packet.pts if packet.pts is not None else packet.dts
                time_s = len(times) * step_s if stamp is None else float(stamp * packet.time_base)
                times[time_s] = float(packet.duration * packet.time_base) if packet.duration else None
        except av.error.FFmpegError as error:
            damage = f"reading breaks off after {len(times)} pictures: {reason(error)}"
    if not times:
        return np.zeros(1), None, damage
    ordered = sorted(times)
    return np.array(ordered), times[ordered[-1]], damage


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _codec_name(stream: Any) -> str:
    return stream.codec_context.codec.canonical_name
