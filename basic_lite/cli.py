"""`basic-lite`: mounts the recipes, and turns a user's mistake into one line and exit code 2.

Nothing heavy is imported until a command runs, so `basic-lite --help` answers at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from basic_lite import __version__, console
from basic_lite.method.types import Diverged, Unmoved
from basic_lite.recipes import (  # pyright: ignore[reportMissingImports] (setuptools maps them)
    ablate,
    analyze,
    bench,
    chat,
    compare,
    data,
    demo,
    doctor,
    export,
    models,
    plan,
    report,
    results,
    stage1,
    stage2,
    start,
)
from basic_lite.recipes import eval as evaluation  # pyright: ignore[reportMissingImports]


class _Interruptible(TyperGroup):
    """Says so when a command is cut off; Typer alone exits with 130 and without a word."""

    def invoke(self, ctx: typer.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if console.rank_and_count()[0] == 0:
                print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Interruptible,
    name="basic-lite",
    help="Train your own vision-language model on one graphics card, supervised by the LLM itself (BASIC).",
    epilog="Three commands run the whole method: stage1 --model gemma-2b, stage2 --lora, eval mmbench. "
    "To see it work without a GPU or a download: demo.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"basic-lite {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print("\n".join(start.lines(Path())))


TRAIN, LOOK, TRY = "Train and use a model", "Find out what it does", "Data and machine"
app.command("models", rich_help_panel=TRAIN)(models.main)
app.command("plan", rich_help_panel=TRAIN)(plan.main)
app.command("stage1", rich_help_panel=TRAIN)(stage1.main)
app.command("stage2", rich_help_panel=TRAIN)(stage2.main)
app.command("eval", rich_help_panel=TRAIN)(evaluation.main)
app.command("report", rich_help_panel=TRAIN)(report.main)
app.command("compare", rich_help_panel=TRAIN)(compare.main)
app.command("results", rich_help_panel=TRAIN)(results.main)
app.command("chat", rich_help_panel=TRAIN)(chat.main)
app.command("export", rich_help_panel=TRAIN)(export.main)
app.command("demo", rich_help_panel=LOOK)(demo.main)
app.add_typer(analyze.app, name="analyze", rich_help_panel=LOOK)
app.command("ablate", context_settings=ablate.FORWARD, rich_help_panel=LOOK)(ablate.main)
app.command("doctor", rich_help_panel=TRY)(doctor.main)
app.add_typer(data.app, name="data", rich_help_panel=TRY)
app.add_typer(bench.app, name="bench", rich_help_panel=TRY)


def main() -> None:
    """Run a command. Exit codes: 0 done or stopped with a checkpoint, 1 failed, 2 to correct, 130 cut off.

    SIGTERM ends a command as Ctrl-C does, so that drafts, locks and worker processes go.
    """
    # Shells expand `--out ~/runs` but not `--out=~/runs`, which would make a folder called "~".
    sys.argv[1:] = [re.sub(r"^(--[\w-]+=)~(?=/|$)", rf"\1{Path.home()}", word) for word in sys.argv[1:]]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with console.aside():
            app()
    except (ValueError, OSError, Diverged, Unmoved) as error:
        if os.environ.get("BASIC_LITE_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
    finally:
        signal.signal(signal.SIGTERM, before)
