"""Frames into files: under a temporary name first, so that a file is whole or not there, with the recipe inside."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import av
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lumiere.media.recipe import EXIF_DESCRIPTION, PNG_KEY, beside, recipe_json
from lumiere.media.stills import FRAME_RATE_KEY
from lumiere.video import FPS

FRAME_NAME = "frame_{:05d}.png"

MP4_CRF = 17
"""x264's constant quality: visually lossless; a five-second clip of 256x256 takes some 100 kB."""

GIF_PALETTE_PIXELS = 2**24
"""The palette of a GIF is drawn from all pixels up to this number, and from every n-th frame of larger clips."""


def write_clip(
    frames: np.ndarray,
    path: str | Path,
    *,
    fps: float = FPS,
    recipe: dict[str, Any] | None = None,
    scale: int = 1,
    smooth: bool = False,
    lossless: bool = False,
    threads: int = 0,
) -> Path:
    """Write 8-bit frames [T, H, W, 3] as a file that plays at ``fps``; the name's ending chooses the kind.

    ``.mp4`` (H.264, yuv420p, even sides only), ``.gif`` (256 colours), ``.webp`` and ``.apng`` (exact), no ending: a
    folder of PNG frames (exact). A clip in which nothing moves becomes a single picture in ``.webp`` and ``.apng``.
    ``scale`` enlarges by a whole number, each pixel into a square or, if ``smooth``,
    bicubically. ``lossless`` keeps every bit of every pixel in ``.mp4`` too, in RGB, which few players show.
    ``threads`` 1 encodes ``.mp4`` the same on every machine (0: as many as fit this one, which changes the bytes). The
    recipe is stored in the comment of the file and as JSON beside it. An older clip of that name
    is replaced at the end of writing, and kept when writing fails. Returns the path.
    Raises ValueError when the frames or the path cannot be written.
    """
    path = Path(path)
    _check_frames(frames)
    if not 0 < fps <= 1000:
        raise ValueError(f"fps must lie above 0 and not above 1000; got {fps}")
    check_writable(path, clip_shape=(frames.shape[0], frames.shape[1], frames.shape[2]), scale=scale)
    comment = recipe_json(recipe) if recipe is not None else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(100_000)
    pictures = (_enlarged(frame, scale, smooth) for frame in frames)
    writer = WRITERS[_kind(path)]
    if _kind(path) == ".mp4":
        writer = partial(_write_mp4, lossless=lossless, threads=threads)
    with under_temporary_name(path) as temporary:
        writer(pictures, temporary, rate=rate, comment=comment)
    if recipe is not None:
        with under_temporary_name(beside(path)) as temporary:
            temporary.write_text(recipe_json(recipe) + "\n", encoding="utf-8")
    return path


def check_writable(path: str | Path, *, clip_shape: tuple[int, int, int] | None = None, scale: int = 1) -> None:
    """Raise ValueError, before long work, when a clip [T, H, W] enlarged ``scale`` times cannot be written there.

    Refused are an unknown ending, sides that H.264 does not take, a folder that cannot be made or written to, a
    folder that holds something else than frames, and a full disk.
    """
    path = Path(path)
    kind = _kind(path)
    if not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale must be a whole number, 1 or more; got {scale!r}")
    if clip_shape is not None and kind == ".mp4":
        _check_even(clip_shape[1] * scale, clip_shape[2] * scale)
    folder = _nearest_folder(path)
    _check_can_create(folder, path)
    if kind and path.is_dir():
        raise ValueError(f"{path} is a folder (give the name of a file in it)")
    if not kind:
        _check_frame_folder(path)
    needed = _bytes_needed(kind, clip_shape, scale)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{path} needs about {needed / 2**20:.0f} MiB and {folder} has {free / 2**20:.0f} MiB free"
            " (make room or choose another place)"
        )


