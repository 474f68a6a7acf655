"""Videos of any length in parts: every frame comes once, in order, and parts that agree leave no seam."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lumiere.applications.upscale import faded, frames_at_once, upscale_frames


def video(frames: int, height: int = 6, width: int = 10) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8))


def doubled(clip: Tensor, first: int) -> Tensor:
    return clip.repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 6, 7, 20])
@pytest.mark.parametrize(("chunk", "overlap"), [(4, 0), (4, 2), (6, 1), (50, 10)])
def test_every_frame_comes_once_and_in_order(frames: int, chunk: int, overlap: int) -> None:
    given = video(frames)
    made = list(upscale_frames(given, doubled, multiple=4, chunk=chunk, overlap=overlap))
    assert len(made) == frames
    for before, after in zip(given, made, strict=True):
        np.testing.assert_array_equal(after, before.repeat(2, 0).repeat(2, 1))


def test_parts_know_their_place_and_are_of_allowed_size() -> None:
    seen = []

    def noted(clip: Tensor, first: int) -> Tensor:
        seen.append((first, tuple(clip.shape)))
        return clip

    list(upscale_frames(video(9), noted, multiple=4, chunk=4, overlap=1))
    assert seen == [(0, (1, 3, 4, 8, 12)), (3, (1, 3, 4, 8, 12)), (6, (1, 3, 3, 8, 12))]


def test_no_more_than_a_part_and_its_successor_is_read_ahead() -> None:
    read = 0

    def frames():
        nonlocal read
        for frame in video(40):
            read += 1
            yield frame

    made = upscale_frames(frames(), doubled, multiple=2, chunk=8, overlap=2)
    next(made)
    assert read <= 8 + 6


def test_parts_that_disagree_are_faded_into_each_other() -> None:
    def by_place(clip: Tensor, first: int) -> Tensor:
        return torch.full_like(clip, -1.0 if first == 0 else 1.0)

    made = [frame[0, 0, 0] for frame in upscale_frames(video(7), by_place, multiple=2, chunk=5, overlap=3)]
    assert made[:2] == [0, 0] and made[-2:] == [255, 255]
    steps = np.diff(np.array(made[1:6], dtype=float))
    assert np.allclose(steps, 255 / 4, atol=1)
    before, after = torch.zeros(1, 1, 3, 1, 1), torch.ones(1, 1, 3, 1, 1)
    assert torch.allclose(faded(before, after).flatten(), torch.tensor([0.25, 0.5, 0.75]))


def test_an_overlap_of_the_whole_part_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 3"):
        list(upscale_frames(video(8), doubled, multiple=2, chunk=4, overlap=4))


def test_as_many_frames_are_taken_at_once_as_fit() -> None:
    assert frames_at_once(lambda n: 10 * n, free=75, least=2, most=80) == 7
    assert frames_at_once(lambda n: 10 * n, free=10_000, least=2, most=80) == 80
    with pytest.raises(ValueError, match=r"parts of 2 frames .* about 4.0 GiB .* 3.0 GiB can be used"):
        frames_at_once(lambda n: n * 2**31, free=3 * 2**30, least=2, most=80)
