"""`--to gguf`: text model and picture projector as llama.cpp and Ollama load them.

Two files: `model-FORMAT.gguf` is the decoder, `mmproj-*.gguf` the vision tower and the projector. Names come
from the `gguf` package's own tables; what those do not say (the order of rotary dimensions, Gemma's norms,
which layers are read, where the class token stands) is decided here. Sources: llama.cpp's `conversion/` for
text models, `tools/mtmd/clip.cpp` and `tools/mtmd/models/llava.cpp` (0c1e5709) for pictures.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from basic_lite import files
from basic_lite.export import card
from basic_lite.export import folder as hf
from basic_lite.export.chat_template import chat_template, modelfile
from basic_lite.export.gguf_vocabulary import name_of, write_vocabulary
from basic_lite.export.readers import GGUF_ARCHITECTURES, GGUF_FORMATS, QUANTIZE
from basic_lite.export.weights import Entry
from basic_lite.models.llava import Assembled

_ROUNDING = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8, "Q8_0": 2.0**-7}
"""Largest error of one number, relative to the largest of its row, by the format of its tensor."""

_TINY = {"F16": 2.0**-25, "Q8_0": 127 * 2.0**-25}
"""What fp16, of a number or of a block's scale, cannot tell apart: half its smallest step."""


def export_gguf(plan: hf.Plan, progress: Callable[[str], None] = lambda line: None) -> dict:
    """Write both files, read them back, compare every tensor with the run; then the folder gets its name."""
    assert plan.quantise is not None, "the plan was checked"
    form = plan.quantise if plan.quantise in GGUF_FORMATS else "f16"
    progress("asking the run")
    reference = hf.ask(plan)
    assembled = reference.assembled
    with files.complete(plan.out) as draft:
        draft.mkdir()
        text, pictures = f"model-{form}.gguf", f"mmproj-{_picture_format(plan)}.gguf"
        config: Any = assembled.model.config
        progress(f"writing {text}")
        decoder = list(hf.decoder_entries(plan, config.tie_word_embeddings))
        rows = next(e.shape[0] for e in decoder if e.name.endswith("embed_tokens.weight"))
        name = name_of(plan.manifest["sources"]["llm"], assembled.tokenizer)
        writer = text_writer(config.text_config, form, name)
        write_vocabulary(writer, assembled, chat_template(assembled.template, markers=True), rows)
        gaps = _write(writer, text_tensors(decoder, config.text_config), draft / text, form)
        if form != plan.quantise:
            progress(f"quantising to {plan.quantise}")
            text = _quantised(draft / text, plan.quantise)
        progress(f"writing {pictures}")
        writer = picture_writer(assembled, _picture_format(plan), plan.class_token)
        entries = [*reference.tower, *hf.projector_entries(plan)]
        tensors = picture_tensors(entries, config, plan.class_token)
        gaps |= _write(writer, tensors, draft / pictures, _picture_format(plan))
        (draft / "Modelfile").write_text(modelfile(assembled.template, text, pictures), encoding="utf-8")
        content = plan.origin("gguf") | {
            "base": plan.base or "as trained",
            "dtype": plan.quantise,
            "old_gemma": plan.old_gemma,
            "class_token": plan.class_token,
            "tensors": len(gaps),
            "tensor_gap": max(gaps.values()),
            "parity_to_quantised_run": reference.to_run,
            "notes": _notes(config, plan),
            "weights": files.hashes(draft, ("*.safetensors", "*.gguf")),
            "versions": files.versions() | {"gguf": version("gguf")},
        }
        files.write_json(draft / "export.json", content)
        (draft / "README.md").write_text(card.model_card(plan.run, plan.manifest, content), encoding="utf-8")
    return content


def _quantised(path: Path, form: str) -> str:
    """Let llama.cpp's tool make a file of fewer bits, in place of the one that was compared with the run."""
    made = path.with_name(f"model-{form}.gguf")
    done = subprocess.run(
        [QUANTIZE, str(path), str(made), form.upper()], capture_output=True, text=True, check=False
    )
    if done.returncode or not made.is_file():
        why = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ValueError(f"{QUANTIZE} does not make {form} of this model: {why[:200]}")
    path.unlink()
    return made.name


def _picture_format(plan: hf.Plan) -> str:
    """Return the projector file's: its own rounding costs little, and its kernels want 16 bits."""
    return "f32" if plan.quantise == "f32" else "f16"


def _notes(config: Any, plan: hf.Plan) -> list[str]:
    text = config.text_config
    lines = [
        f"llama.cpp: llama-mtmd-cli -m {plan.out}/model-{plan.quantise}.gguf --mmproj "
        f"{plan.out}/mmproj-{_picture_format(plan)}.gguf --image FILE -p TEXT --temp 0",
        f"Ollama: ollama create NAME -f {plan.out}/Modelfile",
    ]
    if plan.class_token == "last":
        lines.append(
            "the projector file is for llama.cpp's releases since May 2025, which put a CLIP tower's class "
            "token after the patches (its issue 25814): they lose a picture's first patch, the others are "
            "the run's. For a llama.cpp without that fault export with --class-token first"
        )
    elif plan.class_token == "first":
        lines.append(
            "the projector file is for a llama.cpp that puts a CLIP tower's class token before the patches; "
            "releases since May 2025 do not (its issue 25814) and would misread every patch: for them export "
            "with --class-token last"
        )
    if plan.quantise not in GGUF_FORMATS:
        lines.append(f"the text model was compared with the run in f16; {QUANTIZE} rounded it afterwards")
    window = getattr(text, "sliding_window", None)
    if window and window < text.max_position_embeddings:
        lines.append(
            f"llama.cpp attends to the whole context here, the run to the last {window} tokens: they differ "
            f"in conversations longer than {window}"
        )
    return lines


