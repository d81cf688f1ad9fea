"""Talk with a run in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.training import settings as o


def main(
    run: Annotated[Path, typer.Argument(help="Run folder.")] = Path("runs/stage2"),
    image: Annotated[
        list[Path] | None, o.option("Picture of the first message; repeat it for several.", "--image")
    ] = None,
    max_new_tokens: Annotated[int, o.option("Maximum tokens of an answer.", callback=o.within(1))] = 512,
    temperature: Annotated[
        float, o.option("Sampling temperature; 0 takes the likeliest token.", callback=o.within(0, 10))
    ] = 0.0,
    top_p: Annotated[
        float,
        o.option(
            "Nucleus sampling: draw from this share of the probability.", callback=o.within(above=0, most=1)
        ),
    ] = 1.0,
    seed: Annotated[
        int | None,
        o.option("Seed of the sampling.", callback=o.within(0, 2**31 - 1), default="new each time"),
    ] = None,
    web: Annotated[bool, o.option("Chat on a page in the browser (needs gradio).", "--web")] = False,
    port: Annotated[
        int, o.option("Port of that page, which only this machine can reach.", callback=o.within(1, 65535))
    ] = 7860,
) -> None:
    """Ask a run about pictures: several turns, several pictures, the run's own template.

    Messages come from the terminal or from standard input, one per line, or from a page (--web). In the
    terminal /image FILE, /reset and /save FILE are commands.

    Examples:

      basic-lite chat runs/stage2 --image cat.jpg

      echo "What is it?" | basic-lite chat runs/stage2 --image cat.jpg

      basic-lite chat runs/stage2 --temperature 0.7 --top-p 0.9 --seed 1

      basic-lite chat runs/stage2 --web
    """
    import io
    import sys
    from collections.abc import Iterator

    from basic_lite import chat as conversation
    from basic_lite.chat import HELP, Chat, Sampling, converse
    from basic_lite.console import quiet_console
    from basic_lite.memory.inference import bits_for
    from basic_lite.models import checkpoint, devices

    console = quiet_console()
    for path in image or []:
        if not path.is_file():
            raise ValueError(f"{path} is no file")
    if web:
        conversation.check_gradio()
    sampling = Sampling(temperature, top_p, seed)
    device = devices.choose_device()
    bits, line = bits_for(run, "chat", device)
    if line:
        console.print(line)
    assembled, manifest = checkpoint.load_run(run, device, bits=bits)
    title = f"{manifest['sources']['llm']} with {manifest['sources']['tower']}"
    if web:
        console.print(f"{title}: http://{conversation.ADDRESS}:{port} (Ctrl-C ends it)")
        conversation.serve(assembled, title, port=port, max_new_tokens=max_new_tokens, sampling=sampling)
        return
    chat = Chat(assembled, max_new_tokens, sampling)
    for path in image or []:
        chat.show(path)
    typed = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text: the chat says so

    def lines() -> Iterator[str]:
        while True:
            try:
                yield input("> " if typed else "")
            except EOFError:
                return

    def write(text: str) -> None:
        print(text, end="", flush=True)

    if typed:
        console.print(f"{title}. {HELP}")
    converse(chat, lines(), write)
    if typed:
        print()
