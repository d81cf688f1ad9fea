"""Decoders of which some layers attend and others run a linear recurrence: Qwen3.5 attends in every fourth.

The oracle runs transformers' own eager attention and averages over the layers that gave a map.
"""

from __future__ import annotations

import pytest
import tiny
import torch
from oracle import close
from tiny import IMAGE_TOKEN, PATCHES, tiny_batch, tiny_llava
from transformers import Qwen3_5TextConfig

from basic_lite import BasicSupervision

RECURRENT, ATTENDS = "linear_attention", "full_attention"


@pytest.fixture
def hybrid(monkeypatch):
    """Return how a tiny LLaVA over Qwen3.5 is made, given what its four layers are."""

    def made(*kinds: str):
        config = Qwen3_5TextConfig(
            **tiny._SIZES,
            head_dim=8,
            layer_types=list(kinds),
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        )
        monkeypatch.setitem(tiny.ALL_DECODERS, "qwen3.5", lambda: config)
        return tiny_llava("qwen3.5").eval()

    return made


@torch.no_grad()
def oracle(model, batch, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Target and importance in fp32, one row at a time, from eager maps and all hidden states."""
    model.set_attn_implementation("eager")
    attending = [i for i, kind in enumerate(model.config.text_config.layer_types[:k]) if kind == ATTENDS]
    maps: dict[int, torch.Tensor] = {}
    hooks = [
        model.model.language_model.layers[i].self_attn.register_forward_hook(
            lambda module, args, output, i=i: maps.update({i: output[1]})
        )
        for i in attending
    ]
    targets, shares, pixels = [], [], batch["pixel_values"]
    for row in range(len(batch["input_ids"])):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        patches = (ids == IMAGE_TOKEN).nonzero().flatten().tolist()
        count = len(patches) // PATCHES
        mine, pixels = pixels[:count], pixels[count:]
        states = model(
            input_ids=ids[None],
            pixel_values=mine if count else None,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        for image in range(count):
            block = patches[image * PATCHES : (image + 1) * PATCHES]
            text = [j for j in range(block[-1] + 1, len(ids)) if ids[j] != IMAGE_TOKEN]
            for i in block:
                squares = sum(layer**2 for layer in range(1, k + 1))
                targets.append(sum(layer**2 * states[layer][0, i] for layer in range(1, k + 1)) / squares)
                looks = [maps[layer][0, :, j, i].mean() for layer in attending for j in text]
                shares.append(sum(looks, torch.zeros(())) / max(len(looks), 1))
    for hook in hooks:
        hook.remove()
    return torch.stack(targets), torch.stack(shares)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(
    ("kinds", "k"),
    [
        ((RECURRENT, RECURRENT, ATTENDS, RECURRENT), 3),  # one of three, the last one
        ((ATTENDS, RECURRENT, RECURRENT, ATTENDS), 3),  # an attending layer behind the k-th does not count
        ((ATTENDS, RECURRENT, ATTENDS, RECURRENT), 3),
        ((ATTENDS, ATTENDS, ATTENDS, RECURRENT), 3),
    ],
)
def test_importance_is_the_mean_over_the_layers_that_attend(hybrid, kinds, k, padding):
    model, batch = hybrid(*kinds), tiny_batch(padding)
    target, importance = oracle(model, batch, k)
    supervision = BasicSupervision(model, layers=k)
    with supervision, torch.no_grad():
        model(**batch)
    assert close(supervision.refinement.target, target, 1e-5)
    assert close(supervision.refinement.importance, importance, 1e-5)


def test_where_none_of_the_first_layers_attends_it_is_said_with_the_remedy(hybrid):
    model = hybrid(RECURRENT, RECURRENT, RECURRENT, ATTENDS)
    with pytest.raises(ValueError, match=r"none of the supervised layers 1 to 2 .* attends") as refused:
        BasicSupervision(model)
    assert "supervise at least 4 layers" in str(refused.value)
    assert 'importance="uniform"' in str(refused.value)
    assert "\n" not in str(refused.value)
    supervision = BasicSupervision(model, importance="uniform")  # the remedies are followed
    with supervision, torch.no_grad():
        model(**tiny_batch())
    assert supervision.refinement.importance.unique().tolist() == pytest.approx([1 / PATCHES])
    assert BasicSupervision(model, layers=4).layers == 4


def test_a_decoder_without_any_attention_is_told_of_the_one_remedy(hybrid):
    with pytest.raises(ValueError, match=r"looks at; weight all patches alike \(importance=\"uniform\"\)$"):
        BasicSupervision(hybrid(*[RECURRENT] * 4))


def test_attention_that_was_switched_away_is_said_not_averaged(hybrid):
    model = hybrid(RECURRENT, ATTENDS, ATTENDS, RECURRENT)
    supervision = BasicSupervision(model, layers=3)
    model.set_attn_implementation("eager")
    with (
        pytest.raises(ValueError, match=r"layers 2, 3 of the decoder did not run basic_sdpa"),
        supervision,
        torch.no_grad(),
    ):
        model(**tiny_batch())
