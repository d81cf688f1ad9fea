"""Talk with a run in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.training import settings as o


def main(
    run: Annotated[Path, typer.Argument(help="Run folder.")] = Path("runs/stage2"),
    image: Annotated[
        list[Path] | None, o.option("--image", help="Picture of the first message; may be given again.")
    ] = None,
    max_new_tokens: Annotated[int, o.option(help="Most tokens of an answer.", callback=o.within(1))] = 512,
    web: Annotated[bool, o.option("--web", help="A page in the browser (needs gradio).")] = False,
    port: Annotated[
        int, o.option(help="Port of the page, on this machine alone.", callback=o.within(1, 65535))
    ] = 7860,
) -> None:
    """Ask a run about pictures: several turns, several pictures, greedy decoding, the run's own template.

    Messages come from the terminal or from standard input, one per line, or from a page (--web).

    Examples:

      basic-lite chat runs/stage2 --image cat.jpg

      echo "What is it?" | basic-lite chat runs/stage2 --image cat.jpg

      basic-lite chat runs/stage2 --web
    """
    import sys
    from collections.abc import Iterator

    from basic_lite import chat as conversation
    from basic_lite.chat import HELP, Chat, converse
    from basic_lite.console import quiet_console
    from basic_lite.models import checkpoint, devices

    console = quiet_console()
    for path in image or []:
        if not path.is_file():
            raise ValueError(f"{path} is no file")
    if web:
        conversation.check_gradio()
    assembled, manifest = checkpoint.load_run(run, devices.choose_device())
    title = f"{manifest['sources']['llm']} with {manifest['sources']['tower']}"
    if web:
        console.print(f"{title}: http://{conversation.ADDRESS}:{port} (Ctrl-C ends it)", highlight=False)
        conversation.serve(assembled, title, port=port, max_new_tokens=max_new_tokens)
        return
    chat = Chat(assembled, max_new_tokens)
    for path in image or []:
        chat.show(path)
    typed = sys.stdin.isatty()

    def lines() -> Iterator[str]:
        while True:
            try:
                yield input("> " if typed else "")
            except EOFError:
                return

    def write(text: str) -> None:
        print(text, end="", flush=True)

    if typed:
        console.print(f"{title}. {HELP}", highlight=False)
    converse(chat, lines(), write)
    if typed:
        print()
