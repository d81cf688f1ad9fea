"""A conversation with a run: several turns, several pictures, answers as they are made."""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from basic_lite.data.conversation import IMAGE, Turn
from basic_lite.data.pictures import open_picture
from basic_lite.data.rows import RowFault
from basic_lite.models.generate import greedily, one_row, prompt_ids, stops_of, text_of
from basic_lite.models.llava import Assembled, for_inference
from basic_lite.models.parts import parts_of

HELP: str = "/image FILE shows a picture with the next message, /new starts again, /exit ends (or Ctrl-D)."


class Chat:
    """A run, what was said so far, and the pictures that were shown."""

    def __init__(self, assembled: Assembled, max_new_tokens: int = 512) -> None:
        """Start an empty conversation; an answer has at most `max_new_tokens` tokens."""
        self.assembled, self.max_new_tokens = assembled, max_new_tokens
        for_inference(assembled.model)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.turns: list[Turn] = []
        self.shown: list[torch.Tensor] = []
        self.waiting: list[torch.Tensor] = []

    def show(self, path: Path) -> None:
        """Put a picture in front of the next message.

        Raises:
            ValueError: If it is missing or does not decode.
        """
        try:
            picture = open_picture(path)
        except RowFault as error:
            raise ValueError(f"{path} is no picture that can be read: {error}") from error
        self.waiting.append(self.assembled.transform("pad")(picture))

    def say(self, text: str, write: Callable[[str], None]) -> str:
        """Answer a message; `write` gets the answer piece by piece.

        An answer that is cut off (Ctrl-C) is forgotten with its message; the pictures wait for the next.

        Raises:
            ValueError: If the conversation no longer fits into what the decoder was made for.
        """
        assembled, model = self.assembled, self.assembled.model
        ids = prompt_ids(assembled, [*self.turns, self._asked(text)])
        positions = parts_of(model).decoder.config.max_position_embeddings
        room = positions - len(ids)
        if room < 1:
            raise ValueError(
                f"the conversation has {len(ids)} tokens, the decoder takes {positions}; start a new "
                "conversation (/new in a terminal)"
            )
        pictures = self.shown + self.waiting
        pixels = torch.stack(pictures) if pictures else None
        longest = min(self.max_new_tokens, room)
        never = [assembled.image_token_id]
        with torch.inference_mode():
            row = model.generate(
                **one_row(model, ids, pixels, assembled.transform("pad")),
                **greedily(stops_of(assembled), assembled.pad_token_id, longest, never),
                streamer=_Stream(assembled.tokenizer, write),
            )[0, len(ids) :].tolist()
        answer = text_of(assembled, row)
        self.remember(text, answer)
        return answer

    def remember(self, text: str, answer: str) -> None:
        """Carry on a message and its answer, made now or earlier, and the pictures that waited for it.

        An empty answer would be a turn that no training row has; neither is carried on.
        """
        if answer.strip():
            self.turns = [*self.turns, self._asked(text), ("assistant", answer.strip())]
            self.shown, self.waiting = self.shown + self.waiting, []

    def _asked(self, text: str) -> Turn:
        return "user", f"{IMAGE}\n" * len(self.waiting) + text.replace(IMAGE, "")


class _Stream(TextStreamer):
    """Hands on every piece of text once its tokens are complete characters and words."""

    def __init__(self, tokenizer: object, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._write(text)


def converse(chat: Chat, lines: Iterable[str], write: Callable[[str], None]) -> None:
    """Take messages and commands line by line until they end.

    Args:
        chat: the conversation.
        lines: what the user types.
        write: shows text as it comes, without adding a newline.
    """
    for line in lines:
        words = line.strip()
        command, _, argument = words.partition(" ")
        try:
            if not words:
                continue
            if command in ("/exit", "/quit"):
                return
            if command == "/new":
                chat.reset()
                write("A new conversation.\n")
            elif command == "/image":
                chat.show(Path(argument.strip()).expanduser())
                write(f"{argument.strip()} goes with the next message.\n")
            elif command == "/help":
                write(f"{HELP}\n")
            elif command.startswith("/") and "/" not in command[1:] and command[1:].isalpha():
                write(f"There is no {command}. {HELP}\n")
            else:
                chat.say(words, write)
                write("\n")
        except KeyboardInterrupt:
            write("\n(cut off and forgotten)\n")
        except ValueError as error:
            write(f"{error}\n")


# A conversation with a run on a page in the browser, made with gradio, which is an extra.

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
