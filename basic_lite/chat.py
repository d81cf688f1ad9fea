"""A conversation with a run: several turns, several pictures, answers as they are made."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from transformers import TextIteratorStreamer

from basic_lite.data.conversation import IMAGE, Turn
from basic_lite.data.pictures import open_picture
from basic_lite.data.rows import RowFault
from basic_lite.data.tiles import packed
from basic_lite.files import write_json
from basic_lite.models.generate import greedily, one_row, prompt_ids, stops_of, text_of
from basic_lite.models.llava import Assembled, for_inference
from basic_lite.models.parts import parts_of

HELP: str = (
    "/image FILE shows a picture with the next message, /reset starts again, /save FILE keeps the "
    "conversation, /exit ends (or Ctrl-D)."
)


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.0  # divides the logits; 0 takes the likeliest token
    top_p: float = 1.0  # smallest share of probability that is drawn from, of 1
    seed: int | None = None  # of the draws: the same conversation gets the same answers; `None` for new ones

    def options(self, stops: list[int], pad: int, longest: int, never: Sequence[int]) -> dict[str, Any]:
        """Return `generate`'s options; arguments as `models.generate.greedily`."""
        options = greedily(stops, pad, longest, never)
        if self.temperature == 0:
            return options
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return options | drawn


@dataclass(frozen=True)
class Picture:
    """A picture of a conversation: its file, `(3, h, w)` uint8 (its tiles in front), height and width."""

    path: Path
    pixels: torch.Tensor
    size: tuple[int, int]


class Chat:
    """A run, what was said so far, and the pictures that were shown."""

    def __init__(
        self,
        assembled: Assembled,
        max_new_tokens: int = 512,
        sampling: Sampling = Sampling(),
        lock: threading.Lock | None = None,
    ) -> None:
        """Start an empty conversation; `lock` is held while the model answers, shared by all that use it."""
        self.assembled, self.max_new_tokens, self.sampling = assembled, max_new_tokens, sampling
        self.lock = lock or threading.Lock()
        for_inference(assembled.model)
        self.reset()

    def reset(self) -> None:
        self.turns: list[Turn] = []
        self.shown: list[Picture] = []
        self.waiting: list[Picture] = []

    def show(self, path: Path) -> None:
        try:
            picture = open_picture(path)
        except RowFault as error:
            raise ValueError(str(error)) from error  # its name alone: a page shows no folder of this machine
        transform = self.assembled.transform("pad")
        picture = transform.upright(picture)
        self.waiting.append(Picture(path, transform(picture), (picture.height, picture.width)))

    def say(self, text: str) -> Iterator[str]:
        """Answer a message, piece by piece: as soon as its tokens are complete words.

        An answer that is cut off (Ctrl-C, or the iterator is closed) is forgotten with its message; the
        pictures wait for the next. Raises ValueError if the conversation no longer fits into the decoder's
        context.
        """
        assembled: Any = self.assembled
        model = assembled.model
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("the message holds bytes that are no text (UTF-8); send it again") from None
        pictures = self.shown + self.waiting
        sizes = [picture.size for picture in pictures]
        ids = prompt_ids(assembled, [*self.turns, self._asked(text)], sizes)
        positions = parts_of(model).decoder.config.max_position_embeddings
        room = positions - len(ids)
        if room < 1:
            raise ValueError(
                f"the conversation has {len(ids)} tokens, the decoder takes {positions}; start a new "
                "conversation (/reset in a terminal)"
            )
        pixels = packed([picture.pixels for picture in pictures])
        row = one_row(model, ids, pixels, assembled.transform("pad"), sizes)
        longest, never = min(self.max_new_tokens, room), [assembled.image_token_id]
        options = self.sampling.options(stops_of(assembled), assembled.pad_token_id, longest, never)
        pieces = TextIteratorStreamer(assembled.tokenizer, skip_prompt=True, skip_special_tokens=True)
        left = threading.Event()

        def has_left(ids: torch.Tensor, scores: object, **more: object) -> torch.Tensor:
            """Stop the model at its next token once the reader of its answer has left."""
            return torch.full((len(ids),), left.is_set(), device=ids.device)

        def answer() -> list[int]:
            try:
                with self.lock, torch.inference_mode():
                    if self.sampling.seed is not None:
                        torch.manual_seed(self.sampling.seed + len(self.turns))
                    out = model.generate(**row, **options, streamer=pieces, stopping_criteria=[has_left])
                return out[0, len(ids) :].tolist()
            finally:
                pieces.on_finalized_text("", stream_end=True)  # after a fault nobody else ends it

        with ThreadPoolExecutor(1) as worker:
            answered = worker.submit(answer)
            try:
                yield from pieces
            finally:
                left.set()
        self.remember(text, text_of(assembled, answered.result()))

    def remember(self, text: str, answer: str) -> None:
        """Carry on a message and its answer, made now or earlier, and the pictures that waited for it.

        An empty answer would be a turn that no training row has; neither is carried on.
        """
        if answer.strip():
            self.turns = [*self.turns, self._asked(text), ("assistant", answer.strip())]
            self.shown, self.waiting = self.shown + self.waiting, []

    def save(self, path: Path) -> None:
        """Write the conversation as messages of OpenAI's shape, with the files of its pictures."""
        if not self.turns:
            raise ValueError("there is no conversation to save yet")
        if path.exists():
            raise ValueError(f"{path} exists already; choose another file")
        pictures, messages = iter(self.shown), []
        for role, text in self.turns:
            count = text.count(IMAGE) if role == "user" else 0
            parts: list[dict[str, str]] = [
                {"type": "image", "path": str(next(pictures).path)} for _ in range(count)
            ]
            parts.append({"type": "text", "text": text.removeprefix(f"{IMAGE}\n" * count)})
            messages.append({"role": role, "content": parts})
        try:
            write_json(path, {"messages": messages})
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror}") from error

    def _asked(self, text: str) -> Turn:
        return "user", f"{IMAGE}\n" * len(self.waiting) + text.replace(IMAGE, "")


