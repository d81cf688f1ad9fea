"""Vision-language models of transformers taken apart: each part says what it said inside the whole."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from tiled import tiny_llava_next
from tiny import TOWER_SIZES, llm_folder, old_names, tiny_llava, tower_folder
from transformers import AutoModelForCausalLM, CLIPVisionModel

from basic_lite.memory.sizes import DecoderSize, decoders_named
from basic_lite.models import quantised, unpacked

_TEXT = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_EYES = {"depth": 1, "hidden_size": 32, "num_heads": 2, "patch_size": 8}


def _gemma3():
    return transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config=_TEXT | {"head_dim": 8, "sliding_window": 16},
            vision_config={"model_type": "siglip_vision_model", **TOWER_SIZES},
            mm_tokens_per_image=9,
        )
    )


def _mistral3():
    eyes = {"model_type": "pixtral", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    eyes |= {"intermediate_size": 32, "image_size": 24, "patch_size": 8, "head_dim": 12}
    text = _TEXT | {"model_type": "mistral", "head_dim": 8}
    return transformers.Mistral3ForConditionalGeneration(
        transformers.Mistral3Config(text_config=text, vision_config=eyes)
    )


def _qwen2_vl():
    text = _TEXT | {"model_type": "qwen2_vl_text", "rope_parameters": _MROPE}
    eyes = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 8}
    return transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(text_config=text, vision_config=eyes)
    )


def _qwen2_5_vl():
    text = _TEXT | {"model_type": "qwen2_5_vl_text", "rope_parameters": _MROPE}
    eyes = _EYES | {"out_hidden_size": 32, "intermediate_size": 32, "fullatt_block_indexes": [0]}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=eyes)
    )


def _qwen3_vl():
    text = _TEXT | {"head_dim": 8, "rope_parameters": _MROPE, "model_type": "qwen3_vl_text"}
    eyes = _EYES | {"out_hidden_size": 32, "intermediate_size": 32, "deepstack_visual_indexes": [0]}
    return transformers.Qwen3VLForConditionalGeneration(
        transformers.Qwen3VLConfig(text_config=text, vision_config=eyes)
    )


WHOLE = {
    "llava": tiny_llava,
    "llava_next": tiny_llava_next,
    "gemma3": _gemma3,
    "mistral3": _mistral3,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(quantised.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def save(model, folder):
    """Write a whole model with a tokenizer and a CLIP's image settings."""
    model.save_pretrained(folder, max_shard_size="20KB")
    for path in llm_folder().glob("*token*"):
        shutil.copy(path, folder)
    shutil.copy(tower_folder() / "preprocessor_config.json", folder)
    return str(folder)


@pytest.mark.parametrize("kind", WHOLE)
@torch.no_grad()
def test_a_decoder_taken_out_gives_the_same_logits(kind, tmp_path):
    torch.manual_seed(0)
    whole = WHOLE[kind]().eval()
    source = save(whole, tmp_path / "whole")
    lines = []
    place = unpacked.language_model(source, lines.append)
    alone, said = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    assert "vl" not in alone.config.model_type
    ids = torch.randint(4, 200, (2, 24), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        alone.eval()(input_ids=ids).logits, whole(input_ids=ids).logits, rtol=1e-5, atol=1e-5
    )
    known = unpacked.decoder_config(source)
    assert DecoderSize.of(known, source) == DecoderSize.of(alone.config, source)
    assert decoders_named(None, source) == [(source, DecoderSize.of(known, source))]
    assert (len(lines), place) == (1, unpacked.language_model(source, lines.append))
    assert len(lines) == 1  # once


