"""Denoisers: they look at a noisy clip and say what is noise. Text, guidance and clipping wrap a network into one."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lumiere.conditioning.text import TextStates
from lumiere.diffusion.objective import Objective

Window = tuple[slice, slice, slice]
"""A part of a clip: frames, rows, columns."""
WHOLE: Window = (slice(None), slice(None), slice(None))


@dataclass(frozen=True)
class Beside:
    """What a network is told beside the noisy clips: clips [B, c, T, H, W] that are joined to them as more channels,
    and class labels [B] or [B, D] (a super-resolution network's level of noise on its low-resolution clip). To
    ``start`` [B, C, T, H, W], if there is one, the network's answer is added: it says how the clip differs."""

    clips: Tensor | None = None
    labels: Tensor | None = None
    start: Tensor | None = None


class Denoiser(Protocol):
    """(noisy clip [B, C, T, H, W], timestep [B]) -> prediction [B, C, T, H, W], of the kind its scheduler expects."""

    def __call__(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """What the network predicts for each clip."""


class Conditioned:
    """A Denoiser: a network that is told each clip's text, in diffusers' calling convention.

    The network runs in the text states' dtype and answers in fp32. Of twice the channels (prediction and learned
    variance, as DeepFloyd IF) the prediction is kept. ``where`` says which part of ``beside`` belongs to the clip.
    """

    def __init__(self, network: Any, text: TextStates, beside: Beside | None = None) -> None:
        self.network, self.text, self.beside = network, text, beside or Beside()
        self._ahead: dict[str, Any] = {}

    def __call__(self, noisy: Tensor, timestep: Tensor, where: Window = WHOLE) -> Tensor:
        """The prediction [B, C, T, H, W] for noisy clips of that shape."""
        states, mask = self.text.states, self.text.mask
        assert len(states) == len(noisy), (states.shape, noisy.shape)
        seen, added = noisy.to(states.dtype), dict(self.text.added())
        if self.beside.clips is not None:
            seen = torch.cat([seen, self._beside(where)], dim=1)
            ahead = self.look_ahead(where)
            added |= {} if ahead is None else {"ahead": ahead}
        told: dict[str, Any] = {} if self.beside.labels is None else {"class_labels": self.beside.labels}
        if added:
            told["added_cond_kwargs"] = added
        answer = self.network(seen, timestep, states, encoder_attention_mask=mask, return_dict=False, **told)[0]
        answer = answer[:, : noisy.shape[1]].float()
        return answer if self.beside.start is None else answer + self.beside.start[(..., *where)].float()

    def look_ahead(self, where: Window = WHOLE) -> Any | None:
        """What the network foresees of what lies beside that part of the clip, if it does: looked at once, as it is the
        same at every step."""
        if self.beside.clips is None or not hasattr(self.network, "look_ahead"):
            return None
        part = str(where)
        if part not in self._ahead:
            with torch.no_grad():
                self._ahead[part] = self.network.look_ahead(self._beside(where), self.text.states, self.text.mask)
        return self._ahead[part]

    def _beside(self, where: Window) -> Tensor:
        assert self.beside.clips is not None
        return self.beside.clips[(..., *where)].to(self.text.states)


class Guided:
    """A Denoiser with classifier-free guidance: away from the negative prompt, toward the prompt.

    ``scale`` 1 is no guidance and one pass. Outside the ``timesteps`` (first, last) nothing is guided, which saves a
    pass (Kynkäänniemi et al., arXiv 2404.07724). ``rescale`` 0..1 gives each clip back that part of its unguided
    contrast (Lin et al., arXiv 2305.08891). ``is_batched`` runs both passes as one of twice the batch: faster on a
    GPU that is not full, while a CPU only pays the memory.
    """

    def __init__(
        self,
        network: Any,
        prompt: TextStates,
        *,
        negative: TextStates,
        scale: float,
        timesteps: tuple[float, float] = (0, float("inf")),
        rescale: float = 0.0,
        is_batched: bool = False,
        beside: Beside | None = None,
    ) -> None:
        self.conditional = Conditioned(network, prompt, beside)
        self.unconditional = Conditioned(network, negative, beside)
        self.both = Conditioned(network, _joined(negative, prompt), _twice(beside)) if is_batched else None
        self.scale, self.timesteps, self.rescale = scale, timesteps, rescale

    def again(self, *, scale: float, timesteps: tuple[float, float]) -> Guided:
        """The same, guided otherwise; what the network has foreseen is not looked at again."""
        other = copy(self)
        other.scale, other.timesteps = scale, timesteps
        return other

    def __call__(self, noisy: Tensor, timestep: Tensor, where: Window = WHOLE) -> Tensor:
        """The guided prediction [B, C, T, H, W]."""
        first, last = self.timesteps
        is_inside = (timestep >= first) & (timestep <= last)
        if self.scale == 1 or not bool(is_inside.any()):
            return self.conditional(noisy, timestep, where)
        without, told = self._both_passes(noisy, timestep, where)
        guided = without + self.scale * (told - without)
        if self.rescale:
            guided = _with_contrast_of(told, guided, self.rescale)
        return torch.where(is_inside.view(-1, 1, 1, 1, 1), guided, told)

    def _both_passes(self, noisy: Tensor, timestep: Tensor, where: Window) -> tuple[Tensor, Tensor]:
        if self.both is None:
            return self.unconditional(noisy, timestep, where), self.conditional(noisy, timestep, where)
        without, told = self.both(noisy.repeat(2, 1, 1, 1, 1), timestep.repeat(2), where).chunk(2)
        return without, told


Correct = Callable[[Tensor, Tensor], Tensor]
"""(the clean clip that is meant, the timestep) -> the clean clip as it should be."""


class Corrected:
    """A Denoiser whose implied clean clip is what ``correct`` makes of it: its prediction is moved there."""

    def __init__(self, denoiser: Denoiser, objective: Objective, correct: Correct) -> None:
        self.denoiser, self.objective, self.correct = denoiser, objective, correct

    def __call__(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """The prediction [B, C, T, H, W], unchanged where its clean clip is right already."""
        prediction = self.denoiser(noisy, timestep)
        clean = self.objective.clean_from(prediction, noisy, timestep)
        return self.objective.moved(prediction, timestep, by=self.correct(clean, timestep) - clean)


class Clipped(Corrected):
    """A Denoiser whose implied clean clip stays within -limit..limit, as pixels do.

    Strong guidance overshoots. Of the schedulers only DDIM, DDPM and LCM have ``clip_sample``; this is it for all.
    """

    def __init__(self, denoiser: Denoiser, objective: Objective, *, limit: float = 1.0) -> None:
        super().__init__(denoiser, objective, lambda clean, _: clean.clamp(-limit, limit))


@dataclass(frozen=True)
class Known:
    """What of clips is given, in the network's space: ``values`` and ``mask`` are [B, C, T, H, W], the mask's channels
    1 or C. ``carry`` [B, C, T, H, W] -> the same makes clean clips show given things where they will have moved to;
    ``join`` moves what was made beside what is given to meet it. None: nothing is done."""

    values: Tensor
    mask: Tensor
    join: Callable[[Tensor], Tensor] | None = None
    carry: Callable[[Tensor], Tensor] | None = None


class Kept(Corrected):
    """A Denoiser whose implied clean clip holds the known values where their mask is above 0.

    It goes around guidance and windows, so that what is given is in the clip that the scheduler steps from. Once there
    is less noise than signal, and the clean clip more than a guess, given things are carried along, and the rest is
    joined to what is given.
    """

    def __init__(self, denoiser: Denoiser, objective: Objective, known: Known) -> None:
        super().__init__(denoiser, objective, self._whole)
        self.known = known

    def _whole(self, clean: Tensor, timestep: Tensor) -> Tensor:
        """The clean clip with what is known in its place."""
        known = self.known
        signal, sigma = self.objective.coefficients(timestep, clean)
        is_settled = bool((sigma < signal).all())
        if known.carry is not None and is_settled:
            clean = known.carry(clean)
        whole = torch.where(known.mask > 0, known.values, clean)
        return whole if known.join is None or not is_settled else known.join(whole)


def bounded(
    denoiser: Denoiser,
    scheduler: Any,
    *,
    correct: Correct | None = None,
    is_limited: bool = True,
    known: Known | None = None,
) -> Denoiser:
    """The same Denoiser, its clean clip as ``correct`` makes it, within the scheduler's limits (where ``is_limited``:
    latents have none).

    What is ``known`` of it comes last, so that nothing moves that.
    """
    objective = Objective.from_scheduler(scheduler)
    if correct is not None:
        denoiser = Corrected(denoiser, objective, correct)
    # A scheduler that thresholds (DeepFloyd IF's) does so itself, and would otherwise find nothing left to do.
    if is_limited and scheduler.config.get("clip_sample") and not scheduler.config.get("thresholding"):
        denoiser = Clipped(denoiser, objective, limit=scheduler.config.get("clip_sample_range", 1.0))
    return denoiser if known is None else Kept(denoiser, objective, known)


def _twice(beside: Beside | None) -> Beside | None:
    """The same for two passes in one batch."""
    if beside is None:
        return None
    parts = (beside.clips, beside.labels, beside.start)
    return Beside(*(None if part is None else torch.cat([part, part]) for part in parts))


def _joined(first: TextStates, second: TextStates) -> TextStates:
    """Two batches of states as one; the shorter is padded with states that the mask hides."""
    length = max(first.states.shape[1], second.states.shape[1])
    pooled, sizes = (
        None if ours is None or theirs is None else torch.cat([ours, theirs])
        for ours, theirs in ((first.pooled, second.pooled), (first.sizes, second.sizes))
    )
    states = torch.cat([_padded(text.states, length) for text in (first, second)])
    if first.mask is None and second.mask is None and first.states.shape == second.states.shape:
        return TextStates(states, pooled=pooled, sizes=sizes)
    masks = [torch.ones_like(t.states[..., 0], dtype=torch.bool) if t.mask is None else t.mask for t in (first, second)]
    return TextStates(states, torch.cat([_padded(mask, length) for mask in masks]), pooled, sizes)


def _padded(values: Tensor, length: int) -> Tensor:
    """[B, L, ...] -> [B, length, ...] with zeros at the end."""
    missing = values.new_zeros(len(values), length - values.shape[1], *values.shape[2:])
    return torch.cat([values, missing], dim=1)


def _with_contrast_of(told: Tensor, guided: Tensor, share: float) -> Tensor:
    """``share`` of the way from the guided prediction to one with each clip's unguided standard deviation."""
    axes = tuple(range(1, told.ndim))
    contrast = told.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (1 + share * (contrast - 1))
