"""Which of diffusers' schedulers can be trusted with a network, by name or by class, and their timesteps.

Light on purpose: the command line lists ``SAMPLERS`` without importing torch or diffusers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lumiere.config import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {"variance_type": "fixed_small"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "variance_type": None}),
    "dpm++sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "variance_type": None}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
"""Names of samplers for people. LCM and TCD are for networks distilled into consistency models: with another network
LCM loses three tenths of the data's spread however many steps it takes, and TCD needs hundreds. diffusers' DDIM rounds
its steps to whole timesteps and may end one short of clean; Euler takes the same steps exactly."""

ZERO_SNR_SCHEDULERS = tuple(dict.fromkeys(name for name, _ in SAMPLERS.values()))
"""Classes that can start where the schedule has no signal left (zero terminal SNR, Lin et al., arXiv 2305.08891)."""

OTHER_SCHEDULERS = (
    "PNDMScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
)
"""Classes that are right only where some signal is left at the noisiest timestep."""

_RESPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas")


def named_scheduler(name: str, like: Any) -> Any:
    """The sampler of that name from ``SAMPLERS``, with the noise schedule of the scheduler ``like``.

    Raises ValueError for an unknown name, or when that sampler cannot express the schedule.
    """
    if name not in SAMPLERS:
        raise ValueError(f"no sampler {name!r}{did_you_mean(name, SAMPLERS)}; known are: {', '.join(SAMPLERS)}")
    class_name, settings = SAMPLERS[name]
    scheduler_class = getattr(import_module("diffusers"), class_name)
    try:
        scheduler = scheduler_class.from_config({**like.config, **settings})
    except NotImplementedError as error:
        raise ValueError(f"sampler {name!r} cannot express the network's schedule: {error}") from None
    # Some classes put 2**-24 where the signal is zero.
    if (scheduler.alphas_cumprod.cpu() - like.alphas_cumprod.cpu()).abs().max() > 1e-6:
        raise ValueError(f"sampler {name!r} cannot express the schedule that the network was trained with")
    check_scheduler(scheduler)
    return scheduler


def has_zero_snr(scheduler: Any) -> bool:
    """Whether the noisiest timestep holds no signal at all, or the configuration asks for that."""
    # Some classes put 2**-24 in its place, so the configuration is asked too.
    return bool(scheduler.config.get("rescale_betas_zero_snr")) or float(scheduler.alphas_cumprod[-1]) == 0


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler that would run and be silently wrong, or crash midway.

    Raises ValueError that lists the accepted classes, or names the option that does not fit.
    """
    name, config = type(scheduler).__name__, scheduler.config
    zero_snr = has_zero_snr(scheduler)
    accepted = ZERO_SNR_SCHEDULERS if zero_snr else ZERO_SNR_SCHEDULERS + OTHER_SCHEDULERS
    if name not in accepted:
        reason = "the network was trained with zero terminal SNR" if zero_snr else "its clips would not be right"
        raise ValueError(f"{name} is not accepted: {reason}; accepted are: {', '.join(accepted)}")
    problem = _prediction_problem(name, config, zero_snr) or _option_problem(name, config, zero_snr)
    if problem:
        raise ValueError(f"{name}: {problem}")


def _prediction_problem(name: str, config: Any, zero_snr: bool) -> str | None:
    """What is wrong with the kind of prediction that a scheduler expects, or None."""
    kind = config.prediction_type
    if kind not in ("epsilon", "v_prediction", "sample"):
        return f"prediction_type is {kind!r}; allowed are epsilon, v_prediction, sample"
    if kind == "epsilon" and zero_snr:
        return "a predicted noise says nothing where the schedule has no signal; the network must predict v or sample"
    if kind == "sample" and name in _NO_CLEAN_PREDICTION:
        return "it does not take networks that predict the clean clip; choose another, such as DDIMScheduler"
    if str(config.get("variance_type")).startswith("learned"):
        return "learned variances are not used; load it with variance_type='fixed_small' (DDPM) or None"
    return None


