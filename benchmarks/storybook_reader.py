"""How often the storybook's reader is right on clips whose scene is known.

    python benchmarks/storybook_reader.py --clips 500
    python benchmarks/storybook_reader.py --clips 500 --blur 0.6 --noise 0.05
    python benchmarks/storybook_reader.py --clips 200 --spoil shuffled

Half of the scenes are of the held-out tenth. About half a second a clip on one core; the dated results are in
benchmarks/storybook_reader.md.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from lumiere.data.storybook import draw_scene, frame_times, render
from lumiere.evaluation.scenery import SIZE, blur
from lumiere.evaluation.storybook import read_clip, read_pair, read_stills
from lumiere.evaluation.tally import ATTRIBUTES, Tally, answers, wilson_interval

SPOILS = ("none", "still", "shuffled", "noise")


def main() -> None:
    """Draw, spoil, read, count, print."""
    options = _options()
    generator = torch.Generator().manual_seed(options.seed)
    tally, seconds = Tally(), 0.0
    for index in range(options.clips):
        scene = draw_scene(generator, num_actors=2 if options.pairs else 1, held_out=index % 2 == 0)
        times = frame_times() if not options.stills else torch.rand(1, generator=generator) * 5
        clip = render([scene], times, size=options.size)[0]
        clip = spoiled(clip, options.spoil, generator)
        clip = degraded(clip, blur_px=options.blur, noise=options.noise, generator=generator)
        start = time.perf_counter()
        if options.stills:
            reading = read_stills(clip.transpose(0, 1))[0]
        else:
            reading = (read_pair if options.pairs else read_clip)(clip)
        seconds += time.perf_counter() - start
        found = answers(scene.background, scene.actors, reading)
        tally.add(found)
        wrong = [f"{one.attribute} {one.asked} as {one.read}" for one in found if not one.is_right]
        if wrong and options.verbose:
            print(f"{index}: {', '.join(wrong)}", flush=True)
    print(f"{vars(options)}; {seconds / options.clips:.2f} s a clip")
    for name in ATTRIBUTES:
        low, high = wilson_interval(tally.right[name], tally.total[name])
        print(
            f"{name:10} {tally.right[name]:4} of {tally.total[name]}  {tally.share(name):6.1%}"
            f"  [{low:.1%}, {high:.1%}]  unreadable {tally.unreadable[name]}"
        )


def spoiled(clip: Tensor, spoil: str, generator: torch.Generator) -> Tensor:
    """A clip [3, T, H, W] without its motion, or nothing but noise."""
    match spoil:
        case "still":
            return clip[:, 40:41].expand_as(clip)
        case "shuffled":
            return clip[:, torch.randperm(clip.shape[1], generator=generator)]
        case "noise":
            return torch.rand(clip.shape, generator=generator) * 2 - 1
    return clip


def degraded(clip: Tensor, *, blur_px: float, noise: float, generator: torch.Generator) -> Tensor:
    """A clip blurred by pixels of the reader's size, with Gaussian noise on its -1..1."""
    if blur_px:
        clip = blur(clip.transpose(0, 1), blur_px * clip.shape[-1] / SIZE).transpose(0, 1)
    return (clip + noise * torch.randn(clip.shape, generator=generator)).clamp(-1, 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--blur", type=float, default=0.0, help="in pixels of the reader's 32")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation, on -1..1")
    parser.add_argument("--spoil", choices=SPOILS, default="none")
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--stills", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
