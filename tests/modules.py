"""The package's modules by name."""

from __future__ import annotations

from pathlib import Path

import basic_lite

PACKAGE = Path(basic_lite.__file__).parent
ROOT = PACKAGE.parent


def modules() -> dict[str, Path]:
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    homes = [PACKAGE if path.is_relative_to(PACKAGE) else ROOT for path in paths]
    names = [
        ".".join(path.relative_to(home).with_suffix("").parts)
        for path, home in zip(paths, homes, strict=True)
    ]
    return {
        name.removesuffix(".__init__"): path
        for name, path in zip(names, paths, strict=True)
        if name != "__init__"
    }