def _kind(path: Path) -> str:
    """The name's ending in lower case, empty for a folder of PNG frames."""
    kind = path.suffix.lower()
    if kind in WRITERS or path.is_dir():
        return kind if kind in WRITERS else ""
    raise ValueError(
        f"{path} ends in {path.suffix}, which cannot be written: allowed are .mp4, .gif, .webp, .apng,"
        " and a name without an ending for a folder of PNG frames"
    )


def _check_frames(frames: np.ndarray) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        found = f"{frames.dtype} {list(frames.shape)}" if hasattr(frames, "dtype") else type(frames).__name__
        raise ValueError(f"frames must be 8-bit [T, H, W, 3] (see lumiere.video.to_uint8); got {found}")
    if not frames.size:
        raise ValueError(f"there is nothing to write: frames are {list(frames.shape)}")
    if not frames.any():
        raise ValueError(
            "every pixel of every frame is black, which is what a broken clip looks like: it is not written"
            " (run in float32, or check the weights)"
        )


def _check_even(height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise ValueError(
            f"frames of {width}x{height} pixels have an odd side, and players need even ones in .mp4"
            f" (write {width + width % 2}x{height + height % 2} pixels, or scale by 2, or write .webp)"
        )


def _check_frame_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, and a name without an ending stands for a folder of PNG frames")
    others = [entry.name for entry in path.iterdir() if not _is_frame(entry)] if path.is_dir() else []
    if others:
        raise ValueError(
            f"the folder {path} holds other things than PNG frames ({others[0]}) and is not replaced"
            " (give the name of a new folder)"
        )


def _is_frame(entry: Path) -> bool:
    return entry.suffix == ".png" and entry.name.startswith("frame_")


def _nearest_folder(path: Path) -> Path:
    """The nearest folder above ``path`` that is there."""
    for folder in path.absolute().parents:
        try:
            if folder.is_dir():
                return folder
            exists = folder.exists()
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror}") from error
        if exists:
            raise ValueError(f"{path} cannot be written: {folder} is not a folder")
    raise ValueError(f"{path} cannot be written: no folder above it exists")


def _check_can_create(folder: Path, path: Path) -> None:
    """Try it: permissions alone do not tell about read-only disks, and an administrator passes every check of them."""
    trial = folder / _temporary_name("")
    try:
        path.exists()  # too long a name
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror} in {folder} (choose another place with --out)"
        ) from error


