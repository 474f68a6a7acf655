"""What the README says can be done: its commands exist and work, its links lead somewhere, its code runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lumiere.cli import parse
from lumiere.cli.train import Train
from lumiere.config import find_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WEIGHTS = ROOT / "lumiere" / "weights" / "base"

KNOWN_TOOLS = {"make", "lumiere", "python", "python3", "pip", "git", "cd"}
FEW = {"--steps": "2", "--frames": "8"}
"""What makes a clip of the README in a moment."""


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The words of every command in the README's shell blocks, in order."""
    lines = "\n".join(blocks("bash") + blocks("sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def commands_of(tool: str) -> list[list[str]]:
    return [words for words in commands() if words[0] == tool]


def links() -> list[str]:
    """Every target of a link or picture that lies in the project."""
    found = re.findall(r"\]\(([^)\s]+)", README) + re.findall(r"(?:src|href)=\"([^\"]+)\"", README)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def quickly(words: list[str]) -> list[str]:
    """A `generate` command with few steps and frames."""
    kept = list(words)
    for option in FEW:
        if option in kept:
            at = kept.index(option)
            del kept[at : at + 2]
    return [*kept, *(word for pair in FEW.items() for word in pair)]


def test_it_opens_with_the_two_commands() -> None:
    assert [words[:2] for words in commands()[:2]] == [["make", "demo"], ["make", "test"]]


def test_every_command_is_of_a_tool_that_is_there() -> None:
    assert {words[0] for words in commands()} <= KNOWN_TOOLS


@pytest.mark.parametrize("words", commands_of("make"), ids=" ".join)
def test_make_targets_exist(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words[1:]:
        name, is_setting, _ = word.partition("=")
        pattern = rf"^{name} \?=" if is_setting else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile does not know {name}"


@pytest.mark.parametrize("words", commands_of("lumiere"), ids=" ".join)
def test_lumiere_commands_have_options_that_exist(words: list[str]) -> None:
    if words[1:] in (["--help"], ["--version"]):
        return
    verb = parse(words[1:])
    if isinstance(verb, Train):
        assert find_recipe(verb.recipe).is_file()


@pytest.mark.parametrize("words", commands_of("python") + commands_of("python3"), ids=" ".join)
def test_scripts_that_are_named_exist(words: list[str]) -> None:
    if words[1] != "-m":
        assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize("link", sorted(set(links())))
def test_links_lead_somewhere(link: str) -> None:
    path, _, fragment = link.partition("#")
    assert not path or (ROOT / path).exists(), f"{path} does not exist"
    if fragment and path in ("", "README.md"):
        titles = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert fragment in anchors, f"no section #{fragment}"


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the embedded weights are not in this checkout")
def test_generate_and_info_commands_work_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lumiere.cli import main

    monkeypatch.chdir(tmp_path)
    for words in commands_of("lumiere"):
        if words[1] in ("generate", "info"):
            assert main(quickly(words[1:]) if words[1] == "generate" else words[1:]) == 0, words


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the embedded weights are not in this checkout")
def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
