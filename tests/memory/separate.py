"""Run a script of this folder in a process of its own and read the JSON lines that it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from forked import Forked

HERE = Path(__file__).parent


def printed_by(script: str, *arguments: str) -> list:
    """Return what each line that `script` printed holds; its last words where it failed."""
    process = Forked([sys.executable, HERE / script, *arguments], HERE, apart=True)
    output, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    return [json.loads(line) for line in output.splitlines()]


def chosen(request: pytest.FixtureRequest, *names: str) -> list[tuple]:
    """Return the parameters `names` of those tests of a module that will run and have them."""
    calls = [
        item.callspec.params
        for item in request.session.items
        if hasattr(item, "callspec") and item.path == request.path
    ]
    return sorted({tuple(params[name] for name in names) for params in calls if set(names) <= set(params)})
