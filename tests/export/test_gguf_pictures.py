"""What readers of the picture half compute from it: each is written here in numpy, and compared with the run.

Where `xllamacpp` is installed (a wheel of llama.cpp), its answers about pictures are compared as well.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from jinja import fill
from made_runs import export, made_run
from PIL import Image
from tiny import PATCHES, TOWER_SIZES

from basic_lite.data.conversation import IMAGE, render
from basic_lite.data.templates import TEMPLATES
from basic_lite.export.chat_template import chat_template
from basic_lite.models import checkpoint
from basic_lite.models.generate import prompt_ids
from basic_lite.models.llava import for_inference

gguf = pytest.importorskip("gguf")
SIZE = TOWER_SIZES["image_size"]


def contents(path) -> tuple[dict, dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


def encoded(path, pixels: np.ndarray, class_token: str, knows_feature_layer: bool = True) -> np.ndarray:
    """Compute what `clip_graph_llava` of llama.cpp hands to the LLM.

    Args:
        path: of an mmproj file.
        pixels: `(3, h, w)` fp32, normalised.
        class_token: `"last"` as from May 2025 on, `"first"` as before.
        knows_feature_layer: whether the reader looks at that key; otherwise the last layer is not computed.
    """
    keys, w = contents(path)
    heads, patch = keys["clip.vision.attention.head_count"], keys["clip.vision.patch_size"]
    eps = keys["clip.vision.attention.layer_norm_epsilon"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def quick(x):
        return x / (1 + np.exp(-1.702 * x))

    side = keys["clip.vision.image_size"] // patch
    blocks = pixels.reshape(3, side, patch, side, patch).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
    x = blocks @ w["v.patch_embd.weight"].reshape(len(w["v.patch_embd.weight"]), -1).T
    x = x + w.get("v.patch_embd.bias", 0)
    if (token := w.get("v.class_embd")) is not None:
        x = np.concatenate([token[None], x] if class_token == "first" else [x, token[None]])
    x = x + w["v.position_embd.weight"][: len(x)]
    if "v.pre_ln.weight" in w:
        x = norm(x, "v.pre_ln")
    layers = keys["clip.vision.block_count"] - 1
    if knows_feature_layer and keys.get("clip.vision.feature_layer"):
        layers = max(keys["clip.vision.feature_layer"])
    for layer in range(layers):
        at = f"v.blk.{layer}"
        h = norm(x, f"{at}.ln1")
        q, k, v = (
            linear(h, f"{at}.attn_{which}").reshape(len(h), heads, -1).transpose(1, 0, 2) for which in "qkv"
        )
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + linear(mixed.transpose(1, 0, 2).reshape(len(h), -1), f"{at}.attn_out")
        up = linear(norm(x, f"{at}.ln2"), f"{at}.ffn_up")
        x = x + linear(gelu(up) if keys.get("clip.use_gelu") else quick(up), f"{at}.ffn_down")
    if "v.post_ln.weight" in w:
        x = norm(x, "v.post_ln")
    x = x[1 : 1 + side * side] if token is not None else x
    return linear(gelu(linear(x, "mm.0")), "mm.2")


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def opened(run):
    assembled, _ = checkpoint.load_run(run)
    for_inference(assembled.model)
    transform = assembled.transform("pad")
    return assembled, transform.normalise(transform(picture())[None])


def embeddings(assembled, pixels) -> np.ndarray:
    """Return the run's embeddings of one picture, `(N, D)`."""
    with torch.inference_mode():
        return torch.cat(list(assembled.model.get_image_features(pixels).pooler_output)).numpy()


def gap(here: np.ndarray, there: np.ndarray) -> float:
    return float(np.abs(here - there).max() / np.abs(there).max())


@pytest.mark.parametrize("knows_feature_layer", [True, False])
@pytest.mark.parametrize(("tower", "order"), [("siglip", None), ("clip", "first"), ("clip", "last")])
def test_a_reader_makes_the_runs_embeddings(tmp_path, tower, order, knows_feature_layer):
    """All of them; a reader that puts the class token last loses the first patch, and no other differs."""
    run = made_run(tmp_path / "run", "llama", tower, "stage1")
    export(run, tmp_path / "out", to="gguf", quantise="f32", class_token=order)
    assembled, pixels = opened(run)
    path = tmp_path / "out/mmproj-f32.gguf"
    here, there = (
        encoded(path, pixels[0].numpy(), order or "last", knows_feature_layer),
        embeddings(assembled, pixels),
    )
    assert here.shape == there.shape == (PATCHES, 32)
    # The projector's GELU is the tanh form in llama.cpp: up to 5e-4 of an activation.
    if order == "last":
        here, there = here[:-1], there[1:]
    assert gap(here, there) < 1e-3
    if order:
        other = encoded(path, pixels[0].numpy(), {"first": "last", "last": "first"}[order])
        assert gap(other[: len(there)], there) > 0.1
    assert contents(path)[0].get("basic_lite.class_token") == order


