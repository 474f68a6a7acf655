"""Large clips that say what the small ones say: made small again, they are the clips that they were made from."""

from __future__ import annotations

from torch import Tensor

from lumiere.video import resize_clip


def check_back_projection(share: float) -> None:
    """Raise ValueError unless this is a share."""
    if not 0 <= share <= 1:
        raise ValueError(f"back_projection is {share}; it lies from 0 (leave clips as they are) to 1 (wholly)")


def back_projected(large: Tensor, small: Tensor, *, share: float = 1.0) -> Tensor:
    """The clips [B, C, T, H, W] moved until, made small, they are nearly the ``small`` ones [B, C, T, h, w].

    By what they differ there is made large and added, a ``share`` of it. What a network invents within a small clip's
    pixel stays; what it gets wrong over several of them, such as clouds in a plain sky, or a tint, goes.

    Source: iterative back-projection (Irani and Peleg, 1991), one iteration; in every step of sampling, as Wang et al.
    do with the exact inverse (DDNM, arXiv 2212.00490).
    """
    missing = small.to(large) - resize_clip(large, (small.shape[-2], small.shape[-1]))
    return large + share * resize_clip(missing, (large.shape[-2], large.shape[-1]))
