"""A conversation with a run: several turns, several pictures, answers as they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from transformers import TextStreamer

from basic_lite.capture import parts_of
from basic_lite.conversation import IMAGE, Turn
from basic_lite.data.pictures import open_picture
from basic_lite.data.samples import RowFault
from basic_lite.modeling import Assembled, for_inference
from basic_lite.prompting import greedily, one_row, prompt_ids, stops_of, text_of

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