def _bytes_needed(kind: str, clip_shape: tuple[int, int, int] | None, scale: int) -> int:
    """A generous bound of what the file takes: noise makes the largest ones."""
    if clip_shape is None:
        return 2**20
    raw = 3 * clip_shape[0] * clip_shape[1] * clip_shape[2] * scale**2
    return 2**16 + (raw // 4 if kind == ".mp4" else raw)


def _temporary_name(suffix: str) -> str:
    return f".partial-{uuid4().hex[:12]}{suffix}"


@contextmanager
def under_temporary_name(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder; what is written under it takes the place of ``path`` if nothing fails."""
    temporary = path.with_name(_temporary_name(path.suffix))
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            aside = path.with_name(_temporary_name(""))
            path.rename(aside)
            temporary.rename(path)
            shutil.rmtree(aside)
        else:
            temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _enlarged(frame: np.ndarray, scale: int, smooth: bool) -> np.ndarray:
    if scale == 1:
        return np.ascontiguousarray(frame)
    if not smooth:
        return frame.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = frame.shape[:2]
    picture = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(picture.resize((width * scale, height * scale), Image.Resampling.BICUBIC))


def _write_mp4(
    pictures: Iterator[np.ndarray],
    path: Path,
    *,
    rate: Fraction,
    comment: str,
    lossless: bool = False,
    threads: int = 0,
) -> None:
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        if comment:
            container.metadata["comment"] = comment
        stream: Any = None
        for picture in pictures:
            if stream is None:
                height, width = picture.shape[:2]
                stream = h264_stream(container, rate, height=height, width=width, lossless=lossless)
                stream.codec_context.thread_count = threads
            container.mux(stream.encode(video_frame(picture, lossless=lossless)))
        container.mux(stream.encode(None))


def video_frame(picture: np.ndarray, *, lossless: bool = False) -> Any:
    """A picture [H, W, 3] as the encoder takes it."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    if lossless:
        return frame
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")


def h264_stream(container: Any, rate: Fraction, *, height: int, width: int, lossless: bool = False) -> Any:
    """A new H.264 stream of a container for pictures of that size; without loss it holds RGB, else yuv420p."""
    if lossless:
        stream = container.add_stream("libx264rgb", rate=rate, options={"qp": "0", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "rgb24"
        return stream
    stream = container.add_stream("libx264", rate=rate, options={"crf": str(MP4_CRF), "preset": "medium"})
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    # Said in the file, because players guess by size otherwise and shift the colours of small clips.
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
    context.color_range = 1  # 16..235
    return stream


def _write_gif(pictures: Iterator[np.ndarray], path: Path, *, rate: Fraction, comment: str) -> None:
    images = [Image.fromarray(picture) for picture in pictures]
    palette = _shared_palette(images)
    # Without dithering: its noise flickers from frame to frame and multiplies the size.
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    _save_animation(indexed, path, "GIF", durations_ms=_durations_ms(len(images), rate, unit_ms=10), comment=comment)


def _shared_palette(images: list[Image.Image]) -> Image.Image:
    """A palette of 256 colours for the whole clip, so that still parts keep their colour."""
    pixels = len(images) * images[0].width * images[0].height
    sample = images[:: -(-pixels // GIF_PALETTE_PIXELS)]
    stacked = np.concatenate([np.asarray(image) for image in sample])
    return Image.fromarray(stacked).quantize(256, method=Image.Quantize.MEDIANCUT)


def _write_webp(pictures: Iterator[np.ndarray], path: Path, *, rate: Fraction, comment: str) -> None:
    images = [Image.fromarray(picture) for picture in pictures]
    exif = Image.Exif()
    exif[EXIF_DESCRIPTION] = comment
    durations_ms = _durations_ms(len(images), rate, unit_ms=1)
    _save_animation(images, path, "WEBP", durations_ms=durations_ms, lossless=True, exif=exif if comment else b"")


def _write_apng(pictures: Iterator[np.ndarray], path: Path, *, rate: Fraction, comment: str) -> None:
    images = [Image.fromarray(picture) for picture in pictures]
    durations_ms = [float(1000 / rate)] * len(images)
    _save_animation(images, path, "PNG", durations_ms=durations_ms, pnginfo=_png_text({PNG_KEY: comment}))


def _save_animation(
    images: list[Image.Image], path: Path, format: str, *, durations_ms: list[float], **options: Any
) -> None:
    images[0].save(
        path, format=format, save_all=True, append_images=images[1:], duration=durations_ms, loop=0, **options
    )


def _durations_ms(count: int, rate: Fraction, *, unit_ms: int) -> list[float]:
    """How long each frame is shown where the format counts in whole units: rounded down so that no error adds up."""
    ends = [int(index * 1000 / rate / unit_ms) for index in range(count + 1)]
    return [unit_ms * max(end - start, 1) for start, end in pairwise(ends)]


def _write_frames(pictures: Iterator[np.ndarray], path: Path, *, rate: Fraction, comment: str) -> None:
    path.mkdir()
    for index, picture in enumerate(pictures):
        text = {PNG_KEY: comment, FRAME_RATE_KEY: str(float(rate))} if index == 0 else {}
        Image.fromarray(picture).save(path / FRAME_NAME.format(index), pnginfo=_png_text(text))


def _png_text(text: dict[str, str]) -> PngInfo:
    info = PngInfo()
    for key, value in text.items():
        if value:
            info.add_text(key, value)
    return info


WRITERS = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp, ".apng": _write_apng, "": _write_frames}
