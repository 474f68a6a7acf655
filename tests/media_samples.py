"""Small videos made on the spot, with known pictures and times."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

DECODER_FOLDER = Path(__file__).parents[2] / "shared" / "data" / "decoder"
CLIP_FOLDER = DECODER_FOLDER.parent / "clips"


def numbered_frames(count: int, *, height: int = 16, width: int = 24) -> np.ndarray:
    """Frames [T, H, W, 3] whose red says their number, with a white upper left and a blue lower right corner."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = (np.arange(count, dtype=np.uint8) * 5)[:, None, None]
    frames[:, : height // 2, : width // 4] = 255
    frames[:, height // 2 :, width // 2 :, 2] = 200
    return frames


def write_video(
    path: Path,
    frames: np.ndarray,
    *,
    times_ms: list[int] | None = None,
    rate: int = 16,
    codec: str = "libx264rgb",
    pix_fmt: str = "rgb24",
    options: dict[str, str] | None = None,
    display_matrix: tuple[int, int, int, int] | None = None,
    **stream_settings: Any,
) -> Path:
    """Write frames at given times (16 a second by default), without loss by default; returns the path.

    ``rate`` says how long the last frame is shown.
    """
    times_ms = times_ms or [round(index * 62.5) for index in range(len(frames))]
    options = options if options is not None else {"qp": "0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in stream_settings.items():
            setattr(stream.codec_context, name, value)
        if display_matrix is not None:
            a, b, c, d = (value * 2**16 for value in display_matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 2**30])
        for pixels, time_ms in zip(frames, times_ms, strict=True):
            source = "rgba" if frames.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=source)
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers_of(frames: np.ndarray) -> np.ndarray:
    """The numbers [T] that ``numbered_frames`` wrote into frames, read at the lower left corner."""
    return np.round(frames[:, -1, 0, 0] / 5).astype(int)


def psnr_db(left: np.ndarray, right: np.ndarray) -> float:
    """How alike two 8-bit arrays are."""
    error = np.mean((left.astype(float) - right.astype(float)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