def _writer(architecture: str, kind: str, name: str, quantise: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type(kind)
    writer.add_name(name)
    form = "ALL_F32" if quantise == "f32" else f"MOSTLY_{quantise.upper()}"
    writer.add_file_type(gguf.LlamaFileType[form])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return writer


def text_writer(text: Any, quantise: str, name: str) -> gguf.GGUFWriter:
    """Return a writer that has the decoder's sizes; llama.cpp must have its rotary scaling."""
    writer = _writer(GGUF_ARCHITECTURES[text.model_type], gguf.GGUFType.MODEL, name, quantise)
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    rope = text.rope_parameters
    rotary = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    writer.add_vocab_size(text.vocab_size)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_dimension_count(rotary)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "longrope" and text.model_type == "phi3":
        _, stretch = ROPE_INIT_FUNCTIONS[kind](text, "cpu", seq_len=text.max_position_embeddings)
        writer.add_rope_scaling_attn_factors(stretch)
    elif kind not in ("default", "llama3"):
        raise ValueError(f"rotary scaling {kind!r} is not written to GGUF here; use --to hf")
    if text.model_type == "phi3":
        writer.add_rope_scaling_orig_ctx_len(
            getattr(text, "original_max_position_embeddings", None) or text.max_position_embeddings
        )
        writer.add_sliding_window(text.sliding_window or 0)
    return writer


def text_tensors(entries: list[Entry], text: Any) -> Iterator[Entry]:
    """List the decoder's tensors under llama.cpp's names, rearranged as it computes with them.

    Llama's rotary pairs are neighbours (2i, 2i + 1) there and halves (i, i + d/2) in transformers, so the
    rows of queries and keys change places. Gemma's norms are stored with the 1 that transformers adds.
    """
    architecture = GGUF_ARCHITECTURES[text.model_type]
    number = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, text.num_hidden_layers)
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}
    for entry in entries:
        short = entry.name.removeprefix("language_model.")
        name = names.get_name(short, try_suffixes=(".weight", ".bias"))
        assert name is not None, f"{entry.name} has no name in GGUF"
        part, read = short.split(".")[-2], entry.read
        if architecture == "llama" and part in heads:
            count = heads[part]
            yield Entry(name, entry.shape, lambda read=read, count=count: neighbours(read(), count))
        elif architecture == "gemma" and part.endswith("norm"):
            yield Entry(name, entry.shape, lambda read=read: read().float() + 1)
        else:
            yield Entry(name, entry.shape, read)
    yield from _rotary_factors(text, names)


