"""Imports only point down the ladder of DESIGN.md, and what must stay out of the project stays out."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lumiere"


def ladder() -> list[set[str]]:
    """The rows of the ladder in DESIGN.md, top row first.

    A module may import from lower rows and from its own folder, and from nowhere else.
    """
    text = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
    rows = text.split("a test holds it:\n\n```\n")[1].split("```")[0]
    return [set(row.split()) for row in rows.splitlines()]


LADDER = ladder()

NOT_CODE = {"recipes", "weights"}
"""Folders of package data: nothing may be imported from them, and they import nothing."""

BELOW_ALL = {"__version__"}
"""Names of the package itself that every module may use; its other public names live on the ladder."""

FORBIDDEN = {
    "torchvision": "its wheel breaks with a CPU torch, and then breaks transformers' CLIP",
    "timm": "needs torchvision",
    "open_clip": "needs torchvision",
    "lpips": "needs torchvision",
    "cleanfid": "needs torchvision",
    "torch_fidelity": "needs torchvision",
    "pickle": "checkpoints are safetensors, never pickles",
    "decord": "unmaintained",
}

ONLY_IMPORTER = {"av": "media"}
"""Libraries that one module of the ladder owns."""

Import = tuple[str, str | None]
"""(module, name taken from it or None)."""


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports_of(tree: ast.AST, *, module: str = "lumiere.x") -> Iterator[Import]:
    """Every import anywhere in a file, also inside functions and under TYPE_CHECKING; relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.rsplit(".", node.level)[0] + "." if node.level else ""
            yield from (((base + (node.module or "")).rstrip("."), alias.name) for alias in node.names)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts)


def place_of(imported: Import) -> str | None:
    """The first name below ``lumiere`` that an import reaches; None when it reaches outside or for a name for all."""
    module, name = imported
    top, *rest = module.split(".")
    if top != "lumiere":
        return None
    if rest:
        return rest[0]
    return None if name in BELOW_ALL or name is None else name


def row_of(place: str) -> int:
    """The row a module or folder stands on; 0 is the top."""
    rows = [index for index, row in enumerate(LADDER) if place in row]
    assert rows, f"lumiere.{place} stands on no row of the ladder: add it to DESIGN.md"
    return rows[0]


def breaks_of(place: str, tree: ast.AST, *, module: str) -> list[str]:
    """Each import of a file that does not point down."""
    targets = {target for imported in imports_of(tree, module=module) if (target := place_of(imported))}
    return [f"{module} imports {target}" for target in sorted(targets - {place}) if row_of(target) <= row_of(place)]


def test_the_ladder_of_the_design_is_read_whole() -> None:
    assert "cli" in LADDER[1] and LADDER[-1] >= {"config", "video"} and len(LADDER) >= 10
    assert sum(map(len, LADDER)) == len(set().union(*LADDER)), "a module stands on one row"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_the_ladder(path: Path) -> None:
    place = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if place == "__init__" or place in NOT_CODE:
        return
    assert not breaks_of(place, tree, module=module_of(path))


@pytest.mark.parametrize(
    ("place", "code", "is_broken"),
    [
        ("model", "from lumiere.diffusion.objective import Objective", True),
        ("model", "from lumiere.conditioning import text", True),
        ("model", "from ..conditioning.text import TextStates", True),
        ("codec", "def f():\n    from lumiere import media", True),
        ("video", "from lumiere import STUNet as config", True),
        ("training", "import lumiere.cli", True),
        ("model", "from lumiere.model.temporal import Positions\nfrom .temporal import Positions", False),
        ("cli", "import lumiere.training.loop\nfrom lumiere import __version__", False),
        ("pipeline", "from lumiere.model.stunet import STUNet\nimport torch", False),
    ],
)
def test_the_ladder_test_sees_what_breaks_it(place: str, code: str, is_broken: bool) -> None:
    try:
        broken = bool(breaks_of(place, ast.parse(code), module=f"lumiere.{place}.x"))
    except AssertionError:
        broken = True  # a name that is on no row
    assert broken == is_broken


def test_diffusion_never_sees_the_network() -> None:
    for path in (PACKAGE / "diffusion").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert "model" not in {place_of(found) for found in imports_of(tree, module=module_of(path))}, path


def test_only_the_evaluation_protocols_know_the_pipeline() -> None:
    names = ("protocols.py", "edit_protocol.py", "super_resolution_protocol.py")
    protocols = {PACKAGE / "evaluation" / name for name in names}
    for path in set((PACKAGE / "evaluation").rglob("*.py")) - protocols:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert "pipeline" not in {place_of(found) for found in imports_of(tree, module=module_of(path))}, path


def test_package_data_holds_no_code() -> None:
    code = [path for folder in NOT_CODE for path in (PACKAGE / folder).rglob("*.py")]
    assert all(not list(imports_of(ast.parse(path.read_text()))) for path in code), code


def test_nothing_forbidden_is_imported() -> None:
    files = [
        path for folder in ("lumiere", "tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
    ]
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in files
        for name in (module.split(".")[0] for module, _ in imports_of(ast.parse(path.read_text(encoding="utf-8"))))
        if name in FORBIDDEN
    }
    assert not found, "; ".join(f"{path} imports {name}: {FORBIDDEN[name]}" for path, name in sorted(found))


@pytest.mark.parametrize(("library", "owner"), ONLY_IMPORTER.items())
def test_one_module_owns_the_library(library: str, owner: str) -> None:
    importers = {
        path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for path in sources()
        if any(module.split(".")[0] == library for module, _ in imports_of(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert importers <= {owner}


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Extras too, but those of developers: what an extra is for, is imported where it is asked for.
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    names = {re.split(r"[^\w-]", line)[0].lower() for line in [*project["dependencies"], *extras]}
    import_names = {
        "pyyaml": "yaml",
        "pillow": "PIL",
        "protobuf": "google",
        "scenedetect-headless": "scenedetect",
    }
    declared = {import_names.get(name, name) for name in names} | {"lumiere"} | set(sys.stdlib_module_names)
    used = {
        module.split(".")[0]
        for path in sources()
        for module, _ in imports_of(ast.parse(path.read_text(encoding="utf-8")), module=module_of(path))
    }
    assert used <= declared, f"imported but not in pyproject.toml: {sorted(used - declared)}"


def test_the_model_reads_no_text_and_no_schedule() -> None:
    strangers = {"transformers", "tokenizers", "yaml", "rich", "tyro", "diffusers.schedulers"}
    for path in (PACKAGE / "model").rglob("*.py"):
        modules = {module for module, _ in imports_of(ast.parse(path.read_text(encoding="utf-8")))}
        assert not {m for m in modules for s in strangers if m == s or m.startswith(f"{s}.")}, path


def test_no_pickled_weights_are_kept() -> None:
    pickles = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
    folders = ("lumiere", "tests", "benchmarks", "examples", "docs")
    assert not [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in pickles]
