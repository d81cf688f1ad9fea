"""What tests of experiments share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import Forked

from basic_lite.experiments import processes


@pytest.fixture
def forked_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs start in half a second; `test_a_plan_from_end_to_end` starts them as a user does, in five."""

    def start(command: list[str], *, env: dict[str, str], **_: object) -> Forked:
        return Forked(command, Path.cwd(), env)

    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(Popen=start))
