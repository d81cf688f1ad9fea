"""Segments of a conversation as token ids: each tokenised as it would be inside the whole string."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any, Literal
from weakref import WeakKeyDictionary

from basic_lite.data.templates import ANY_SPECIAL, Template

# White space as tokenizers know it; `str.lstrip()` alone would take the separators \x1c to \x1f as well.
WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


@dataclass(frozen=True)
class Segment:
    """A piece of the rendered string: its text, whether its tokens carry loss, and what it is."""

    text: str
    supervised: bool
    kind: Literal["text", "special", "image"] = "text"


LONGEST_KEPT: int = 256
"""Letters of the longest text whose ids are kept."""

# Stands for a special token or an image. It is a noncharacter of Unicode, so no text needs it; in a text that
# has it all the same it becomes U+FFFD.
_MARK = "\ufdd0"


class Encoder:
    """Tokenises segments as the tokenizer would inside the whole string.

    A text's ids depend on where it stands: sentencepiece tokenizers put "▁" in front of a text that starts
    the string, some also after a special token (Vicuna), some not (Llama with `legacy=False`). No rule per
    tokenizer is needed: a text is tokenised in its place, after a stand-in for the special token or after
    the last character of the text before it, and the ids of that context are taken off.

    A copy of the tokenizer's backend does the work. It looks for no special strings, so data stay text.
    """

    def __init__(self, tokenizer: Any, image_token_id: int) -> None:
        backend = backend_of(tokenizer)
        specified = specification(backend)
        added = specified["added_tokens"]
        ids = {token["content"]: token["id"] for token in added}
        self.special = {text: ids[text] for text in ids if ANY_SPECIAL.fullmatch(text)}
        # Phi-3's special tokens swallow the white space after them, the newlines of its headers included.
        self.swallowing = {token["content"] for token in added if token["rstrip"]}
        self.image_token_id = image_token_id
        self.never = frozenset((*self.special.values(), image_token_id))
        self.bos = tokenizer.bos_token_id
        self.adds_bos = self.bos is not None and tokenizer("x").input_ids[0] == self.bos

        # `encode_special_tokens` reads what is flagged special as text. Not all that is dangerous is flagged:
        # Phi-3's </s> and Gemma's unused rows, one of which may be the image token, are plain added tokens.
        # The other plain ones stay: Gemma's runs of newlines are added tokens, too, and ordinary text.
        as_text = {*self.never, *tokenizer.all_special_ids}
        for token in added:
            token["special"] |= token["id"] in as_text
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        added.append({"content": _MARK, "id": backend.get_vocab_size(), **flags})
        self.plain = type(backend).from_str(json.dumps(specified))
        self.plain.encode_special_tokens = True
        self._kept_ids = lru_cache(maxsize=4096)(self._ids)

    def ids(self, context: str, text: str) -> tuple[int, ...]:
        """Return the ids of a text after `context`, the end of what stands before it."""
        # Headers and short answers recur; 4096 long texts would take hundreds of MB in each process.
        return (self._kept_ids if len(text) <= LONGEST_KEPT else self._ids)(context, text)

    def start(self, template: Template) -> list[int]:
        return [self.bos] if self.adds_bos or (template.needs_bos and self.bos is not None) else []

    def walk(
        self, pieces: list[Segment], tokens_per_image: int | Sequence[int]
    ) -> Iterator[tuple[Segment, list[int]]]:
        """Yield every segment with its ids; images take the same number each, or one after another theirs."""
        context, swallow = "", False
        lengths = repeat(tokens_per_image) if isinstance(tokens_per_image, int) else iter(tokens_per_image)
        for piece in pieces:
            if piece.kind == "text":
                text = piece.text.lstrip(WHITE) if swallow else piece.text
                yield piece, list(self.ids(context, text)) if text else []
                context, swallow = (_MARK + text[-1], False) if text else (context, swallow)
            elif piece.kind == "image":
                yield piece, [self.image_token_id] * next(lengths)
                context, swallow = _MARK, False
            else:
                yield piece, [self.special[piece.text]]
                context, swallow = _MARK, piece.text in self.swallowing

    def _ids(self, context: str, text: str) -> tuple[int, ...]:
        head = self.plain.encode(context, add_special_tokens=False).ids
        ids = self.plain.encode(context + text.replace(_MARK, "\ufffd"), add_special_tokens=False).ids
        if ids[: len(head)] != head:
            raise ValueError(f"the tokenizer joins the start of {text[:40]!r} with the header before it")
        ids = ids[len(head) :]
        if not self.never.isdisjoint(ids):
            raise ValueError(f"the text {text[:40]!r} holds a special or image token of this tokenizer")
        return tuple(ids)


_ENCODERS: WeakKeyDictionary[Any, dict[tuple[int, int], Encoder]] = WeakKeyDictionary()


def encoder_of(template: Template, tokenizer: Any, image_token_id: int) -> Encoder:
    """Return the tokenizer's encoder, made once; raises ValueError if it lacks one of the special tokens."""
    encoders = _ENCODERS.setdefault(tokenizer, {})
    key = (image_token_id, len(tokenizer))  # its length: tokens may be added between two calls
    if key not in encoders:
        encoders[key] = Encoder(tokenizer, image_token_id)
    for text in template.special():
        special_id(template, encoders[key].special, text)
    return encoders[key]


def backend_of(tokenizer: Any) -> Any:
    """Return the backend of a fast tokenizer; raises ValueError if it is a slow one."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        name = type(tokenizer).__name__
        raise ValueError(f"{name} is not a fast tokenizer: choose an LLM that comes with a tokenizer.json")
    return tokenizer.backend_tokenizer


def specification(backend: Any) -> dict[str, Any]:
    """Return the backend's `tokenizer.json`, without the length settings that earlier calls left in it."""
    return json.loads(backend.to_str()) | {"truncation": None, "padding": None}


def check_vocabulary(tokenizer: Any, template: Template, rows: int) -> None:
    """Raise ValueError if a row of data may get an id beyond the `rows` of the embedding matrix.

    This happens when a padding token is added to the tokenizer alone. A special token that nothing here
    writes may lie beyond: Gemma 3's text models come with the image token of their larger siblings, and data
    that spell it stay text.
    """
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    unused = special - {*named, *template.special()}
    known = tokenizer.get_vocab()
    beyond = sorted((known[text], text) for text in known.keys() - unused if known[text] >= rows)
    if beyond:
        number, text = beyond[0]
        raise ValueError(
            f"the tokenizer has {len(beyond)} tokens beyond the {rows:,} rows of the LLM's embedding matrix "
            f"({text!r} is {number}): resize the matrix of the LLM (`resize_token_embeddings`), or take the "
            "tokenizer that came with it"
        )


def special_id(template: Template, known: dict[str, int], text: str) -> int:
    """Return the id of one of the template's special tokens.

    Raises ValueError if the tokenizer does not have it as one token.
    """
    if text not in known:
        raise ValueError(
            f"template {template.name!r} needs {text!r} as one special token, which this tokenizer lacks: "
            "choose the template of this LLM's family"
        )
    return known[text]
