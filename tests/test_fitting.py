"""Pictures of any shape in the base's square, and back."""

from __future__ import annotations

import pytest
import torch

from lumiere.applications.fitting import Fit


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (20, 40), (90, 30), (7, 5), (1, 300)])
def test_the_shape_stays_and_the_picture_lies_in_the_middle(height: int, width: int) -> None:
    fit = Fit(height, width, (32, 32))
    assert max(fit.size) == 32
    assert fit.size[0] / fit.size[1] == pytest.approx(height / width, rel=0.2) or min(fit.size) == 1
    clip = torch.rand(2, 3, 4, height, width) + 0.1
    framed = fit.into_frame(clip)
    assert framed.shape == (2, 3, 4, 32, 32)
    mask = fit.covered()
    assert torch.equal((framed != 0).float()[:1, :1, :1], mask)
    top, left = fit.corner
    assert abs(2 * top + fit.size[0] - 32) <= 1 and abs(2 * left + fit.size[1] - 32) <= 1
    back = fit.out_of_frame(framed)
    assert tuple(back.shape[-2:]) == fit.size and bool((back != 0).all())


def test_a_clip_that_was_made_larger_is_cut_at_the_same_place() -> None:
    fit = Fit(20, 40, (32, 32))
    framed = fit.into_frame(torch.rand(1, 3, 2, 20, 40))
    large = framed.repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert torch.equal(
        fit.out_of_frame(large), fit.out_of_frame(framed).repeat_interleave(4, -1).repeat_interleave(4, -2)
    )


def test_a_picture_of_the_frame_s_size_is_the_frame() -> None:
    clip = torch.rand(1, 3, 2, 32, 32)
    fit = Fit(32, 32, (32, 32))
    assert torch.equal(fit.out_of_frame(fit.into_frame(clip)), clip) and bool(fit.covered().all())
    with pytest.raises(ValueError, match="this fit is for"):
        fit.into_frame(clip[..., :16])
