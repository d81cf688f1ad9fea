"""Matches at every layer against stored hidden states, stand-ins against the model itself."""

from __future__ import annotations

import pytest
import torch
from tiny import DECODERS, tiny_assembled
from torch.nn import functional as F

from basic_lite.analysis import replacement
from basic_lite.analysis.inspection import watch_layers
from basic_lite.data.conversation import encode, encode_prompt, stop_ids
from basic_lite.data.templates import TEMPLATES
from basic_lite.method.fit import match_tokens
from basic_lite.method.targets import layer_weights
from basic_lite.models.llava import for_inference
from basic_lite.models.parts import parts_of


def conversation(assembled, caption: str = "a dog and its bone") -> tuple[list[int], list[int]]:
    turns = [("user", "<image>\nwhat is it"), ("assistant", caption)]
    sizes = {"image_token_id": assembled.image_token_id, "tokens_per_image": assembled.tokens_per_image}
    row = encode(assembled.template, assembled.tokenizer, turns, **sizes)
    return row.input_ids, row.labels


def pixels(assembled) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, 3, assembled.image_size, assembled.image_size, generator=generator)


def test_a_table_in_chunks_is_the_table():
    torch.manual_seed(0)
    vectors, table = torch.randn(37, 16), torch.randn(50, 16) * torch.rand(50, 1) * 9
    every = F.cosine_similarity(vectors[:, None].double(), table[None].double(), dim=-1)
    for rows, vocabulary_rows in ((1024, 16384), (8, 7), (5, 50)):
        ids, values = match_tokens(vectors, table, rows, vocabulary_rows)
        assert torch.equal(ids, every.argmax(1))
        assert torch.allclose(values.double(), every.amax(1), atol=1e-6)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_layer_is_matched_as_from_stored_hidden_states(decoder):
    assembled = tiny_assembled(decoder)
    model, parts = assembled.model, parts_of(assembled.model)
    for_inference(model)
    ids = torch.tensor([conversation(assembled)[0]])
    patch = ids[0].eq(assembled.image_token_id).nonzero().squeeze(1)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in parts.decoder.modules())

    unnormed: list[torch.Tensor] = []
    hook = parts.decoder.norm.register_forward_pre_hook(lambda module, args: unnormed.append(args[0]))
    weights = layer_weights(3)
    model(input_ids=ids, output_hidden_states=True)  # transformers leaves hooks of its own for this
    before = hooks()
    with watch_layers(model, patch, weights) as seen:
        out = model(input_ids=ids, pixel_values=pixels(assembled), output_hidden_states=True)
    # The tuple's last entry is behind the final norm; what leaves the last layer goes into that norm.
    states = [one[0, patch].double() for one in [*out.hidden_states[:-1], unnormed[-1]]]
    target = sum(w * state for w, state in zip(weights, states[1:4], strict=True))
    assert torch.allclose(seen.target.double(), target, rtol=1e-5, atol=1e-5)
    states.append(target)
    assert len(seen.tokens) == len(states) == 6
    table = parts.embedding.detach().double()
    for found, similarity, cosine, truth in zip(
        seen.tokens, seen.similarity, seen.cosine, states, strict=True
    ):
        every = F.normalize(truth, dim=1) @ F.normalize(table, dim=1).T
        assert torch.equal(found, every.argmax(1))
        assert torch.allclose(similarity.double(), every.amax(1), atol=1e-6)
        assert torch.allclose(cosine.double(), F.cosine_similarity(truth, states[0], dim=1), atol=1e-6)
    assert hooks() == before
    hook.remove()


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_picture_that_is_made_of_words_survives_whole(decoder):
    """Embeddings that are scaled rows of the table change nothing when their tokens stand in for them."""
    assembled = tiny_assembled(decoder)
    for_inference(assembled.model)
    table, (ids, labels) = parts_of(assembled.model).embedding, conversation(assembled)
    said = torch.arange(20, 20 + assembled.tokens_per_image)
    scale = torch.linspace(0.3, 40, assembled.tokens_per_image)[:, None]
    own = table[said].detach() * scale
    matched = match_tokens(own, table)[0]
    assert torch.equal(matched, said)
    stand_ins = replacement.token_stand_ins(assembled, matched, own)
    losses = replacement.caption_losses(assembled, ids, labels, {replacement.ORIGINAL: own} | stand_ins)
    assert losses[replacement.DIRECTION] == pytest.approx(losses[replacement.ORIGINAL], abs=1e-5)
    assert losses[replacement.AS_TEXT] != pytest.approx(losses[replacement.ORIGINAL], abs=1e-3)
    # As text the decoder receives them as its own embedding module gives them, Gemma's factor included.
    written = [t if t != assembled.image_token_id else None for t in ids]
    tokens = iter(said.tolist())
    written = [next(tokens) if t is None else t for t in written]
    as_text = assembled.model(input_ids=torch.tensor([written])).logits[0, :-1].log_softmax(-1)
    supervised = [i for i, label in enumerate(labels[1:]) if label >= 0]
    expected = -sum(as_text[i, labels[i + 1]].item() for i in supervised) / len(supervised)
    assert losses[replacement.AS_TEXT] == pytest.approx(expected, abs=1e-5)


def test_original_embeddings_give_the_models_own_loss_and_text():
    assembled = tiny_assembled("llama")
    for_inference(assembled.model)
    ids, labels = conversation(assembled)
    parts, shown = parts_of(assembled.model), pixels(assembled)
    own = parts.llava.get_image_features(shown).pooler_output[0]
    blank = torch.zeros_like(own)
    found = replacement.caption_losses(
        assembled, ids, labels, {replacement.BLANK: blank, replacement.ORIGINAL: own}, rows=1
    )
    truth = assembled.model(
        input_ids=torch.tensor([ids]), pixel_values=shown, labels=torch.tensor([labels])
    ).loss
    assert found[replacement.ORIGINAL] == pytest.approx(truth.item(), abs=1e-5)
    assert found[replacement.BLANK] != pytest.approx(truth.item(), abs=1e-3)

    template = TEMPLATES["plain"]
    sizes = {"image_token_id": assembled.image_token_id, "tokens_per_image": assembled.tokens_per_image}
    prompt = encode_prompt(template, assembled.tokenizer, [("user", "<image>")], **sizes)
    made = list(prompt)
    for _ in range(7):
        logits = assembled.model(input_ids=torch.tensor([made]), pixel_values=shown).logits[0, -1]
        logits[assembled.image_token_id] = -torch.inf
        made.append(int(logits.argmax()))
        if made[-1] in stop_ids(template, assembled.tokenizer):
            made.pop()
            break
    expected = assembled.tokenizer.decode(made[len(prompt) :], skip_special_tokens=True).strip()
    texts = replacement.greedy_texts(
        assembled, template, prompt, {replacement.BLANK: blank, replacement.ORIGINAL: own}, 7
    )
    assert texts[replacement.ORIGINAL] == expected
    assert expected
