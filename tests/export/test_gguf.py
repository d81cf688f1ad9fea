"""GGUF files hold the run: every tensor and key, as llama.cpp names and orders them."""

from __future__ import annotations

import itertools
import json
import os
import random

import pytest
import torch
from made_runs import export, made_run
from tiny import DECODERS, TOWERS

from basic_lite import files
from basic_lite.data.templates import TEMPLATES
from basic_lite.export import parity
from basic_lite.models import checkpoint

gguf = pytest.importorskip("gguf")

from basic_lite.export import gguf as written  # noqa: E402
from basic_lite.export import gguf_vocabulary as vocabulary  # noqa: E402
from basic_lite.export.chat_template import modelfile  # noqa: E402

PHI = ("phi3", "phi4_mini")
FAMILIES = [*DECODERS, "phi4_mini", "qwen2", "qwen3"]
PAIRS = [(decoder, tower) for decoder in FAMILIES for tower in ("clip", "siglip")]
TEXT = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PICTURES = {
    "class_embd": "embeddings.class_embedding",
    "patch_embd": "embeddings.patch_embedding",
    "position_embd": "embeddings.position_embedding",
    "pre_ln": "pre_layrnorm",
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
"""Names as llama.cpp's sources have them, and transformers'."""


def read(path) -> tuple[dict, dict]:
    """Return a file's keys and tensors."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


def own(keys: dict) -> set[str]:
    """Return the names of a file's keys without those of its header."""
    return {name for name in keys if not name.startswith("GGUF.")}


def merged(run, tmp_path):
    """Return the run's LLaVA with its adapters merged by PEFT, not by the export."""
    assembled, _ = checkpoint.load_run(run)
    model = assembled.model
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    return assembled, model


def in_transformers(name: str, family: str) -> str:
    """Return the name of a text tensor in a `LlavaForConditionalGeneration`."""
    *head, kind = name.split(".")
    stem = "mlp.gate_up_proj" if head[-1] == "ffn_up" and family in PHI else TEXT[head[-1]]
    if stem == "lm_head":
        return f"lm_head.{kind}"
    layer = f"layers.{head[1]}." if head[0] == "blk" else ""
    return f"model.language_model.{layer}{stem}.{kind}"


@pytest.mark.parametrize(
    ("decoder", "tower", "kind"), [*((*pair, "lora") for pair in PAIRS), ("llama", "clip", "whole")]
)
def test_every_tensor_and_key_is_the_runs(tmp_path, decoder, tower, kind):
    run = made_run(tmp_path / "run", decoder, tower, kind)
    content = export(run, tmp_path / "out", to="gguf", quantise="f32")
    assembled, model = merged(run, tmp_path)
    state, text, config = model.state_dict(), model.config.text_config, model.config
    keys, tensors = read(tmp_path / "out/model-f32.gguf")
    assert content["tensor_gap"] < 1e-6
    compared = set()
    for name, tensor in tensors.items():
        expected = state[in_transformers(name, decoder)].float()
        compared.add(in_transformers(name, decoder))
        if decoder in ("llama", "mistral") and name.split(".")[-2] in ("attn_q", "attn_k"):
            heads = text.num_attention_heads if "attn_q" in name else text.num_key_value_heads
            width = expected.shape[0] // heads
            # ggml turns the pair (2i, 2i + 1) by the angle with which transformers turns (i, i + width / 2)
            order = [
                h * width + i + half
                for h in range(heads)
                for i in range(width // 2)
                for half in (0, width // 2)
            ]
            expected = expected[order]
        if decoder == "gemma" and "norm" in name:
            expected = expected + 1
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5)
    expected = {name for name in state if "language_model" in name or "lm_head" in name}
    assert compared == expected - ({"lm_head.weight"} if text.tie_word_embeddings else set())

    architecture = {"mistral": "llama", "phi4_mini": "phi3"}.get(decoder, decoder)
    head = 12 if decoder in ("gemma", "qwen3") else 8
    wanted = {
        "general.type": "model",
        "general.name": "LLM" if decoder == "phi3" else decoder,  # its tokenizer here is not Phi-3's
        "general.file_type": 0,
        "general.quantization_version": 2,
        "general.architecture": architecture,
        f"{architecture}.block_count": 4,
        f"{architecture}.embedding_length": 32,
        f"{architecture}.feed_forward_length": 48,
        f"{architecture}.context_length": 128,
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.head_count_kv": 2,
        f"{architecture}.attention.key_length": head,
        f"{architecture}.attention.value_length": head,
        f"{architecture}.attention.layer_norm_rms_epsilon": text.rms_norm_eps,
        f"{architecture}.rope.dimension_count": 4 if decoder == "phi4_mini" else head,
        f"{architecture}.rope.freq_base": 10000.0,
        f"{architecture}.vocab_size": 320,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": assembled.tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }
    if decoder in PHI:
        wanted |= {"phi3.rope.scaling.original_context_length": 4096, "phi3.attention.sliding_window": 0}
    assert {name: keys[name] for name in wanted} == {
        name: pytest.approx(value) if isinstance(value, float) else value for name, value in wanted.items()
    }
    lists = {f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges")}
    if assembled.tokenizer.unk_token_id is not None:
        lists |= {"tokenizer.ggml.unknown_token_id"}
    assert own(keys) == wanted.keys() | lists | {"tokenizer.chat_template"}
    assert len(keys["tokenizer.ggml.tokens"]) == 320 == len(tensors["token_embd.weight"])
    assert keys["tokenizer.ggml.tokens"][4] == "<|im_start|>"
    assert keys["tokenizer.ggml.merges"] == ["<|im_end|> <|im_end|>"]  # none would not be loaded

    keys, tensors = read(tmp_path / "out/mmproj-f32.gguf")
    for name, tensor in tensors.items():
        head, *middle = name.split(".")
        if head == "mm":
            source = f"model.multi_modal_projector.linear_{ {'0': 1, '2': 2}[middle[0]] }.{middle[1]}"
        elif name == "v.class_embd":
            source = "model.vision_tower.embeddings.class_embedding"
        else:
            layer = f"encoder.layers.{middle[1]}." if middle[0] == "blk" else ""
            source = f"model.vision_tower.{layer}{PICTURES[middle[-2]]}.{middle[-1]}"
        held = state.get(source, state.get(source.replace("vision_tower.", "vision_tower.vision_model.")))
        if (name, tower) == ("v.position_embd.weight", "clip"):
            held = torch.cat([held[1:], held[:1]])  # the class token's place is the last
        if decoder == "gemma" and name.startswith("mm.2."):
            held = held / 32**0.5  # llama.cpp multiplies pictures as it does words
        torch.testing.assert_close(tensor, held.float(), atol=1e-6, rtol=1e-5)
    # Three layers, of which the last but one is read; the norm after the third is not here.
    assert sum(".attn_q.weight" in name for name in tensors) == 3
    assert not [name for name in tensors if "post_ln" in name]
    assert len(tensors) == 3 * 16 + 4 + {"clip": 5, "siglip": 3}[tower]
    transform = assembled.transform("pad")
    assert keys["clip.vision.image_mean"] == pytest.approx(list(transform.mean))
    assert keys["clip.vision.image_std"] == pytest.approx(list(transform.std))
    wanted = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": tower,
        "general.file_type": 0,
        "general.quantization_version": 2,
        "clip.has_llava_projector": True,
        "clip.projector_type": "mlp",
        "clip.has_vision_encoder": True,
        "clip.vision.block_count": 3,
        "clip.vision.feature_layer": [2],
        "clip.vision.image_size": 24,
        "clip.vision.patch_size": 8,
        "clip.vision.embedding_length": 24,
        "clip.vision.feed_forward_length": 32,
        "clip.vision.attention.head_count": 2,
        "clip.vision.projection_dim": 32,
        "clip.use_gelu": config.vision_config.hidden_act != "quick_gelu",
    }
    assert {name: keys[name] for name in wanted} == wanted
    assert keys["clip.vision.attention.layer_norm_epsilon"] == pytest.approx(
        config.vision_config.layer_norm_eps
    )
    placed = {"basic_lite.class_token"} if tower == "clip" else set()
    shown = {f"clip.vision.{name}" for name in ("image_mean", "image_std", "attention.layer_norm_epsilon")}
    assert own(keys) == wanted.keys() | shown | placed
    assert wanted["clip.use_gelu"] == (tower == "siglip")


TOOL = """#!/bin/sh
[ "$3" = Q4_K_M ] || { echo "invalid ftype '$3'" >&2; exit 1; }
cp "$1" "$2"
"""


def test_few_bits_are_made_by_llama_cpp_s_own_tool(tmp_path, monkeypatch):
    """The tool itself is no part of the test: whether it is called, and what becomes of its file."""
    tool = tmp_path / "llama-quantize"
    tool.write_text(TOOL)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    run = made_run(tmp_path / "run", "llama", "clip", "lora")
    content = export(run, tmp_path / "out", to="gguf", quantise="q4_k_m")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.gguf")) == [
        "mmproj-f16.gguf",
        "model-q4_k_m.gguf",
    ]
    assert "FROM ./model-q4_k_m.gguf" in (tmp_path / "out/Modelfile").read_text()
    assert any("llama-quantize rounded it afterwards" in note for note in content["notes"])
    with pytest.raises(
        ValueError, match=r"llama-quantize does not make q2_k of this model: invalid ftype 'Q2_K'"
    ):
        export(run, tmp_path / "other", to="gguf", quantise="q2_k")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("decoder", ["llama", "phi3"])
def test_transformers_own_reader_gives_the_runs_logits(tmp_path, decoder):
    """A reader that is not ours takes the file apart again.

    It knows no Gemma of the first generation, and stumbles over a Llama whose name says Mistral.
    """
    from transformers import AutoModelForCausalLM

    run = made_run(tmp_path / "run", decoder, "clip", "lora")
    export(run, tmp_path / "out", to="gguf", quantise="f32")
    assembled, _ = checkpoint.load_run(run)
    seen = parity.record_decoder(assembled, parity.ask_run(assembled))
    causal = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="model-f32.gguf", dtype=torch.float32
    )
    for one in seen:
        with torch.inference_mode():
            logits = causal(inputs_embeds=one.embeds).logits[0]
        assert parity.relative_gap(logits, one.logits) < 1e-4


@pytest.mark.parametrize(
    ("quantise", "least", "most"), [("f16", 1e-5, 5e-4), ("bf16", 1e-4, 4e-3), ("q8_0", 1e-3, 5e-3)]
)
def test_formats_round_as_they_should(tmp_path, quantise, least, most):
    run = made_run(tmp_path / "run", "llama", "clip", "lora")
    content = export(run, tmp_path / "out", to="gguf", quantise=quantise)
    assert least < content["tensor_gap"] < most
    reader = gguf.GGUFReader(tmp_path / f"out/model-{quantise}.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.0.attn_q.weight"] == quantise.upper()
    # rows of 48 numbers make no whole blocks
    assert kinds["blk.0.ffn_down.weight"] == ("F16" if quantise == "q8_0" else quantise.upper())
    assert (tmp_path / "out/mmproj-f16.gguf").is_file()


@pytest.mark.parametrize("fault", ["order", "norm", "lost"])
def test_a_file_that_is_not_the_run_never_gets_its_name(tmp_path, monkeypatch, fault):
    run = made_run(tmp_path / "run", "llama", "clip", "stage1")
    right = written.gguf.quants.quantize

    def wrong(values, kind):
        stored = right(values, kind)
        if fault == "order" and values.shape == (48, 32):
            return stored[::-1].copy()
        return stored * 2 if fault == "norm" and values.shape == (32,) else stored

    if fault == "lost":
        read = written.gguf.GGUFReader

        def short(path):
            reader = read(path)
            reader.tensors.pop()
            return reader

        monkeypatch.setattr(written.gguf, "GGUFReader", short)
    monkeypatch.setattr(written.gguf.quants, "quantize", wrong)
    with pytest.raises(ValueError, match="read back is not the run"):
        export(run, tmp_path / "out", to="gguf")
    assert not (tmp_path / "out").exists()


def test_numbers_beyond_fp16_ask_for_bf16(tmp_path):
    from safetensors.torch import load_file, save_file

    run = made_run(tmp_path / "run", "llama", "clip", "whole")
    state = load_file(run / files.DECODER)
    state[next(name for name in state if "down_proj" in name)][0, 0] = 1e5
    save_file(state, run / files.DECODER, metadata={"format": "pt"})
    manifest = json.loads((run / files.MANIFEST).read_text())
    manifest.pop("weights", None)
    files.write_json(run / files.MANIFEST, manifest)
    with pytest.raises(ValueError, match=r"beyond fp16's 65,504 \(up to 1e\+05\); use --quantise bf16"):
        export(run, tmp_path / "out", to="gguf")
    export(run, tmp_path / "out", to="gguf", quantise="bf16")


def test_towers_that_llama_cpp_lacks_are_refused(tmp_path):
    run = made_run(tmp_path / "run", "llama", "dinov2", "stage1")
    with pytest.raises(ValueError, match="CLIP and SigLIP towers, not dinov2; use --to hf"):
        export(run, tmp_path / "out", to="gguf")
    assert "dinov2" in TOWERS


@pytest.mark.parametrize("kind", ["llama3", "linear", "longrope"])
def test_rotary_scaling(kind):
    """The angles that llama.cpp makes of the file: theta^(-2i/d) * position / factor."""
    from transformers import LlamaConfig, Phi3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 64}
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 8.0}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    if kind == "longrope":
        rope |= {"long_factor": [2.0 + i for i in range(8)], "short_factor": [1.0] * 8}
        rope.pop("factor")
        rope["original_max_position_embeddings"] = 512
        lengths = {"max_position_embeddings": 4096, "original_max_position_embeddings": 512}
        text = Phi3Config(**sizes, **lengths, rope_parameters=rope, pad_token_id=0)
    else:
        text = LlamaConfig(**sizes, max_position_embeddings=4096, rope_parameters=rope)
    writer = written.text_writer(text, "f16", "x")
    keys = {name: value.value for name, value in writer.kv_data[0].items()}
    tensors = {entry.name: entry.read() for entry in written.text_tensors([], text)}
    angles = 10000.0 ** -(torch.arange(8) / 8.0)
    if kind == "linear":
        assert keys["llama.rope.scaling.type"] == "linear"
        angles = angles / keys["llama.rope.scaling.factor"]
    else:
        angles = angles / tensors["rope_freqs.weight" if kind == "llama3" else "rope_factors_long.weight"]
    expected, stretch = ROPE_INIT_FUNCTIONS[kind](text, "cpu", seq_len=4096)
    torch.testing.assert_close(angles, expected, rtol=1e-5, atol=0)
    if kind == "longrope":
        assert keys["phi3.rope.scaling.attn_factor"] == pytest.approx(stretch)
        assert keys["phi3.rope.scaling.original_context_length"] == 512


