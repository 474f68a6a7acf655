"""Text, guidance and clipping around a network, against their formulas written out."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor, nn

from lumiere.conditioning.text import TextStates
from lumiere.diffusion.denoiser import Beside, Clipped, Conditioned, Guided, Kept, Known
from lumiere.diffusion.objective import Objective
from lumiere.diffusion.sample import sample
from lumiere.diffusion.schedulers import SAMPLERS, named_scheduler


class Toy(nn.Module):
    """A network of diffusers' convention whose answer depends on clip, time and the words that its mask shows."""

    def __init__(self, *, has_variance: bool = False) -> None:
        super().__init__()
        self.has_variance, self.seen = has_variance, []

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> tuple[Tensor]:
        self.seen.append((len(sample), sample.dtype))
        weights = torch.ones_like(encoder_hidden_states[..., 0])
        weights = weights if encoder_attention_mask is None else encoder_attention_mask.to(weights)
        words = (encoder_hidden_states.sum(-1) * weights).sum(1).view(-1, 1, 1, 1, 1)
        answer = torch.tanh(sample * words) + timestep.view(-1, 1, 1, 1, 1).to(sample.dtype) / 1000 + sample.flip(2)
        return (torch.cat([answer, answer + 5], dim=1) if self.has_variance else answer,)


def text(seed: int, *, length: int = 6, words: int | None = None, batch: int = 2) -> TextStates:
    states = torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(seed))
    mask = None if words is None else (torch.arange(length) < words).expand(batch, length)
    return TextStates(states, mask)


NOISY = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(9))
TIME = torch.tensor([700, 700])


def test_a_conditioned_network_is_told_each_clip_s_text() -> None:
    network, told = Toy(), text(0, words=3)
    answer = Conditioned(network, told)(NOISY, TIME)
    for index in range(2):
        one = slice(index, index + 1)
        alone = Conditioned(network, TextStates(told.states[one], told.mask[one]))(NOISY[one], TIME[one])
        assert torch.allclose(alone, answer[one], atol=1e-6)
    assert not torch.allclose(answer, Conditioned(network, text(1, words=3))(NOISY, TIME))


def test_the_network_runs_in_the_text_s_dtype_and_answers_in_fp32() -> None:
    network, told = Toy(), text(0)
    answer = Conditioned(network, TextStates(told.states.bfloat16()))(NOISY, TIME)
    assert network.seen == [(2, torch.bfloat16)]
    assert answer.dtype == torch.float32


@pytest.mark.parametrize("is_batched", [False, True])
def test_guidance_is_its_formula(is_batched: bool) -> None:
    network = Toy()
    told, not_told = (Conditioned(network, text(seed))(NOISY, TIME) for seed in (0, 1))
    guided = Guided(network, text(0), negative=text(1), scale=4.0, is_batched=is_batched)
    assert torch.allclose(guided(NOISY, TIME), not_told + 4 * (told - not_told), atol=1e-5)


def test_both_passes_at_once_are_the_passes_one_after_the_other() -> None:
    for long, short in (
        (text(0, words=4), text(1, length=3, words=2)),
        (text(0), text(1, length=3)),
        (text(0), text(1)),
    ):
        one_by_one, at_once = Toy(), Toy()
        in_turn = Guided(one_by_one, long, negative=short, scale=3.0)(NOISY, TIME)
        together = Guided(at_once, long, negative=short, scale=3.0, is_batched=True)(NOISY, TIME)
        assert torch.allclose(in_turn, together, atol=1e-5)
        assert [size for size, _ in one_by_one.seen] == [2, 2]
        assert [size for size, _ in at_once.seen] == [4]


@pytest.mark.parametrize("is_batched", [False, True])
def test_a_start_is_added_once_whatever_the_guidance(is_batched: bool) -> None:
    start = torch.randn(NOISY.shape, generator=torch.Generator().manual_seed(4))
    made = [
        Guided(Toy(), text(0), negative=text(1), scale=4.0, is_batched=is_batched, beside=beside)(NOISY, TIME)
        for beside in (None, Beside(start=start))
    ]
    assert torch.allclose(made[1], made[0] + start, atol=1e-5)
    where = (slice(None), slice(1, 3), slice(None))
    part, whole = (Conditioned(Toy(), text(0), beside) for beside in (None, Beside(start=start)))
    window = NOISY[(..., *where)]
    assert torch.allclose(whole(window, TIME, where), part(window, TIME) + start[(..., *where)], atol=1e-5)


