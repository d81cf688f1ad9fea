"""Look inside a language model or a run: `basic-lite analyze`."""

from __future__ import annotations

import typer
from basic_lite.recipes import analyze_premise, analyze_tokens

app = typer.Typer(help="Look inside a language model or a run.", no_args_is_help=True)


@app.callback()
def _analyze() -> None:
    """Look inside a language model or a run."""


app.command("premise")(analyze_premise.main)
app.command("tokens")(analyze_tokens.tokens)
