"""Repositories of decoders whose tokenizers are byte-level BPE: their files and special tokens, tiny weights.

Names of files and tokens are written down without a hub at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from models.published_weights import (
    JUNK,
    TEXT,
    added_token,
    state_of,
    write_config,
    write_json,
    write_weights,
)
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PretrainedConfig

TEMPLATES = Path(__file__).parents[1] / "fixtures" / "templates"
CODE = "raise SystemExit('the code of a repository was run')\n"


@dataclass(frozen=True)
class Layout:
    """One repository.

    Attributes:
        config: of its decoder, from the sizes that all of them share.
        template: file of `fixtures/templates` that is its tokenizer's chat template.
        special: tokens with ids of their own, in order.
        settings: of `tokenizer_config.json`: class, bos, eos, pad.
        plain: tokens after those that are not special.
        first: the special tokens stand in front of the vocabulary, not after it.
        pieces: how many weight files.
        stops: of `generation_config.json`.
        own_file: the chat template stands in `chat_template.jinja`.
        lists: `vocab.json` and `merges.txt` lie beside `tokenizer.json`.
        maps: `special_tokens_map.json` does.
        bos: every text begins with it.
        others: files that nobody may open.
        code: Python files that nobody may run.
        more: keys of `config.json`.
    """

    config: Callable[..., PretrainedConfig]
    template: str
    special: tuple[str, ...]
    settings: dict[str, Any]
    stops: tuple[str, ...]
    plain: tuple[str, ...] = ()
    first: bool = False
    pieces: int = 1
    own_file: bool = False
    lists: bool = True
    maps: bool = True
    bos: bool = False
    others: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the repository's files into a folder."""
        ids = self._write_tokenizer(folder)
        bos, pad = (ids.get(self.settings[key] or "") for key in ("bos_token", "pad_token"))
        stops = [ids[token] for token in self.stops]
        size = {"vocab_size": 16 * -(-max(ids.values()) // 16) + 16}  # padded, as all of these are
        config = self.config(**TEXT | size, bos_token_id=bos, eos_token_id=stops[0], pad_token_id=pad)
        model = AutoModelForCausalLM.from_config(config)
        write_weights(folder, state_of(model, torch.bfloat16), "model.safetensors", self.pieces)
        write_config(folder, model, "bfloat16", **self.more)
        write_json(folder / "generation_config.json", {"bos_token_id": bos, "eos_token_id": stops})
        for name in (*self.others, *self.code):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(CODE.encode() if name in self.code else JUNK)

    def _write_tokenizer(self, folder: Path) -> dict[str, int]:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("c", "a"), ("ca", "t")]
        words = [*alphabet, *("".join(pair) for pair in merges)]
        words = [*self.special, *words] if self.first else words
        vocabulary = {token: number for number, token in enumerate(words)}
        backend = Tokenizer(models.BPE(vocabulary, merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(token, normalized=False) for token in self.special])
        backend.add_tokens([AddedToken(token, normalized=False) for token in self.plain])
        if self.bos:
            bos = self.settings["bos_token"]
            backend.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
            )
        backend.save(str(folder / "tokenizer.json"))
        known = backend.get_vocab()
        if self.lists:
            write_json(folder / "vocab.json", vocabulary)
            pairs = "\n".join(" ".join(pair) for pair in merges)
            (folder / "merges.txt").write_text(f"#version: 0.2\n{pairs}\n")
        added = {
            str(known[token]): added_token(token, special=token in self.special)
            for token in (*self.special, *self.plain)
        }
        settings = {"added_tokens_decoder": added, "clean_up_tokenization_spaces": False} | self.settings
        chat = (TEMPLATES / f"{self.template}.jinja").read_text()
        if self.own_file:
            (folder / "chat_template.jinja").write_text(chat)
        else:
            settings["chat_template"] = chat
        write_json(folder / "tokenizer_config.json", settings)
        if self.maps:
            named = {key: value for key, value in self.settings.items() if key.endswith("_token") and value}
            write_json(
                folder / "special_tokens_map.json",
                {key: added_token(value) for key, value in named.items()},
            )
        return known


def _settings(kind: str, bos: str | None, eos: str, pad: str | None, **more: object) -> dict[str, Any]:
    return {"tokenizer_class": kind, "bos_token": bos, "eos_token": eos, "pad_token": pad} | more


