"""Exported folders say what the run says, to readers that are not ours."""

from __future__ import annotations

import json

import pytest
import torch
from made_runs import export, made_run
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import ALL_DECODERS, DECODERS, MORE_DECODERS, llm_folder
from typer.testing import CliRunner

from basic_lite.cli import app
from basic_lite.export import folder, parity, weights

PAIRS = [(decoder, tower) for decoder in DECODERS for tower in ("clip", "siglip")] + [("llama", "dinov2")]


CASES = [(decoder, tower, kind) for decoder, tower in PAIRS for kind in ("stage1", "lora", "whole")]
CASES += [(decoder, "clip", "lora") for decoder in MORE_DECODERS] + [("granite", "clip", "whole")]
CASES += [("llama", "aimv2", "lora"), ("llama", "mlcd", "lora")]


@pytest.mark.parametrize(("decoder", "tower", "kind"), CASES)
def test_every_pair_says_what_the_run_says(tmp_path, decoder, tower, kind):
    run = made_run(tmp_path / "run", decoder, tower, kind)
    content = export(run, tmp_path / "out")
    assert content["parity"]["gap"] < 1e-5
    assert content["parity"]["pixel_gap"] < 1e-5
    assert content["parity"]["equal_texts"] == len(parity.PROMPTS)
    names = set(safe_open(tmp_path / "out/model.safetensors", "pt").keys())
    assert "language_model.model.embed_tokens.weight" in names
    tied = ALL_DECODERS[decoder]().tie_word_embeddings
    assert ("language_model.lm_head.weight" in names) != tied
    table = safe_open(tmp_path / "out/model.safetensors", "pt").get_slice(
        "language_model.model.embed_tokens.weight"
    )
    assert table.get_shape()[0] == 320  # no row was added


@pytest.mark.parametrize("tower", ["dinov2_registers", "dinov3"])
def test_a_tower_with_registers_has_no_standard_folder(tmp_path, tower):
    run = made_run(tmp_path / "run", "llama", tower, "lora")
    with pytest.raises(ValueError, match="the tower has 3 registers, which transformers' LLaVA would"):
        export(run, tmp_path / "out")
    assert export(run, tmp_path / "adapters", to="peft")["parity"]["decoder_gap"] < 1e-5


@pytest.mark.parametrize("kind", ["stage1", "lora"])
@pytest.mark.parametrize("base", ["bf16", "dequantised"])
def test_a_run_on_a_four_bit_base_names_its_base(tmp_path, monkeypatch, base, kind):
    """The original weights are further from the run than what it was trained on, rounded as it was.

    Random layers of width 32 hardly survive 4 bits, so the limit is raised here, after it has refused.
    """
    run = made_run(tmp_path / "run", "llama", "clip", kind, bits=4)
    with pytest.raises(ValueError, match="say which base the export holds: --base bf16"):
        export(run, tmp_path / "none")
    if base == "bf16":
        with pytest.raises(ValueError, match="export with --base dequantised"):
            export(run, tmp_path / "out", base)
        assert not (tmp_path / "out").exists()
        monkeypatch.setattr(parity, "BASE_LIMIT", 1.3)
    content = export(run, tmp_path / "out", base)
    assert content["parity"]["gap"] < 1e-5
    if base == "bf16":
        assert content["parity_to_quantised_run"]["gap"] > 0.1
    else:
        assert content["parity_to_quantised_run"] is None


def test_bf16_weights_stay_within_rounding(tmp_path):
    run = made_run(tmp_path / "run", "llama", "clip", "lora")
    content = export(run, tmp_path / "out", dtype="bf16")
    assert 1e-4 < content["parity"]["gap"] < 0.1
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(("dtype", "held"), [(None, torch.bfloat16), ("fp32", torch.float32)])
def test_an_unquantised_run_may_name_the_original_base(tmp_path, dtype, held):
    run = made_run(tmp_path / "run", "llama", "clip", "lora")
    more = ["--device", "cpu", *([] if dtype is None else ["--dtype", dtype])]
    shown = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "out"), "--base", "bf16", *more])
    assert shown.exit_code == 0, shown.output
    line = f"holds no quantised base; its own weights are exported, in {held}".replace("torch.", "")
    assert shown.output.count(line) == 1
    assert {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()} == {held}


def test_shards_hold_the_same_tensors(tmp_path):
    run = made_run(tmp_path / "run", "llama", "clip", "lora")
    export(run, tmp_path / "one")
    export(run, tmp_path / "many", shard=60_000)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    assert max(path.stat().st_size for path in files) < 75_000
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    whole = load_file(tmp_path / "one/model.safetensors")
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in whole.values())
    for path in files:
        for name, tensor in load_file(path).items():
            assert index["weight_map"][name] == path.name
            assert torch.equal(tensor, whole[name])


