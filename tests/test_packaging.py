"""The shape of the house: links, arrows, what an import costs, and how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flextensor

ROOT = Path(__file__).resolve().parents[1]
BELOW = {
    "operators": {"errors"},
    "targets": {"errors"},
    "schedulers": {"operators", "targets", "errors"},
    "cost_models": {"schedulers", "operators", "targets", "errors"},
}
"""What each family may import of flextensor, beside itself."""
HEAVY = ("tvm", "torch", "xgboost", "matplotlib")
LONGEST = 400


FOLDERS = (*BELOW, "flextensor", "tests")
FILES = sorted({path.resolve() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")})


def floors(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, part of flextensor) of every import, wherever it stands; dots for relative ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = ["." * node.level]
        elif isinstance(node, ast.ImportFrom) and node.module == "flextensor":
            names = [f"flextensor.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]  # flextensor.tune after import flextensor
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "flextensor" and rest and not rest.startswith("__"):
                yield node.lineno, rest.partition(".")[0]
            elif not package:
                yield node.lineno, name
            elif package in BELOW and not isinstance(node, ast.Attribute):
                yield node.lineno, f"bare {package}"


@pytest.mark.parametrize("family", BELOW)
def test_the_package_links_to_its_families(family: str) -> None:
    link = ROOT / "flextensor" / family
    assert link.is_symlink(), f"{link} must be a link; is core.symlinks off?"
    assert str(link.readlink()) == f"../{family}"
    assert link.is_dir()


@pytest.mark.parametrize("family", BELOW)
def test_arrows_point_down(family: str) -> None:
    allowed = {family} | BELOW[family]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {part}"
        for path in (ROOT / family).rglob("*.py")
        for line, part in floors(ast.parse(path.read_text()))
        if part not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_are_absolute_and_files_are_short(path: Path) -> None:
    text = path.read_text()
    parts = {part for _, part in floors(ast.parse(text))}
    assert not [part for part in parts if part.startswith((".", "bare"))]
    assert len(text.splitlines()) <= LONGEST


@pytest.mark.parametrize(
    "source, found",
    [
        ("import flextensor.tuner", ["tuner"]),
        ("from flextensor import tuner, targets", ["tuner", "targets"]),
        ("from flextensor.targets.base import Trial", ["targets"]),
        ("def f():\n    import flextensor\n    flextensor.tune()", ["tune"]),
        ("import flextensor\nflextensor.__file__", []),
        ("from .base import Target", ["."]),
        ("import operators", ["bare operators"]),
        ("import os.path, tvm", []),
    ],
)
def test_the_arrow_finder_finds_arrows(source: str, found: list[str]) -> None:
    assert [part for _, part in floors(ast.parse(source))] == found


@pytest.mark.parametrize("module", ["flextensor", *(f"flextensor.{family}" for family in BELOW)])
def test_importing_costs_nothing(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY})))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_public_names_are_listed() -> None:
    assert flextensor.__all__ == sorted(flextensor.__all__)
    assert set(flextensor.__all__) == set(flextensor._HOME)
    for name, home in flextensor._HOME.items():
        value = getattr(flextensor, name)
        assert value.__module__.startswith(home), name
        assert name in dir(flextensor)
    with pytest.raises(AttributeError, match="no attribute 'tuna'"):
        flextensor.tuna  # noqa: B018 - the lookup is the test


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse((ROOT / "flextensor" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {a.name for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == set(flextensor.__all__)
