"""Conversations as token ids: one template row per LLM family, and labels that are right by construction.

A conversation becomes a list of segments: text, one special token, or one image. Each is tokenised on its own
and carries loss or not as a whole, so no span is ever searched for afterwards. Three promises, all tested:

- The concatenated ids equal the tokenizer's ids of the whole string (`check_tokenizer` compares them).
- A prompt's ids are the first ids of the training row with the same turns.
- Only the template's own special strings become special ids: a row that contains `</s>` or `<unk>` is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal
from weakref import WeakKeyDictionary

from basic_lite.types import IGNORE_INDEX

IMAGE = "<image>"
"""Placeholder of one image in a user turn."""

Turn = tuple[str, str]
"""`(role, text)`; the role is `"user"` or `"assistant"`."""

_IMAGE = re.compile(f"({IMAGE})")
# White space as tokenizers know it; `str.lstrip()` alone would take the separators \x1c to \x1f as well.
_WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_SURROGATE = re.compile("[\ud800-\udfff]")
# Every string that a template below uses as one special token.
_SPECIAL = re.compile(r"(</s>|<eos>|<start_of_turn>|<end_of_turn>|<\|\w+\|>)")


@dataclass(frozen=True)
class Template:
    """How one LLM family writes a conversation.

    The training text is `system`, then `user + answer + end + after` per exchange; loss is on `answer + end`.
    The generation prompt stops after `user`, which therefore ends with the assistant's header.

    Attributes:
        name: key in `TEMPLATES`.
        system: written once, in front of the first exchange.
        user: a user turn and the assistant's header; `{}` stands for the user's text.
        answer: an assistant turn; `{}` stands for its text.
        end: special token that ends an answer, with loss.
        after: written after every `end`, without loss.
        stop: more special tokens at which generation stops, where the tokenizer has them.
        needs_bos: put BOS in front even if the tokenizer does not do so by itself.
        caption: stage-1 form: one image and its caption, the user's words are dropped.
    """

    name: str
    system: str
    user: str
    answer: str
    end: str
    after: str = ""
    stop: tuple[str, ...] = ()
    needs_bos: bool = False
    caption: bool = False

    def special(self) -> list[str]:
        """Return the strings that must be single tokens of the tokenizer."""
        return _SPECIAL.findall(self.system + self.user + self.end)


_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
_VICUNA = Template("vicuna_v1", _SYSTEM, "USER: {} ASSISTANT:", " {}", "</s>")
_PHI3_SYSTEM = "<|system|>\nYou are a helpful AI assistant.<|end|>"
_PHI3_USER = "<|user|>\n{}<|end|>\n<|assistant|>\n"
_PHI3_STOP = ("<|endoftext|>", "<|assistant|>")
_GEMMA_USER = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
_CHATML_USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

# Sources: LLaVA v1.5 (plain, vicuna_v1, mistral_instruct), LLaVA++ (phi3_instruct), TinyLLaVA (gemma_vicuna),
# LLaMA-Factory (phi3), the models' own chat templates (mistral_official, gemma_instruct, chatml).
_ROWS = (
    Template("plain", "", "{}", "{}\n", "", caption=True),
    _VICUNA,
    Template("mistral_instruct", "", "[INST] {} [/INST]", " {} ", "</s>"),
    Template("mistral_official", "", "[INST] {}[/INST]", " {}", "</s>"),
    # LLaVA++ writes the newline in front of the next turn, so none follows the last answer.
    Template("phi3_instruct", _PHI3_SYSTEM, "\n" + _PHI3_USER, "{}", "<|end|>", stop=_PHI3_STOP),
    Template("phi3", "", _PHI3_USER, "{}", "<|end|>", "\n", stop=_PHI3_STOP),
    # Gemma has no system role.
    Template("gemma_instruct", "", _GEMMA_USER, "{}", "<end_of_turn>", "\n", needs_bos=True),
    replace(_VICUNA, name="gemma_vicuna", end="<eos>", needs_bos=True),
    Template("chatml", "", _CHATML_USER, "{}", "<|im_end|>", "\n"),
)
TEMPLATES: dict[str, Template] = {row.name: row for row in _ROWS}


@dataclass(frozen=True)
class Segment:
    """A piece of the rendered string: its text, whether its tokens carry loss, and what it is."""

    text: str
    supervised: bool
    kind: Literal["text", "special", "image"] = "text"


@dataclass(frozen=True)
class Encoded:
    """Ids of one conversation, labels (`IGNORE_INDEX` without loss), and how many tokens were cut off."""

    input_ids: list[int]
    labels: list[int]
    truncated: int


def segments(
    template: Template | str, turns: Sequence[Turn], *, add_generation_prompt: bool = False
) -> list[Segment]:
    """Cut a conversation into segments; the only place where template strings are put together.

    Texts stay as they are but for white space at the start of an answer whose header ends in a newline:
    byte-level and Gemma vocabularies would join the two in one token, which no prompt ends with.

    Args:
        template: a row of `TEMPLATES` or its name.
        turns: alternating turns, from the user to the assistant; with `add_generation_prompt` to the user.
        add_generation_prompt: end with the assistant's header.

    Returns:
        Segments in order; neighbouring texts with the same supervision are one segment.

    Raises:
        ValueError: If the turns do not alternate, end with the wrong role, or hold an empty answer.
    """
    template = _template(template)
    _check_turns(turns, ends_with="user" if add_generation_prompt else "assistant")
    pieces: list[Segment] = []

    def add(text: str, marks: re.Pattern[str] | None, supervised: bool = False) -> None:
        for number, part in enumerate(marks.split(text) if marks else [text]):
            kind = "text" if number % 2 == 0 else "image" if marks is _IMAGE else "special"
            if kind == "text" and pieces and (pieces[-1].kind, pieces[-1].supervised) == ("text", supervised):
                part = pieces.pop().text + part
            if part:
                pieces.append(Segment(part, supervised, kind))

    add(template.system, _SPECIAL)
    header, footer = template.user.split("{}")
    for role, text in turns:
        if role == "user":
            if template.caption:
                if len(turns) > 2 or text.count(IMAGE) != 1:
                    raise ValueError(
                        f"template {template.name!r} is for one image and its caption, but here are "
                        f"{text.count(IMAGE)} images and {len(turns)} turns"
                    )
                text = IMAGE
            add(header, _SPECIAL)
            add(text, _IMAGE)
            add(footer, _SPECIAL)
        else:
            text = text.lstrip(_WHITE) if footer.endswith("\n") else text
            add(template.answer.format(text), None, supervised=True)
            add(template.end, _SPECIAL, supervised=True)
            add(template.after, _SPECIAL)
    return pieces


def render(template: Template | str, turns: Sequence[Turn], *, add_generation_prompt: bool = False) -> str:
    """Return the string that is tokenised: the `segments` joined. BOS, a matter of ids, is not in it."""
    pieces = segments(template, turns, add_generation_prompt=add_generation_prompt)
    return "".join(piece.text for piece in pieces)


def encode(
    template: Template | str,
    tokenizer: Any,
    turns: Sequence[Turn],
    *,
    image_token_id: int,
    tokens_per_image: int,
    max_length: int | None = None,
) -> Encoded:
    """Turn a conversation into ids and labels.

    Each `<image>` of a user turn becomes `tokens_per_image` times `image_token_id`; in an answer it is text.

    Args:
        template: a row of `TEMPLATES` or its name.
        tokenizer: a Hugging Face fast tokenizer.
        turns: alternating turns, from the user to the assistant.
        image_token_id: id that marks an image patch.
        tokens_per_image: length of an image's block of ids.
        max_length: longest row; what exceeds it is cut off on the right.

    Returns:
        Ids, labels and the number of tokens cut off.

    Raises:
        ValueError: As `segments`, and if an image does not fit or no token with loss is left.
    """
    template = _template(template)
    encoder = _encoder(template, tokenizer, image_token_id)
    input_ids = encoder.start(template)
    labels, images_end = [IGNORE_INDEX] * len(input_ids), 0
    for piece, ids in encoder.walk(segments(template, turns), tokens_per_image):
        input_ids += ids
        labels += ids if piece.supervised else [IGNORE_INDEX] * len(ids)
        if piece.kind == "image":
            images_end = len(input_ids)
    truncated = 0
    if max_length is not None and len(input_ids) > max_length:
        if images_end > max_length:
            raise ValueError(
                f"max_length {max_length} cuts an image block, which ends at token {images_end}: "
                "raise max_length or drop the row"
            )
        truncated = len(input_ids) - max_length
        del input_ids[max_length:], labels[max_length:]
    if labels.count(IGNORE_INDEX) == len(labels):
        raise ValueError(
            f"the row supervises nothing: its first answer starts behind max_length {max_length}; "
            "raise max_length or drop the row"
        )
    return Encoded(input_ids, labels, truncated)


def encode_prompt(
    template: Template | str,
    tokenizer: Any,
    turns: Sequence[Turn],
    *,
    image_token_id: int,
    tokens_per_image: int,
) -> list[int]:
    """Return the ids to generate from, up to and including the assistant's header.

    They are the first ids of `encode` on the same turns and an answer. The turns end with the user; the other
    arguments and errors are those of `encode`.
    """
    template = _template(template)
    encoder = _encoder(template, tokenizer, image_token_id)
    pieces = segments(template, turns, add_generation_prompt=True)
    return encoder.start(template) + [i for _, ids in encoder.walk(pieces, tokens_per_image) for i in ids]


_SAMPLES: tuple[list[Turn], ...] = (
    [("user", f"{IMAGE}\nWhat is in the picture?"), ("assistant", "Two cats, on a red sofa.")],
    [
        ("user", f"{IMAGE}\nHow many dogs?"),
        ("assistant", "3"),
        ("user", "Sure?\n\nLook again."),
        ("assistant", "Yes:\n  1. one\n  2. two"),
        ("user", ""),
        ("assistant", "(Nothing was asked.)"),
    ],
    [("user", "Say “hello” in Chinese."), ("assistant", "你好 is hello.")],
)


def check_tokenizer(template: Template | str, tokenizer: Any) -> None:
    """Check on three sample conversations that template and tokenizer belong together; run it at start-up.

    The ids must equal those of the whole string, taken by a copy of the tokenizer with `<image>` as a special
    token, and the ids with loss must decode to the answers and their ends.

    Raises:
        ValueError: If they do not; it says which string is at fault.
    """
    template = _template(template)
    backend = _backend(tokenizer)
    whole = type(backend).from_str(json.dumps(_specification(backend)))
    whole.add_special_tokens([IMAGE])
    image = whole.token_to_id(IMAGE)
    encoder = _encoder(template, tokenizer, image)
    fault = f"template {template.name!r} and this tokenizer do not belong together"
    remedy = "choose the template of this LLM's family"
    for turns in _SAMPLES[:1] if template.caption else _SAMPLES:
        text, walked = render(template, turns), list(encoder.walk(segments(template, turns), 1))
        ids = [i for _, ids in walked for i in ids]
        expected = whole.encode(text, add_special_tokens=False).ids
        if ids != expected:
            raise ValueError(f"{fault}: {text!r} is {ids} by segments but {expected} as a whole; {remedy}")
        for piece, ids in walked:
            # Sentencepiece decoders drop the space that starts their input.
            decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            if piece.supervised and decoded.removeprefix(" ") != piece.text.removeprefix(" "):
                raise ValueError(f"{fault}: {piece.text!r} decodes to {decoded!r}; {remedy}")


def choose_template(tokenizer: Any, family: str) -> str:
    """Return the key of `TEMPLATES` that the tokenizer's special tokens ask for.

    `family` is the LLM's `model_type`; only `"mistral"` matters, whose turns have no special tokens.
    """
    known = set(tokenizer.get_added_vocab())
    if "<|im_start|>" in known:
        return "chatml"
    if "<start_of_turn>" in known:
        return "gemma_instruct"
    if {"<|end|>", "<|assistant|>"} <= known:
        return "phi3_instruct"
    return "mistral_instruct" if family == "mistral" else "vicuna_v1"


def stop_ids(template: Template | str, tokenizer: Any) -> list[int]:
    """Return the ids that end an answer at generation, each once: turn end, the template's `stop`, EOS."""
    template, known = _template(template), tokenizer.get_added_vocab()
    # A caption ends with a newline: the last id, because the tokenizer may put a prefix in front of it.
    caption_end = tokenizer("\n", add_special_tokens=False).input_ids[-1]
    ids = [_special_id(template, known, template.end) if template.end else caption_end]
    ids += [known[text] for text in template.stop if text in known]
    ids += [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return list(dict.fromkeys(ids))


def normal_turns(conversations: Sequence[dict[str, Any]]) -> list[Turn]:
    """Bring LLaVA's JSON turns to the normal form, as LLaVA's `preprocess_multimodal` does.

    Turns before the first human one are dropped. A human turn with `<image>` becomes `<image>`, a newline and
    the rest, stripped. In an answer the word stays text.

    Args:
        conversations: `[{"from": "human" or "gpt", "value": text}, ...]`.

    Returns:
        Alternating turns, from the user to the assistant.

    Raises:
        ValueError: If they are anything else; one line, without the row's id, which the caller knows.
    """
    roles = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
    turns: list[Turn] = []
    for number, turn in enumerate(conversations):
        if not isinstance(turn, dict) or not isinstance(turn.get("from"), str):
            raise ValueError(f"turn {number} is {repr(turn)[:80]}, not {{'from': ..., 'value': ...}}")
        role, text = roles.get(turn["from"].lower()), turn.get("value")
        if role != "user" and not turns:
            continue
        if role is None:
            raise ValueError(f"turn {number} is from {turn['from']!r}; allowed: human, user, gpt, assistant")
        if not isinstance(text, str):
            raise ValueError(f"the value of turn {number} is {repr(text)[:80]}, not text")
        if role == "user" and IMAGE in text:
            text = f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip()
        turns.append((role, text))
    _check_turns(turns, ends_with="assistant")
    return turns


# Stands for "here was a special token or an image". It is a noncharacter of Unicode, so no text needs it;
# where one has it, it becomes U+FFFD.
_MARK = "\ufdd0"


class _Encoder:
    """Tokenises segments as the tokenizer would inside the whole string.

    A text's ids depend on where it stands: sentencepiece tokenizers put "▁" in front of a text that starts
    the string, some also behind a special token (Vicuna), some not (Llama with `legacy=False`). No rule per
    tokenizer is needed: a text is tokenised in its place, behind a stand-in for the special token or behind
    the last character of the text before it, and the ids of that context are taken off.

    A copy of the tokenizer's backend does the work. It looks for no special strings, so data stay text.
    """

    def __init__(self, tokenizer: Any, image_token_id: int) -> None:
        backend = _backend(tokenizer)
        specification = _specification(backend)
        added = specification["added_tokens"]
        ids = {token["content"]: token["id"] for token in added}
        self.special = {text: ids[text] for text in ids if _SPECIAL.fullmatch(text)}
        # Phi-3's special tokens swallow the white space behind them, the newlines of its headers included.
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
        self.plain = type(backend).from_str(json.dumps(specification))
        self.plain.encode_special_tokens = True
        self.ids = lru_cache(maxsize=4096)(self._ids)  # headers and short answers come again and again

    def start(self, template: Template) -> list[int]:
        """Return BOS, where the tokenizer or the template wants it."""
        return [self.bos] if self.adds_bos or (template.needs_bos and self.bos is not None) else []

    def walk(self, pieces: list[Segment], tokens_per_image: int) -> Iterator[tuple[Segment, list[int]]]:
        """Yield every segment with its ids."""
        context, swallow = "", False
        for piece in pieces:
            if piece.kind == "text":
                text = piece.text.lstrip(_WHITE) if swallow else piece.text
                yield piece, list(self.ids(context, text)) if text else []
                context, swallow = (_MARK + text[-1], False) if text else (context, swallow)
            elif piece.kind == "image":
                yield piece, [self.image_token_id] * tokens_per_image
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


_ENCODERS: WeakKeyDictionary[Any, dict[tuple[int, int], _Encoder]] = WeakKeyDictionary()


def _encoder(template: Template, tokenizer: Any, image_token_id: int) -> _Encoder:
    """Return the tokenizer's encoder, made once, after a look at the template's special tokens."""
    encoders = _ENCODERS.setdefault(tokenizer, {})
    key = (image_token_id, len(tokenizer))  # its length: tokens may be added between two calls
    if key not in encoders:
        encoders[key] = _Encoder(tokenizer, image_token_id)
    for text in template.special():
        _special_id(template, encoders[key].special, text)
    return encoders[key]


def _backend(tokenizer: Any) -> Any:
    if not hasattr(tokenizer, "backend_tokenizer"):
        name = type(tokenizer).__name__
        raise ValueError(f"{name} is not a fast tokenizer: choose an LLM that comes with a tokenizer.json")
    return tokenizer.backend_tokenizer


def _specification(backend: Any) -> dict[str, Any]:
    """Return the backend's `tokenizer.json`, without the length settings that earlier calls left in it."""
    return json.loads(backend.to_str()) | {"truncation": None, "padding": None}


def _special_id(template: Template, known: dict[str, int], text: str) -> int:
    if text not in known:
        raise ValueError(
            f"template {template.name!r} needs {text!r} as one special token, which this tokenizer lacks: "
            "choose the template of this LLM's family"
        )
    return known[text]


def _template(template: Template | str) -> Template:
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise ValueError(f"there is no template {template!r}; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[template]


def _check_turns(turns: Sequence[Turn], ends_with: str) -> None:
    for number, (role, text) in enumerate(turns):
        due = ("user", "assistant")[number % 2]
        if role != due:
            raise ValueError(f"turn {number} is from {role!r} where {due!r} is due: turns must alternate")
        if _SURROGATE.search(text):
            raise ValueError(
                f"turn {number} holds half a character (a lone surrogate): repair or drop the row"
            )
        if role == "assistant" and not text.strip():
            raise ValueError(f"the answer in turn {number} is empty: there is nothing to learn, drop the row")
    if not turns:
        raise ValueError("the conversation has no user turn")
    if turns[-1][0] != ends_with:
        raise ValueError(f"the conversation ends with {turns[-1][0]!r}, but it must end with {ends_with!r}")
