"""The tokenizer of an exported folder: the patch row is called `<image>`, and the turn's end is EOS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from basic_lite.data.conversation import IMAGE, stop_ids
from basic_lite.files import write_json
from basic_lite.models.llava import Assembled

_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}


def image_word(assembled: Assembled) -> str:
    """Return what the patch row is called in the folder: `<image>`, unless another row has that name."""
    taken = assembled.tokenizer.get_vocab().get(IMAGE, assembled.image_token_id)
    return IMAGE if taken == assembled.image_token_id else _word(assembled, assembled.image_token_id)


def write_tokenizer(assembled: Assembled, folder: Path, template: str) -> None:
    """Write `tokenizer.json` and its two companions, for readers of any version."""
    tokenizer: Any = assembled.tokenizer
    config: Any = assembled.model.config
    word = image_word(assembled)
    specification = json.loads(tokenizer.backend_tokenizer.to_str())
    specification |= {"truncation": None, "padding": None}
    _rename(specification, assembled.image_token_id, word)
    if assembled.template.needs_bos and tokenizer.bos_token_id is not None:
        if tokenizer("x").input_ids[0] != tokenizer.bos_token_id:
            _put_bos_in_front(specification, tokenizer.bos_token, tokenizer.bos_token_id)
    (folder / "tokenizer.json").write_text(
        json.dumps(specification, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    # The turn's end, whatever the LLM's own EOS: harnesses stop at this token alone.
    end = _word(assembled, stop_ids(assembled.template, tokenizer)[0])
    special = {"eos_token": end, "pad_token": _word(assembled, assembled.pad_token_id)}
    if tokenizer.bos_token is not None:
        special["bos_token"] = tokenizer.bos_token
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != assembled.image_token_id:
        special["unk_token"] = tokenizer.unk_token
    longest = config.text_config.max_position_embeddings
    added = {str(t.pop("id")): t for t in json.loads(json.dumps(specification["added_tokens"]))}
    content = {
        # A family's own class rebuilds the rules of tokenizer.json by its own lights; this one reads them.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "LlavaProcessor",
        **special,
        "image_token": word,
        "extra_special_tokens": {"image_token": word},
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "model_input_names": [
            "input_ids",
            "attention_mask",
        ],  # else 4.x adds token_type_ids, which break generate
        "model_max_length": longest,
        "padding_side": "left",
        "chat_template": template,
    }
    write_json(folder / "tokenizer_config.json", content)
    write_json(folder / "special_tokens_map.json", special | {"image_token": word})


def _word(assembled: Assembled, number: int) -> str:
    tokenizer: Any = assembled.tokenizer
    word = tokenizer.convert_ids_to_tokens(number)
    return IMAGE if word is None else word  # a padded row of the embeddings, which no token has


def _rename(specification: dict, number: int, word: str) -> None:
    """Call the row `number` by `word`, as a special token."""
    model = specification["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        old = next((token for token, row in vocabulary.items() if row == number), None)
        model["vocab"] = {word if row == number else token: row for token, row in vocabulary.items()}
    else:  # unigram: pairs of token and score
        old = vocabulary[number][0] if number < len(vocabulary) else None
        if old is not None:
            vocabulary[number][0] = word
    added = [token for token in specification["added_tokens"] if token["id"] != number]
    added.append({"id": number, "content": word, **_FLAGS})
    specification["added_tokens"] = sorted(added, key=lambda token: token["id"])
    if old is not None and model.get("unk_token") == old:
        # Byte fallback spells what the vocabulary lacks, so nothing becomes this row any more.
        model["unk_token"] = None


def _put_bos_in_front(specification: dict, word: str, number: int) -> None:
    bos, pieces = {"SpecialToken": {"id": word, "type_id": 0}}, []
    for name, kind in (("A", 0), ("B", 1)):
        pieces.append({"Sequence": {"id": name, "type_id": kind}})
    rule = {
        "type": "TemplateProcessing",
        "single": [bos, pieces[0]],
        "pair": [bos, *pieces],
        "special_tokens": {word: {"id": word, "ids": [number], "tokens": [word]}},
    }
    own = specification.get("post_processor")
    specification["post_processor"] = rule if own is None else {"type": "Sequence", "processors": [own, rule]}
