"""Recomputing any number of layers: the gradients do not change, and exactly those layers run twice."""

from __future__ import annotations

import pytest
import torch
from tiny import DECODERS, adapted, tiny_batch, tiny_llava

from basic_lite import BasicSupervision
from basic_lite.models.devices import layers_to_recompute, recompute_layers
from basic_lite.models.parts import parts_of


def step(decoder: str, lora: bool, count: int | None) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Return the gradients of a step with BASIC on, and how often each layer's MLP ran."""
    model = adapted(tiny_llava(decoder)) if lora else tiny_llava(decoder)
    model.train()
    layers = parts_of(model).decoder.layers
    recompute_layers(parts_of(model).decoder, count)
    runs = [0] * len(layers)

    def watch(number: int):
        def hook(module, args):
            runs[number] += 1

        return hook

    for number, layer in enumerate(layers):
        # Inside the layer, because its own hooks are outside the checkpoint since transformers 5.2x; before
        # the MLP, not behind it, because recomputation stops where nothing more is needed.
        layer.mlp.register_forward_pre_hook(watch(number))
    supervision = BasicSupervision(model)
    with supervision:
        outputs = model(**tiny_batch("left"))
    (outputs.loss + supervision.loss()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, runs


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("decoder", DECODERS)
def test_recomputing_any_number_of_layers_changes_no_gradient(decoder, lora):
    plain, runs = step(decoder, lora, 0)
    assert runs == [1, 1, 1, 1]
    assert len(plain) > 4 if lora else len(plain) == 4
    for count, expected in ((1, [2, 1, 1, 1]), (3, [2, 2, 2, 1]), (None, [2, 2, 2, 2])):
        gradients, runs = step(decoder, lora, count)
        assert runs == expected
        assert gradients.keys() == plain.keys()
        for name, value in plain.items():
            torch.testing.assert_close(gradients[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_recomputing_asks_the_text_s_embeddings_for_no_gradient():
    model = adapted(tiny_llava("llama"))
    recompute_layers(parts_of(model).decoder)
    assert not model.get_input_embeddings()(torch.tensor([[1, 2]])).requires_grad


def test_what_cannot_recompute_is_said():
    decoder = parts_of(tiny_llava()).decoder
    with pytest.raises(ValueError, match="this decoder has 4 layers; between 0 and 4 can recompute, not 5"):
        recompute_layers(decoder, 5)


@pytest.mark.parametrize(
    ("every", "count", "device", "expected"),
    [
        (None, None, "cpu", 0),
        (None, None, "cuda", None),
        (False, None, "cuda", 0),
        (True, None, "cpu", None),
        (True, 3, "cpu", 3),
    ],
)
def test_the_options_resolve(every, count, device, expected):
    assert layers_to_recompute(every, count, device) == expected