@torch.no_grad()
def test_the_parts_of_a_llava(tmp_path, cache):
    whole = tiny_llava().eval()
    source = save(whole, tmp_path / "whole")
    made = unpacked.unpack(source)
    tower = CLIPVisionModel.from_pretrained(made.tower)
    pixels = torch.randn(2, 3, 24, 24)
    ours = tower(pixels, output_hidden_states=True).hidden_states[-2]
    then = whole.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(ours, then)
    from safetensors.torch import load_file

    projector = whole.model.multi_modal_projector.state_dict()
    read = load_file(made.projector)
    assert read.keys() == {f"multi_modal_projector.{name}" for name in projector}
    assert all(torch.equal(read[f"multi_modal_projector.{name}"], value) for name, value in projector.items())
    # A file that has changed is another model; what was made of the old one goes.
    config = tmp_path / "whole/config.json"
    config.write_text(config.read_text() + "\n")
    assert unpacked.unpack(source).folder != made.folder
    assert not made.folder.exists()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_a_llava_with_the_names_of_older_releases(kind, tmp_path):
    whole = WHOLE[kind]().eval()
    source = save(whole, tmp_path / "whole")
    old_names(tmp_path / "whole")
    alone = AutoModelForCausalLM.from_pretrained(unpacked.language_model(source), dtype=torch.float32)
    ids = torch.randint(4, 200, (2, 9))
    torch.testing.assert_close(alone(input_ids=ids).logits, whole(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "qwen2_5_vl"}, "is qwen2_5_vl, neither a finished run nor a LLaVA"),
        ({"vision_feature_layer": [-2, -5]}, r"several feature layers \(\[-2, -5\]\)"),
        ({"vision_feature_select_strategy": "full"}, "'full' features of a clip_vision_model"),
        ({"projector_hidden_act": "relu"}, "a projector with relu"),
        ({"multimodal_projector_bias": False}, "a projector with gelu and no biases"),
        ({"architectures": ["LlavaLlamaForCausalLM"]}, "the layout of its authors"),
    ],
)
def test_a_llava_that_is_put_together_otherwise_is_refused(tmp_path, change, said):
    tiny_llava().config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        unpacked.check_llava(str(tmp_path))


def test_without_a_cache_it_is_said(tmp_path, monkeypatch):
    source = save(tiny_llava(), tmp_path / "whole")
    monkeypatch.setenv(quantised.VARIABLE, "off")
    with pytest.raises(
        ValueError, match=r"written apart once, in a cache that \$BASIC_LITE_CACHE switches off"
    ):
        unpacked.unpack(source)


POINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Of the published LLaVA-NeXT, which `Tiling.up_to` has in another order."""


def published(folder, config=(), settings=()):
    """Write what llava-hf/llava-v1.6-mistral-7b-hf has, with changes."""
    vision = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
    whole = {"model_type": "llava_next", "vision_config": vision, "image_grid_pinpoints": POINTS}
    (folder / "config.json").write_text(json.dumps(whole | dict(config)))
    square = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    square |= {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": POINTS}
    (folder / "preprocessor_config.json").write_text(json.dumps(square | dict(settings)))
    return str(folder)


def grids_of(source):
    return unpacked.grids_of(source, unpacked.check_llava(source))


def test_the_grids_of_the_published_llava_next(tmp_path):
    grids = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    assert grids_of(published(tmp_path)) == grids
    nothing = {"image_grid_pinpoints": None}  # transformers fills in the same
    assert grids_of(published(tmp_path, nothing, nothing)) == grids
    wide = {"image_grid_pinpoints": [[336, 336], [336, 1344]]}
    assert grids_of(published(tmp_path, wide, wide)) == ((1, 1), (1, 4))
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "processor_config.json")
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert grids_of(str(tmp_path)) == ((1, 1), (1, 4))


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        (
            (),
            {"image_grid_pinpoints": [[336, 672]]},
            r"image_grid_pinpoints \[\[336, 672\]\], which does not",
        ),
        ((), {"crop_size": {"height": 384, "width": 384}}, r"has crop_size \{'height': 384, 'width': 384\}"),
        ((), {"size": {"shortest_edge": 224}}, r"has size \{'shortest_edge': 224\}, .* of 336-pixel tiles"),
        ((), {"image_processor_type": "CLIPImageProcessor"}, "has image_processor_type CLIPImageProcessor"),
        ({"image_grid_pinpoints": [[336, 500]]},) * 2 + (r"grids of whole tiles \(multiples of 336\)",),
        ({"image_grid_pinpoints": [[336, 336]]},) * 2 + ("some of 2 or more",),
        ({"vision_feature_layer": [-24, -1]}, (), "several feature layers"),
    ],
)
def test_tiles_that_are_cut_otherwise_are_refused(tmp_path, config, settings, said):
    with pytest.raises(ValueError, match=said) as raised:
        grids_of(published(tmp_path, config, settings))
    assert "\n" not in str(raised.value)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no image settings|several feature layers"):
        grids_of(str(tmp_path))