# -- tokenizers


def sentencepiece_tokenizer():
    """Train a small vocabulary with byte fallback, as Llama's and Gemma's are built."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    generator = random.Random(0)
    words = [
        "the",
        "there",
        "then",
        "other",
        "mother",
        "her",
        "cat",
        "cater",
        "picture",
        "in",
        "inner",
        "ing",
    ]
    texts = [" ".join(generator.choices(words, k=12)) for _ in range(200)]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, max_token_length=12)
    backend.train_from_iterator(texts, trainer)
    specified = json.loads(backend.to_str())
    specified["added_tokens"] = specified["added_tokens"][:3]  # bytes are plain tokens
    backend = Tokenizer.from_str(json.dumps(specified))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def as_llama_cpp(text: str, found: vocabulary.Vocabulary) -> list[int]:
    """Tokenise as its sentencepiece does: join the neighbours of the best score, the leftmost first."""
    rows = {token: row for row, token in enumerate(found.tokens)}
    symbols = list(("▁" if found.space_prefix else "") + text.replace(" ", "▁"))
    while True:
        joins = [
            (-found.scores[rows[a + b]], place)
            for place, (a, b) in enumerate(itertools.pairwise(symbols))
            if a + b in rows
        ]
        if not joins:
            break
        place = min(joins)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    ids = []
    for symbol in symbols:
        ids += [rows[symbol]] if symbol in rows else [rows[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return ids


def test_scores_make_the_ids_of_training():
    tokenizer = sentencepiece_tokenizer()
    found = vocabulary.vocabulary_of(tokenizer, 350, 2)
    assert (found.model, found.space_prefix) == ("llama", True)
    assert len(found.tokens) == len(found.scores) == len(found.types) == 350
    assert found.tokens[349] == "[PAD349]"
    types = gguf.TokenType
    expected = [types.UNKNOWN, types.CONTROL, types.CONTROL, types.BYTE]
    assert [*found.types[:3], found.types[3 + 65]] == expected
    assert found.types[349] == types.UNUSED
    for text in ("the other mother in there", "cat picturing", "inner  thing", "Größe 猫 the!", "thethere"):
        assert as_llama_cpp(text, found) == tokenizer(text, add_special_tokens=False).input_ids, text


def byte_level(rule: dict):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    backend.train_from_iterator(list(vocabulary._PROBES) * 9, trainer)
    specified = json.loads(backend.to_str()) | {"pre_tokenizer": rule}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(specified)))


@pytest.mark.parametrize("name", sorted(vocabulary.PRE_TOKENIZERS))
def test_the_rule_that_splits_texts_is_found_by_what_it_does(name):
    found = vocabulary.vocabulary_of(byte_level(vocabulary.PRE_TOKENIZERS[name]), 900, 0)
    assert found.pre == name
    assert found.model == "gpt2"
    assert all(pair.count(" ") == 1 for pair in found.merges)


def test_a_rule_that_llama_cpp_lacks_is_refused():
    rule = {"type": "Split", "pattern": {"String": "o"}, "behavior": "Isolated", "invert": False}
    both = {"type": "Sequence", "pretokenizers": [rule, vocabulary.PRE_TOKENIZERS["gpt-2"]]}
    with pytest.raises(ValueError, match="a rule that is none of gpt-2, smollm, llama-bpe, qwen2"):
        vocabulary.vocabulary_of(byte_level(both), 900, 0)


@pytest.mark.parametrize(
    ("folder", "strips", "name"),
    [
        ("microsoft/Phi-3-mini-4k-instruct", True, "Phi-3-mini-4k-instruct"),
        ("models/mine", True, "Phi-3"),
        ("models/mine", False, "mine"),
        ("runs/phi3-like", False, "LLM"),
    ],
)
def test_a_name_makes_llama_cpp_read_special_tokens_as_in_training(folder, strips, name):
    """It strips what follows them by the model's name alone, and by that name asks for four tokens."""
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    words = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|end|>"]
    backend.add_special_tokens([AddedToken(word, rstrip=strips and word == "<|end|>") for word in words])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokenizer("<|end|> \n<s>").input_ids == ([4, 1] if strips else tokenizer("<|end|><s>").input_ids)
    assert vocabulary.name_of(folder, tokenizer) == name


