"""Assembly of every pair of families, what is quantised, the dtype boundary, the trainable set."""

from __future__ import annotations

import io
from contextlib import nullcontext

import pytest
import torch
from oracle import close, oracle
from rich.console import Console
from tiny import (
    ALL_DECODERS,
    ALL_TOWERS,
    DECODERS,
    IMAGE_TOKEN,
    MORE_DECODERS,
    PATCHES,
    TOWERS,
    llm_folder,
    tiny_assembled,
    tiny_batch,
    tower_folder,
)
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, LlavaForConditionalGeneration, ViTConfig

from basic_lite import BasicSupervision
from basic_lite.data.templates import TEMPLATES
from basic_lite.models import llava, trainable, zoo
from basic_lite.models.parts import parts_of
from basic_lite.models.tower import up_to_the_features
from basic_lite.models.trainable import Adapters
from basic_lite.training.callbacks import GradientContract


@pytest.mark.parametrize(
    ("global_batch", "processes", "rows"),
    [(None, 1, 8), (8, 1, 8), (4, 1, 4), (250, 1, 5), (7, 1, 7), (24, 2, 6)],
)
def test_another_global_batch_is_cut_into_whole_passes(monkeypatch, global_batch, processes, rows):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert zoo.StageDefaults(256, 8, 1e-3).rows_per_pass(global_batch) == rows


