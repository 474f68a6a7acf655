"""The only reverse loop: from noise, or from a noised clip, to a clip, telling its progress step by step."""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lumiere.diffusion.denoiser import Denoiser
from lumiere.diffusion.objective import Objective
from lumiere.diffusion.schedulers import check_scheduler, set_timesteps


@dataclass
class Step:
    """One step that was taken: ``clip`` [B, C, T, H, W] is as noisy as the scheduler keeps it; after the last, clean.

    Another clip put in its place is where the next step starts.
    """

    index: int
    num_steps: int
    timestep: Tensor
    clip: Tensor
    noisy: Tensor
    prediction: Tensor
    objective: Objective

    def clean(self) -> Tensor:
        """The clean clip [B, C, T, H, W] that the network had in mind at this step."""
        return self.objective.clean_from(self.prediction, self.noisy, self.timestep.expand(len(self.noisy)))


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise of ``shape`` [B, ...], fp32 on the CPU, each clip's from its own generator.

    A clip's noise is the same alone, in any batch and on any device. Raises ValueError when there is not one
    generator per clip, or one of them is not the CPU's.
    """
    if len(generators) != shape[0]:
        raise ValueError(f"{shape[0]} clips need {shape[0]} generators, one each; got {len(generators)}")
    for generator in generators:
        if generator.device.type != "cpu":
            raise ValueError(
                f"a generator lives on {generator.device}; noise is drawn on the CPU, to be the same on every device"
                " (use torch.Generator().manual_seed(seed))"
            )
    return torch.cat([torch.randn((1, *shape[1:]), generator=generator) for generator in generators])


def draw_frame_noise(shape: Sequence[int], seeds: Sequence[int], *, salt: str = "", first_frame: int = 0) -> Tensor:
    """Standard normal noise of ``shape`` [B, C, T, H, W], fp32 on the CPU, each frame's from its own number.

    A frame's noise depends on its clip's seed, on ``salt`` and on its place in the clip, ``first_frame`` being that
    of the first one here: so a long clip can be made in parts that agree.
    """
    _, channels, frames, height, width = shape
    return torch.stack(
        [
            torch.stack(
                [
                    torch.randn(channels, height, width, generator=mixed_generator(seed, salt, first_frame + frame))
                    for frame in range(frames)
                ],
                dim=1,
            )
            for seed in seeds
        ]
    )


def mixed_generator(*parts: int | str) -> torch.Generator:
    """A generator whose seed depends on all the parts, and hardly on two lists of parts alike."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def sample(
    denoiser: Denoiser,
    scheduler: Any,
    *,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    num_steps: int,
    timestep_shift: float = 1.0,
    clip: Tensor | None = None,
    strength: float = 1.0,
    restarts: Sequence[float] = (),
    restarter: Denoiser | None = None,
    polish: Sequence[float] = (),
    polisher: Denoiser | None = None,
) -> Iterator[Step]:
    """The steps from ``noise`` [B, C, T, H, W] (standard normal) to clips; the last one holds them.

    The clips stay in fp32 on the noise's device; ``generators``, one per clip, give the noise of restarts and of
    samplers that add some at every step. With a ``clip`` [B, C, T, H, W] the last ``strength`` (0..1] of the steps are
    taken from that clip, noised (SDEdit, Meng et al., arXiv 2108.01073). ``restarts`` are strengths, too: after the
    last step the clip is noised anew as far as that and made again by the ``restarter`` (None: the denoiser), so that
    parts that do not belong together get another chance (Restart, Xu et al., arXiv 2306.14878). ``polish`` are places
    in the schedule, 0 (clean) to 1 (noise): in the end the clip, without noise, is shown to the ``polisher`` (None: the
    denoiser) as if it were as noisy as that, and what that takes for the clean clip is gone on with. Grain and flicker
    that sampling left are noise to a network that doubts what it is told (``training.noise.noise_shares``). Raises
    ValueError before the first step for a scheduler that cannot be trusted, and at the step where values stop being
    numbers.
    """
    check_scheduler(scheduler)

    def set_anew() -> Tensor:
        return set_timesteps(scheduler, num_steps, shift=timestep_shift)

    timesteps = set_anew()
    if clip is None and strength != 1:
        raise ValueError(f"strength is {strength} without a clip to start from (give the clip, or leave strength out)")
    begin = _first_step(num_steps, strength) * scheduler.order
    # From full strength on nothing of the clip is left, also where the schedule ends short of pure noise.
    if clip is None or strength == 1:
        state = noise.float() * scheduler.init_noise_sigma
    else:
        state = scheduler.add_noise(clip.float(), noise.float(), timesteps[begin : begin + 1].expand(len(noise)))
    check_restarts(restarts)
    check_polish(polish)
    places = [round(place * scheduler.config.num_train_timesteps) - 1 for place in polish]
    looks = [(polisher or denoiser, torch.tensor(place)) for place in places]
    runs = [(denoiser, begin)]
    runs += [(restarter or denoiser, _first_step(num_steps, again) * scheduler.order) for again in restarts]
    return _steps(scheduler, state, runs=runs, looks=looks, generators=list(generators), set_anew=set_anew)


