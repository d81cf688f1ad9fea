"""The models that are known by name as they are published: file names, shards, tokenizers; tiny weights.

They lie in a hub's cache, so that the hub's own client finds them by name without a network.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import sentencepiece
import torch
from models.published_bpe import LAYOUTS, TEMPLATES
from models.published_weights import (
    JUNK,
    TEXT,
    added_token,
    state_of,
    write_config,
    write_json,
    write_weights,
)
from tiny import TOWER_SIZES
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"

_READER = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@lru_cache
def sentencepiece_model(gemma: bool = False, control: tuple[str, ...] = ()) -> bytes:
    """Train a sentencepiece model as Llama's and Mistral's, or as Gemma's, are: BPE with byte fallback."""
    words = "the cat sat on a mat red green blue what is it colour user assistant polite answers".split()
    draw = random.Random(0)
    lines = [" ".join(draw.choices(words, k=9)) for _ in range(200)]
    if gemma:
        own = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "add_dummy_prefix": False}
        own |= {"bos_piece": "<bos>", "eos_piece": "<eos>"}
        pieces = ["<mask>", "<unused0>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n"]
        own |= {"user_defined_symbols": pieces}
    else:
        own = {"pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2, "control_symbols": list(control)}
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        **own,
    )
    return written.getvalue()


def write_llama_tokenizer(folder: Path, legacy: bool | None, **more: object) -> None:
    """Write `tokenizer.model` with its two JSON files, as they were written by transformers 4.3x."""
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    } | {key: added_token(text, marked=True) for key, text in named.items()}
    if legacy is not None:
        config["legacy"] = legacy
    write_json(folder / "tokenizer_config.json", config | more)
    tokens = {key: added_token(text) for key, text in named.items()} | {"pad_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", tokens)


def _with_fast_tokenizer(folder: Path) -> None:
    """Put the `tokenizer.json` beside a sentencepiece model that its tokenizer makes of it."""
    AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))


def vicuna(folder: Path) -> None:
    """Two pickles in fp16 with old buffers, a sentencepiece model alone, odd generation settings."""
    model = LlamaForCausalLM(LlamaConfig(**TEXT, rms_norm_eps=1e-5))
    state = state_of(model, torch.float16)
    for layer in range(4):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    write_weights(folder, state, "pytorch_model.bin", 2)
    more = {"_name_or_path": "vicuna-7b-v1.5", "pretraining_tp": 1, "rope_scaling": None}
    write_config(folder, model, "float16", pad_token_id=0, rope_theta=10000.0, **more)
    settings = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_length": 4096}
    write_json(
        folder / "generation_config.json",
        settings | {"temperature": 0.9, "top_p": 0.6, "_from_model_config": True},
    )
    write_llama_tokenizer(folder, legacy=False)


def _write_gemma_tokenizer(folder: Path, more: Mapping[str, int] = {}) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(gemma=True))
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    turns = ["<start_of_turn>", "<end_of_turn>"]
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(gemma=True))
    added = {
        str(processor.piece_to_id(text)): added_token(text, special=True)
        for text in [*named.values(), *turns]
    }
    added[str(processor.piece_to_id("<unused0>"))] = added_token("<unused0>", special=False)
    added |= {str(number): added_token(text, special=True) for text, number in more.items()}
    config = named | {"added_tokens_decoder": added, "additional_special_tokens": turns}
    config |= {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "GemmaTokenizer"}
    config |= {"legacy": None, "clean_up_tokenization_spaces": False, "sp_model_kwargs": {}}
    write_json(folder / "tokenizer_config.json", config)
    _with_fast_tokenizer(folder)
    tokens = {key: added_token(text) for key, text in named.items()} | {"additional_special_tokens": turns}
    write_json(folder / "special_tokens_map.json", tokens)
    if more:
        write_json(folder / "added_tokens.json", more)


def gemma(folder: Path) -> None:
    """Two safetensors in bf16, tied; `tokenizer.json` and `tokenizer.model`, and a GGUF file."""
    model = GemmaForCausalLM(GemmaConfig(**TEXT, head_dim=12, pad_token_id=0, bos_token_id=2, eos_token_id=1))
    write_weights(folder, state_of(model, torch.bfloat16), "model.safetensors", 2)
    write_config(folder, model, "bfloat16", hidden_act="gelu", hidden_activation=None)
    settings = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "_from_model_config": True}
    write_json(folder / "generation_config.json", settings)
    _write_gemma_tokenizer(folder)
    (folder / "gemma-2b-it.gguf").write_bytes(JUNK)