def test_the_zoo_has_the_papers_models():
    first = {"vicuna-7b": 16, "vicuna-13b": 20, "gemma-2b": 9, "phi3-mini": 16, "mistral-7b": 16}
    depths = {name: config["num_hidden_layers"] for name, config in zoo.DECODER_CONFIGS.items()}
    assert {name: depths[name] // 2 for name in list(zoo.LLMS)[:5]} == first  # k, half of the layers
    assert list(zoo.LLMS)[-1] == zoo.TINY
    assert list(zoo.DECODER_CONFIGS) == list(zoo.LLMS)[:-1]
    for name, config in zoo.DECODER_CONFIGS.items():
        assert zoo.LLMS[name].family == config["model_type"]
    for row in zoo.LLMS.values():
        assert row.family in zoo.FAMILIES
        assert row.template in TEMPLATES
        assert row.image_token not in (row.pad_token, TEMPLATES[row.template].end)
    tokens = {name: row.tokens for name, row in zoo.TOWERS.items()}
    assert (tokens["clip-l-336"], tokens["siglip-so400m-384"], tokens["tiny"]) == (576, 729, 64)
    assert (tokens["clip-l-224"], tokens["siglip-base-224"], tokens["siglip2-so400m-512"]) == (256, 196, 1024)
    assert set(zoo.TOWER_CONFIGS) == set(zoo.TOWERS) - {zoo.TINY}


@pytest.mark.parametrize("name", zoo.LLMS)
def test_a_name_resolves_to_its_row_and_can_be_overridden(name):
    row = zoo.LLMS[name]
    given = {"template": None, "image_token": None, "bits": 8}
    sources = llava.Sources.named(name, "siglip-so400m-384", None, **given)
    assert (sources.llm, sources.tower) == (row.hub_id, "google/siglip-so400m-patch14-384")
    assert (sources.template, sources.image_token, sources.pad_token) == (
        row.template,
        row.image_token,
        row.pad_token,
    )
    assert sources.bits == 8
    assert llava.Sources.named(name, "./t", None, template="phi3").template == "phi3"
    assert llava.Sources.named(name, "./t", "./llm").llm == "./llm"


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_pair_assembles_and_runs(decoder, tower):
    assembled = tiny_assembled(decoder, tower)
    assert isinstance(assembled.model, LlavaForConditionalGeneration)
    assert assembled.image_token_id == IMAGE_TOKEN
    assert assembled.tokens_per_image == PATCHES
    assert not any(p.requires_grad for p in assembled.model.parameters())
    batch = tiny_batch()
    assert torch.isfinite(assembled.model(**batch).loss)
    features = assembled.model.get_image_features(batch["pixel_values"]).pooler_output
    assert [len(patches) for patches in features] == [PATCHES] * 5


@pytest.mark.parametrize("tower", ALL_TOWERS)
def test_no_tower_loses_a_patch_and_none_has_one_too_many(tower):
    """SigLIP has no class token: dropping "the first token" would leave 8 of 9 (728 of 729 at full size).

    Others have registers behind it. Which of a tower's own tokens are patches, a bare one tells.
    """
    model = tiny_assembled("llama", tower).model
    pixels = torch.randn(1, 3, 24, 24)
    bare = AutoModel.from_pretrained(tower_folder(tower), dtype=torch.float32)
    features = bare(pixels, output_hidden_states=True).hidden_states[-2][0]
    strategy = model.config.vision_feature_select_strategy
    assert strategy == ("full" if tower in ("siglip", "aimv2") else "default")
    kept = features[len(features) - PATCHES :]
    prefix = {"siglip": 0, "aimv2": 0, "dinov2_registers": 4, "dinov3": 4}.get(tower, 1)
    assert len(features) == prefix + PATCHES
    for skipped in (False, True):  # the last layer, which nothing reads, left out in training
        with up_to_the_features(model.model.vision_tower, -2) if skipped else nullcontext():
            projected = model.get_image_features(pixels).pooler_output[0]
        assert projected.shape[0] == PATCHES
        torch.testing.assert_close(projected, model.model.multi_modal_projector(kept))


@pytest.mark.parametrize("tower", ALL_TOWERS)
def test_another_image_size(tower):
    assembled = tiny_assembled("llama", tower, image_size=40)
    assert assembled.tokens_per_image == 25
    assert assembled.transform("pad").size == 40
    features = assembled.model.get_image_features(torch.randn(1, 3, 40, 40)).pooler_output[0]
    assert features.shape[0] == 25


def test_the_tower_layer_is_a_choice():
    pixels = torch.randn(1, 3, 24, 24)
    first, last = (tiny_assembled("llama", tower_layer=layer).model for layer in (-2, -1))
    last.model.multi_modal_projector.load_state_dict(first.model.multi_modal_projector.state_dict())
    ours, theirs = (m.get_image_features(pixels).pooler_output[0] for m in (first, last))
    assert not torch.allclose(ours, theirs)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_only_the_decoders_layers_are_quantised(bits):
    model = tiny_assembled("llama", bits=bits).model
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    quantised = [name for name, kind in kinds.items() if kind in ("Linear4bit", "Linear8bitLt")]
    assert len(quantised) == (0 if bits == 16 else 4 * 7)
    assert all(".language_model.layers." in name for name in quantised)
    parts = parts_of(model)
    assert parts.embedding.dtype == parts.head.weight.dtype == torch.float32
    assert model.model.multi_modal_projector.linear_1.weight.dtype == torch.float32


def test_the_check_of_quantisation_can_fail():
    import bitsandbytes as bnb

    model = tiny_assembled("llama").model
    model.model.multi_modal_projector.linear_1 = bnb.nn.Linear4bit(24, 32)
    with pytest.raises(AssertionError, match=r"linear_1 must not be quantised"):
        llava.check_quantisation(model)


def test_the_check_of_the_embedding_path_can_fail():
    assembled = tiny_assembled("llama")
    decoder = parts_of(assembled.model).decoder

    def rescale(module, args, kwargs):  # what old releases did to Gemma's inputs_embeds
        return args, kwargs | {"inputs_embeds": kwargs["inputs_embeds"] * 3}

    embed = assembled.model.get_input_embeddings()
    embed.register_forward_hook(lambda module, args, output: output / 3)
    decoder.register_forward_pre_hook(rescale, with_kwargs=True)
    llava.check_embedding_path(assembled.model, assembled.tokenizer)  # consistent: passes
    embed._forward_hooks.clear()
    decoder._forward_pre_hooks.clear()
    seen = []

    def only_given(module, args, kwargs):
        seen.append(1)
        return args, kwargs | {"inputs_embeds": kwargs["inputs_embeds"] * (3 if len(seen) == 2 else 1)}

    decoder.register_forward_pre_hook(only_given, with_kwargs=True)
    with pytest.raises(AssertionError, match="rescaled inside the decoder"):
        llava.check_embedding_path(assembled.model, assembled.tokenizer)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_dtype_boundary(dtype, autocast):
    """The projector computes in fp32 whatever surrounds it, and its weights get fp32 gradients."""
    model = tiny_assembled("llama", dtype=dtype).model
    projector = model.model.multi_modal_projector.requires_grad_(True)
    seen, received = [], []
    projector.linear_1.register_forward_hook(lambda m, a, out: seen.append((a[0].dtype, out.dtype)))
    parts_of(model).decoder.register_forward_pre_hook(
        lambda m, a, given: received.append(given["inputs_embeds"].dtype), with_kwargs=True
    )
    batch = tiny_batch()
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        outputs = model(**batch)
    outputs.loss.float().backward()
    assert seen == [(torch.float32, torch.float32)]
    assert received == [dtype]
    for parameter in projector.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("decoder", ALL_DECODERS)
def test_a_four_bit_decoder_equals_the_formulas(decoder):
    """Against the same decoder with its weights dequantised: the right gradients arrive."""
    model = tiny_assembled(decoder, bits=4).model
    model.model.multi_modal_projector.requires_grad_(True)
    import bitsandbytes.functional as bnb

    plain = tiny_assembled(decoder).model
    plain.model.multi_modal_projector.load_state_dict(model.model.multi_modal_projector.state_dict())
    plain.model.multi_modal_projector.requires_grad_(True)
    quantised = {n: m for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
    assert quantised
    for name, module in quantised.items():
        weight = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
        plain.get_submodule(name).weight.data.copy_(weight)
    batch = tiny_batch("left")
    truth = oracle(plain, batch, 2)
    supervision = BasicSupervision(model)
    with supervision:
        outputs = model(**batch)
    (outputs.loss + supervision.loss()).backward()
    assert close(supervision.refinement.target, truth["target"], 1e-5)
    assert close(supervision.refinement.importance, truth["importance"], 1e-5)
    assert close(supervision.terms["das"].mean(), truth["das"], 1e-5)
    assert close(supervision.terms["sds"].mean(), truth["sds"], 5e-5)
    parameters = model.model.multi_modal_projector.parameters()
    for parameter, expected in zip(parameters, truth["gradients"], strict=True):
        assert close(parameter.grad, expected, 1e-4)


# -- the trainable set ---------------------------------------------------------------------------------------


def test_stage_one_trains_four_tensors():
    assembled = tiny_assembled("llama", bits=4)
    trainable.train_projector(assembled)
    names = [name for name, p in assembled.model.named_parameters() if p.requires_grad]
    assert names == [
        f"model.multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")
    ]


@pytest.mark.parametrize(
    ("decoder", "bits"),
    [(decoder, bits) for decoder in DECODERS for bits in (4, 16)]
    + [(decoder, 4) for decoder in MORE_DECODERS],
)
def test_stage_two_adapts_every_linear_layer_of_the_decoder_and_no_other(decoder, bits):
    assembled = tiny_assembled(decoder, bits=bits)
    linear = [
        name
        for name, module in assembled.model.named_modules()
        if ".language_model.layers." in name and isinstance(module, torch.nn.Linear)
    ]
    trainable.train_adapters(assembled, Adapters(4, 8, 0.0))
    names = [name for name, p in assembled.model.named_parameters() if p.requires_grad]
    assert sum(".lora_" in name for name in names) == 2 * len(linear)
    assert sum("multi_modal_projector.modules_to_save" in name for name in names) == 4
    assert not any("vision_tower" in name for name in names)
    assert {p.dtype for p in assembled.model.parameters() if p.requires_grad} == {torch.float32}
    if bits == 4:
        kinds = {type(m).__module__ for m in assembled.model.modules() if hasattr(m, "lora_A")}
        assert kinds == {"peft.tuners.lora.bnb"}  # adapters that know their base is quantised


def test_the_projector_that_peft_copied_takes_no_memory_of_its_own():
    assembled = tiny_assembled("llama")
    before = [p.clone() for p in parts_of(assembled.model).llava.multi_modal_projector.parameters()]
    trainable.train_adapters(assembled, Adapters(4, 8, 0.05))
    projector = parts_of(assembled.model).llava.multi_modal_projector
    trained, original = (
        projector.modules_to_save["default"].parameters(),
        projector.original_module.parameters(),
    )
    for one, other, value in zip(trained, original, before, strict=True):
        assert one.data_ptr() == other.data_ptr()
        assert (one.requires_grad, other.requires_grad) == (True, False)
        assert torch.equal(one, value)


def test_the_whole_decoder_is_trained_in_fp32():
    assembled = tiny_assembled("llama", dtype=torch.bfloat16)
    trainable.train_everything(assembled)
    frozen = [name for name, p in assembled.model.named_parameters() if not p.requires_grad]
    assert all("vision_tower" in name for name in frozen)
    with pytest.raises(ValueError, match="cannot be tuned as a whole; add --lora"):
        trainable.train_everything(tiny_assembled("llama", bits=4))


@pytest.mark.parametrize("what", ["tower", "frozen projector", "half"])
def test_a_broken_contract_is_noticed(what):
    assembled = tiny_assembled("llama")
    trainable.train_projector(assembled)
    projector = assembled.model.model.multi_modal_projector
    if what == "tower":
        assembled.model.model.vision_tower.post_layernorm.requires_grad_(True)
    elif what == "frozen projector":
        projector.linear_2.requires_grad_(False)
    else:
        projector.bfloat16()
    with pytest.raises(AssertionError):
        trainable.check_contract(assembled.model, "projector")


def test_gradients_keep_the_contract():
    assembled = tiny_assembled("llama")
    trainable.train_projector(assembled)
    contract = GradientContract(assembled.model, patience=2)
    batch = tiny_batch()
    assembled.model(**batch).loss.backward()
    contract.check()
    assert not contract.waiting
    frozen = assembled.model.lm_head.weight
    frozen.grad = torch.zeros_like(frozen)
    with pytest.raises(RuntimeError, match=r"lm_head.weight is frozen but received a gradient"):
        contract.check()


def test_a_parameter_that_never_moves_is_named():
    assembled = tiny_assembled("llama")
    trainable.train_projector(assembled)
    contract = GradientContract(assembled.model, patience=2)
    contract.check()
    with pytest.raises(RuntimeError, match="4 trained parameters had no gradient in 2 steps"):
        contract.check()


def test_the_table_of_what_is_trained_names_dtypes_and_counts():
    assembled = tiny_assembled("llama")
    trainable.train_adapters(assembled, Adapters(4, 8, 0.0))
    console = Console(width=80, file=io.StringIO())
    console.print(trainable.trainable_table(assembled.model))
    text = console.file.getvalue()
    assert "multi_modal_projector.linear_1.weight" in text
    assert "float32" in text
    total = sum(p.numel() for p in assembled.model.parameters() if p.requires_grad)
    assert f"{total:,}" in text
    assert "…" not in text  # of adapters A and B are told apart by the end of the name


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("vaultgemma", "it was published as a base model alone"),
        ("qwen3_moe", "its experts are stacked tensors"),
        ("qwen3_5_text", "most of its layers are a recurrence"),
        ("gemma3n_text", "its layers look at the token ids"),
        ("gemma3", "it is a vision-language model"),
    ],
)
def test_a_refused_family_is_named_with_the_reason(model_type, reason):
    with pytest.raises(ValueError, match=f"x is a '{model_type}' model, and {reason}"):
        zoo.family_of(model_type, "x")


