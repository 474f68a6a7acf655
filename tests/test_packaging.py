"""The wheel holds everything a clip needs, and works from another folder; the environment is described exactly."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "lumiere" / "weights" / "base"


def run(*words: str | Path, cwd: Path, path: Path | None = None) -> str:
    """The output of a command that must succeed, run as a user would who never saw this checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the checkout stays as it is."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "lumiere", source / "lumiere", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", out, source, cwd=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed into; its dependencies are those of the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--quiet", "--target", folder, wheel, cwd=folder)
    return folder


def test_wheel_holds_every_file_of_the_package_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    files = [path for path in (ROOT / "lumiere").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in files} <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert not [name for name in held if name.startswith("tests/")]


def test_installed_command_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    where = run(sys.executable, "-c", "import lumiere; print(lumiere.__file__)", cwd=tmp_path, path=installed)
    assert Path(where.strip()).is_relative_to(installed)
    script = installed / "bin" / "lumiere"
    assert "generate" in run(script, "--help", cwd=tmp_path, path=installed)
    assert str(installed) in run(script, "info", "text_to_image", cwd=tmp_path, path=installed)


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the embedded weights are not in this checkout")
def test_installed_command_makes_a_clip_from_another_folder(installed: Path, tmp_path: Path) -> None:
    from lumiere.media import probe

    command = (
        installed / "bin" / "lumiere",
        "generate",
        "a red ball bouncing on a beach",
        "--steps",
        "2",
        "--frames",
        "8",
    )
    said = run(*command, "--out", "clip.mp4", cwd=tmp_path, path=installed)
    assert "wrote clip.mp4" in said
    info = probe(tmp_path / "clip.mp4")
    assert (info.num_frames, info.fps) == (8, 16)


def test_constraints_pin_what_the_tests_run_with() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines[0].startswith("torch=="), "torch is installed first"
    pins = dict(line.split("==") for line in lines)
    assert pins["torch"] in (ROOT / "Makefile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[^\w.-]", line)[0].lower() for line in declared}
    assert names <= set(pins), f"without an exact version: {sorted(names - set(pins))}"


def test_installed_versions_satisfy_what_is_declared() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        requirement = Requirement(line)
        found = metadata.version(requirement.name)
        assert requirement.specifier.contains(found), f"{line}, but {found} is installed"


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("target", ["demo", "test", "check", "venv"])
def test_make_knows_the_target_and_builds_the_environment_first(target: str, tmp_path: Path) -> None:
    if not shutil.which("make"):
        pytest.skip("this machine has no make")
    said = run("make", "--dry-run", target, f"VENV={tmp_path / 'venv'}", cwd=ROOT)
    torch_at, package_at = said.find("torch=="), said.find("-e .")
    assert 0 < torch_at < package_at, "torch is installed before everything else"


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^make test$", script.read_text(), re.MULTILINE)
    run("bash", "-n", script, cwd=ROOT)
