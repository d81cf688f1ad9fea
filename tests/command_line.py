"""A command as a user types it, in this process."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from basic_lite.cli import main


@dataclass
class Done:
    stdout: str
    stderr: str


def run(*arguments: object, cwd: Path, expect: int = 0) -> Done:
    """Run a command in this process (starting Python and its imports anew costs seconds each time)."""
    output, errors, old = io.StringIO(), io.StringIO(), Path.cwd()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    os.chdir(cwd)
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            patch.setattr(sys, "argv", ["basic-lite", *map(str, arguments)])
            patch.setenv("COLUMNS", "100")
            with pytest.raises(SystemExit) as left:
                main()
    finally:
        os.chdir(old)
    assert (left.value.code or 0) == expect, output.getvalue() + errors.getvalue()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return Done(output.getvalue(), errors.getvalue())
