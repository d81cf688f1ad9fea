"""Decoder layers that run in few operations give the numbers of their classes' own code."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from models.layer_gradients import (
    EVERY,
    WIDE_KINDS,
    dequantise,
    error,
    exact,
    gradients,
    model_of,
    quantise,
    streamlined,
)
from tiny import ALL_DECODERS, adapted, tiny_batch, tiny_llava
from torch import nn

from basic_lite.models.adapters import group_adapters
from basic_lite.models.decoder_layer import FAMILIES, keep_dequantised, streamline
from basic_lite.models.devices import recompute_layers
from basic_lite.models.parts import parts_of

KNOWN = sorted(set(FAMILIES.values()))


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("decoder", KNOWN)
def test_loss_and_gradients_are_those_of_the_class_s_own_code(decoder, stage, padding):
    model = model_of(decoder, stage)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            nn.init.normal_(parameter, 0.5, 0.2)
    truth = gradients(exact(model), padding)
    assert error(gradients(streamlined(exact(model)), padding), truth) < 1e-12
    single = error(gradients(streamlined(model), padding), truth)
    assert single < max(1e-5, 2 * error(gradients(model, padding), truth))


@pytest.mark.parametrize("kept", [0, 2])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("decoder", ["llama", "phi3"])
def test_so_they_are_in_4_bits(decoder, stage, kept):
    model = model_of(decoder, stage, bits=4)
    ours, plain = streamlined(model), deepcopy(model)
    dequantise(plain)
    assert keep_dequantised(parts_of(ours).decoder, kept, torch.float32) == kept
    truth = gradients(exact(plain))
    assert error(gradients(ours), truth) < max(1e-5, 2 * error(gradients(model), truth))


@pytest.mark.parametrize("again", [0, None])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("decoder", WIDE_KINDS)
def test_so_they_are_in_blocks(decoder, stage, again, monkeypatch):
    monkeypatch.setitem(ALL_DECODERS, decoder, WIDE_KINDS[decoder])
    model = model_of(decoder, stage, bits=4)
    ours, plain = streamlined(model), deepcopy(model)
    pieces = parts_of(ours).decoder.layers[0]._pieces
    weights = [len(group.base.weights(torch.float32)) for group in pieces.groups]
    assert weights == [1, 1, 1, 1]
    dequantise(plain)
    recompute_layers(parts_of(ours).decoder, again)
    truth = gradients(exact(plain))
    assert error(gradients(ours), truth) < max(1e-5, 2 * error(gradients(model), truth))


@pytest.mark.parametrize("count", [1, 2, None])
@pytest.mark.parametrize("decoder", KNOWN)
def test_so_they_are_where_layers_run_again(decoder, count):
    model = model_of(decoder, 2)
    ours = streamlined(deepcopy(model).double())
    truth = gradients(deepcopy(ours))
    recompute_layers(parts_of(ours).decoder, count)
    assert error(gradients(ours), truth) < 1e-12


@pytest.mark.parametrize("bits", [4, 16])
def test_a_layer_that_runs_again_draws_the_masks_it_drew(bits):
    model = tiny_llava("llama")
    model = adapted(model, target_modules=EVERY, lora_dropout=0.4)
    if bits == 4:
        quantise(parts_of(model).decoder.layers)
    ours = streamlined(model.train())
    found = []
    for again in (0, None):
        recompute_layers(parts_of(ours).decoder, again)
        torch.manual_seed(5)
        found.append(gradients(ours))
        ours.zero_grad()
    torch.manual_seed(6)
    assert error(found[1], found[0]) < 1e-5
    assert error(gradients(ours), found[0]) > 1e-2


def test_a_layer_that_runs_again_keeps_its_input_alone():
    model = model_of("llama", 2)
    ours, kept = streamlined(model), []
    layers = parts_of(ours).decoder.layers
    recompute_layers(parts_of(ours).decoder)

    def watch(layer, args):
        hooks.append(torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t))
        hooks[-1].__enter__()

    def unwatch(layer, args, output):
        hooks.pop().__exit__(None, None, None)

    hooks: list = []
    layers[1].register_forward_pre_hook(watch)
    layers[1].register_forward_hook(unwatch)
    ours(**tiny_batch(), use_cache=False)
    assert [tensor.shape[-1] for tensor in kept] == [32]


@pytest.mark.filterwarnings("ignore:Full backward hook")  # attention gets its input by keyword
@pytest.mark.parametrize("again", [0, None])
@pytest.mark.parametrize(
    "place",
    ["self_attn.q_proj", "self_attn", "mlp.down_proj.lora_A.default", "input_layernorm", "mlp.act_fn"],
)
def test_hooks_on_modules_inside_still_run(place, again):
    ours, calls = streamlined(model_of("llama", 2)), []
    recompute_layers(parts_of(ours).decoder, again)
    truth = gradients(deepcopy(ours))
    module = parts_of(ours).decoder.layers[1].get_submodule(place)
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    assert error(gradients(ours), truth) < 1e-4
    assert len(calls) == (1 if again == 0 else 2)  # and when the layer runs again
    handle.remove()
    calls.clear()
    module.register_full_backward_hook(lambda *_: calls.append(1))
    gradients(ours)
    assert calls


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("decoder", ["llama", "gemma", "phi3"])
def test_in_bf16_the_error_is_no_larger(decoder, stage):
    errors = torch.zeros(2)
    for seed in range(4):  # the error is noise: of each it is a tenth more or less
        model = model_of(decoder, stage)
        generator = torch.Generator().manual_seed(seed)
        parts = parts_of(model)
        for parameter in parts.decoder.layers.parameters():
            if parameter.dim() == 2:  # so small that nothing grows from layer to layer
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        for part in (parts.decoder, parts.llava.vision_tower):  # as on a GPU; what is trained stays fp32
            for parameter in part.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()
        truth = gradients(exact(model))
        for i, each in enumerate((model, streamlined(model))):
            given = gradients(each, half=True)
            errors[i] += sum(float((given[n].double() - truth[n]).square().sum()) for n in truth) ** 0.5
    assert 0 < errors[1] < 1.15 * errors[0]


@pytest.mark.parametrize("stage", [1, 2])
def test_kept_weights_give_the_same_bits(stage):
    model = model_of("llama", stage, bits=4)
    ours, kept = streamlined(model), streamlined(model)
    assert keep_dequantised(parts_of(kept).decoder, 9, torch.float32) == 3  # all but the last
    plain, held = gradients(ours), gradients(kept)
    assert all(torch.equal(held[name], plain[name]) for name in plain)


@pytest.mark.parametrize("decoder", sorted(set(ALL_DECODERS) - set(KNOWN)))
def test_other_classes_stay_as_they_are(decoder):
    model = tiny_llava(decoder)
    layers = parts_of(model).decoder.layers
    before = [type(layer) for layer in layers]
    assert streamline(parts_of(model).decoder) == (0 if decoder != "phi4_mini" else 3)
    if decoder != "phi4_mini":
        assert [type(layer) for layer in layers] == before


def test_a_part_of_each_head_rotates_as_the_class_has_it():
    model = model_of("phi4_mini", 1)
    own, plain = gradients(streamlined(model)), gradients(model)
    assert all(torch.equal(own[name], plain[name]) for name in plain)


def test_adapters_on_some_of_a_group_s_layers_stay_peft_s():
    model = adapted(tiny_llava("llama"))  # query and value alone
    group_adapters(parts_of(model).decoder.layers)
    assert streamline(parts_of(model).decoder) == 0


def test_evaluation_and_switched_off_adapters_run_the_class_s_own_code():
    model = model_of("llama", 2)
    ours, batch = streamlined(model), tiny_batch()
    with torch.no_grad():
        assert torch.equal(ours.eval()(**batch).logits, model.eval()(**batch).logits)
    for each in (ours, model):
        each.train()
    with ours.disable_adapter(), model.disable_adapter():
        assert torch.equal(ours(**batch).logits, model(**batch).logits)
