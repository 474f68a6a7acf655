"""The reverse loop, step by step against diffusers' own, and against a denoiser that is known exactly."""

import math
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from lumiere.diffusion.objective import Objective
from lumiere.diffusion.sample import draw_noise, sample
from lumiere.diffusion.schedulers import (
    OTHER_SCHEDULERS,
    SAMPLERS,
    ZERO_SNR_SCHEDULERS,
    check_scheduler,
    named_scheduler,
    set_timesteps,
    takes_timesteps,
)

SHAPE = (2, 3, 4, 6, 6)
EMBEDDED = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def embedded(**options: Any) -> DDIMScheduler:
    return DDIMScheduler(**{**EMBEDDED, "clip_sample": False, **options})


def stable_diffusion(**options: Any) -> DDIMScheduler:
    return DDIMScheduler(**{**STABLE_DIFFUSION, "clip_sample": False, **options})


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def network(noisy: Tensor, timestep: Tensor) -> Tensor:
    """Some function of clip and time, as a network is."""
    return torch.tanh(2 * noisy + torch.sin(timestep.view(-1, 1, 1, 1, 1) / 100)) - 0.3 * noisy.flip(2)


def last_clip(denoiser: Callable[[Tensor, Tensor], Tensor], scheduler: Any, **options: Any) -> Tensor:
    *_, step = sample(denoiser, scheduler, **options)
    return step.clip


def diffusers_loop(scheduler: Any, noise: Tensor, gens: list[torch.Generator], steps: int) -> list[Tensor]:
    """The loop as diffusers' pipelines write it: the state after every step."""
    scheduler.set_timesteps(steps)
    state, states = noise * scheduler.init_noise_sigma, []
    takes_generator = "generator" in scheduler.step.__func__.__code__.co_varnames
    for timestep in scheduler.timesteps:
        prediction = network(scheduler.scale_model_input(state, timestep), timestep.expand(len(state)))
        extra = {"generator": gens} if takes_generator else {}
        state = scheduler.step(prediction, timestep, state, **extra).prev_sample
        states.append(state)
    return states


def clones(scheduler_class: str, config: dict[str, Any]) -> tuple[Any, Any]:
    made = getattr(diffusers, scheduler_class)
    return made.from_config(config), made.from_config(config)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_every_step_is_diffusers_own(name: str, kind: str) -> None:
    class_name, settings = SAMPLERS[name]
    if (name, kind) == ("euler-ancestral", "sample"):
        pytest.skip("does not take clean predictions")
    ours, theirs = clones(class_name, {**embedded(prediction_type=kind).config, **settings})
    noise = draw_noise(SHAPE, generators(0, 1))
    expected = diffusers_loop(theirs, noise, generators(2, 3), 8)
    steps = sample(network, ours, noise=noise, generators=generators(2, 3), num_steps=8)
    for step, state in zip(steps, expected, strict=True):
        assert torch.allclose(step.clip, state, atol=1e-6, rtol=1e-6), step.index


@pytest.mark.parametrize("class_name", ZERO_SNR_SCHEDULERS + OTHER_SCHEDULERS)
def test_every_step_is_diffusers_own_for_stock_networks(class_name: str) -> None:
    ours, theirs = clones(class_name, dict(stable_diffusion().config))
    noise = draw_noise(SHAPE, generators(0, 1))
    expected = diffusers_loop(theirs, noise, generators(2, 3), 9)
    steps = sample(network, ours, noise=noise, generators=generators(2, 3), num_steps=9)
    for step, state in zip(steps, expected, strict=True):
        assert torch.allclose(step.clip, state, atol=1e-6, rtol=1e-6), step.index


MEAN, SPREAD = 0.3, 0.25