def test_scale_one_is_one_pass_without_guidance() -> None:
    network = Toy()
    expected = Conditioned(network, text(0))(NOISY, TIME)
    network.seen.clear()
    assert torch.equal(Guided(network, text(0), negative=text(1), scale=1.0)(NOISY, TIME), expected)
    assert len(network.seen) == 1


def test_outside_its_interval_guidance_costs_nothing() -> None:
    network = Toy()
    guided = Guided(network, text(0), negative=text(1), scale=5.0, timesteps=(100, 600))
    expected = Conditioned(network, text(0))(NOISY, TIME)
    network.seen.clear()
    assert torch.equal(guided(NOISY, TIME), expected)
    assert len(network.seen) == 1
    everywhere = Guided(network, text(0), negative=text(1), scale=5.0)
    inside = torch.tensor([600, 100])
    assert torch.equal(guided(NOISY, inside), everywhere(NOISY, inside))


def test_clips_at_different_noise_are_guided_each_by_its_own() -> None:
    network, mixed = Toy(), torch.tensor([700, 300])
    guided = Guided(network, text(0), negative=text(1), scale=5.0, timesteps=(0, 500))(NOISY, mixed)
    assert torch.equal(guided[0], Conditioned(network, text(0))(NOISY, mixed)[0])
    assert torch.equal(guided[1], Guided(network, text(0), negative=text(1), scale=5.0)(NOISY, mixed)[1])


def test_a_learned_variance_is_split_off_before_guidance() -> None:
    plain = Guided(Toy(), text(0), negative=text(1), scale=4.0)(NOISY, TIME)
    for is_batched in (False, True):
        network = Toy(has_variance=True)
        guided = Guided(network, text(0), negative=text(1), scale=4.0, is_batched=is_batched)(NOISY, TIME)
        assert torch.allclose(guided, plain, atol=1e-5)


