"""The method against its naive definition: eager maps, all hidden states, full logits, fp64.

The oracle below is written from the formulas of the paper and knows nothing of the package's code.
"""

from __future__ import annotations

import pytest
import torch
from oracle import close, oracle
from tiny import DECODERS, MORE_DECODERS, adapted, tiny_batch, tiny_llava

from basic_lite import BasicSupervision
from basic_lite.method.chunks import Chunk
from basic_lite.method.losses import semantic_distribution
from basic_lite.models.parts import parts_of


def compare(model, batch, *, tolerance=1e-5, gradient_tolerance=1e-4, reference=None, **arguments):
    k = arguments.get("layers") or 2
    truth = oracle(reference or model, batch, k)
    supervision = BasicSupervision(model, **arguments)
    model.train()
    with supervision:
        outputs = model(**batch)
    loss = outputs.loss + supervision.loss()
    loss.backward()
    seen = supervision.refinement
    assert close(seen.target, truth["target"], tolerance)
    assert close(seen.importance, truth["importance"], tolerance)
    assert close(outputs.loss, truth["lm"], tolerance)
    assert close(supervision.terms["das"].mean(), truth["das"], tolerance)
    assert close(supervision.terms["sds"].mean(), truth["sds"], 5 * tolerance)
    gradients = [p.grad for n, p in model.named_parameters() if "projector" in n and p.requires_grad]
    assert len(gradients) == 4
    for ours, expected in zip(gradients, truth["gradients"], strict=True):
        assert close(ours, expected, gradient_tolerance)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_family_and_tower_equals_the_formulas(decoder, tower, padding):
    compare(tiny_llava(decoder, tower), tiny_batch(padding))


@pytest.mark.parametrize("decoder", MORE_DECODERS)
def test_later_families_equal_the_formulas(decoder):
    """With recomputation and, in some, with windows and rotary bases that differ between layers."""
    model = tiny_llava(decoder)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    compare(model, tiny_batch("left"), layers=3)


@pytest.mark.parametrize("layers", [1, 3])
def test_any_number_of_layers(layers):
    compare(tiny_llava(), tiny_batch(), layers=layers)


@pytest.mark.parametrize("rows_per_chunk", [1, 7, 1000])
def test_chunks_of_any_size(rows_per_chunk):
    compare(tiny_llava(), tiny_batch(), rows_per_chunk=rows_per_chunk)


@pytest.mark.parametrize("decoder", [*DECODERS, *MORE_DECODERS])
def test_tiles_of_the_vocabulary_equal_the_formulas(decoder):
    model, batch = tiny_llava(decoder), tiny_batch()
    supervision = BasicSupervision(model, layers=2)
    with supervision:
        model(**batch)
    seen, embedding = supervision.refinement, parts_of(model).embedding
    term = semantic_distribution(seen, embedding, Chunk(5, 100))
    assert close(term.mean(), oracle(model, batch, 2)["sds"], 5e-5)
    q, p = (
        (states.detach().double() @ embedding.double().T).softmax(-1)
        for states in (seen.initial, seen.target)
    )
    expected = seen.importance.double()[:, None] * ((q - p) @ embedding.double())
    assert close(torch.autograd.grad(term.total, seen.initial)[0], expected, 1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("decoder", DECODERS)
def test_gradient_checkpointing_counts_nothing_twice(decoder, reentrant):
    model = tiny_llava(decoder)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    compare(model, tiny_batch("left"))


def test_backward_inside_the_block_counts_nothing_twice():
    model, batch = tiny_llava(), tiny_batch()
    truth = oracle(model, batch, 2)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    supervision = BasicSupervision(model)
    with supervision:
        (model(**batch).loss + supervision.loss()).backward()
        assert close(supervision.refinement.importance, truth["importance"], 1e-5)
        assert close(supervision.refinement.target, truth["target"], 1e-5)
    parameters = [p for n, p in model.named_parameters() if "projector" in n]
    for parameter, expected in zip(parameters, truth["gradients"], strict=True):
        assert close(parameter.grad, expected, 1e-4)


@pytest.mark.parametrize("decoder", DECODERS)
def test_wrapped_by_peft(decoder):
    compare(adapted(tiny_llava(decoder)), tiny_batch("left"))