class GaussianWorld:
    """The exact denoiser of data whose every pixel is Gaussian with this mean and spread, so that the end is known.

    ``is_consistency``: the exact consistency function instead, which is what LCM's networks are distilled to.
    """

    def __init__(self, scheduler: Any, *, is_consistency: bool = False) -> None:
        self.objective, self.is_consistency = Objective.from_scheduler(scheduler), is_consistency

    def __call__(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        signal, sigma = self.objective.coefficients(timestep, noisy)
        variance = (signal * SPREAD) ** 2 + sigma**2
        gain = SPREAD / variance.sqrt() if self.is_consistency else signal * SPREAD**2 / variance
        clean = MEAN + gain * (noisy - signal * MEAN)
        match self.objective.prediction_type:
            case "epsilon":
                return (noisy - signal * clean) / sigma
            case "v_prediction":
                return (signal * noisy - clean) / sigma
        return clean


def made_of_noise(scheduler: Any, world: GaussianWorld, steps: int) -> tuple[float, float]:
    """How far mean and spread of sampled data are from the truth: the difference, and the ratio."""
    gens = generators(0, 1)
    noise = draw_noise((2, 3, 8, 16, 16), gens)
    noise = (noise - noise.mean()) / noise.std()
    clip = last_clip(world, scheduler, noise=noise, generators=gens, num_steps=steps)
    return abs(float(clip.mean()) - MEAN), float(clip.std()) / SPREAD


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("lcm", "tcd")])
def test_more_steps_end_at_the_true_data(name: str, kind: str) -> None:
    if (name, kind) == ("euler-ancestral", "sample"):
        pytest.skip("does not take clean predictions")
    scheduler = embedded(prediction_type=kind)
    few, some, many = (
        made_of_noise(named_scheduler(name, scheduler), GaussianWorld(scheduler), steps) for steps in (8, 40, 200)
    )
    assert many[0] < 0.01
    assert abs(many[1] - 1) < 0.05
    assert abs(many[1] - 1) < abs(some[1] - 1) + 0.01 < abs(few[1] - 1)


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_second_order_samplers_are_right_with_far_fewer_steps(name: str) -> None:
    scheduler = embedded()
    fast = made_of_noise(named_scheduler(name, scheduler), GaussianWorld(scheduler), 25)
    plain = made_of_noise(named_scheduler("ddim", scheduler), GaussianWorld(scheduler), 25)
    assert abs(fast[1] - 1) < 0.03
    assert abs(plain[1] - 1) > 3 * abs(fast[1] - 1)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("class_name", OTHER_SCHEDULERS)
def test_the_others_end_at_the_true_data_of_stock_networks(class_name: str, kind: str) -> None:
    # With a little signal left at the start, no sampler can be exact: the bias of pure noise is that of DDIM.
    scheduler = stable_diffusion(prediction_type=kind)
    other = getattr(diffusers, class_name).from_config(scheduler.config)
    mean, spread = made_of_noise(other, GaussianWorld(scheduler), 90)
    assert mean < 0.02
    assert abs(spread - 1) < 0.1


def test_a_consistency_network_is_right_at_any_number_of_steps_with_lcm() -> None:
    scheduler = embedded()
    lcm = named_scheduler("lcm", scheduler)
    for steps in (1, 2, 4, 25):
        mean, spread = made_of_noise(lcm, GaussianWorld(scheduler, is_consistency=True), steps)
        assert mean < 0.01
        assert abs(spread - 1) < 0.02


def test_lcm_loses_spread_with_a_network_that_is_no_consistency_model() -> None:
    # What the name list says of it: with ever smaller steps the spread goes to 1/sqrt(2) of the truth.
    scheduler = embedded()
    lcm = named_scheduler("lcm", scheduler)
    lcm.register_to_config(original_inference_steps=1000)
    _, spread = made_of_noise(lcm, GaussianWorld(scheduler), 500)
    assert abs(spread - math.sqrt(0.5)) < 0.02


