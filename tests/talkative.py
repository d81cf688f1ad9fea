"""Libraries that say something in the middle of a command; imports nothing heavy."""

from __future__ import annotations

import io
import logging
import warnings
from itertools import count

import pytest
from rich.console import Console

_number = count()


def speak() -> None:
    """Say a line in every way in which a library does."""
    logging.getLogger("liger_kernel.backends.registry").warning("FOREIGN bare logger")
    logging.getLogger("early").warning("FOREIGN early handler")
    late = logging.getLogger(f"late{next(_number)}")  # a library that is imported in the middle of a command
    late.addHandler(logging.StreamHandler())
    late.propagate = False
    late.warning("FOREIGN late handler")
    warnings.warn_explicit("FOREIGN warning", UserWarning, "x.py", next(_number))  # else said once a place
    warnings.warn_explicit("FOREIGN renamed method", FutureWarning, "x.py", next(_number))


def talkative(patch: pytest.MonkeyPatch) -> io.StringIO:
    """Let other libraries speak whenever a command prints; returns what an early one wrote by itself."""
    heard, own = io.StringIO(), Console.print
    early = logging.getLogger("early")
    patch.setattr(early, "handlers", [logging.StreamHandler(heard)])
    patch.setattr(early, "propagate", False)

    def both(self: Console, *args: object, **kwargs: object) -> None:
        speak()
        own(self, *args, **kwargs)

    patch.setattr(Console, "print", both)
    return heard
