"""Watching a forward pass: options, what it costs when switched off, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from oracle import close, oracle
from tiny import IMAGE_TOKEN, PATCHES, tiny_batch, tiny_llava

from basic_lite import BasicSupervision
from basic_lite.data.layout import layout_of
from basic_lite.method import attention
from basic_lite.method.targets import layer_weights


@pytest.mark.parametrize(
    ("weighting", "weights"),
    [("quadratic", [1, 4, 9]), ("linear", [1, 2, 3]), ("constant", [1, 1, 1]), ("decreasing", [9, 4, 1])],
)
def test_layers_are_weighted_as_asked(weighting, weights):
    assert layer_weights(3, weighting) == pytest.approx([w / sum(weights) for w in weights])
    model, batch = tiny_llava(), tiny_batch()
    truth = oracle(model, batch, 3, weights)
    supervision = BasicSupervision(model, layers=3, weighting=weighting)
    with supervision:
        model(**batch)
    assert close(supervision.refinement.target, truth["target"], 1e-5)


def test_uniform_importance_weighs_every_patch_alike():
    model, batch = tiny_llava(), tiny_batch()
    truth = oracle(model, batch, 2, importance="uniform")
    supervision = BasicSupervision(model, importance="uniform")
    with supervision:
        model(**batch)
    assert close(supervision.refinement.importance, truth["importance"], 1e-6)
    assert close(supervision.terms["das"].mean(), truth["das"], 1e-5)
    assert close(supervision.terms["sds"].mean(), truth["sds"], 5e-5)


def test_a_weight_of_zero_switches_a_term_off_and_costs_nothing(monkeypatch):
    calls = []
    monkeypatch.setattr(attention.TextRows, "attention", lambda *a: calls.append(a))
    model, batch = tiny_llava(), tiny_batch()
    off = BasicSupervision(model, das_weight=0, sds_weight=0)
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with off:
        assert before == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        model(**batch)
    assert off.refinement is None
    assert off.terms == {}
    assert float(off.loss()) == 0
    assert not calls


def test_one_term_alone():
    model, batch = tiny_llava(), tiny_batch()
    for arguments, names in (({"sds_weight": 0}, {"das"}), ({"das_weight": 0}, {"sds"})):
        supervision = BasicSupervision(model, **arguments)
        with supervision:
            model(**batch)
        assert set(supervision.terms) == names


def test_attention_is_looked_at_once_per_supervised_layer(monkeypatch):
    calls, original = [], attention.TextRows.attention

    def count(*arguments):
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(attention.TextRows, "attention", count)
    model = tiny_llava()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    supervision = BasicSupervision(model, layers=3)
    with supervision:
        (model(**tiny_batch()).loss + supervision.loss()).backward()
    assert len(calls) == 3


def test_nothing_stays_behind_after_the_block():
    model = tiny_llava()
    supervision = BasicSupervision(model)
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with pytest.raises(RuntimeError, match="interrupted"), supervision:
        raise RuntimeError("interrupted")
    assert before == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with supervision:
        model(**tiny_batch())
    first = supervision.refinement
    model(**tiny_batch(seed=2))  # outside: nobody looks
    assert supervision.refinement is first


def test_each_forward_pass_starts_anew_and_text_only_leaves_none():
    model, batch = tiny_llava(), tiny_batch()
    supervision = BasicSupervision(model)
    with supervision:
        model(**batch)
        first = supervision.loss()
        model(**tiny_batch(seed=2))
        assert not torch.equal(supervision.loss(), first)
        ids = torch.randint(4, 99, (2, 7))
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert supervision.refinement is None
    assert supervision.terms == {}
    assert float(supervision.loss()) == 0


def test_target_and_importance_carry_no_gradient():
    model = tiny_llava()
    supervision = BasicSupervision(model)
    with supervision:
        model(**tiny_batch())
    seen = supervision.refinement
    assert seen.initial.requires_grad
    assert not seen.target.requires_grad
    assert not seen.importance.requires_grad
    assert seen.target.dtype == torch.float32


def test_the_partial_map_can_be_cut_into_any_pieces(monkeypatch):
    model, batch = tiny_llava("mistral"), tiny_batch("left")
    results = []
    for elements in (1, 3000, 1 << 24):
        monkeypatch.setattr(attention, "_PARTIAL_MAP_ELEMENTS", elements)
        supervision = BasicSupervision(model)
        with supervision:
            model(**batch)
        results.append(supervision.refinement.importance)
    torch.testing.assert_close(results[0], results[2], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(results[1], results[2], rtol=1e-5, atol=1e-7)


def test_no_map_over_all_tokens_is_built():
    """Text queries only: 64 of 640 positions, so the scores have a tenth of a full map's elements."""
    query, key = torch.randn(1, 4, 640, 8), torch.randn(1, 2, 640, 8)
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * 575, *[9] * 64]])
    layout = layout_of(ids, None, IMAGE_TOKEN, 1)
    sizes = []
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.untyped_storage().size() // out.element_size())
            return out

    with Sizes():
        attention.TextRows(layout, None, query).attention(query, key, 1.0)
    assert max(sizes) <= 4 * 64 * 640


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 0}, "layers must be between 1 and 4 for this decoder, got 0"),
        ({"layers": 5}, "layers must be between 1 and 4 for this decoder, got 5"),
        (
            {"weighting": "cubic"},
            "quadratic, linear, constant, decreasing, got 'cubic'",
        ),
        ({"importance": "saliency"}, "importance must be one of attention, uniform, got 'saliency'"),
        ({"das_weight": -1}, r"das_weight must be 0 \(off\) or a positive number, got -1"),
        ({"sds_weight": float("nan")}, r"sds_weight must be 0 \(off\) or a positive number, got nan"),
        ({"rows_per_chunk": 0}, "rows_per_chunk must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BasicSupervision(tiny_llava(), **arguments)


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="a Linear was given; BASIC works on a transformers"):
        BasicSupervision(torch.nn.Linear(2, 2))


def test_embeddings_without_ids_are_refused():
    model, batch = tiny_llava(), tiny_batch()
    embeds = model.get_input_embeddings()(batch["input_ids"])
    supervision = BasicSupervision(model)
    with pytest.raises(ValueError, match="BASIC needs input_ids to find the patches"), supervision:
        model(inputs_embeds=embeds, pixel_values=batch["pixel_values"])


def test_image_tokens_that_cannot_be_shared_are_refused():
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * (PATCHES + 1), 9]])
    with pytest.raises(ValueError, match="10 image tokens cannot be shared evenly among 3 images"):
        layout_of(ids, None, IMAGE_TOKEN, 3)