def check_restarts(restarts: Sequence[float]) -> None:
    """Raise ValueError for a strength to make clips again with that leaves all of them or nothing."""
    wrong = [strength for strength in restarts if not 0 < strength < 1]
    if wrong:
        raise ValueError(
            f"restarts holds {wrong[0]}; it is a list of strengths, above 0 and below 1, which would begin anew"
        )


def num_restart_steps(num_steps: int, restarts: Sequence[float]) -> int:
    """How many steps restarts add to so many."""
    return sum(num_steps_taken(num_steps, strength) for strength in restarts)


def check_polish(polish: Sequence[float]) -> None:
    """Raise ValueError for a place to polish at that is not inside the noise schedule."""
    wrong = [place for place in polish if not 0.01 <= place <= 0.9]
    if wrong:
        raise ValueError(
            f"polish holds {wrong[0]}; it is a list of places in the noise schedule, 0.01 (hardly noised) to 0.9"
        )


def num_steps_taken(num_steps: int, strength: float) -> int:
    """How many of the steps are left, from a clip that is not as noisy as the first ones.

    Raises ValueError for a strength outside 0..1, or of 0, which would be no step.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}; it lies above 0 and up to 1, which starts from noise alone")
    return max(1, round(num_steps * strength))


def _first_step(num_steps: int, strength: float) -> int:
    return num_steps - num_steps_taken(num_steps, strength)


@torch.no_grad()
def _steps(
    scheduler: Any,
    state: Tensor,
    *,
    runs: Sequence[tuple[Denoiser, int]],
    looks: Sequence[tuple[Denoiser, Tensor]],
    generators: list[torch.Generator],
    set_anew: Callable[[], Tensor],
) -> Iterator[Step]:
    """Runs through the timesteps from one of them on, each but the first from the clip so far, noised; then looks."""
    objective = Objective.from_scheduler(scheduler)
    extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    num_steps = sum(len(scheduler.timesteps[begin:]) for _, begin in runs) + len(looks)
    indices = itertools.count()

    def told(timestep: Tensor) -> Tensor:
        return timestep.expand(len(state)).to(state.device)

    def taken(timestep: Tensor, noisy: Tensor, prediction: Tensor) -> Step:
        step = Step(next(indices), num_steps, timestep, state, noisy, prediction, objective)
        _refuse_broken(state, step.index, num_steps)
        return step

    for place, (denoiser, begin) in enumerate(runs):
        if place:
            start = set_anew()[begin : begin + 1].expand(len(state))
            state = scheduler.add_noise(state, draw_noise(state.shape, generators).to(state.device), start)
        for timestep in scheduler.timesteps[begin:]:
            noisy = scheduler.scale_model_input(state, timestep)
            prediction = denoiser(noisy, told(timestep)).float()
            state = scheduler.step(prediction, timestep, state, **extra, return_dict=False)[0]
            step = taken(timestep, noisy, prediction)
            yield step
            state = step.clip
    for looker, timestep in looks:
        noisy = objective.coefficients(told(timestep), state)[0] * state
        prediction = looker(noisy, told(timestep)).float()
        state = objective.clean_from(prediction, noisy, told(timestep))
        step = taken(timestep, noisy, prediction)
        yield step
        state = step.clip


def _refuse_broken(clip: Tensor, index: int, num_steps: int) -> None:
    """Stop where values are no numbers: such a clip would be written black."""
    if bool(torch.isfinite(clip).all()):
        return
    bad = [place for place, one in enumerate(clip) if not bool(torch.isfinite(one).all())]
    raise ValueError(
        f"after step {index + 1} of {num_steps} clip {', '.join(map(str, bad))} of {len(clip)} holds values that are"
        " NaN or infinite (run the network in float32, lower guidance_scale, or check the weights)"
    )