def converse(chat: Chat, lines: Iterable[str], write: Callable[[str], None]) -> None:
    """Take messages and commands line by line until they end; `write` adds no newline."""
    for line in lines:
        words = line.strip()
        command, _, argument = words.partition(" ")
        file = Path(argument.strip()).expanduser()
        try:
            if not words:
                continue
            if command in ("/exit", "/quit"):
                return
            if command == "/reset":
                chat.reset()
                write("A new conversation.\n")
            elif command in ("/image", "/save") and not argument.strip():
                raise ValueError(f"{command} needs a file: {command} FILE")
            elif command == "/image":
                chat.show(file)
                write(f"{file} goes with the next message.\n")
            elif command == "/save":
                chat.save(file)
                write(f"Saved: {file}\n")
            elif command == "/help":
                write(f"{HELP}\n")
            elif command.startswith("/") and "/" not in command[1:] and command[1:].isalpha():
                write(f"There is no {command}. {HELP}\n")
            else:
                for piece in chat.say(words):
                    write(piece)
                write("\n")
        except KeyboardInterrupt:
            write("\n(cut off and forgotten)\n")
        except ValueError as error:
            write(f"{error}\n")


ADDRESS: str = "127.0.0.1"  # the page has no password, so no other machine can reach it

MISTAKE: str = "⚠ Not answered: "
"""Stands in front of an error where an answer should be: an exception would leave gradio's text box off."""

UPLOAD: str = "20mb"  # largest file that the page takes, as gradio writes it


