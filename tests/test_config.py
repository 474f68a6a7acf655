"""Settings are strict, and a refusal names the key, what was given and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumiere.config import Settings, did_you_mean, find_recipe, load_settings, parse_overrides, shipped_recipes, to_yaml


class Optimizer(Settings):
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    kind: Literal["adam", "sgd"] = "adam"


class Run(Settings):
    steps: int
    name: str = "run"
    folder: Path | None = None
    optimizer: Optimizer = Optimizer()
    shares: dict[str, float] = {}
    average: Optimizer | None = None
    parts: tuple[Optimizer, ...] = ()

    @pydantic.model_validator(mode="after")
    def _steps_are_positive(self) -> Run:
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}; it must be 0 or more")
        return self


def refusal(source: object, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        load_settings(Run, source, overrides)  # type: ignore[arg-type]
    return str(caught.value)


def test_file_and_overrides_meet_in_one_model(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 10\noptimizer:\n  learning_rate: 1e-4\n  betas: [0.5, 0.6]\nfolder: /data\n")
    settings = load_settings(Run, path, ["--optimizer.kind", "sgd", "--steps=20", "shares.small=1", "--name", "7"])
    assert settings == Run(
        steps=20,
        name="7",
        folder=Path("/data"),
        optimizer=Optimizer(learning_rate=1e-4, betas=(0.5, 0.6), kind="sgd"),
        shares={"small": 1.0},
    )


def test_overrides_leave_the_source_as_it_was() -> None:
    source = {"steps": 1, "optimizer": {"kind": "adam"}}
    load_settings(Run, source, ["optimizer.kind=sgd"])
    assert source == {"steps": 1, "optimizer": {"kind": "adam"}}


def test_override_opens_a_model_that_was_off() -> None:
    assert load_settings(Run, {"steps": 1, "average": None}, ["--average.kind", "sgd"]).average == Optimizer(kind="sgd")


@given(
    steps=st.integers(0, 10**9),
    name=st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"))),
    rate=st.floats(allow_nan=False),
    shares=st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.floats(0, 1)),
)
def test_yaml_round_trips(
    tmp_path_factory: pytest.TempPathFactory, steps: int, name: str, rate: float, shares: dict[str, float]
) -> None:
    settings = Run(steps=steps, name=name, optimizer=Optimizer(learning_rate=rate), shares=shares)
    path = tmp_path_factory.mktemp("settings") / "run.yaml"
    path.write_text(to_yaml(settings), encoding="utf-8")
    assert load_settings(Run, path) == settings


@pytest.mark.parametrize("word", ["on", "no", "yes", "1e3", "12", "null", "true", "2024-01-01", "a: b", "[", ""])
def test_text_settings_take_any_text_from_the_command_line(word: str) -> None:
    assert load_settings(Run, {"steps": 1}, ["--name", word]).name == word


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("1E5", 1e5), ("-.5", -0.5), ("3", 3.0), (".inf", float("inf"))]
)
def test_numbers_are_read_as_people_write_them(text: str, value: float) -> None:
    assert load_settings(Run, {"steps": 1}, ["--optimizer.learning-rate", text]).optimizer.learning_rate == value


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"steps": 1, "nane": "x"}, "unknown setting 'nane' (did you mean 'name'?); known are: average, folder, name,"),
        (
            {"steps": 1, "optimizer": {"learning_rat": 1}},
            "'learning_rat' in 'optimizer' (did you mean 'learning_rate'?)",
        ),
        ({"steps": 1, "average": {"kin": 1}}, "unknown setting 'kin' in 'average' (did you mean 'kind'?)"),
        ({"steps": 1, "parts": [{}, {"kin": 1}]}, "unknown setting 'kin' in 'parts.1' (did you mean 'kind'?)"),
        ({"steps": 1, "zzz": 1}, "unknown setting 'zzz'; known are:"),
        ({}, "the setting 'steps' is missing and has no default"),
        ({"steps": "3"}, "'steps' is '3': input should be a valid integer"),
        ({"steps": True}, "'steps' is True: input should be a valid integer"),
        ({"steps": 1.5}, "'steps' is 1.5: input should be a valid integer"),
        (
            {"steps": 1, "optimizer": {"kind": "adagrad"}},
            "'optimizer.kind' is 'adagrad': input should be 'adam' or 'sgd'",
        ),
        ({"steps": -1}, "steps is -1; it must be 0 or more"),
    ],
)
def test_refusal_is_one_line_with_key_given_and_allowed(source: dict[str, object], said: str) -> None:
    message = refusal(source)
    assert said in message
    assert "\n" not in message and "pydantic" not in message


def test_every_problem_is_named_at_once() -> None:
    message = refusal({"nane": "x", "optimizer": {"kind": 3}})
    assert all(said in message for said in ("'nane'", "'optimizer.kind'", "'steps' is missing"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [1", "not YAML"),
        ("- 1\n- 2", "holds a list; settings are 'key: value' lines"),
        ("steps: 1\nsteps: 2", "the key 'steps' stands twice"),
        ("steps: '1'", "'steps' is '1': input should be a valid integer"),
    ],
)
def test_bad_file_is_refused_by_its_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    message = refusal(path)
    assert said in message and message.startswith(str(path))


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"\x00\xff\xfe\x80")
    assert "cannot be read as a settings file" in refusal(tmp_path / "clip.mp4")
    assert "cannot be read as a settings file" in refusal(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps"], "--steps has no value"),
        (["--steps", "--name", "x"], "--steps has no value"),
        (["steps"], "'steps' is no setting"),
        (["--name.first", "x"], "'name' is"),
        (["--stepz", "1"], "did you mean 'steps'"),
    ],
)
def test_bad_override_is_refused(words: list[str], said: str) -> None:
    assert said in refusal({"steps": 1}, *words)


def test_override_inside_a_plain_value_is_refused() -> None:
    assert "has no settings inside" in refusal({"steps": 1, "name": "x"}, "--name.first", "y")


def test_overrides_are_read_in_each_way_of_writing() -> None:
    words = ["--a-b.c", "-5", "--d=e=f", "g.h=", "--i j k"]
    assert parse_overrides(words) == [("a_b.c", "-5"), ("d", "e=f"), ("g.h", ""), ("i", "j k")]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(pydantic.ValidationError):
        Run(steps=1).steps = 2  # type: ignore[misc]


def test_recipe_is_found_by_path_and_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 1\n")
    assert find_recipe(path) == path
    for name in shipped_recipes():
        assert find_recipe(name).read_text() == find_recipe(f"{name}.yaml").read_text()


def test_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(ValueError, match="no recipe 'text_to_vidio'") as caught:
        find_recipe("text_to_vidio")
    assert all(name in str(caught.value) for name in shipped_recipes())


def test_nearest_name_is_offered_only_when_near() -> None:
    assert did_you_mean("stepz", ["steps", "name"]) == " (did you mean 'steps'?)"
    assert did_you_mean("qqqq", ["steps", "name"]) == ""