def neighbours(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Put row `i` of a head of `(heads * d, ...)` at `2i` and row `i + d/2` at `2i + 1`."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _rotary_factors(text: Any, names: gguf.TensorNameMap) -> Iterator[Entry]:
    """List what divides the rotary frequencies: of Llama 3, and of Phi-3's long contexts."""
    rope = text.rope_parameters
    kind, factors = rope.get("rope_type", "default"), {}
    if kind == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS[kind](text, "cpu")
        steps = torch.arange(len(scaled), dtype=torch.float32) / len(scaled)
        factors["rope_freqs"] = rope["rope_theta"] ** -steps / scaled
    elif kind == "longrope":
        factors = {
            f"rope_factors_{length}": torch.tensor(rope[f"{length}_factor"]) for length in ("long", "short")
        }
    for name, tensor in factors.items():
        yield Entry(f"{name}.weight", tuple(tensor.shape), lambda tensor=tensor: tensor)


def picture_writer(assembled: Assembled, quantise: str, class_token: str | None) -> gguf.GGUFWriter:
    """Return a writer that has the tower's sizes and image settings."""
    config: Any = assembled.model.config
    vision = config.vision_config
    transform = assembled.transform("pad")
    writer = _writer("clip", gguf.GGUFType.MMPROJ, Path(assembled.sources.tower).name, quantise)
    writer.add_clip_has_vision_encoder(True)
    writer.add_bool("clip.has_llava_projector", True)  # read by releases before 2025 and by Ollama
    writer.add_clip_projector_type("mlp")
    writer.add_vision_projection_dim(config.text_config.hidden_size)
    writer.add_vision_image_size(transform.size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(layers_written(config))
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_use_gelu(vision.hidden_act != "quick_gelu")
    writer.add_vision_image_mean(list(transform.mean))
    writer.add_vision_image_std(list(transform.std))
    writer.add_array("clip.vision.feature_layer", [layers_read(config)])
    if class_token is not None:
        writer.add_string("basic_lite.class_token", class_token)
    return writer


def layers_read(config: Any) -> int:
    """Return after how many layers of the tower its states are used: 23 of 24 for LLaVA's -2."""
    layer = config.vision_feature_layer
    return layer if layer >= 0 else config.vision_config.num_hidden_layers + layer + 1


def layers_written(config: Any) -> int:
    """Return how many of the tower's layers the file has: one more than is used, where the tower has it.

    Readers that do not know `feature_layer` (before March 2025) take the last but one of a file's layers.
    """
    return min(layers_read(config) + 1, config.vision_config.num_hidden_layers)


def picture_tensors(entries: list[Entry], config: Any, class_token: str | None) -> Iterator[Entry]:
    """List the tower and the projector under llama.cpp's names, without the tower's last norm.

    A CLIP tower computes on the class token and then the patches, and its states 1 to N are the picture.
    llama.cpp since its change 13321 (May 2025) appends the class token: each patch gets the position of its
    left neighbour, the first patch is dropped, and the class token's state ends the picture (its issue
    25814). With the rows of the positions moved along (`class_token` is `"last"`) its states are right, and a
    picture is its patches 2 to N and the class token.
    """
    layers = layers_written(config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, layers)
    projector = {"linear_1": "mm.0", "linear_2": "mm.2"}  # the numbers that LLaVA's own layers had
    for entry in entries:
        words = entry.name.split(".")
        if words[0] == "multi_modal_projector":
            yield Entry(f"{projector[words[1]]}.{words[2]}", entry.shape, entry.read)
            continue
        if "layers" in words and int(words[words.index("layers") + 1]) >= layers:
            continue
        if words[2] in ("post_layernorm", "head") or words[-1] == "position_ids":
            continue
        name = names.get_name(entry.name, try_suffixes=(".weight", ".bias"))
        assert name is not None, f"{entry.name} has no name in GGUF"
        read = entry.read
        if name == "v.position_embd.weight" and class_token == "last":
            yield Entry(name, entry.shape, lambda read=read: read().roll(-1, 0))
        else:
            yield Entry(name, entry.shape, read)


def format_of(entry: Entry, quantise: str) -> gguf.GGMLQuantizationType:
    """Return how a tensor is stored: vectors and positions in fp32, what q8_0's blocks of 32 miss in fp16."""
    kind = gguf.GGMLQuantizationType[quantise.upper()]
    if len(entry.shape) == 1 or entry.name == "v.position_embd.weight":
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if entry.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _write(writer: gguf.GGUFWriter, entries: Iterator[Entry], path: Path, quantise: str) -> dict[str, float]:
    """Write a file tensor by tensor, read it back, and compare; returns the gap of each tensor."""
    listed = [(entry, format_of(entry, quantise)) for entry in entries]
    for entry, kind in listed:
        block, width = gguf.GGML_QUANT_SIZES[kind]
        size = entry.numel // block * width
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry, kind in listed:
        values = _numbers(entry)
        with np.errstate(over="ignore"):
            stored = gguf.quants.quantize(values, kind)
        if kind == gguf.GGMLQuantizationType.F16 and not np.isfinite(stored).all():
            raise ValueError(
                f"{entry.name} has numbers beyond fp16's 65,504 (up to {np.abs(values).max():.3g}); use "
                "--quantise bf16"
            )
        writer.write_tensor_data(stored)
    writer.close()
    return compare(path, [entry for entry, _ in listed])


def _numbers(entry: Entry) -> np.ndarray:
    return entry.read().detach().to("cpu", torch.float32).contiguous().numpy()


def compare(path: Path, entries: list[Entry]) -> dict[str, float]:
    """Read a GGUF file back and compare all its tensors with what it should hold, under its own names.

    Returns for each the largest difference, relative to the largest number of the row; ValueError if too
    large.
    """
    reader = gguf.GGUFReader(path)
    held = {tensor.name: tensor for tensor in reader.tensors}
    gaps: dict[str, float] = {}
    wrong = sorted(held.keys() ^ {entry.name for entry in entries})
    for entry in entries:
        tensor = held.get(entry.name)
        if tensor is None:
            continue
        expected = _numbers(entry)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if values.shape != expected.shape:
            wrong.append(f"{entry.name} {values.shape}")
            continue
        rows = expected.reshape(len(expected), -1) if expected.ndim > 1 else expected.reshape(1, -1)
        largest = np.abs(rows).max(1, keepdims=True)
        apart = np.abs(values.reshape(rows.shape) - rows) - _TINY.get(tensor.tensor_type.name, 0.0)
        gap = np.maximum(apart, 0) / np.maximum(largest, np.finfo(np.float32).tiny)
        gaps[entry.name] = float(gap.max())
        if gaps[entry.name] > _ROUNDING[tensor.tensor_type.name]:
            wrong.append(f"{entry.name} differs by {gaps[entry.name]:.3g} of its row")
    if wrong:
        raise ValueError(f"{path.name} read back is not the run: {', '.join(wrong[:3])}; please report this")
    return gaps
