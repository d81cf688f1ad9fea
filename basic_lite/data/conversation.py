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
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from basic_lite.data.templates import TEMPLATES, Template, template_of
from basic_lite.data.tokenise import WHITE, Segment, backend_of, encoder_of, special_id, specification

IGNORE_INDEX: int = -100

IMAGE = "<image>"
"""Placeholder of one image in a user turn."""

Turn = tuple[str, str]
"""`(role, text)`; the role is `"user"` or `"assistant"`, of the first turn also `"system"`."""

_IMAGE = re.compile(f"({IMAGE})")
HALF_CHARACTER: re.Pattern[str] = re.compile("[\ud800-\udfff]")
"""A lone surrogate: JSON may write half of a pair, which no tokenizer reads."""


@dataclass(frozen=True)
class Encoded:
    """The ids of one conversation."""

    input_ids: list[int]
    labels: list[int]  # `IGNORE_INDEX` without loss
    truncated: int  # how many tokens were cut off


def segments(
    template: Template | str,  # a row of `TEMPLATES` or its name
    turns: Sequence[Turn],  # alternating, from the user to the assistant, after a system turn or none
    *,
    add_generation_prompt: bool = False,  # end with the assistant's header; the turns then end with the user
    silent: Collection[int] = (),  # places of answers without loss
) -> list[Segment]:
    """Cut a conversation into segments; the only place where template strings are put together.

    Texts stay as they are except for white space at the start of an answer whose header ends in a newline:
    byte-level and Gemma vocabularies would join the two in one token, which no prompt ends with. Neighbouring
    texts with the same supervision become one segment. Raises ValueError if the turns do not alternate, end
    with the wrong role, or hold an empty answer.
    """
    template = template_of(template)
    _check_turns(turns, ends_with="user" if add_generation_prompt else "assistant")
    pieces: list[Segment] = []

    def add(text: str, marks: re.Pattern[str] | None, supervised: bool = False) -> None:
        for number, part in enumerate(marks.split(text) if marks else [text]):
            kind = "text" if number % 2 == 0 else "image" if marks is _IMAGE else "special"
            if kind == "text" and pieces and (pieces[-1].kind, pieces[-1].supervised) == ("text", supervised):
                part = pieces.pop().text + part
            if part:
                pieces.append(Segment(part, supervised, kind))

    special, turns, system = template.marks, list(turns), ""
    if turns[0][0] == "system":
        _, system = turns.pop(0)
    if not system:
        add(template.system, special)
    elif template.system_turn:
        before, after = template.system_turn.split("{}")
        add(before, special)
        add(system, None)
        add(after, special)
    elif not template.caption:  # a family without system role
        turns[0] = ("user", f"{system}\n\n{turns[0][1]}")
    header, footer = template.user.split("{}")
    for place, (role, text) in enumerate(turns):
        if role == "user":
            if template.caption:
                if len(turns) > 2 or text.count(IMAGE) != 1:
                    raise ValueError(
                        f"template {template.name!r} is for one image and its caption, but here are "
                        f"{text.count(IMAGE)} images and {len(turns)} turns"
                    )
                text = IMAGE
            add(template.between if place else "", special)
            add(header, special)
            add(text, _IMAGE)
            add(footer, special)
            if place >= len(turns) - 2:
                add(template.thought, special)
        else:
            text = text.lstrip(WHITE) if template.header.endswith("\n") else text
            supervised = place not in silent
            add(template.answer.format(text), None, supervised=supervised)
            add(template.end, special, supervised=supervised)
            add(template.after, special)
    return pieces


def render(template: Template | str, turns: Sequence[Turn], *, add_generation_prompt: bool = False) -> str:
    """Return the string that is tokenised: the `segments` joined. BOS, a matter of ids, is not in it."""
    pieces = segments(template, turns, add_generation_prompt=add_generation_prompt)
    return "".join(piece.text for piece in pieces)


def encode(
    template: Template | str,  # a row of `TEMPLATES` or its name
    tokenizer: Any,  # a Hugging Face fast tokenizer
    turns: Sequence[Turn],  # alternating, from the user to the assistant
    *,
    image_token_id: int,
    tokens_per_image: int | Sequence[int],  # the same for all images or one for each
    max_length: int | None = None,  # what exceeds it is cut off on the right
    silent: Collection[int] = (),  # places of answers without loss
) -> Encoded:
    """Turn a conversation into ids and labels.

    Each `<image>` of a user turn becomes `tokens_per_image` times `image_token_id`; in an answer it is text.
    Raises ValueError as `segments` does, and if an image does not fit or no token with loss is left.
    """
    template = template_of(template)
    encoder = encoder_of(template, tokenizer, image_token_id)
    input_ids = encoder.start(template)
    labels, images_end = [IGNORE_INDEX] * len(input_ids), 0
    for piece, ids in encoder.walk(segments(template, turns, silent=silent), tokens_per_image):
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
            f"the row supervises nothing: its first answer starts after max_length {max_length}; "
            "raise max_length or drop the row"
        )
    return Encoded(input_ids, labels, truncated)


