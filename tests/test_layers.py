"""Packages have one order, no circle lies inside one, and the light modules import nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from modules import PACKAGE, ROOT, modules

ORDER = (
    "console files pages data models method export memory training evaluation "
    "analysis experiments bench chat recipes cli __main__"
).split()
"""A part imports only itself and parts before it: the core never imports analysis, experiments or bench."""


MODULES = modules()


def imports(module: str) -> set[str]:
    """Return what a module imports, anywhere in it, with the package's own modules by their short names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("basic_lite.") for name in names}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_part_imports_only_parts_before_it(module):
    own = module.split(".")[0]
    others = {name.split(".")[0] for name in imports(module) & MODULES.keys()}
    assert own in ORDER, f"{module} belongs to no part of {ORDER}"
    assert not [part for part in others if ORDER.index(part) > ORDER.index(own)]


def test_modules_import_one_another_in_no_circle():
    graph = {name: (imports(name) & MODULES.keys()) - {name} for name in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_at_most_six_modules_stand_beside_the_packages():
    assert len([name for name in MODULES if "." not in name and not (PACKAGE / name).is_dir()]) <= 6 + 1


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("method.losses", {"transformers"}),
        ("method.objective", {"transformers"}),
        ("data.conversation", {"torch", "transformers"}),
        ("method.types", {"transformers"}),
        *(
            (name, {"torch", "transformers"})
            for name in sorted(MODULES)
            if name.startswith("evaluation.tasks") or name in ("evaluation.statistics", "evaluation.choices")
        ),
    ],
)
def test_the_maths_does_not_import_the_framework(module, forbidden):
    assert not {name.split(".")[0] for name in imports(module)} & forbidden


@pytest.mark.parametrize(
    "module",
    ["basic_lite"] + [f"basic_lite.{name}" for name in "cli evaluation.table evaluation.run files".split()],
)
def test_light_modules_import_nothing_heavy(module):
    heavy = "torch transformers datasets peft bitsandbytes matplotlib pandas".split()
    code = f"import sys, {module}; sys.exit(' '.join(m for m in {heavy} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_there_is_no_module_without_a_meaning():
    vague = {"utils", "util", "helpers", "misc", "common"}
    assert not [name for name in MODULES if set(name.split(".")) & vague]


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_no_test_module_is_imported(path):
    """What several tests use is a fixture of a `conftest.py` or stands in a module of its own."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(alias.name for alias in node.names)}
    tests = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert not {part for name in names for part in name.split(".")} & tests


def test_the_top_level_is_the_design_cards():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    allowed = set(
        "basic_lite recipes tests pyproject.toml README.md CONTRIBUTING.md LICENSE .ci .gitignore".split()
    )
    assert {line.split("/")[0] for line in tracked.stdout.splitlines()} <= allowed
