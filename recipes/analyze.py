"""Look inside a language model or a run: `basic-lite analyze`."""

from __future__ import annotations

import typer
from basic_lite.recipes import analyze_tokens

app = typer.Typer(help="Look inside a language model or a run.", no_args_is_help=True)
app.command("tokens")(analyze_tokens.tokens)


@app.callback()
def _analyze() -> None:
    """Look inside a language model or a run."""
