"""The command line: instant help, one clear message for what cannot be done, and clips that can be made again."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lumiere import SuperResolution
from lumiere.cli import VERBS, main, parse
from lumiere.cli.clip_recipe import ClipRecipe, load_clip_recipe
from lumiere.cli.generate import chosen_prompts, chosen_seeds, clip_name, output_paths
from lumiere.cli.train import Train
from lumiere.media import probe, read_clip
from lumiere.model.stunet import STUNet
from tests.test_openings import forecasting
from tests.test_super_resolution import stage
from tests.tiny_pipeline import tiny_pipeline
from tests.tiny_unets import embedded

IMPORTED_BY_HELP = """
import sys
from lumiere.cli import main
try:
    main({words})
except SystemExit:
    pass
print(*sorted({{"torch", "diffusers", "transformers", "av"}} & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model that takes a moment for a clip of 8 frames."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def generate(model: Path, *words: str) -> int:
    return main(["generate", *words, "--model", str(model), "--steps", "2", "--frames", "8", "--device", "cpu"])


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a refused command prints."""
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("lumiere: ") and said.count("\n") == 1 and "Traceback" not in said
    return said


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = IMPORTED_BY_HELP.format(words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
    assert "lumiere" in done.stdout


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert all(verb in said for verb in ("generate", "train", "evaluate", "inflate", "info"))


def test_module_and_console_script_are_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "lumiere", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lumiere ")


def test_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'generate'" in refusal(capsys, "generat", "a ball")


def test_unknown_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", "a ball", "--stepz", "3"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "--stepz" in said and "--steps" in said


def test_debug_shows_where_an_error_comes_from(here: Path) -> None:
    with pytest.raises(ValueError, match="there is no prompt"):
        main(["generate", "--debug"])


def test_prompts_of_a_file_follow_those_given(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# favourites\n\n  a blue kite \na star\n")
    assert chosen_prompts(["a ball "], file) == ["a ball", "a blue kite", "a star"]


@pytest.mark.parametrize("content", [b"", b"\n# nothing\n", b"\xff\xfe\x00"])
def test_prompts_file_without_prompts_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"prompts\.txt"):
        chosen_prompts([], tmp_path / "prompts.txt")


def test_empty_prompt_is_refused_by_its_place() -> None:
    with pytest.raises(ValueError, match="prompt 2 is empty"):
        chosen_prompts(["a ball", "  "], None)


@pytest.mark.parametrize(("seed", "seeds"), [(1, (2,)), (-1, ()), (None, (0, 2**63))])
def test_seeds_that_cannot_be_are_refused(seed: int | None, seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="seed"):
        chosen_seeds(seed, seeds)


def test_every_clip_has_its_own_name_and_none_is_overwritten(tmp_path: Path) -> None:
    jobs = [("A red ball!", 1), ("a red ball", 1), ("a red ball", 2), ("红球", 1), ("...", 0)]
    paths = output_paths(jobs, tmp_path, None)
    names = [
        "a-red-ball-seed1.mp4",
        "a-red-ball-seed1-2.mp4",
        "a-red-ball-seed2.mp4",
        "红球-seed1.mp4",
        "clip-seed0.mp4",
    ]
    assert [path.name for path in paths] == names
    paths[0].touch()
    assert output_paths(jobs[:1], tmp_path, None)[0].name == "a-red-ball-seed1-2.mp4"


def test_clip_names_are_short_whatever_the_prompt() -> None:
    assert len(clip_name("ж" * 1000, 2**63 - 1).encode()) < 200


@pytest.mark.parametrize(
    ("jobs", "out", "format", "said"),
    [
        (2, "clip.mp4", None, "2 clips cannot go into one file"),
        (1, "clip.mp4", "gif", "disagree"),
        (1, "clip.avi", None, "ends in .avi"),
    ],
)
def test_output_that_cannot_be_is_refused(jobs: int, out: str, format: str | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        output_paths([("a ball", seed) for seed in range(jobs)], Path(out), format)


def test_prompts_and_seeds_make_a_clip_each(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "prompts.txt").write_text("a blue ball\n")
    assert generate(model, "a red ball", "--prompts-file", "prompts.txt", "--seeds", "1", "2") == 0
    files = sorted((here / "outputs").glob("*.mp4"))
    assert [file.stem for file in files] == [f"a-{colour}-ball-seed{n}" for colour in ("blue", "red") for n in (1, 2)]
    said = capsys.readouterr()
    assert all(f"outputs/{file.name}" in said.out for file in files)
    assert "cpu, " in said.out and "2/2" in said.err
    info = probe(files[0])
    assert (info.num_frames, info.fps) == (8, 16)
    assert min(info.width, info.height) >= 256


def test_file_carries_everything_that_made_it(model: Path, here: Path) -> None:
    assert (
        generate(model, "a red ball", "--seed", "7", "--guidance", "2.5", "--dtype", "float32", "--out", "c.mp4") == 0
    )
    recipe = load_clip_recipe(here / "c.mp4")
    assert recipe == load_clip_recipe(here / "c.json")
    assert (recipe.prompt, recipe.seed, recipe.num_frames, recipe.num_inference_steps) == ("a red ball", 7, 8, 2)
    assert (recipe.guidance_scale, recipe.device, recipe.dtype, recipe.model) == (2.5, "cpu", "float32", str(model))
    assert {"unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"} <= set(recipe.model_files)
    assert {"lumiere", "torch", "diffusers", "python"} <= set(recipe.versions)


@pytest.mark.parametrize(("option", "kind"), [("mp4", ".mp4"), ("gif", ".gif"), ("webp", ".webp"), ("png", "")])
def test_each_format_plays_the_clip(model: Path, here: Path, option: str, kind: str) -> None:
    assert generate(model, "a ball", "--format", option, "--scale", "2") == 0
    path = here / "outputs" / f"a-ball-seed0{kind}"
    frames, _ = read_clip(path)
    assert len(frames) == 8
    assert load_clip_recipe(path).scale == 2


@pytest.mark.parametrize("source", ["first.webp", "first.json"])
def test_like_repeats_the_very_frames(model: Path, here: Path, source: str) -> None:
    assert generate(model, "a red ball", "--seed", "3", "--sampler", "euler-ancestral", "--out", "first.webp") == 0
    assert main(["generate", "--like", source, "--out", "again.webp"]) == 0
    first, again = read_clip(here / "first.webp")[0], read_clip(here / "again.webp")[0]
    np.testing.assert_array_equal(first, again)
    assert load_clip_recipe(here / "first.webp") == load_clip_recipe(here / "again.webp")


def test_clips_are_made_larger_unless_only_the_base_s_are_wanted(here: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.register_modules(super_resolution=SuperResolution.of(stage()))
    pipeline.save_pretrained(here / "both")
    sizes = {}
    for name, words in {"large": [], "small": ["--base-only"]}.items():
        assert generate(here / "both", "a red ball", "--scale", "1", "--out", f"{name}.webp", *words) == 0
        assert main(["generate", "--like", f"{name}.webp", "--out", f"{name}-again.webp"]) == 0
        first, again = (read_clip(here / f"{which}.webp")[0] for which in (name, f"{name}-again"))
        np.testing.assert_array_equal(first, again)
        sizes[name] = first.shape[1:3]
    assert sizes == {"large": (32, 32), "small": (16, 16)}
    assert load_clip_recipe(here / "large.webp").super_resolution
    assert not load_clip_recipe(here / "small.webp").super_resolution


def test_options_beside_like_replace_what_the_file_says(model: Path, here: Path) -> None:
    assert generate(model, "a red ball", "--seed", "3", "--out", "first.webp") == 0
    assert main(["generate", "--like", "first.webp", "--seed", "4", "--out", "other.webp"]) == 0
    recipe = load_clip_recipe(here / "other.webp")
    assert (recipe.seed, recipe.prompt, recipe.num_inference_steps) == (4, "a red ball", 2)
    assert not np.array_equal(read_clip(here / "first.webp")[0], read_clip(here / "other.webp")[0])


def made_by_model(here: Path, *options: str) -> tuple[np.ndarray, ClipRecipe]:
    """The frames and the recipe of here/clip.webp, made by the model in here/model."""
    path = here / "clip.webp"
    assert generate(here / "model", "a red ball", "--out", str(path), *options) == 0
    return read_clip(path)[0], load_clip_recipe(path)


def test_steps_are_shifted_as_the_model_or_the_option_says(here: Path) -> None:
    tiny_pipeline(timestep_shift=4.0).use_scheduler("euler").save_pretrained(here / "model")

    def frames_and_shift(*options: str) -> tuple[np.ndarray, float]:
        frames, recipe = made_by_model(here, *options)
        return frames, recipe.timestep_shift

    own, shift = frames_and_shift()
    assert shift == 4
    even, shift = frames_and_shift("--shift", "1")
    assert shift == 1 and not np.array_equal(own, even)
    # DDIM takes no timesteps of ours: it spreads them evenly, and the file says so.
    assert frames_and_shift("--sampler", "ddim")[1] == 1
    assert np.array_equal(frames_and_shift("--shift", "4", "--sampler", "euler")[0], own)


def test_the_first_frame_is_made_first_as_the_model_or_the_option_says(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forecasting(opening_frames=4).save_pretrained(here / "model")

    def frames_and_opening(*options: str) -> tuple[np.ndarray, int]:
        frames, recipe = made_by_model(here, *options)
        return frames, recipe.opening_frames

    own, frames = frames_and_opening()
    assert frames == 4
    at_once, frames = frames_and_opening("--opening-frames", "0")
    assert frames == 0 and not np.array_equal(own, at_once)
    (here / "clip.webp").rename(here / "at_once.webp")
    assert main(["generate", "--like", "at_once.webp", "--out", "again.webp"]) == 0
    assert np.array_equal(read_clip(here / "again.webp")[0], at_once)
    assert generate(here / "model", "a red ball", "--opening-frames", "3") == 2
    assert "3 opening_frames" in capsys.readouterr().err


def test_like_refuses_another_model_by_the_file_that_differs(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model, "a red ball", "--out", "first.webp") == 0
    other = here / "other"
    changed = tiny_pipeline()
    next(changed.unet.temporal_parameters()).data.add_(1)
    changed.save_pretrained(other)
    capsys.readouterr()
    assert main(["generate", "--like", "first.webp", "--model", str(other), "--out", "again.webp"]) == 2
    assert "unet/diffusion_pytorch_model.safetensors" in capsys.readouterr().err
    assert not (here / "again.webp").exists()


def test_like_says_what_differs_here(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(model, "a red ball", "--out", "first.mp4") == 0
    recipe = json.loads((here / "first.json").read_text())
    recipe["versions"]["torch"] = "1.0"
    (here / "old.json").write_text(json.dumps(recipe))
    assert main(["generate", "--like", "old.json", "--out", "again.mp4"]) == 0
    assert "note: the clip may differ in small ways: torch 1.0 there" in capsys.readouterr().err


def test_words_never_seen_are_said_in_a_note(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(model, "a zyzzyva", "--out", "c.gif") == 0
    assert "note: the model has never seen the word 'zyzzyva'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a ball", "--model", "nowhere"], "nowhere"),
        (["a ball", "--model", "."], "model_index.json"),
        (["a ball", "--device", "toaster"], "device is 'toaster'; this machine has"),
        (["a ball", "--dtype", "fp9"], "dtype is 'fp9'; known are"),
        (["a ball", "--out", "notes.txt/clip.mp4"], "notes.txt is not a folder"),
        (["a ball", "--out", "/proc/clip.mp4"], "/proc"),
        (["--like", "notes.txt"], "notes.txt"),
        (["--prompts-file", "absent.txt"], "absent.txt"),
        ([], "there is no prompt"),
    ],
)
def test_what_cannot_be_done_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (here / "notes.txt").write_text("nothing")
    assert said in refusal(capsys, "generate", *words)
    assert not list(here.rglob("*.mp4"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--frames", "7"], "7 frames"),
        (["--sampler", "eulr"], "did you mean 'euler'"),
        (["--steps", "0"], "num_inference_steps is 0"),
        (["--guidance", "nan"], "guidance_scale is nan"),
        (["--scale", "0"], "scale"),
        (["--guidance", "1", "--negative-prompt", "a ball"], "no effect"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["generate", "a ball", "--model", str(model), *words]) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert not list(here.rglob("*.mp4"))


def test_broken_weights_are_refused_and_nothing_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = tiny_pipeline()
    next(pipeline.unet.image_parameters()).data.fill_(float("nan"))
    pipeline.save_pretrained(here / "broken")
    assert main(["generate", "a ball", "--model", "broken"]) == 2
    assert "NaN" in capsys.readouterr().err
    assert not (here / "outputs").exists()


def test_train_names_the_nearest_setting(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "train", "text_to_image", "--loop.num_stepz", "3")
    assert "'num_stepz' in 'loop' (did you mean 'num_steps'?)" in said
    assert "did you mean 'text_to_image'" in refusal(capsys, "train", "text_to_imag")


def test_train_takes_its_own_switch_before_and_behind_settings() -> None:
    for words in (["--accept-changes", "--loop.num_steps", "3"], ["--loop.num_steps", "3", "--accept-changes"]):
        verb = parse(["train", "text_to_image", *words])
        assert isinstance(verb, Train) and verb.accept_changes and verb.overrides == ("--loop.num_steps", "3")
    verb = parse(["train", "text_to_image"])
    assert isinstance(verb, Train) and not verb.accept_changes


def test_evaluate_prints_the_scores_and_goes_on_where_it_was(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_pipeline(height=32, width=32).save_pretrained(here / "wide")
    words = ["evaluate", "stills", "--model", "wide", "--num-prompts", "2", "--steps", "1", "--device", "cpu"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("object", "colour", "background", "cpu, "))
    report = here / "outputs" / "evaluation-stills" / "report.json"
    assert str(report.relative_to(here)) in said
    first = json.loads(report.read_text())
    assert main(words) == 0
    assert json.loads(report.read_text())["clips"] == first["clips"]
    assert main([*words, "--guidance", "7"]) == 2
    assert "guidance" in capsys.readouterr().err


def test_evaluate_names_its_protocols(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "storybok"])
    assert stop.value.code == 2
    assert "storybook" in capsys.readouterr().err


def test_inflate_writes_a_network_that_loads_and_says_what_is_new(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = embedded()
    image.save_pretrained(here / "image")
    assert main(["inflate", "image", "video", "--kernel_frames", "5", "--halve_time", "[true, false]"]) == 0
    stunet = STUNet.from_pretrained(here / "video")
    assert stunet.settings.kernel_frames == 5 and stunet.temporal_factor == 2
    said = capsys.readouterr().out
    assert f"{sum(weight.numel() for weight in image.parameters()):,}" in said
    assert f"{sum(weight.numel() for weight in stunet.temporal_parameters()):,}" in said
    assert "a multiple of 2 frames" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "out"], "nowhere"),
        (["image", "image"], "image exists already"),
        (["image", "out", "--kernel_frame", "5"], "did you mean 'kernel_frames'"),
        (["image", "out", "--kernel_frames", "4"], "odd"),
        (["image", "/proc/out"], "/proc/out"),
    ],
)
def test_inflate_refuses_what_cannot_be(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    embedded().save_pretrained(here / "image")
    capsys.readouterr()
    assert main(["inflate", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (here / "out").exists()


def test_info_says_what_is_in_each_thing(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        assert main(["info", *words]) == 0
        return capsys.readouterr().out

    assert generate(model, "a red ball", "--out", "c.mp4") == 0
    capsys.readouterr()
    weights = tiny_pipeline().unet
    count = sum(weight.numel() for weight in weights.parameters())
    assert f"{count:,} parameters" in said(str(model))
    assert f"{count:,} parameters" in said(str(model / "unet"))
    assert f"{count:,} parameters" in said(str(model / "unet" / "diffusion_pytorch_model.safetensors"))
    assert "8 frames of 256x256, 16 a second" in said("c.mp4") and "a red ball" in said("c.mp4")
    assert "a red ball" in said("c.json")
    assert "num_steps: " in said("text_to_image")
    (here / "run" / "step-0000005").mkdir(parents=True)
    (here / "run" / "step-0000005" / "state.json").write_text('{"step": 5, "recipe": {"out": "run"}}')
    assert "step 5" in said("run") and "recipe.out" in said("run")
    assert "torch" in said() and "computes on" in said()


@pytest.mark.parametrize("name", ["absent.mp4", "empty.mp4", "empty.safetensors", "empty", "folder"])
def test_info_refuses_what_it_does_not_know(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (here / "folder").mkdir()
    for empty in ("empty.mp4", "empty.safetensors", "empty"):
        (here / empty).touch()
    assert name in refusal(capsys, "info", name)


def test_freed_memory_is_kept_where_the_c_library_can_and_nobody_said_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: what was freed is then still held, and comes back without a page fault each."""
    code = (
        "import resource, sys; from lumiere.cli.heap import keep_freed_memory\n"
        "was_done = keep_freed_memory() if sys.argv[1] == 'kept' else None\n"
        "def use(): block = bytearray(64 * 2**20); del block\n"
        "use(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(5): use()\n"
        "print(was_done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    for name in ("MMAP", "TRIM"):
        monkeypatch.delenv(f"MALLOC_{name}_THRESHOLD_", raising=False)

    def run(how: str) -> list[str]:
        asked = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True)
        return asked.stdout.split()

    was_done, faults = run("kept")
    if platform.libc_ver()[0] == "glibc":
        assert was_done == "True" and int(faults) < int(run("given_back")[1]) / 10
    else:
        assert was_done == "False"
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert run("kept")[0] == "False"