def test_tcd_nears_the_true_data_slowly() -> None:
    scheduler = embedded()
    tcd = named_scheduler("tcd", scheduler)
    tcd.register_to_config(original_inference_steps=1000)
    few, many = (made_of_noise(tcd, GaussianWorld(scheduler), steps) for steps in (20, 250))
    assert max(few[0], many[0]) < 0.02
    assert abs(many[1] - 1) < 0.12 < abs(few[1] - 1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_clip_s_noise_does_not_depend_on_its_batch(name: str) -> None:
    gens = generators(5, 6, 7)
    together = draw_noise((3, *SHAPE[1:]), gens)
    batch = last_clip(network, named_scheduler(name, embedded()), noise=together, generators=gens, num_steps=5)
    for index, seed in enumerate((5, 6, 7)):
        gens = generators(seed)
        noise = draw_noise((1, *SHAPE[1:]), gens)
        assert torch.equal(noise[0], together[index])
        alone = last_clip(network, named_scheduler(name, embedded()), noise=noise, generators=gens, num_steps=5)
        assert torch.allclose(alone[0], batch[index], atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm", "euler-ancestral", "dpm++sde", "lcm", "tcd"])
def test_per_step_noise_is_each_clip_s_own_bit_for_bit(name: str) -> None:
    def blind(noisy: Tensor, timestep: Tensor) -> Tensor:
        return torch.zeros_like(noisy)

    zero = torch.zeros(2, *SHAPE[1:])
    scheduler = named_scheduler(name, embedded())
    batch = [step.clip for step in sample(blind, scheduler, noise=zero, generators=generators(3, 4), num_steps=4)]
    alone = [step.clip for step in sample(blind, scheduler, noise=zero[:1], generators=generators(4), num_steps=4)]
    for many, one in zip(batch, alone, strict=True):
        assert torch.equal(many[1:], one)
        assert not torch.equal(many[:1], one) or not one.any()
    assert any(bool(one.any()) for one in alone)


def test_noise_needs_one_cpu_generator_for_each_clip() -> None:
    with pytest.raises(ValueError, match="2 clips need 2 generators"):
        draw_noise(SHAPE, generators(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a generator of another device needs that device")
def test_noise_of_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="drawn on the CPU"):
        draw_noise((1, 3), [torch.Generator(device="cuda")])


def test_ddim_is_the_textbook_formula() -> None:
    scheduler = embedded()
    noise = draw_noise(SHAPE, generators(0, 1))
    signals = scheduler.alphas_cumprod.double()
    state = noise.double()
    for place in range(10, 0, -1):
        now = signals[place * 100 - 1]
        after = signals[(place - 1) * 100 - 1] if place > 1 else torch.tensor(1.0)
        v = network(state.float(), torch.full((2,), place * 100 - 1)).double()
        clean, eps = now.sqrt() * state - (1 - now).sqrt() * v, now.sqrt() * v + (1 - now).sqrt() * state
        state = after.sqrt() * clean + (1 - after).sqrt() * eps
    ours = last_clip(network, scheduler, noise=noise, generators=generators(0, 1), num_steps=10)
    assert torch.allclose(ours, state.float(), atol=1e-4)


def test_the_clean_clip_of_a_step_is_what_the_network_had_in_mind() -> None:
    scheduler = embedded()
    wanted = draw_noise(SHAPE, generators(3, 4))
    objective = Objective.from_scheduler(scheduler)

    def certain(noisy: Tensor, timestep: Tensor) -> Tensor:
        signal, sigma = objective.coefficients(timestep, noisy)
        return (signal * noisy - wanted) / sigma

    for name in SAMPLERS:
        gens = generators(0, 1)
        options = {"noise": draw_noise(SHAPE, gens), "generators": gens, "num_steps": 8}
        for step in sample(certain, named_scheduler(name, scheduler), **options):
            assert torch.allclose(step.clean(), wanted, atol=2e-3), (name, step.index)
        # TCD ends at timestep 0, which is nearly clean.
        assert torch.allclose(step.clip, wanted, atol=0.05 if name == "tcd" else 1e-3), name


def test_steps_tell_where_they_are_and_go_on_with_the_clip_put_in() -> None:
    options = {"generators": generators(0, 1), "num_steps": 4}
    noise = draw_noise(SHAPE, generators(0, 1))
    told = []
    for step in sample(network, embedded(), noise=noise, **options):
        told.append((step.index, step.num_steps, int(step.timestep)))
        if step.index == 1:
            step.clip = torch.zeros_like(step.clip)
            replaced = step.clip
        if step.index == 2:
            assert torch.equal(step.noisy, replaced)
    assert told == [(0, 4, 999), (1, 4, 749), (2, 4, 499), (3, 4, 249)]


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_polishing_looks_at_the_finished_clip_without_noise_as_if_it_had_some(kind: str) -> None:
    scheduler = embedded(prediction_type=kind) if kind == "v_prediction" else stable_diffusion(prediction_type=kind)
    options = {"generators": generators(0, 1), "num_steps": 4, "noise": draw_noise(SHAPE, generators(0, 1))}
    objective, seen = Objective.from_scheduler(scheduler), []

    def halving(noisy: Tensor, timestep: Tensor) -> Tensor:
        """Takes half of what lies below the noise for the clean clip."""
        signal, sigma = objective.coefficients(timestep, noisy)
        clean = noisy / signal / 2
        seen.append((int(timestep[0]), noisy))
        noise = (noisy - signal * clean) / sigma
        return noise if kind == "epsilon" else signal * noise - sigma * clean

    plain = list(sample(network, scheduler, **options))
    steps = list(sample(network, scheduler, **options, polish=(0.3, 0.2), polisher=halving))
    assert [(step.index, step.num_steps) for step in steps] == [(index, 6) for index in range(6)]
    assert torch.equal(steps[3].clip, plain[3].clip)
    assert [timestep for timestep, _ in seen] == [299, 199] == [int(step.timestep) for step in steps[4:]]
    assert torch.allclose(
        seen[0][1], objective.coefficients(torch.tensor([299, 299]), plain[3].clip)[0] * plain[3].clip
    )
    assert torch.allclose(steps[-1].clip, plain[-1].clip / 4, atol=1e-4)
    assert torch.equal(steps[-1].clip, steps[-1].clean())


@pytest.mark.parametrize("place", [0, 0.001, 0.95, 1, float("nan")])
def test_a_place_to_polish_at_outside_the_schedule_is_refused(place: float) -> None:
    with pytest.raises(ValueError, match="polish holds"):
        sample(network, embedded(), noise=torch.zeros(SHAPE), generators=[], num_steps=5, polish=[0.3, place])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_restart_is_sampling_from_the_finished_clip_noised_anew(name: str) -> None:
    def restarter(noisy: Tensor, timestep: Tensor) -> Tensor:
        return 0.9 * network(noisy, timestep)

    gens, scheduler = generators(0, 1), named_scheduler(name, embedded())
    options = {"generators": gens, "num_steps": 4, "timestep_shift": 3.0 if takes_timesteps(scheduler) else 1.0}
    noise = draw_noise(SHAPE, gens)
    first = list(sample(network, scheduler, noise=noise, **options))
    anew = {"clip": first[-1].clip, "strength": 0.5, "noise": draw_noise(SHAPE, gens)}
    again = list(sample(restarter, scheduler, **options, **anew))
    gens = generators(0, 1)
    options |= {"generators": gens, "noise": draw_noise(SHAPE, gens)}
    steps = list(sample(network, scheduler, **options, restarts=[0.5], restarter=restarter))
    assert len(steps) == len(first) + len(again) == steps[-1].num_steps
    assert [step.index for step in steps] == list(range(len(steps)))
    assert all(torch.equal(step.clip, alone.clip) for step, alone in zip(steps, first + again, strict=True))


@pytest.mark.parametrize("strength", [0, 1, -0.1, float("nan")])
def test_a_strength_of_a_restart_that_leaves_nothing_or_all_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="restarts holds"):
        sample(network, embedded(), noise=torch.zeros(SHAPE), generators=[], num_steps=5, restarts=[0.5, strength])


@pytest.mark.parametrize("name", SAMPLERS)
def test_from_a_noised_clip_only_the_last_steps_are_taken(name: str) -> None:
    gens = generators(0, 1)
    noise, clip = draw_noise(SHAPE, gens), torch.rand(SHAPE) - 0.5
    seen: list[tuple[int, Tensor]] = []

    def watching(noisy: Tensor, timestep: Tensor) -> Tensor:
        seen.append((int(timestep[0]), noisy))
        return network(noisy, timestep)

    scheduler = named_scheduler(name, embedded())
    steps = list(sample(watching, scheduler, noise=noise, generators=gens, num_steps=10, clip=clip, strength=0.4))
    assert len(steps) == 4
    first, noisy = seen[0]
    expected = Objective.from_scheduler(embedded()).add_noise(clip, noise, torch.tensor([first, first]))
    assert torch.allclose(noisy, expected, atol=1e-4)
    assert 250 < first < 450


@pytest.mark.parametrize("class_name", ["HeunDiscreteScheduler", "DDIMScheduler"])
def test_half_strength_takes_half_the_steps_of_any_order(class_name: str) -> None:
    scheduler = getattr(diffusers, class_name).from_config(stable_diffusion(prediction_type="v_prediction").config)
    noise, clip = draw_noise((2, 3, 8, 16, 16), generators(0, 1)), torch.full((2, 3, 8, 16, 16), MEAN)
    world = GaussianWorld(stable_diffusion(prediction_type="v_prediction"))
    steps = list(
        sample(world, scheduler, noise=noise, generators=generators(0, 1), num_steps=60, clip=clip, strength=0.5)
    )
    assert len(steps) == (59 if class_name.startswith("Heun") else 30)
    assert abs(float(steps[-1].clip.mean()) - MEAN) < 0.01


def test_full_strength_from_a_clip_is_sampling_from_noise() -> None:
    noise, clip = draw_noise(SHAPE, generators(0, 1)), torch.rand(SHAPE)
    options = {"noise": noise, "generators": generators(0, 1), "num_steps": 5}
    free = last_clip(network, embedded(), **options)
    assert torch.equal(last_clip(network, embedded(), **options, clip=clip, strength=1.0), free)


@pytest.mark.parametrize("strength", [0, -1, 1.5])
def test_a_strength_outside_is_refused(strength: float) -> None:
    noise = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="strength"):
        sample(network, embedded(), noise=noise, generators=[], num_steps=5, clip=noise, strength=strength)
    with pytest.raises(ValueError, match="without a clip"):
        sample(network, embedded(), noise=noise, generators=[], num_steps=5, strength=0.5)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_prediction_stops_the_loop_at_its_step(broken: float) -> None:
    def breaks(noisy: Tensor, timestep: Tensor) -> Tensor:
        prediction = torch.zeros_like(noisy)
        prediction[1, 0, 0, 0, 0] = broken if int(timestep[0]) < 600 else 0
        return prediction

    steps = sample(breaks, embedded(), noise=torch.zeros(SHAPE), generators=generators(0, 1), num_steps=4)
    next(steps), next(steps)
    with pytest.raises(ValueError, match=r"step 3 of 4 clip 1 of 2 .*float32"):
        next(steps)


def test_a_fp16_network_sees_the_same_noise() -> None:
    answers = []
    for dtype in (torch.float32, torch.float16):

        def blind(noisy: Tensor, timestep: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros_like(noisy, dtype=dtype)

        gens = generators(0, 1)
        noise = draw_noise(SHAPE, gens)
        answers.append(last_clip(blind, named_scheduler("ddpm", embedded()), noise=noise, generators=gens, num_steps=3))
    assert torch.equal(*answers)


@pytest.mark.parametrize("class_name", OTHER_SCHEDULERS)
def test_schedulers_without_zero_terminal_snr_are_refused_with_the_list(class_name: str) -> None:
    scheduler = getattr(diffusers, class_name).from_config(embedded().config)
    with pytest.raises(ValueError, match=r"zero terminal SNR; accepted are: DDIMScheduler, .*TCDScheduler"):
        check_scheduler(scheduler)


@pytest.mark.parametrize("class_name", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "VQDiffusionScheduler"])
def test_schedulers_of_another_kind_are_refused(class_name: str) -> None:
    made = getattr(diffusers, class_name)
    scheduler = made(num_vec_classes=4) if class_name.startswith("VQ") else made()
    scheduler.alphas_cumprod = torch.linspace(1, 0.01, 10)
    with pytest.raises(ValueError, match="not accepted"):
        check_scheduler(scheduler)


@pytest.mark.parametrize(
    ("class_name", "options", "message"),
    [
        ("DDIMScheduler", {"prediction_type": "epsilon"}, "no signal"),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}, "trailing"),
        ("EulerAncestralDiscreteScheduler", {"prediction_type": "sample"}, "clean clip"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "discrete"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "use_lu_lambdas"),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned_range"}, "variance"),
        ("DDPMScheduler", {"variance_type": "learned_range"}, "fixed_small"),
        ("UniPCMultistepScheduler", {"lower_order_final": False}, "lower_order_final"),
    ],
)
def test_options_that_would_be_silently_wrong_are_refused(class_name: str, options: dict, message: str) -> None:
    scheduler = getattr(diffusers, class_name)(**{**EMBEDDED, **options})
    with pytest.raises(ValueError, match=message):
        check_scheduler(scheduler)


