"""Windows and their merging: coverage of every length, the least-squares clip, one network pass or many the same."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from lumiere.conditioning.text import TextStates
from lumiere.diffusion.denoiser import Beside, Clipped, Guided, Window
from lumiere.diffusion.multidiffusion import Windowed, clip_windows, spatial_windows, temporal_windows
from lumiere.diffusion.objective import Objective
from lumiere.diffusion.sample import draw_noise, sample
from lumiere.diffusion.schedulers import SAMPLERS, named_scheduler

SCHEDULE = DDIMScheduler(
    beta_schedule="squaredcos_cap_v2",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    clip_sample=False,
)


def mixing(noisy: Tensor, timestep: Tensor, where: Window) -> Tensor:
    """A denoiser that looks at its whole window, so that what it says of a frame depends on the window's borders."""
    share = (timestep / 1000).view(-1, 1, 1, 1, 1)
    return torch.tanh(noisy) * (1 - share) + noisy.mean((2, 3, 4), keepdim=True) + 0.1 * noisy.roll(1, 2)


def whole(noisy: Tensor, timestep: Tensor) -> Tensor:
    return mixing(noisy, timestep, (slice(None),) * 3)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("window", "overlap"), [(1, 0), (4, 0), (4, 1), (8, 3), (16, 8), (80, 79)])
def test_windows_cover_every_length(window: int, overlap: int) -> None:
    for frames in range(1, 201):
        windows = temporal_windows(frames, window, overlap)
        starts = [one.start for one in windows]
        assert starts == sorted(set(starts)) and starts[0] == 0 and windows[-1].stop == frames
        assert {one.stop - one.start for one in windows} == {min(window, frames)}
        assert all(after.start <= before.stop - overlap for before, after in itertools.pairwise(windows))
        # None too many: without its last window a part of the clip is left out.
        assert len(windows) == 1 or windows[-2].stop < frames


@pytest.mark.parametrize("frames", [7, 8, 9, 80, 81])
def test_the_tail_is_covered_by_a_last_window_shifted_back(frames: int) -> None:
    windows = temporal_windows(frames, 8, 2)
    assert windows[-1] == slice(max(0, frames - 8), frames)
    assert [one.start for one in windows[:-1]] == list(range(0, max(0, frames - 8), 6))


def numbered(noisy: Tensor, timestep: Tensor, where: Window) -> Tensor:
    """A denoiser that says the number of its window's first frame."""
    return torch.full_like(noisy, float(where[0].start))


def test_tapered_windows_hand_over_in_steps_and_even_ones_at_once() -> None:
    windows = clip_windows((24, 2, 2), frames=12, frames_overlap=6)
    even, tapered = (
        Windowed(numbered, windows, is_tapered=tapers)(torch.zeros(1, 1, 24, 2, 2), torch.tensor([1]))[0, 0, :, 0, 0]
        for tapers in (False, True)
    )
    assert even.tolist() == [0] * 6 + [3] * 6 + [9] * 6 + [12] * 6
    assert tapered[:6].tolist() == [0] * 6 and tapered[18:].tolist() == [12] * 6
    steps = tapered.diff()
    assert bool((steps >= 0).all()) and float(steps.max()) < 0.3 * 6
    # The middle of an overlap is half of each.
    assert float((tapered[8] + tapered[9]) / 2) == pytest.approx(3)


def test_tapered_windows_give_the_clip_nearest_to_all_predictions_so_weighted() -> None:
    clip, time = noise(1, 2, 10, 3, 3), torch.tensor([500])
    windows = clip_windows((10, 3, 3), frames=4, frames_overlap=2, side=2, side_overlap=1)
    made = Windowed(mixing, windows, is_tapered=True)(clip, time)

    def bell(size: int) -> Tensor:
        return 0.5 - 0.5 * torch.cos(2 * torch.pi * (torch.arange(size) + 0.5) / size)

    def distance(other: Tensor) -> float:
        total = 0.0
        for window in windows:
            frames, rows, columns = (bell(part.stop - part.start) for part in window)
            weight = frames[:, None, None] * rows[:, None] * columns
            total += float(
                (weight * (other[(..., *window)] - mixing(clip[(..., *window)], time, window)).square()).sum()
            )
        return total

    least = distance(made)
    for seed in range(20):
        assert distance(made + 1e-2 * noise(*made.shape, seed=seed)) > least
    alone = clip_windows((10, 3, 3))
    assert torch.equal(Windowed(mixing, alone, is_tapered=True)(clip, time), whole(clip, time))