@pytest.mark.parametrize(
    ("decoder", "tower", "settings", "words"),
    [
        ("llama", "siglip", {"to": "gguf", "class_token": "last"}, "--class-token is for CLIP towers"),
        ("llama", "clip", {"class_token": "first"}, "--class-token is for --to gguf, not --to hf"),
    ],
)
def test_where_a_class_token_can_stand(tmp_path, decoder, tower, settings, words):
    run = made_run(tmp_path / "run", decoder, tower, "stage1")
    with pytest.raises(ValueError, match=words):
        export(run, tmp_path / "out", **settings)


@pytest.mark.parametrize("template", [name for name, row in TEMPLATES.items() if not row.caption])
@pytest.mark.parametrize("marker", ["<__media__>", "<__media_a1B2__>"])
def test_llama_cpps_markers_stand_where_training_has_pictures(template, marker):
    """It joins a message's parts to a string: no newline after a marker, in the order of the parts."""
    source = chat_template(TEMPLATES[template], markers=True)
    turns = [("user", f"{IMAGE}\n{IMAGE}\nWhat differs?"), ("assistant", "A."), ("user", "a <__media b")]
    expected = render(template, turns, add_generation_prompt=True).replace(IMAGE, marker)
    for content in (f"{marker}{marker}What differs?", f"What {marker}differs?{marker}"):
        messages = [{"role": role, "content": text} for role, text in turns]
        messages[0]["content"] = content
        assert fill(source, messages, True) == expected


@pytest.mark.slow
@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize(
    ("decoder", "tower"),
    [
        ("llama", "siglip"),
        ("llama", "clip"),
        ("gemma", "siglip"),
        ("phi3", "siglip"),
        ("phi4_mini", "clip"),
        ("qwen2", "clip"),
        ("qwen3", "siglip"),
    ],
)
def test_llama_cpp_answers_as_the_run(tmp_path, decoder, tower, shown):
    """The released reader itself, from the messages of a chat page to the logprobs of the first token.

    Of a CLIP tower the run is shown what such a reader sees: patches 2 to N, then the class token.
    """
    x = pytest.importorskip("xllamacpp")
    run = made_run(tmp_path / "run", decoder, tower, "stage1")
    export(run, tmp_path / "out", to="gguf", quantise="f32")
    assembled, pixels = opened(run)
    if tower == "clip":
        assembled.model.config.vision_feature_select_strategy = "full"
        projector = assembled.model.model.multi_modal_projector
        project = projector.forward
        projector.forward = lambda states: project(torch.cat([states[:, 2:], states[:, :1]], 1))
    words = "What is it?"
    turn = f"{IMAGE}\n{words}" if shown else words
    ids = torch.tensor([prompt_ids(assembled, [("user", turn)])])
    with torch.inference_mode():
        logits = assembled.model(input_ids=ids, pixel_values=pixels if shown else None).logits[0, -1]
    parameters = x.CommonParams()
    parameters.model.path = str(tmp_path / "out/model-f32.gguf")
    parameters.mmproj.path = str(tmp_path / "out/mmproj-f32.gguf")
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 128, 1, False
    parameters.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.cache_type_k = parameters.cache_type_v = x.ggml_type.GGML_TYPE_F32
    file = io.BytesIO()
    picture().save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}] if shown else []
    asked = {
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}],
        # Logprobs are given per character: the answer is made to start with a whole one.
        "logit_bias": [[assembled.tokenizer.convert_tokens_to_ids("a"), 1000]],
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 320,
    }
    answer = x.Server(parameters).handle_chat_completions(asked)
    assert answer["usage"]["prompt_tokens"] == ids.shape[1]
    listed = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    here, there = torch.full_like(logits, torch.nan), logits.log_softmax(-1)
    for token in listed:
        here[token["id"]] = token["logprob"]
    assert here.isfinite().all()
    # GELU comes from a table of fp16 numbers there.
    torch.testing.assert_close(here, there, atol=0.03 if shown else 0.01, rtol=0)