def encode_prompt(
    template: Template | str,
    tokenizer: Any,
    turns: Sequence[Turn],
    *,
    image_token_id: int,
    tokens_per_image: int | Sequence[int],
) -> list[int]:
    """Return the ids to generate from, up to and including the assistant's header.

    They are the first ids of `encode` on the same turns and an answer. The turns end with the user; the other
    arguments and errors are those of `encode`.
    """
    template = template_of(template)
    encoder = encoder_of(template, tokenizer, image_token_id)
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

    The ids must equal those of the whole string, from a copy of the tokenizer with `<image>` as a special
    token, and the ids with loss must decode to the answers and their ends. Raises ValueError, with the string
    that differs, if they do not.
    """
    template = template_of(template)
    backend = backend_of(tokenizer)
    whole = type(backend).from_str(json.dumps(specification(backend)))
    whole.add_special_tokens([IMAGE])
    image = whole.token_to_id(IMAGE)
    encoder = encoder_of(template, tokenizer, image)
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


_PROBE: list[Turn] = [("user", "Q1"), ("assistant", "A1"), ("user", "Q2")]
_DATE = re.compile(r"\d{1,2} [A-Z][a-z]+ \d{4}")
# Base models may have a template's tokens without the template: the first row whose tokens are all there.
_TOKENS: tuple[tuple[str, set[str]], ...] = (
    ("chatml", {"<|im_start|>"}),
    ("gemma_instruct", {"<start_of_turn>"}),
    ("llama3", {"<|start_header_id|>"}),
    ("granite", {"<|start_of_role|>"}),
    ("cohere", {"<|START_OF_TURN_TOKEN|>"}),
    ("glm4", {"[gMASK]", "<sop>", "<|user|>"}),
    ("mistral_v3", {"[INST]", "[/INST]"}),
    ("phi3_instruct", {"<|end|>", "<|assistant|>"}),
)


def recognised(tokenizer: Any) -> tuple[str | None, bool]:
    """Return the key of `TEMPLATES` that writes what the tokenizer's own `chat_template` writes, or `None`.

    The second value says whether they also agree without a system turn: a finetune may have another default
    system text. An exchange, a question and the header of its answer are compared, without the thinking mode
    of templates that have one; dates may differ, because some write today's.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None, False
    known = set(tokenizer.get_added_vocab())
    rows = [row for row in TEMPLATES.values() if not row.caption and known.issuperset(row.special())]
    rows.sort(key=lambda row: -len(set(row.special())))  # `[INST]` may be text: a token goes before it
    for turns in (_PROBE, [("system", "S"), *_PROBE]):
        messages = [{"role": role, "content": text} for role, text in turns]
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except Exception:  # the template may refuse a role or miss a variable
            continue
        text = _DATE.sub("", text)
        written = (text, text.removeprefix(tokenizer.bos_token or ""))  # SmolLM2's BOS is its `<|im_start|>`
        for row in rows:
            if _DATE.sub("", render(row, turns, add_generation_prompt=True)) in written:
                return row.name, turns is _PROBE
    return None, False


def choose_template(
    tokenizer: Any, fallback: str = "vicuna_v1", say: Callable[[str], object] | None = None
) -> str:
    """Return the key of `TEMPLATES` that fits a tokenizer.

    It is chosen by what the `chat_template` writes, else by the special tokens, else it is `fallback`, the
    family's. `say` is called with a line if the tokenizer's own template is not among ours.
    """
    name, exact = recognised(tokenizer)
    difference = "writes a default system text that is"
    if name is None:
        known = set(tokenizer.get_added_vocab())
        name, difference = next((row for row, tokens in _TOKENS if tokens <= known), fallback), "is"
    if say is not None and not exact and getattr(tokenizer, "chat_template", None):
        own = f"the tokenizer's own chat template {difference} none of those known here"
        say(f"{own}: {name} is taken (--template)")
    return name


def stop_ids(template: Template | str, tokenizer: Any) -> list[int]:
    """Return the ids that end an answer at generation, each once: turn end, the template's `stop`, EOS."""
    template, known = template_of(template), tokenizer.get_added_vocab()
    # A caption ends with a newline: the last id, because the tokenizer may put a prefix before it.
    caption_end = tokenizer("\n", add_special_tokens=False).input_ids[-1]
    ids = [special_id(template, known, template.end) if template.end else caption_end]
    ids += [known[text] for text in template.stop if text in known]
    ids += [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return list(dict.fromkeys(ids))


def _check_turns(turns: Sequence[Turn], ends_with: str) -> None:
    first = 1 if turns and turns[0][0] == "system" else 0
    for number, (role, text) in enumerate(turns[first:], first):
        due = ("user", "assistant")[(number - first) % 2]
        if role != due:
            raise ValueError(f"turn {number} is from {role!r} where {due!r} is due: turns must alternate")
        if HALF_CHARACTER.search(text):
            raise ValueError(
                f"turn {number} holds half a character (a lone surrogate): repair or drop the row"
            )
        if role == "assistant" and not text.strip():
            raise ValueError(f"the answer in turn {number} is empty: there is nothing to learn, drop the row")
    if len(turns) <= first:
        raise ValueError("the conversation has no user turn")
    if turns[-1][0] != ends_with:
        raise ValueError(f"the conversation ends with {turns[-1][0]!r}, but it must end with {ends_with!r}")