def test_places_are_covered_row_by_row() -> None:
    windows = spatial_windows(10, 7, 4, 1)
    assert windows[:3] == [(slice(0, 4), slice(0, 4)), (slice(0, 4), slice(3, 7)), (slice(3, 7), slice(0, 4))]
    covered = torch.zeros(10, 7)
    for rows, columns in windows:
        covered[rows, columns] += 1
    assert bool((covered > 0).all())


@pytest.mark.parametrize(
    ("window", "overlap", "message"),
    [(4, 4, "from 0 to 3"), (4, -1, "from 0 to 3"), (0, 0, "1 or more")],
)
def test_windows_that_would_not_move_on_are_refused(window: int, overlap: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        temporal_windows(20, window, overlap)


def test_windows_of_another_clip_are_refused() -> None:
    with pytest.raises(ValueError, match="uncovered"):
        Windowed(mixing, clip_windows((8, 4, 4), frames=4))(noise(1, 3, 12, 4, 4), torch.tensor([500]))
    with pytest.raises(ValueError, match="clip_windows"):
        Windowed(mixing, [])


@pytest.mark.parametrize("shape", [(1, 3, 8, 4, 4), (2, 3, 5, 6, 4)])
def test_one_window_is_no_windows_bit_for_bit(shape: tuple[int, ...]) -> None:
    noisy, time = noise(*shape), torch.full((shape[0],), 300)
    windowed = Windowed(mixing, clip_windows(shape, frames=8, frames_overlap=2, side=6, side_overlap=2))
    assert torch.equal(windowed(noisy, time), whole(noisy, time))


@pytest.mark.parametrize(
    "cut",
    [
        {"frames": 6, "frames_overlap": 2},
        {"side": 4, "side_overlap": 1},
        {"frames": 6, "frames_overlap": 3, "side": 5, "side_overlap": 2},
    ],
)
def test_the_merged_prediction_is_nearest_to_all_windows(cut: dict[str, int]) -> None:
    """Against a least-squares solver that knows only the windows and their predictions."""
    noisy, time = noise(1, 2, 11, 7, 6), torch.tensor([400])
    windows = clip_windows(noisy.shape, **cut)
    assert len(windows) > 1
    merged = Windowed(mixing, windows)(noisy, time)
    places = torch.arange(11 * 7 * 6).view(11, 7, 6)
    rows, columns, values = [], [], []
    for window in windows:
        index = places[window].flatten()
        rows.append(torch.arange(len(index)) + sum(len(part) for part in columns))
        columns.append(index)
        values.append(mixing(noisy[(..., *window)], time, window)[0].flatten(1).T)
    system = torch.zeros(sum(map(len, columns)), places.numel(), dtype=torch.float64)
    system[torch.cat(rows), torch.cat(columns)] = 1
    solution = torch.linalg.lstsq(system, torch.cat(values).double()).solution
    assert torch.allclose(merged[0].flatten(1).T.double(), solution, atol=1e-6)


def test_with_ddim_it_is_stepping_each_window_and_averaging() -> None:
    start = noise(1, 2, 14, 4, 4)
    windows = clip_windows(start.shape, frames=6, frames_overlap=2)
    steps = sample(
        Windowed(mixing, windows),
        DDIMScheduler.from_config(SCHEDULE.config),
        noise=start,
        generators=[torch.Generator()],
        num_steps=5,
    )
    for step in steps:
        merged = step.clip
    scheduler = DDIMScheduler.from_config(SCHEDULE.config)
    scheduler.set_timesteps(5)
    clip = start
    for timestep in scheduler.timesteps:
        total, count = torch.zeros_like(clip), torch.zeros(14, 1, 1)
        for window in windows:
            part = clip[(..., *window)]
            total[(..., *window)] += scheduler.step(mixing(part, timestep.view(1), window), timestep, part).prev_sample
            count[window[0]] += 1
        clip = total / count
    assert torch.allclose(merged, clip, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_steps_the_whole_clip_with_one_noise(name: str) -> None:
    """A denoiser that looks at each value alone says the same in any window: so then must the clip be, to rounding."""

    def pointwise(noisy: Tensor, timestep: Tensor, where: Window = (slice(None),) * 3) -> Tensor:
        return torch.tanh(noisy) * (timestep / 1000).view(-1, 1, 1, 1, 1)

    shape = (2, 3, 13, 6, 6)
    clips = []
    for denoiser in (pointwise, Windowed(pointwise, clip_windows(shape, frames=5, frames_overlap=2, side=4))):
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        scheduler = named_scheduler(name, SCHEDULE)
        start = draw_noise(shape, generators)
        for step in sample(denoiser, scheduler, noise=start, generators=generators, num_steps=4):
            clip = step.clip
        clips.append(clip)
    assert torch.allclose(*clips, atol=1e-5)
    assert not torch.allclose(clips[0][0], clips[0][1], atol=0.1)


def test_predictions_are_merged_before_the_clean_clip_is_clipped() -> None:
    noisy, time = 2 * noise(1, 2, 10, 4, 4), torch.tensor([600])
    objective = Objective.from_scheduler(SCHEDULE)
    windows = clip_windows(noisy.shape, frames=4, frames_overlap=2)
    clipped = Clipped(Windowed(mixing, windows), objective)(noisy, time)
    merged = Windowed(mixing, windows)(noisy, time)
    clean = objective.clean_from(merged, noisy, time)
    expected = objective.moved(merged, time, by=clean.clamp(-1, 1) - clean)
    assert torch.equal(clipped, expected) and bool((clean.abs() > 1).any())


@pytest.mark.parametrize("is_batched", [False, True])
def test_every_window_sees_its_own_part_of_what_lies_beside(is_batched: bool) -> None:
    """Guidance inside, the low-resolution clip cut with the window; against the network run on the whole clip."""

    class Network:
        def __call__(self, seen: Tensor, timestep: Tensor, states: Tensor, **told: Tensor) -> tuple[Tensor]:
            words = states.sum((1, 2)).view(-1, 1, 1, 1, 1)
            level = told["class_labels"].view(-1, 1, 1, 1, 1) / 100
            return (seen[:, :2] * words + torch.sin(3 * seen[:, 2:]) + level,)

    low = noise(2, 2, 9, 6, 6, seed=5)
    text, empty = (TextStates(noise(2, 3, 4, seed=seed)) for seed in (1, 2))
    beside = Beside(low, torch.tensor([10, 20]))
    guided = Guided(Network(), text, negative=empty, scale=2.0, is_batched=is_batched, beside=beside)
    noisy, time = noise(2, 2, 9, 6, 6, seed=7), torch.tensor([500, 500])
    windows = clip_windows(noisy.shape, frames=4, frames_overlap=1, side=4, side_overlap=2)
    assert torch.allclose(Windowed(guided, windows)(noisy, time), guided(noisy, time), atol=1e-5)


def test_the_memory_is_one_window_and_one_clip() -> None:
    """The merged clip is the only tensor of the clip's size that is made, however many windows there are."""
    sizes = []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, Tensor) and function in (torch.ops.aten.zeros.default, torch.ops.aten.clone.default):
                sizes.append(made.numel() * made.element_size())
            return made

    noisy = noise(1, 3, 64, 8, 8)
    with Counting():
        Windowed(lambda part, *_: part + 1, clip_windows(noisy.shape, frames=8, frames_overlap=2))(
            noisy, torch.tensor([1])
        )
    clip_bytes = noisy.numel() * 4
    assert sum(sizes) <= 1.2 * clip_bytes
