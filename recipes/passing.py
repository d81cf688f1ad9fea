"""Options of one command that another passes on to it."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Sequence

import typer

OWN = ("out", "seed", "resume", "overwrite", "dry_run", "start")
"""What the command that passes options on decides itself."""


def given_to(recipe: Callable, words: Sequence[str] | str) -> dict[str, object]:
    """Parse words as a recipe's own command line would, and return what they set, by parameter.

    Raises:
        ValueError: If the recipe does not know an option, or may not be given it here.
    """
    words = shlex.split(words) if isinstance(words, str) else list(words)
    name = recipe.__module__.rsplit(".", 1)[-1]
    app = typer.Typer(add_completion=False)
    app.command()(recipe)
    try:
        context = typer.main.get_command(app).make_context(name, words)
    except Exception as error:  # click's own class, which newer typer carries along under another name
        if not hasattr(error, "format_message"):
            raise
        raise ValueError(f"{name}: {error.format_message()}") from error
    given = {
        key: value
        for key, value in context.params.items()
        if context.get_parameter_source(key).name == "COMMANDLINE"
    }
    if taken := set(given) & set(OWN):
        raise ValueError(f"--{min(taken).replace('_', '-')} cannot be passed on to {name}; see --help")
    return given


def defaults_of(recipe: Callable) -> dict[str, object]:
    """Return a recipe's defaults by parameter."""
    return {name: parameter.default for name, parameter in inspect.signature(recipe).parameters.items()}
