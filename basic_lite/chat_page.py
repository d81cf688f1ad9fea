"""A conversation with a run on a page in the browser, made with gradio, which is an extra."""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from basic_lite.chat import Chat
from basic_lite.modeling import Assembled

ADDRESS: str = "127.0.0.1"
"""The page has no password, so no other machine can reach it."""

MISTAKE: str = "⚠ Not answered: "
"""Begins what is said where an answer should be. An exception would leave gradio's text box switched off."""


class _Stopped(Exception):
    """The reader of an answer is gone."""


def check_gradio() -> None:
    """Look whether the page can be made, before a model is loaded.

    Raises:
        ValueError: If gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(
            "--web needs gradio, which is not installed here: pip install gradio (6.x; in a checkout: "
            'pip install -e ".[web]"), or chat in the terminal without --web'
        )


def recalled(assembled: Assembled, history: Sequence[dict[str, Any]], max_new_tokens: int) -> Chat:
    """Return the conversation that a page shows.

    The page keeps what was said, so that its own buttons (undo, again, clear) need no help. A message
    without answer (a `MISTAKE`, or cut off before a word) is forgotten; its pictures wait for the next.

    Args:
        assembled: the model.
        history: messages as gradio keeps them, `{"role", "content"}`. The content is a text or a list of
            texts (bare, or `{"text"}`) and pictures (`{"path"}` from a client, `{"file": {"path"}}` from a
            browser).
        max_new_tokens: of an answer.
    """
    chat, asked = Chat(assembled, max_new_tokens), ""
    for message in history:
        text, files = _parts(message["content"])
        if message["role"] == "assistant":
            chat.remember(asked, "" if text.startswith(MISTAKE) else text)
            continue
        asked = text
        for file in files:
            try:
                chat.show(file)
            except ValueError:  # it was answered with this error
                continue
    return chat


def _parts(content: str | Sequence[Any]) -> tuple[str, list[Path]]:
    parts = [content] if isinstance(content, str | dict) else content
    texts, files = [], []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif "text" in part:
            texts.append(part["text"])
        else:
            files.append(Path(part.get("file", part)["path"]))
    return "\n".join(texts), files


def growing(chat: Chat, text: str, lock: threading.Lock) -> Iterator[str]:
    """Yield an answer as it grows.

    Args:
        chat: the conversation.
        text: the message.
        lock: held while the model answers; pages share one.

    Yields:
        The answer so far, at last the whole one. Closing the iterator stops the model at the next word.

    Raises:
        ValueError: As `Chat.say`.
    """
    states: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
    said: list[str] = []
    stopped = threading.Event()

    def write(piece: str) -> None:
        if stopped.is_set():
            raise _Stopped
        said.append(piece)
        states.put("".join(said))

    def answer() -> None:
        try:
            with lock:
                states.put(chat.say(text, write))
        except _Stopped:
            pass
        except Exception as error:  # raised again where somebody hears it
            states.put(error)
        finally:
            states.put(None)

    threading.Thread(target=answer, daemon=True).start()
    try:
        while (state := states.get()) is not None:
            if isinstance(state, Exception):
                raise state
            yield state
    finally:
        stopped.set()


def page(assembled: Assembled, title: str, max_new_tokens: int) -> Any:
    """Return the page, a `gradio.ChatInterface`, not yet served.

    Args:
        assembled: the run.
        title: of the page.
        max_new_tokens: of an answer.
    """
    import gradio

    lock = threading.Lock()

    def reply(message: dict[str, Any], history: list[dict[str, Any]]) -> Iterator[str]:
        """Answer a message with its pictures, word by word."""
        try:
            chat = recalled(assembled, history, max_new_tokens)
            for file in message["files"]:
                chat.show(Path(file))
            if not message["text"].strip():
                raise ValueError("the picture goes with your next message: ask something about it")
            yield from growing(chat, message["text"], lock)
        except ValueError as error:
            yield f"{MISTAKE}{error}"

    return gradio.ChatInterface(
        reply,
        multimodal=True,
        # No button that uploads the talk; an answer is text, whose links to pictures nobody fetches.
        chatbot=gradio.Chatbot(buttons=["copy"], render_markdown=False, show_label=False, scale=1),
        textbox=gradio.MultimodalTextbox(
            file_types=["image"], file_count="multiple", placeholder="A message, and pictures with it"
        ),
        title=title,
        description="Greedy decoding, the run's own template.",
        analytics_enabled=False,
        api_name="chat",
    )


def serve(assembled: Assembled, title: str, *, port: int, max_new_tokens: int, wait: bool = True) -> Any:
    """Show the page on this machine until Ctrl-C.

    Args:
        assembled: the run.
        title: of the page.
        port: where.
        max_new_tokens: of an answer.
        wait: return only when the page is closed.

    Returns:
        The page; `close()` ends it.

    Raises:
        ValueError: If the port is taken.
    """
    import gradio

    made = page(assembled, title, max_new_tokens)
    fonts = ["system-ui", "sans-serif"]  # the theme's own would be fetched from the network
    try:
        made.launch(
            server_name=ADDRESS,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=not wait,
            ssr_mode=False,
            footer_links=[],
            theme=gradio.themes.Default(font=fonts, font_mono=["monospace"]),
        )
    except OSError as error:
        raise ValueError(f"port {port} of {ADDRESS} is taken; choose another with --port") from error
    return made
