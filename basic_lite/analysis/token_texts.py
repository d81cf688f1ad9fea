"""Vocabulary tokens as text: what each stands for, how it is shown, and which end a text or a line."""

from __future__ import annotations

from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from basic_lite.conversation import stop_ids
from basic_lite.templates import Template

_VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": "␣", "\u3000": "␣", "\xa0": "␣"}


def token_texts(tokenizer: Any, rows: int) -> list[str]:
    """Return the text of every row of the embedding table.

    A leading space is kept, where the vocabulary has one. A token that is no whole character is shown by its
    bytes, as in `<0xE280>`; a row that no token has as `<row 32000>`.

    Args:
        tokenizer: a Hugging Face fast tokenizer.
        rows: `V`, rows of the table; may be more than the tokenizer has tokens.
    """
    known = tokenizer.convert_ids_to_tokens(list(range(min(rows, len(tokenizer)))))
    bytes_of = {character: byte for byte, character in bytes_to_unicode().items()}
    byte_level = "ByteLevel" in tokenizer.backend_tokenizer.to_str()
    special = set(tokenizer.get_added_vocab())
    return [
        f"<row {row}>"
        if row >= len(known) or known[row] is None
        else _text(known[row], bytes_of if byte_level and known[row] not in special else None)
        for row in range(rows)
    ]


def _text(token: str, bytes_of: dict[str, int] | None) -> str:
    if bytes_of is None or not all(character in bytes_of for character in token):
        return token.replace("▁", " ")
    data = bytes(bytes_of[character] for character in token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return f"<0x{data.hex().upper()}>"


def shown(text: str) -> str:
    r"""Return a token's text with white space made visible; one space in front of a word stays away.

    `" red"` is shown as `red`, `"\n"` as `↵`, `" "` as `␣`; control characters by their code.
    """
    if len(text) > 1 and text[0] == " " and not text[1:].isspace():
        text = text[1:]
    return "".join(
        _VISIBLE.get(c, c) if c.isprintable() or c in _VISIBLE else f"<U+{ord(c):04X}>" for c in text
    )


def end_tokens(tokenizer: Any, texts: list[str], templates: list[Template]) -> frozenset[int]:
    """Return the ids that end or structure a text and say nothing of a picture.

    All special tokens, what ends an answer in one of `templates`, and tokens that are newlines alone, be it
    as a byte token.

    Args:
        tokenizer: a Hugging Face fast tokenizer.
        texts: of `token_texts`.
        templates: whose ends count.
    """
    ids = set(tokenizer.all_special_ids)
    for template in templates:
        ids.update(stop_ids(template, tokenizer))
    for number, text in enumerate(texts):
        if text == "<0x0A>" or (text and not text.strip("\r\n")):
            ids.add(number)
    return frozenset(number for number in ids if number < len(texts))