@pytest.mark.parametrize("fault", ["scale", "head", "template", "picture"])
def test_a_folder_that_is_not_the_run_never_gets_its_name(tmp_path, monkeypatch, fault):
    run = made_run(tmp_path / "run", "llama", "clip", "lora")
    if fault == "scale":
        monkeypatch.setattr(weights.Adapters, "merge", lambda self, entry: entry)
        monkeypatch.setattr(weights.Adapters, "check_all_used", lambda self: None)
    elif fault == "head":
        entries = folder.decoder_entries
        monkeypatch.setattr(
            folder, "decoder_entries", lambda *a: (e for e in entries(*a) if "lm_head" not in e.name)
        )
    elif fault == "template":
        monkeypatch.setattr(folder, "chat_template", lambda template: "{{ messages[0]['content'] }}")
    else:
        projector = folder.projector_entries
        monkeypatch.setattr(
            folder, "projector_entries", lambda *a: (e for e in projector(*a) if "bias" not in e.name)
        )
    with pytest.raises(
        ValueError, match=r"is not the run|have no place|tokens in the prompts|processor writes"
    ):
        export(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_adapter_without_place_is_an_error(tmp_path):
    from safetensors.torch import save_file

    run = made_run(tmp_path / "run", "llama", "clip", "lora")
    state = load_file(run / "adapter_model.safetensors")
    name = next(n for n in state if "layers.3.mlp.down_proj.lora_A" in n)
    for which in "AB":
        old = name.replace("lora_A", f"lora_{which}")
        state[old.replace("layers.3", "layers.9")] = state.pop(old)
    save_file(state, run / "adapter_model.safetensors", metadata={"format": "pt"})
    plan = folder.plan(run, tmp_path / "out", None, None, "cpu", 2**30)
    with pytest.raises(ValueError, match="2 adapter tensors fit no tensor of the base"):
        list(folder.decoder_entries(plan, False))


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("decoder", ["gemma", "phi3"])
def test_pefts_own_loader(tmp_path, decoder, bits):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = made_run(tmp_path / "run", decoder, "siglip", "lora", bits=bits)
    content = export(run, tmp_path / "out", to="peft")
    assert content["parity"]["decoder_gap"] < 1e-3
    llm = AutoModelForCausalLM.from_pretrained(llm_folder(decoder), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(llm, tmp_path / "out")
    moved = adapted.get_base_model().model.layers[3].mlp.down_proj
    saved = load_file(run / "adapter_model.safetensors")
    name = "base_model.model.model.language_model.layers.3.mlp.down_proj.lora_B.weight"
    assert torch.equal(moved.lora_B["default"].weight, saved[name])
    assert set(load_file(tmp_path / "out/projector.safetensors")) == {
        f"multi_modal_projector.linear_{n}.{part}" for n in "12" for part in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("decoder", "settings", "to", "words"),
    [
        ("llama", {"pool": 3}, "hf", "joins patches in front of its projector"),
        ("llama", {"pool": 3}, "peft", "nothing can be exported; chat and eval read the run itself"),
        ("gemma3_text", {}, "gguf", "gemma3_text decoders are not written to GGUF, only llama, mistral"),
    ],
)
def test_a_run_that_a_layout_cannot_hold(tmp_path, decoder, settings, to, words):
    """Of tiles and DINOv2: test_tiles.py, test_gguf.py; Gemma 3 itself has a standard folder."""
    run = made_run(tmp_path / "run", decoder, "clip", "lora", **settings)
    with pytest.raises(ValueError, match=words):
        export(run, tmp_path / "out", to=to)


def test_what_cannot_be_exported_is_said_before_anything_is_loaded(tmp_path):
    run = made_run(tmp_path / "run", "llama", "clip", "stage1")
    (tmp_path / "there").mkdir()
    for more, words in (
        ({"to": "peft"}, "holds no adapters"),
        ({"base": "dequantised"}, "leave --base out"),
        ({"old_gemma": True}, "for Gemma decoders"),
        ({"quantise": "f16"}, "--quantise is for --to gguf"),
        (
            {"to": "gguf", "quantise": "q4_k_m"},
            r"llama-quantize OUT/model-f16.gguf OUT/model-q4_k_m.gguf Q4_K_M",
        ),
        ({"to": "gguf", "quantise": "q4"}, "or a format of llama-quantize, not 'q4'"),
        ({"to": "gguf", "dtype": "fp16"}, "leave --dtype out"),
    ):
        with pytest.raises(ValueError, match=words):
            export(run, tmp_path / "out", **more)
    with pytest.raises(ValueError, match="exists already"):
        export(run, tmp_path / "there")