@pytest.mark.parametrize("decoder", ["granite", "cohere2", "gemma2"])
def test_llava_says_what_the_familys_own_class_says(decoder):
    """Caps and factors of logits and embeddings that LLaVA's class leaves out or applies to pictures, too."""
    own = AutoModelForCausalLM.from_pretrained(llm_folder(decoder), dtype=torch.float32).eval()
    assembled = tiny_assembled(decoder)
    ids = torch.arange(4, 40)[None]
    torch.testing.assert_close(assembled.model.eval()(input_ids=ids).logits, own(input_ids=ids).logits)
    table = parts_of(assembled.model).embedding
    assert torch.equal(table, own.get_input_embeddings().weight)  # L_sds sees the raw rows
    features = torch.randn(1, 1, 32)
    seen = []
    layer = parts_of(assembled.model).decoder.layers[0]
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assembled.model(inputs_embeds=features)
    assert torch.equal(seen[0], features)  # what the projector gives is what the first layer receives


def test_unsupported_models_are_refused_by_name(tmp_path):
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"'gpt2' model; supported decoders are of type llama, gemma"):
        llava.assemble(llava.Sources(str(tmp_path / "gpt2"), str(tower_folder())))
    with pytest.raises(ValueError, match=r"'vit' model; supported vision towers are of type clip"):
        llava.assemble(llava.Sources(str(llm_folder()), str(tmp_path / "vit")))
    with pytest.raises(ValueError, match=r"no language model can be loaded from '.*nothing'"):
        llava.assemble(llava.Sources(str(tmp_path / "nothing"), str(tower_folder())))
    with pytest.raises(ValueError, match="no model is named 'llama-9'; known: vicuna-7b"):
        llava.Sources.named("llama-9", "clip-l-336")
    for name, reason in (
        ("vaultgemma-1b", "vaultgemma is no family here, because it was published as a base model alone"),
        ("qwen3.5-4b", "qwen3_5 is no family here, because most of its layers are a recurrence"),
        ("Mixtral-8x7b", "mixtral is no family here, because its experts are stacked tensors"),
    ):
        with pytest.raises(ValueError, match=f"no model is named '{name}': {reason}"):
            llava.Sources.named(name, "clip-l-336")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 5}, "bits must be 4, 8 or 16, got 5"),
        ({"image_size": 4}, "an image size of 4 holds no 8-pixel patch"),
        ({"tower_layer": 9}, "tower layer must be between -4 and 3, got 9"),
        ({"template": "alpaca"}, "no template is named 'alpaca'; known: plain"),
        ({"image_token": "</s>"}, "the image token '</s>' is not a free token"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_assembled("llama", **settings)
