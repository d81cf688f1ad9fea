"""A Hugging Face tokenizer as the keys `tokenizer.ggml.*` of a GGUF file: sentencepiece or byte-level BPE."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer

from basic_lite.data.conversation import stop_ids
from basic_lite.data.tokenise import backend_of, specification
from basic_lite.models.llava import Assembled

_NEVER_MERGED: float = -1e9
"""Score of a token that no merge makes: llama.cpp joins two neighbours to any token it knows, best score
first, so a special token that a user types is put together last."""

_PHI3 = {"</s>", "<unk>", "<s>", "<|endoftext|>"}

_CASED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> dict[str, Any]:
    regex = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [regex, _bytes(use_regex=False)]}


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_DIGITS = {"type": "Digits", "individual_digits": True}
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _bytes(use_regex=True),
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _bytes(use_regex=True)]},
    "llama-bpe": _split(_CASED + r"\p{N}{1,3}" + _REST),
    "qwen2": _split(_CASED + r"\p{N}" + _REST),
}
"""How llama.cpp splits a text before byte-level BPE, by its name of the rule."""

_PROBES = (
    "Hello, world! It's 12345 o'clock; THEY'LL say 3.14159 (or 1000000).",
    "  two  spaces\n\n\nlines\t\ttabs \r\n and   an end   ",
    "naïve Straße 你好，世界。今天是2024年 한국어 привет мир עברית 😀👍🏽 ½ ²",
    "def f(x):\n    return {'a': x**2, \"b\": [1,2]}  # comment\n",
)


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp needs of a tokenizer."""

    model: str  # `"llama"` (sentencepiece) or `"gpt2"` (byte-level BPE)
    pre: str  # name of the rule that splits a text first
    tokens: list[str]  # one per row of the embeddings
    types: list[TokenType]  # of the tokens
    scores: list[float]  # of the tokens, for `"llama"`
    merges: list[str]  # two tokens separated by a space, for `"gpt2"`
    space_prefix: bool  # a text that starts the prompt gets a space in front


def vocabulary_of(tokenizer: Any, rows: int, stop: int) -> Vocabulary:
    """Translate a fast tokenizer; `rows` of the embeddings that no token has are filled with unused ones.

    `stop` is the id of a special token. Raises ValueError if llama.cpp has no such tokenizer.
    """
    backend = backend_of(tokenizer)
    specified = specification(backend)
    model = specified["model"]
    if model["type"] != "BPE":
        raise ValueError(f"llama.cpp reads BPE vocabularies here, not {model['type']}; use --to hf")
    names = {row: token for token, row in backend.get_vocab(with_added_tokens=True).items()}
    tokens = [names.get(row, f"[PAD{row}]") for row in range(rows)]
    sentencepiece = bool(model.get("byte_fallback"))
    types = [TokenType.NORMAL if row in names else TokenType.UNUSED for row in range(rows)]
    for added in specified["added_tokens"]:
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    if not sentencepiece:
        # llama.cpp reads no list without an entry: two special tokens are a pair that no text has.
        merges = [" ".join(pair) for pair in pairs] or [f"{tokens[stop]} {tokens[stop]}"]
        return Vocabulary("gpt2", pre_tokenizer_of(backend), tokens, types, [], merges, False)
    rank: dict[str, int] = {}
    for number, pair in enumerate(pairs):
        rank.setdefault("".join(pair), number)
    scores = [-float(rank[token]) if token in rank else _NEVER_MERGED for token in tokens]
    for row, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and types[row] == TokenType.NORMAL:
            types[row] = TokenType.BYTE
    unknown = model.get("unk_token")
    if unknown is not None:
        types[model["vocab"][unknown]] = TokenType.UNKNOWN
    prefix = backend.encode("x", add_special_tokens=False).tokens[0].startswith("▁")
    return Vocabulary("llama", "default", tokens, types, scores, [], prefix)


def pre_tokenizer_of(backend: Tokenizer) -> str:
    """Return llama.cpp's name of the rule by which this tokenizer splits texts, by what it does on many."""
    own = specification(backend)
    expected = [backend.encode(text, add_special_tokens=False).ids for text in _PROBES]
    for name, rule in PRE_TOKENIZERS.items():
        other = Tokenizer.from_str(json.dumps(own | {"pre_tokenizer": rule}))
        if [other.encode(text, add_special_tokens=False).ids for text in _PROBES] == expected:
            return name
    raise ValueError(
        f"this LLM's tokenizer splits texts by a rule that is none of {', '.join(PRE_TOKENIZERS)}; "
        "use --to hf and llama.cpp's own converter for its text half"
    )


def name_of(source: str, tokenizer: Any) -> str:
    """Return a text model's name in its file: one with "phi3" makes llama.cpp treat spaces as Phi-3 does."""
    name, added = Path(source).name, tokenizer.added_tokens_decoder.values()
    drops = any(token.rstrip for token in added) and _PHI3 <= tokenizer.get_vocab().keys()
    if drops == bool(re.search("phi-?3", name, re.IGNORECASE)):
        return name
    return "Phi-3" if drops else "LLM"


def write_vocabulary(writer: GGUFWriter, assembled: Assembled, template: str, rows: int) -> None:
    """Write the tokenizer, its special ids and the chat template in Jinja, for `rows` of embeddings."""
    tokenizer: Any = assembled.tokenizer
    stop = stop_ids(assembled.template, tokenizer)[0]
    vocabulary = vocabulary_of(tokenizer, rows, stop)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    else:
        writer.add_token_merges(vocabulary.merges)
    bos = tokenizer.bos_token_id
    if bos is not None:
        writer.add_bos_token_id(bos)
    adds_bos = bos is not None and tokenizer("x").input_ids[0] == bos
    writer.add_add_bos_token(adds_bos or (assembled.template.needs_bos and bos is not None))
    writer.add_add_eos_token(False)
    # The turn's end, whatever the LLM's own EOS: servers stop at this token.
    writer.add_eos_token_id(stop)
    writer.add_pad_token_id(assembled.pad_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_chat_template(template)