def check_gradio() -> None:
    """Raise ValueError if gradio is not installed, before a model is loaded."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(
            "--web needs gradio, which is not installed here: pip install gradio (6.x; in a checkout: "
            'pip install -e ".[web]"), or chat in the terminal without --web'
        )


def recall(chat: Chat, history: Sequence[dict[str, Any]]) -> None:
    """Carry on the conversation that a page shows: the page keeps what was said, so nobody reads another's.

    A message without answer (a `MISTAKE`, or cut off before a word) is forgotten; its pictures wait for the
    next. The content of a message is a text or a list of texts (bare, or `{"text"}`) and pictures (`{"path"}`
    from a client, `{"file": {"path"}}` from a browser).
    """
    asked = ""
    for message in history:
        text, files = _parts(message["content"])
        if message["role"] == "assistant":
            chat.remember(asked, "" if text.startswith(MISTAKE) else text)
            continue
        asked = text
        for file in files:
            with suppress(ValueError):  # it was answered with this error
                chat.show(file)


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


def page(assembled: Assembled, title: str, max_new_tokens: int, sampling: Sampling) -> Any:
    """Return the page, a `gradio.ChatInterface`, not yet served; its controls start with `sampling`."""
    import gradio  # pyright: ignore[reportMissingImports]

    lock = threading.Lock()

    def reply(
        message: dict[str, Any], history: list[dict[str, Any]], temperature: float, top_p: float, seed: float
    ) -> Iterator[str]:
        answer = ""
        try:
            drawn = Sampling(temperature, top_p, None if seed < 0 else int(seed))
            chat = Chat(assembled, max_new_tokens, drawn, lock)
            recall(chat, history)
            for file in message["files"]:
                chat.show(Path(file))
            if not message["text"].strip():
                raise ValueError("the picture goes with your next message: ask something about it")
            for piece in chat.say(message["text"]):
                answer += piece
                yield answer.strip()
        except ValueError as error:
            yield f"{MISTAKE}{error}"

    return gradio.ChatInterface(
        reply,
        multimodal=True,
        # No button that uploads the talk; an answer is text, whose links to pictures are not fetched.
        chatbot=gradio.Chatbot(buttons=["copy"], render_markdown=False, show_label=False, scale=1),
        textbox=gradio.MultimodalTextbox(
            file_types=["image"], file_count="multiple", placeholder="A message, and pictures with it"
        ),
        title=title,
        description="Answers follow the run's own template; at temperature 0 the likeliest token is taken.",
        additional_inputs_accordion="Sampling",
        additional_inputs=[
            gradio.Slider(0, 2, sampling.temperature, step=0.05, label="temperature"),
            gradio.Slider(0.05, 1, sampling.top_p, step=0.05, label="top_p"),
            gradio.Number(
                -1 if sampling.seed is None else sampling.seed, precision=0, label="seed (-1: new)"
            ),
        ],
        analytics_enabled=False,
        api_name="chat",
    )


class SameOrigin:
    """Refuses a Host that is not this machine (DNS rebinding), and an Origin that differs from the Host."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 403, or pass a request on."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope.get("headers", ())}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        known = urlsplit(f"//{host}").hostname in (ADDRESS, "localhost")
        if scope["type"] == "lifespan" or (known and (origin is None or urlsplit(origin).netloc == host)):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            plain = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 403, "headers": plain})
            await send({"type": "http.response.body", "body": b"this page is for this machine alone"})


def serve(
    assembled: Assembled,
    title: str,
    *,
    port: int,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    wait: bool = True,
) -> Any:
    """Show the page on this machine until Ctrl-C, or return it, to be closed, where `wait` is false."""
    import gradio  # pyright: ignore[reportMissingImports]
    from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]  # gradio has it

    made = page(assembled, title, max_new_tokens, sampling)
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
            max_file_size=UPLOAD,
            css='[aria-label="Share"] { display: none !important }',  # it would upload a reader's picture
            app_kwargs={"middleware": [Middleware(SameOrigin)]},
            theme=gradio.themes.Default(font=fonts, font_mono=["monospace"]),
        )
    except OSError as error:
        raise ValueError(f"port {port} of {ADDRESS} is taken; choose another with --port") from error
    return made
