"""A module imports only from its own layer or below, and the light ones import nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import basic_lite

PACKAGE = Path(basic_lite.__file__).parent
ROOT = PACKAGE.parent

LAYERS = [
    {"types", "console", "startup", "writing", "loggers"},
    {"layout", "losses", "row_kernel", "products", "attention", "scoring"}
    | {"conversation", "encoder", "templates"},
    {"benchmarks", "targets", "readings", "capture", "objective", "zoo", "data", "published", "results"}
    | {"run_folder"},
    {
        "supervision",
        "text_states",
        "translation",
        "interventions",
        "plan",
        "deferred",
        "last_layer",
        "fused",
        "tower",
        "placeholders",
        "projector",
        "consistency",
        "modeling",
        "decoder",
        "quantised",
        "prompting",
        "synthetic",
        "memory",
        "adapter_dropout",
        "trainable",
        "checkpoint",
        "sharding",
    },
    {
        "analysis",
        "trainer",
        "saving",
        "forward",
        "splitting",
        "optimizers",
        "metrics",
        "callbacks",
        "children",
        "progress",
        "finite",
        "doctor",
        "processes",
        "preflight",
        "settings",
        "fitting",
        "launch",
        "teacher",
        "premise",
        "devices",
        "starting",
        "bench",
        "bench_sds",
        "bench_baselines",
        "bench_goals",
        "bench_runs",
        "bench_start",
        "evaluate",
        "measure",
        "demo",
        "ablation",
        "export",
        "chat",
        "chat_page",
    },
    {"recipes"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    found = {}
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        home = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
        found[".".join(path.relative_to(home).with_suffix("").parts)] = path
    return found


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    typing_only = {
        child
        for node in nodes
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    if top_level_only:
        nodes = tree.body
    names: set[str] = set()
    for node in nodes:
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(name: str) -> str | None:
    """Return the layer's name of a dotted import of the package."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "basic_lite" and len(pieces) > 1 and pieces[1] in RANK else None


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_downward(module):
    own = module.split(".")[0]
    if own == "__init__":  # the package's face imports on demand
        return
    assert own in RANK, f"{module} belongs to no layer: add it to LAYERS, or to a layer that exists"
    for name in imports(modules()[module]):
        other = part(name)
        if other is not None and other != own:
            assert RANK[other] <= RANK[own], f"{module} imports {name} from a higher layer"


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("losses", {"transformers"}),
        ("objective", {"transformers"}),
        ("conversation", {"torch", "transformers"}),
        ("types", {"torch", "transformers"}),
        *((name, {"torch", "transformers"}) for name in sorted(modules()) if name.startswith("scoring")),
    ],
)
def test_the_maths_does_not_import_the_framework(module, forbidden):
    roots = {name.split(".")[0] for name in imports(modules()[module])}
    assert not roots & forbidden


@pytest.mark.parametrize(
    "module",
    ["basic_lite"]
    + [f"basic_lite.{name}" for name in "cli scoring benchmarks measure run_folder console".split()],
)
def test_light_modules_import_nothing_heavy(module):
    heavy = "torch transformers datasets peft bitsandbytes matplotlib".split()
    code = f"import sys, {module}; sys.exit(' '.join(m for m in {heavy} if m in sys.modules) or 0)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_there_is_no_module_without_a_meaning():
    vague = {"utils", "util", "helpers", "misc", "common"}
    assert not [name for name in modules() if set(name.split(".")) & vague]


def test_the_top_level_is_the_design_cards():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    allowed = set(
        "basic_lite recipes tests pyproject.toml README.md CONTRIBUTING.md LICENSE .ci .gitignore".split()
    )
    assert {line.split("/")[0] for line in tracked.stdout.splitlines()} <= allowed