@pytest.mark.parametrize(
    ("class_name", "options", "steps"),
    [
        ("DDIMScheduler", {"timestep_spacing": "leading"}, 20),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, 20),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}, 20),
    ],
)
def test_a_start_that_is_not_pure_noise_is_refused(class_name: str, options: dict, steps: int) -> None:
    scheduler = getattr(diffusers, class_name)(**{**EMBEDDED, **options})
    with pytest.raises(ValueError, match="not yet pure noise"):
        set_timesteps(scheduler, steps)


def test_leading_timesteps_that_start_far_too_late_are_refused() -> None:
    scheduler = diffusers.UniPCMultistepScheduler(
        **{k: v for k, v in STABLE_DIFFUSION.items() if k != "set_alpha_to_one"}
    )
    assert int(set_timesteps(scheduler, 30)[0]) > 900
    with pytest.raises(ValueError, match="start at timestep 751 of 999"):
        set_timesteps(scheduler, 250)


def test_an_unknown_sampler_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'unipc'.*known are: ddim"):
        named_scheduler("uni-pc", embedded())


def test_a_schedule_that_a_sampler_cannot_express_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot express"):
        named_scheduler("euler", DDPMScheduler(beta_schedule="sigmoid"))


def test_samplers_by_name_keep_the_schedule_and_its_settings() -> None:
    for name in SAMPLERS:
        scheduler = named_scheduler(name, embedded(clip_sample=True))
        assert type(scheduler).__name__ in ZERO_SNR_SCHEDULERS
        assert scheduler.config.prediction_type == "v_prediction"
        assert scheduler.config.timestep_spacing == "trailing"
        assert scheduler.config["clip_sample"]
        back = named_scheduler("ddim", scheduler)
        assert torch.allclose(back.alphas_cumprod, embedded().alphas_cumprod)