def phi3(folder: Path) -> None:
    """Two safetensors in bf16 with code that is not run; added tokens that swallow white space."""
    names = ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>")
    ids = {text: 340 + number for number, text in enumerate(names)}
    end = ids["<|endoftext|>"]
    model = Phi3ForCausalLM(Phi3Config(**TEXT, pad_token_id=end, bos_token_id=1, eos_token_id=end))
    write_weights(folder, state_of(model, torch.bfloat16), "model.safetensors", 2)
    code = {"AutoConfig": "configuration_phi3.Phi3Config"}
    code |= {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    write_config(folder, model, "bfloat16", auto_map=code, rope_scaling=None, rope_theta=10000.0)
    for name in ("configuration_phi3.py", "modeling_phi3.py", "sample_finetune.py"):
        (folder / name).write_text("raise SystemExit('the code of a repository was run')\n")
    stops = [end, ids["<|assistant|>"], ids["<|end|>"]]
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": stops})
    added = {"0": added_token("<unk>", special=True), "1": added_token("<s>", special=True)}
    added["2"] = added_token("</s>", special=False, rstrip=True)
    for text, number in ids.items():
        added[str(number)] = added_token(text, special=True, rstrip=text != "<|endoftext|>")
    tokens = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tokens |= {"unk_token": "<unk>"}
    own = tokens | {"added_tokens_decoder": added, "add_bos_token": False}
    write_llama_tokenizer(folder, False, **own)
    write_json(folder / "special_tokens_map.json", tokens)
    _with_fast_tokenizer(folder)
    write_json(folder / "added_tokens.json", ids)


def mistral(folder: Path) -> None:
    """Safetensors and pickles side by side, Mistral's own files too: only the safetensors may be opened."""
    model = MistralForCausalLM(MistralConfig(**TEXT, sliding_window=None))
    write_weights(folder, state_of(model, torch.bfloat16), "model.safetensors", 3)
    write_config(folder, model, "bfloat16", rope_theta=1e6)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    for name in ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"):
        (folder / name).write_bytes(JUNK)
    pickles = {"lm_head.weight": "pytorch_model-00002-of-00002.bin"}
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": pickles})
    for name in ("consolidated.safetensors", "consolidated.00.pth", "flax_model.msgpack", "tf_model.h5"):
        (folder / name).write_bytes(JUNK)
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(JUNK)
    write_json(folder / "params.json", {"dim": 4096})
    write_llama_tokenizer(folder, legacy=True)
    _with_fast_tokenizer(folder)


def mistral_v3(folder: Path) -> None:
    """Mistral 0.3: control tokens of its own in the tokenizer, the weights a second time in one file."""
    control = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
    model = MistralForCausalLM(MistralConfig(**TEXT, sliding_window=None))
    write_weights(folder, state_of(model, torch.bfloat16), "model.safetensors", 3)
    write_config(folder, model, "bfloat16", rope_theta=1e6)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    (folder / "consolidated.safetensors").write_bytes(JUNK)
    write_json(folder / "params.json", {"dim": 4096})
    added = {
        str(number): added_token(text, special=True)
        for number, text in enumerate(("<unk>", "<s>", "</s>", *control))
    }
    chat = (TEMPLATES / "mistral_v3.jinja").read_text()
    write_llama_tokenizer(folder, legacy=False, added_tokens_decoder=added, chat_template=chat)
    for name in ("tokenizer.model", "tokenizer.model.v3"):
        (folder / name).write_bytes(sentencepiece_model(control=control))
    _with_fast_tokenizer(folder)


def gemma3(folder: Path) -> None:
    """One tied file; a tokenizer with one id more than the matrix has rows: its picture token, never used."""
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            **TEXT | {"vocab_size": 340, "tie_word_embeddings": True},
            head_dim=12,
            sliding_window=32,
            layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=1,
        )
    )
    write_weights(folder, state_of(model, torch.bfloat16), "model.safetensors", 1)
    write_config(folder, model, "bfloat16", eos_token_id=[1, 106], architectures=["Gemma3ForCausalLM"])
    _write_gemma_tokenizer(folder, {"<image_soft_token>": 340})
    write_json(folder / "generation_config.json", {"bos_token_id": 2, "eos_token_id": [1, 1], "top_k": 64})