def test_rescaled_guidance_is_that_of_diffusers_and_keeps_the_contrast() -> None:
    network = Toy()
    told = Conditioned(network, text(0))(NOISY, TIME)
    plain = Guided(network, text(0), negative=text(1), scale=7.0)(NOISY, TIME)
    for share in (0.3, 1.0):
        rescaled = Guided(network, text(0), negative=text(1), scale=7.0, rescale=share)(NOISY, TIME)
        assert torch.allclose(rescaled, rescale_noise_cfg(plain, told, guidance_rescale=share), atol=1e-5)
    assert torch.allclose(rescaled.flatten(1).std(1), told.flatten(1).std(1), atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_clipped_denoiser_has_a_clean_clip_of_pixels(kind: str) -> None:
    objective = Objective.from_scheduler(DDIMScheduler(prediction_type=kind))
    clean = 3 * torch.randn(NOISY.shape, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(NOISY.shape, generator=torch.Generator().manual_seed(3))
    timestep = torch.tensor([400, 100])
    noisy, target = objective.add_noise(clean, noise, timestep), objective.target(clean, noise, timestep)
    for limit in (1.0, 2.0):
        clipped = Clipped(lambda *_: target, objective, limit=limit)(noisy, timestep)
        found = objective.clean_from(clipped, noisy, timestep)
        assert torch.allclose(found, clean.clamp(-limit, limit), atol=2e-4)


def test_a_prediction_that_is_inside_is_not_touched() -> None:
    objective = Objective.from_scheduler(DDIMScheduler(prediction_type="v_prediction"))
    clean, noise = NOISY.clamp(-0.9, 0.9), NOISY.flip(0)
    noisy, target = objective.add_noise(clean, noise, TIME), objective.target(clean, noise, TIME)
    assert torch.equal(Clipped(lambda *_: target, objective)(noisy, TIME), target)


@pytest.mark.parametrize("name", SAMPLERS)
def test_given_values_are_in_every_clean_clip_and_at_the_end(name: str) -> None:
    shape = (2, 3, 4, 5, 5)
    values = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    mask = torch.zeros(2, 1, 4, 5, 5)
    mask[:, :, 0], mask[1, :, :, 3:] = 1, 1
    like = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    scheduler = named_scheduler(name, like)

    def network(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tanh(noisy.flip(2)) * 0.5

    kept = Kept(network, Objective.from_scheduler(scheduler), Known(values, mask))
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    is_given = mask.expand(shape) > 0
    for step in sample(kept, scheduler, noise=torch.randn(shape), generators=generators, num_steps=8):
        clean = step.clean()
        if step.index:  # Some classes keep a trace of signal in pure noise, which fp32 cannot take back.
            assert torch.allclose(clean[is_given], values[is_given], atol=1e-3)
    # At its last step DDIM may stop one timestep short of clean, and LCM's steps are noised again.
    assert torch.allclose(step.clip[is_given], values[is_given], atol=0.05)
    assert not torch.allclose(step.clip[~is_given], values[~is_given], atol=0.2)


def test_keeping_nothing_changes_nothing() -> None:
    objective = Objective.from_scheduler(DDIMScheduler(prediction_type="v_prediction"))
    guided = Guided(Toy(), text(0), negative=text(1), scale=3.0)
    kept = Kept(guided, objective, Known(NOISY, torch.zeros(2, 1, 4, 5, 5)))
    assert torch.equal(kept(NOISY, TIME), guided(NOISY, TIME))


def test_what_is_made_is_joined_to_what_is_known_where_there_is_less_noise_than_signal() -> None:
    objective = Objective.from_scheduler(DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"))
    values, mask = torch.ones_like(NOISY), torch.zeros(2, 1, 4, 5, 5)
    mask[:, :, 0] = 1
    seen = []

    def join(clip: torch.Tensor) -> torch.Tensor:
        seen.append(clip)
        return clip + 0.25

    kept = Kept(lambda noisy, timestep: 0 * noisy, objective, Known(values, mask, join))
    alone = Kept(lambda noisy, timestep: 0 * noisy, objective, Known(values, mask))
    for timestep, moved in ((900, 0.0), (300, 0.25)):
        told = torch.full((2,), timestep)
        assert torch.allclose(kept(NOISY, told), alone(NOISY, told) + moved)
    assert len(seen) == 1 and torch.equal(seen[0][:, :, 0], values[:, :, 0])


def test_things_are_carried_before_what_is_known_is_put_in_its_place_and_only_once_settled() -> None:
    objective = Objective.from_scheduler(DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"))
    values, mask = torch.ones_like(NOISY), torch.zeros(2, 1, 4, 5, 5)
    mask[:, :, 0] = 1
    known = Known(values, mask, lambda clip: clip * 2, lambda clip: clip + 0.25)
    kept = Kept(lambda noisy, timestep: 0 * noisy, objective, known)
    noisy, settled = (kept(NOISY, torch.full((2,), timestep)) for timestep in (900, 300))
    assert torch.allclose(noisy[:, :, 1:], torch.zeros(())) and torch.allclose(noisy[:, :, 0], torch.ones(()))
    assert torch.allclose(settled[:, :, 1:], torch.tensor(0.5)) and torch.allclose(settled[:, :, 0], torch.tensor(2.0))


def test_what_a_network_foresees_is_looked_at_once_for_each_part_and_text() -> None:
    asked: list[tuple[float, int]] = []

    class Foreseeing(Toy):
        def look_ahead(self, given: torch.Tensor, states: torch.Tensor, mask: torch.Tensor | None) -> Any:
            asked.append((float(given.mean()), states.shape[1]))
            return None if given.shape[2] == 1 else given.mean()

        def forward(self, sample: torch.Tensor, *args: Any, added_cond_kwargs: Any = None, **more: Any) -> Any:
            told.append(None if added_cond_kwargs is None else float(added_cond_kwargs["ahead"]))
            return super().forward(sample[:, :3], *args, **more)

    told: list[float | None] = []
    given = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(2, 4, 4, 4, 4)
    network = Foreseeing()
    guided = Guided(network, text(1), negative=text(2, length=2), scale=3, beside=Beside(given))
    noisy, time = torch.randn(2, 3, 4, 4, 4), torch.tensor([500, 500])
    whole = (slice(0, 4), slice(0, 4), slice(0, 4))
    late, one = (slice(2, 4), *whole[1:]), (slice(3, 4), *whole[1:])
    for _ in range(2):
        for where in (whole, late, one):
            guided(noisy[(..., *where)], time, where)
    unguided = guided.again(scale=1, timesteps=(0, 1000))
    assert torch.equal(unguided(noisy, time, whole), guided.conditional(noisy, time, whole))
    assert asked == [(mean, length) for mean in (1.5, 2.5, 3.0) for length in (2, 6)]
    assert told == 2 * [1.5, 1.5, 2.5, 2.5, None, None] + 2 * [1.5]
    assert guided.scale == 3 and float(guided.conditional.look_ahead(late)) == 2.5
    assert Guided(network, text(1), negative=text(2), scale=3).conditional.look_ahead() is None
