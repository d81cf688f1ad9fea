"""Nothing runs behind the layer whose states are the features."""

from __future__ import annotations

import pytest
import torch
from tiny import TOWER_SIZES, TOWERS, tiny_llava
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipVisionConfig, SiglipVisionModel

from basic_lite.models.tower import up_to_the_features


def features(model, pixels, layer):
    found = model.model.get_image_features(pixels, vision_feature_layer=layer).pooler_output
    return torch.cat(list(found))


@pytest.mark.parametrize("layer", [-2, -3, -1, 1, [-3, -2]])
@pytest.mark.parametrize("tower", TOWERS)
def test_features_are_the_same_and_the_tower_is_left_as_it_was(tower, layer):
    model, pixels = tiny_llava(tower=tower), torch.randn(2, 3, 24, 24)
    if isinstance(layer, list):
        model.model.multi_modal_projector.linear_1 = torch.nn.Linear(48, 32)
    whole = features(model, pixels, layer)
    last = model.model.vision_tower(pixels).last_hidden_state
    with up_to_the_features(model.model.vision_tower, layer):
        short = features(model, pixels, layer)
    assert torch.equal(short, whole)
    assert torch.equal(model.model.vision_tower(pixels).last_hidden_state, last)


@pytest.mark.parametrize("tower", TOWERS)
def test_the_layers_behind_cost_nothing(tower):
    model, pixels = tiny_llava(tower=tower), torch.randn(2, 3, 24, 24)
    encoder = model.model.vision_tower.encoder

    def flops(short: bool) -> dict:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            with up_to_the_features(model.model.vision_tower, -2 if short else -1):
                features(model, pixels, -2)
        return counter.get_total_flops()

    layers = getattr(encoder, "layers", None) or encoder.layer
    matrices = sum(m.weight.numel() for m in layers[-1].modules() if isinstance(m, torch.nn.Linear))
    patches = 9 + (tower != "siglip")
    assert flops(short=False) - flops(short=True) == 2 * 2 * patches * matrices


def test_a_pooling_head_is_left_out():
    config = SiglipVisionConfig(**TOWER_SIZES)
    tower, pixels = SiglipVisionModel(config).eval(), torch.randn(2, 3, 24, 24)
    assert tower.use_head
    calls = []
    tower.head.attention.register_forward_hook(lambda *_: calls.append(1))
    with up_to_the_features(tower, -2):
        tower(pixels, output_hidden_states=True)
    assert not calls
    tower(pixels)
    assert calls
