"""The training target, against diffusers' own formulas and against algebra."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from lumiere.diffusion.objective import Objective, draw_timesteps

KINDS = ("epsilon", "v_prediction", "sample")
SHAPE = (4, 3, 2, 5, 5)


def scheduler(kind: str, *, zero_snr: bool = False) -> DDPMScheduler:
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=kind, rescale_betas_zero_snr=zero_snr)


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, *SHAPE, generator=generator)
    return clean, noise, torch.randint(0, 1000, SHAPE[:1], generator=generator)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_noise_and_v_are_those_of_diffusers(zero_snr: bool) -> None:
    clean, noise, timestep = drawn()
    reference = scheduler("v_prediction", zero_snr=zero_snr)
    objective = Objective.from_scheduler(reference)
    noisy = objective.add_noise(clean, noise, timestep)
    assert torch.allclose(noisy, reference.add_noise(clean, noise, timestep), atol=1e-6)
    velocity = reference.get_velocity(clean, noise, timestep)
    assert torch.allclose(objective.target(clean, noise, timestep), velocity, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_has_no_loss_and_gives_the_clean_clip_back(kind: str) -> None:
    clean, noise, timestep = drawn()
    timestep = timestep.clamp(max=900)
    objective = Objective.from_scheduler(scheduler(kind))
    target = objective.target(clean, noise, timestep)
    loss = objective.loss(lambda noisy, t: target, clean, noise=noise, timestep=timestep)
    assert torch.equal(loss, torch.zeros(4))
    noisy = objective.add_noise(clean, noise, timestep)
    assert torch.allclose(objective.clean_from(target, noisy, timestep), clean, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_clean_clip_of_a_prediction_is_the_one_that_ddim_sees(kind: str) -> None:
    clean, noise, _ = drawn()
    reference = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=kind, clip_sample=False)
    reference.set_timesteps(10)
    objective = Objective.from_scheduler(reference)
    for timestep in (900, 300, 0):
        seen = reference.step(noise, timestep, clean).pred_original_sample
        assert torch.allclose(objective.clean_from(noise, clean, torch.full((4,), timestep)), seen, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_moved_prediction_means_a_clean_clip_moved_as_far(kind: str) -> None:
    noisy, prediction, _ = drawn()
    objective = Objective.from_scheduler(scheduler(kind))
    by = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for place in (800, 300, 5):
        timestep = torch.full((4,), place)
        before = objective.clean_from(prediction, noisy, timestep)
        after = objective.clean_from(objective.moved(prediction, timestep, by=by), noisy, timestep)
        assert torch.allclose(after - before, by, atol=1e-4)


def test_each_clip_has_its_own_timestep_and_its_own_loss() -> None:
    clean, noise, timestep = drawn()
    objective = Objective.from_scheduler(scheduler("v_prediction"))
    together = objective.loss(lambda noisy, t: noisy, clean, noise=noise, timestep=timestep)
    for index in range(4):
        one = slice(index, index + 1)
        alone = objective.loss(lambda noisy, t: noisy, clean[one], noise=noise[one], timestep=timestep[one])
        assert torch.allclose(alone, together[one])
    assert together.shape == (4,)
    assert len(together.unique()) == 4


def test_a_learned_variance_has_no_part_in_the_loss() -> None:
    clean, noise, timestep = drawn()
    objective = Objective.from_scheduler(scheduler("epsilon"))
    plain = objective.loss(lambda noisy, t: noisy, clean, noise=noise, timestep=timestep)
    twice = objective.loss(
        lambda noisy, t: torch.cat([noisy, torch.full_like(noisy, 9.0)], dim=1), clean, noise=noise, timestep=timestep
    )
    assert torch.equal(plain, twice)


def test_with_zero_terminal_snr_the_noisiest_clip_is_noise_alone() -> None:
    clean, noise, _ = drawn()
    objective = Objective.from_scheduler(scheduler("v_prediction", zero_snr=True))
    last = torch.full((4,), objective.num_timesteps - 1)
    assert torch.equal(objective.add_noise(clean, noise, last), noise)
    assert torch.equal(objective.target(clean, noise, last), -clean)


def test_noise_prediction_is_refused_where_there_is_no_signal() -> None:
    objective = Objective.from_scheduler(scheduler("epsilon", zero_snr=True))
    with pytest.raises(ValueError, match="no signal"):
        objective.clean_from(torch.zeros(SHAPE), torch.zeros(SHAPE), torch.full((4,), 999))


def test_an_unknown_kind_of_prediction_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="epsilon, v_prediction, sample"):
        Objective(torch.ones(10), "velocity")


def test_a_fractional_timestep_lies_between_its_neighbours() -> None:
    objective = Objective.from_scheduler(scheduler("v_prediction"))
    like = torch.zeros(3, 1, 1, 1, 1, dtype=torch.float64)
    signal, sigma = objective.coefficients(torch.tensor([400.0, 400.5, 401.0]), like)
    kept = signal.square().flatten()
    assert torch.allclose(kept[1], (kept[0] + kept[2]) / 2)
    assert torch.equal(kept[0], objective.alphas_cumprod[400].sqrt().square())
    assert torch.allclose(signal**2 + sigma**2, torch.ones_like(like))


def test_bf16_clips_stay_bf16_and_their_loss_is_fp32() -> None:
    clean, noise, timestep = drawn()
    objective = Objective.from_scheduler(scheduler("v_prediction"))
    clean, noise = clean.bfloat16(), noise.bfloat16()
    assert objective.add_noise(clean, noise, timestep).dtype == torch.bfloat16
    assert objective.loss(lambda noisy, t: noisy, clean, noise=noise, timestep=timestep).dtype == torch.float32


def test_drawn_timesteps_have_the_median_of_their_mean() -> None:
    for mean in (-1.0, 0.0, 1.0):
        generator = torch.Generator().manual_seed(0)
        drawn_steps = draw_timesteps(20000, 1000, mean=mean, std=1.0, generator=generator)
        expected = 1000 * torch.sigmoid(torch.tensor(mean))
        assert abs(float(drawn_steps.median()) - float(expected)) < 8
        assert drawn_steps.min() >= 0
        assert drawn_steps.max() <= 999