def gemma2(folder: Path) -> None:
    """Two files in bf16, tied; the same tokenizer as Gemma's, and caps in the configuration."""
    more = {"head_dim": 12, "sliding_window": 32, "query_pre_attn_scalar": 12}
    model = Gemma2ForCausalLM(Gemma2Config(**TEXT, **more, pad_token_id=0, bos_token_id=2, eos_token_id=1))
    write_weights(folder, state_of(model, torch.bfloat16), "model.safetensors", 2)
    write_config(folder, model, "bfloat16", eos_token_id=[1, 107], hidden_act="gelu_pytorch_tanh")
    _write_gemma_tokenizer(folder)
    write_json(
        folder / "generation_config.json", {"bos_token_id": 2, "eos_token_id": [1, 1], "pad_token_id": 0}
    )


def _write_eyes(folder: Path, model: PreTrainedModel, form: str, **settings: object) -> None:
    state = dict(model.state_dict())
    if form.endswith(".bin"):  # buffers of old code
        state |= {
            f"{half}_model.embeddings.position_ids": torch.arange(9)[None] for half in ("vision", "text")
        }
    write_weights(folder, state, form, 1)
    write_config(folder, model, "float32")
    shared = {"do_normalize": True, "do_resize": True, "resample": 3}
    shared |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    write_json(folder / "preprocessor_config.json", shared | settings)


def clip(folder: Path) -> None:
    """One pickle in fp32 that holds the text half too, TensorFlow's file, the settings of old code."""
    model = CLIPModel(CLIPConfig(text_config=_READER, vision_config=TOWER_SIZES, projection_dim=8))
    old = {
        "do_center_crop": True,
        "crop_size": 24,
        "size": 24,
        "feature_extractor_type": "CLIPFeatureExtractor",
    }
    _write_eyes(folder, model, "pytorch_model.bin", **old)
    (folder / "tf_model.h5").write_bytes(JUNK)


def clip_both_forms(folder: Path) -> None:
    """CLIP-L at 224: both forms, TensorFlow's and JAX's files; only the safetensors may be opened."""
    model = CLIPModel(CLIPConfig(text_config=_READER, vision_config=TOWER_SIZES, projection_dim=8))
    crop = {"crop_size": {"height": 24, "width": 24}, "size": {"shortest_edge": 24}, "do_center_crop": True}
    _write_eyes(folder, model, "model.safetensors", **crop, feature_extractor_type="CLIPFeatureExtractor")
    for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"):
        (folder / name).write_bytes(JUNK)


def siglip(folder: Path) -> None:
    """One safetensors file with both halves."""
    model = SiglipModel(SiglipConfig(text_config=_READER, vision_config=TOWER_SIZES))
    size = {"height": 24, "width": 24}
    _write_eyes(folder, model, "model.safetensors", size=size, image_processor_type="SiglipImageProcessor")


def dinov2(folder: Path) -> None:
    """Both forms; only the safetensors may be opened."""
    sizes = {key: value for key, value in TOWER_SIZES.items() if key != "intermediate_size"}
    model = Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2))
    crop = {"crop_size": {"height": 24, "width": 24}, "size": {"shortest_edge": 24}, "do_center_crop": True}
    _write_eyes(folder, model, "model.safetensors", **crop)
    (folder / "pytorch_model.bin").write_bytes(JUNK)


PUBLISHED: dict[str, Callable[[Path], None]] = {
    "lmsys/vicuna-7b-v1.5": vicuna,
    "lmsys/vicuna-13b-v1.5": vicuna,
    "google/gemma-2b-it": gemma,
    "microsoft/Phi-3-mini-4k-instruct": phi3,
    "mistralai/Mistral-7B-Instruct-v0.2": mistral,
    "mistralai/Mistral-7B-Instruct-v0.3": mistral_v3,
    "google/gemma-2-2b-it": gemma2,
    "google/gemma-3-270m-it": gemma3,
    "google/gemma-3-1b-it": gemma3,
    **{hub_id: layout.write for hub_id, layout in LAYOUTS.items()},
    "openai/clip-vit-large-patch14-336": clip,
    "openai/clip-vit-large-patch14": clip_both_forms,
    "google/siglip-so400m-patch14-384": siglip,
    "google/siglip-base-patch16-224": siglip,
    "google/siglip2-base-patch16-224": siglip,
    "google/siglip2-so400m-patch14-384": siglip,
    "google/siglip2-so400m-patch16-512": siglip,
    "facebook/dinov2-large": dinov2,
}


def publish(hub_id: str, cache: Path) -> Path:
    """Put a repository into a hub's cache, and return its snapshot's folder."""
    place = cache / f"models--{hub_id.replace('/', '--')}"
    folder = place / "snapshots" / COMMIT
    if not folder.exists():
        folder.mkdir(parents=True)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(COMMIT)
        torch.manual_seed(0)
        PUBLISHED[hub_id](folder)
    return folder