@pytest.mark.parametrize("name", ["ddpm", "euler", "dpm++"])
def test_shifted_timesteps_are_places_shifted_in_log_odds(name: str) -> None:
    plain = set_timesteps(named_scheduler(name, embedded()), 20).double()
    shifted = set_timesteps(named_scheduler(name, embedded()), 20, shift=math.e).double()
    assert shifted[0] == plain[0] == 999
    before, after = ((t[1:] + 1) / 1000 for t in (plain, shifted))
    assert torch.allclose(torch.logit(after), torch.logit(before) + 1, atol=0.02)
    scheduler = embedded()
    many = last_clip(
        GaussianWorld(scheduler),
        named_scheduler(name, scheduler),
        noise=draw_noise((2, 3, 8, 16, 16), generators(0, 1)),
        generators=generators(0, 1),
        num_steps=100,
        timestep_shift=2.0,
    )
    assert abs(float(many.std()) / SPREAD - 1) < 0.12


def test_shifted_timesteps_are_refused_where_they_cannot_be() -> None:
    with pytest.raises(ValueError, match="takes no shifted timesteps"):
        set_timesteps(named_scheduler("ddim", embedded()), 20, shift=2.0)
    with pytest.raises(ValueError, match="above 0"):
        set_timesteps(named_scheduler("ddpm", embedded()), 20, shift=-1.0)
    with pytest.raises(ValueError, match="same timesteps"):
        set_timesteps(named_scheduler("ddpm", embedded()), 500, shift=10.0)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_outside_the_schedule_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 1000"):
        set_timesteps(embedded(), steps)
