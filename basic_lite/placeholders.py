"""Which vocabulary rows mark a patch and fill a batch; none is ever added."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from basic_lite import conversation

_RESERVED = ("<image>", "<unused0>", "<|placeholder1|>", "<|reserved_special_token_0|>", "<reponame>")
"""Tokens that exist for uses like this one, in the vocabularies of the supported families."""


def find_image_token(
    tokenizer: PreTrainedTokenizerBase, template: conversation.Template, vocabulary: int, wanted: str | None
) -> int:
    """Find a vocabulary row for patches without adding one.

    Raises:
        ValueError: If no row is free.
    """
    taken = {tokenizer.bos_token_id, tokenizer.eos_token_id, *conversation.stop_ids(template, tokenizer)}
    known = tokenizer.get_vocab()
    for token in (wanted,) if wanted else _RESERVED:
        if token in known and known[token] < vocabulary and known[token] not in taken:
            return known[token]
    if wanted:
        raise ValueError(f"the image token {wanted!r} is not a free token of this tokenizer")
    if len(tokenizer) < vocabulary:
        return len(tokenizer)  # a padded row of the embedding matrix: no token has it
    spoken = tokenizer.unk_token_id
    if spoken is not None and spoken not in taken and "<0x0A>" in known:
        return spoken  # byte fallback spells every unknown character, so no text becomes <unk>
    raise ValueError(
        "this tokenizer has no free row to mark patches (no reserved token, no padded row, no unused <unk>); "
        "name one with --image-token"
    )


def find_pad_token(tokenizer: PreTrainedTokenizerBase, image_token_id: int, wanted: str | None) -> int:
    """Return the id that fills a batch: never the image's."""
    candidates = [tokenizer.get_vocab().get(wanted) if wanted else None, tokenizer.pad_token_id]
    candidates += [tokenizer.eos_token_id, tokenizer.bos_token_id, 0]
    return next(c for c in candidates if c is not None and c != image_token_id)