def _llama3(pieces: int, tied: bool) -> Layout:
    """Llama 3: no pad token, reserved tokens, Meta's own files in `original/`, scaled rotary positions."""
    rope = {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}
    rope |= {"original_max_position_embeddings": 256}
    return Layout(
        lambda **sizes: transformers.LlamaConfig(**sizes | {"tie_word_embeddings": tied}),
        "llama3_1",
        (
            *("<|begin_of_text|>", "<|end_of_text|>"),
            *("<|reserved_special_token_0|>", "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>"),
            *("<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
            *("<|eot_id|>", "<|python_tag|>", "<|reserved_special_token_3|>"),
        ),
        _settings(
            "PreTrainedTokenizerFast", "<|begin_of_text|>", "<|eot_id|>", None, model_max_length=131072
        ),
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        pieces=pieces,
        lists=False,
        bos=True,
        others=("original/consolidated.00.pth", "original/params.json", "original/tokenizer.model"),
        more={"rope_scaling": rope, "rope_theta": 500000.0, "pad_token_id": None},
    )


_QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_QWEN_TOOLS = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")


def _qwen(
    kind: Callable[..., PretrainedConfig], template: str, pieces: int, tied: bool, plain: Sequence[str] = ()
) -> Layout:
    """Qwen 2.5 and 3: no bos token, a padded matrix, no map of special tokens."""
    return Layout(
        lambda **sizes: kind(**sizes | {"tie_word_embeddings": tied}),
        template,
        _QWEN_TOKENS,
        _settings(
            "Qwen2Tokenizer", None, "<|im_end|>", "<|endoftext|>", add_bos_token=False, errors="replace"
        ),
        ("<|im_end|>", "<|endoftext|>"),
        plain=(*_QWEN_TOOLS, *plain),
        pieces=pieces,
        maps=False,
        more={"use_sliding_window": False, "sliding_window": None, "rope_theta": 1e6},
    )


def _smollm2() -> Layout:
    """SmolLM2: one tied file, special tokens in front, ONNX files beside it."""
    return Layout(
        lambda **sizes: transformers.LlamaConfig(**sizes | {"tie_word_embeddings": True}),
        "smollm2",
        (
            *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>"),
            *("<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>"),
            *("<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<empty_output>"),
        ),
        _settings("GPT2Tokenizer", "<|im_start|>", "<|im_end|>", "<|im_end|>", add_prefix_space=False),
        ("<|im_end|>",),
        first=True,
        others=("onnx/model.onnx", "onnx/model_q4.onnx", "training_args.bin"),
        more={"rope_theta": 100000.0},
    )


def _olmo2(pieces: int) -> Layout:
    return Layout(
        transformers.Olmo2Config,
        "olmo2",
        ("<|endoftext|>", "<|pad|>"),
        _settings("GPT2Tokenizer", "<|endoftext|>", "<|endoftext|>", "<|pad|>"),
        ("<|endoftext|>",),
        plain=("|||IP_ADDRESS|||", "<|extra_id_0|>", "<|im_start|>", "<|im_end|>", "<|endofprompt|>"),
        pieces=pieces,
        more={"rope_theta": 500000.0},
    )


_SMOLLM3 = Layout(
    lambda **sizes: transformers.SmolLM3Config(**sizes | {"tie_word_embeddings": True}),
    "smollm3",
    (
        *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_2|>", "<|im_start|>"),
        *("<|im_end|>", "<|endoftext|>", "<|python_tag|>", "<|finetune_right_pad_id|>"),
    ),
    _settings("PreTrainedTokenizerFast", None, "<|im_end|>", "<|im_end|>"),
    ("<|im_end|>",),
    plain=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    pieces=2,
    own_file=True,
    lists=False,
    others=("consolidated.00.pth",),
    more={"rope_theta": 5e6},
)
_PHI4 = Layout(
    lambda **sizes: transformers.Phi3Config(
        **sizes | {"tie_word_embeddings": True}, partial_rotary_factor=0.5
    ),
    "phi4_mini",
    (
        *("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>", "<|endofprompt|>"),
        *("<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>"),
    ),
    _settings("GPT2TokenizerFast", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", add_prefix_space=False),
    ("<|end|>", "<|endoftext|>"),
    pieces=2,
    code=("configuration_phi3.py", "modeling_phi3.py", "sample_finetune.py"),
    more={
        "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        }
    },
)

LAYOUTS: dict[str, Layout] = {
    "meta-llama/Llama-3.2-1B-Instruct": _llama3(1, tied=True),
    "meta-llama/Llama-3.2-3B-Instruct": _llama3(2, tied=True),
    "meta-llama/Llama-3.1-8B-Instruct": _llama3(4, tied=False),
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen(transformers.Qwen2Config, "qwen2_5", 1, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen(transformers.Qwen2Config, "qwen2_5", 1, tied=True),
    "Qwen/Qwen2.5-3B-Instruct": _qwen(transformers.Qwen2Config, "qwen2_5", 2, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen(transformers.Qwen2Config, "qwen2_5", 4, tied=False),
    "Qwen/Qwen3-0.6B": _qwen(transformers.Qwen3Config, "qwen3", 1, tied=True, plain=("<think>", "</think>")),
    "Qwen/Qwen3-1.7B": _qwen(transformers.Qwen3Config, "qwen3", 2, tied=True, plain=("<think>", "</think>")),
    "Qwen/Qwen3-4B": _qwen(transformers.Qwen3Config, "qwen3", 3, tied=True, plain=("<think>", "</think>")),
    "Qwen/Qwen3-8B": _qwen(transformers.Qwen3Config, "qwen3", 5, tied=False, plain=("<think>", "</think>")),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2(),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _smollm2(),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _smollm2(),
    "HuggingFaceTB/SmolLM3-3B": _SMOLLM3,
    "allenai/OLMo-2-0425-1B-Instruct": _olmo2(1),
    "allenai/OLMo-2-1124-7B-Instruct": _olmo2(3),
    "microsoft/Phi-4-mini-instruct": _PHI4,
}