_NO_CLEAN_PREDICTION = (
    "EulerAncestralDiscreteScheduler",
    "PNDMScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)


def _option_problem(name: str, config: Any, zero_snr: bool) -> str | None:
    """Which option of a scheduler's configuration makes its steps wrong, or None."""
    if name == "UniPCMultistepScheduler" and not config.lower_order_final:
        return "its last step divides by zero with lower_order_final=False; set it to True"
    if name == "DDIMScheduler" and config.timestep_spacing == "linspace":
        return "its steps miss its own timesteps with timestep_spacing='linspace'; use 'trailing'"
    if config.get("timestep_type", "discrete") != "discrete":
        return f"timestep_type is {config.timestep_type!r}; the network knows 'discrete' only"
    if not zero_snr:
        return None
    respaced = [option for option in _RESPACED if config.get(option)]
    if respaced:
        return f"{respaced[0]} puts its steps where a schedule of zero terminal SNR has none; set it to False"
    if config.get("algorithm_type", "dpmsolver++") not in ("dpmsolver++", "sde-dpmsolver++"):
        return f"algorithm_type {config.algorithm_type!r} divides by the signal; use 'dpmsolver++' or 'sde-dpmsolver++'"
    return None


def set_timesteps(scheduler: Any, num_steps: int, *, shift: float = 1.0) -> Tensor:
    """Give a checked scheduler its timesteps, in the order of sampling; they stay on the CPU.

    ``shift`` above 1 spends more of them where there is much noise: u -> shift*u / (1 + (shift - 1)*u) on the place u
    in the schedule, which is exp(mean) of a logit-normal training distribution. Raises ValueError when the scheduler
    takes no timesteps of ours, or a schedule of zero terminal SNR would not start at pure noise.
    """
    last = scheduler.config.num_train_timesteps - 1
    if not 1 <= num_steps <= last + 1:
        raise ValueError(f"{num_steps} sampling steps; between 1 and {last + 1} are possible")
    if shift == 1:
        scheduler.set_timesteps(num_steps)
    else:
        scheduler.set_timesteps(timesteps=_shifted(scheduler, num_steps, shift))
    first = int(scheduler.timesteps[0])
    # 'leading' timesteps start far too late where the steps hardly fit the schedule: 250 of 1000 start at 750.
    if first < (last if has_zero_snr(scheduler) else 0.9 * last * (1 - 1 / num_steps)):
        raise ValueError(
            f"sampling in {num_steps} steps would start at timestep {first} of {last}, where a clip is not yet pure"
            " noise (load the scheduler with timestep_spacing='trailing', or take another number of steps)"
        )
    return scheduler.timesteps


def takes_timesteps(scheduler: Any) -> bool:
    """Whether the scheduler can be given timesteps of ours, so that they can be shifted."""
    return "timesteps" in inspect.signature(scheduler.set_timesteps).parameters


def _shifted(scheduler: Any, num_steps: int, shift: float) -> list[int]:
    """``num_steps`` timesteps, trailing and then shifted."""
    if not takes_timesteps(scheduler):
        raise ValueError(
            f"{type(scheduler).__name__} takes no shifted timesteps (timestep_shift is {shift});"
            " use timestep_shift=1, or the sampler ddpm, euler or dpm++"
        )
    if not shift > 0:
        raise ValueError(f"timestep_shift is {shift}; it must be above 0 (1 is no shift)")
    count = scheduler.config.num_train_timesteps
    places = [1 - index / num_steps for index in range(num_steps)]
    timesteps = [round(count * shift * u / (1 + (shift - 1) * u)) - 1 for u in places]
    if len(set(timesteps)) < num_steps or timesteps[-1] < 0:
        raise ValueError(f"{num_steps} steps shifted by {shift} fall on the same timesteps; take fewer, or shift less")
    return timesteps