# -- Ollama


def test_the_modelfile_names_both_files_and_the_stops():
    phi3 = modelfile(TEMPLATES["phi3_instruct"], "model-f16.gguf", "mmproj-f16.gguf").splitlines()
    assert phi3[:2] == ["FROM ./model-f16.gguf", "FROM ./mmproj-f16.gguf"]
    assert 'PARAMETER stop "<|end|>"' in phi3
    assert 'PARAMETER stop "<|endoftext|>"' in phi3
    vicuna = modelfile(TEMPLATES["vicuna_v1"], "a", "b")
    assert "{{ if .System }}{{ .System }} {{ else }}A chat between" in vicuna
    assert '{{ range .Messages }}{{ if eq .Role "user" }}USER: {{ .Content }} ASSISTANT:' in vicuna
    assert '{{ else if eq .Role "assistant" }} {{ .Content }}</s>{{ end }}{{ end }}' in vicuna
    gemma = modelfile(TEMPLATES["gemma_instruct"], "a", "b")
    assert (
        '<start_of_turn>user\n{{ if $system }}{{ $system }}\n\n{{ $system = "" }}{{ end }}{{ .Content }}'
        in gemma
    )


def test_the_command_writes_both_halves(tmp_path):
    from command import run as command

    made_run(tmp_path / "runs/stage2", "mistral", "clip", "lora")
    done = command("export", "runs/stage2", "out", "--to", "gguf", "--quantise", "q8_0", cwd=tmp_path)
    assert "tensors read back, all the run's" in done.stdout
    assert "llama-mtmd-cli -m out/model-q8_0.gguf --mmproj out/mmproj-f16.gguf" in done.stdout
    assert "the run to the last 20 tokens" in done.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model-q8_0.gguf", "mmproj-f16.gguf", "Modelfile", "README.md", "export.json"}
    assert "library_name: gguf" in (tmp_path / "out/README.md").read_text()
