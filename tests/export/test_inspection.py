"""Exported folders opened again, judged by the tables of other readers, and sent to a hub that is patched."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from command import run as command
from made_runs import export, made_run
from safetensors.torch import load_file, save_file

from basic_lite.export import readers

VLLM, SGLANG = readers.READERS


@pytest.mark.parametrize(
    ("decoder", "tower", "tiles", "words"),
    [
        ("llama", "clip", 1, None),
        ("gemma", "siglip", 1, None),
        ("gemma3_text", "clip", 1, None),
        ("llama", "clip", 4, None),
        ("olmo3", "clip", 1, "its LLaVA does not run olmo3 decoders"),
        (
            "llama",
            "dinov2",
            1,
            "it has no dinov2 tower, only clip_vision_model, pixtral, siglip_vision_model",
        ),
        ("llama", "mlcd", 4, "it has no mlcd_vision_model tower"),
    ],
)
def test_an_export_says_which_servers_do_not_load_it(tmp_path, decoder, tower, tiles, words):
    run = made_run(tmp_path / "run", decoder, tower, "stage1", tiles=tiles)
    notes = export(run, tmp_path / "out")["notes"]
    said = {line.split()[0]: line for line in notes}
    assert ("vLLM" in said) == bool(words)
    assert f"vLLM does not load this folder: {words}" in said.get("vLLM", "") if words else True
    reason = f"it has no {'llava_next, only llava (' if tiles > 1 else ''}"
    assert said["SGLang"].startswith(f"SGLang does not load this folder: {reason}")


def test_what_a_server_looks_at_in_a_folder():
    """The tables, against a folder that each of the two would load but for one fault."""
    config = {
        "model_type": "llava",
        "vision_feature_select_strategy": "full",
        "text_config": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        "vision_config": {"model_type": "pixtral"},
    }
    names = [
        "language_model.model.embed_tokens.weight",
        "vision_tower.x",
        "multi_modal_projector.linear_1.bias",
    ]
    assert readers.refusals(config, names) == []
    for fault, words in (
        ({"model_type": "llava_onevision"}, "it has no llava_onevision, only llava"),
        ({"vision_config": {"model_type": "dinov2"}}, "it has no dinov2 tower, only"),
        ({"vision_feature_select_strategy": "mean"}, "it takes no vision_feature_select_strategy 'mean'"),
        ({"text_config": {"model_type": "llama"}}, "text_config names no architectures"),
        (
            {"text_config": config["text_config"] | {"model_type": "smollm3"}},
            "does not run smollm3 decoders",
        ),
    ):
        for reader, line in zip((VLLM, SGLANG), readers.refusals(config | fault, names), strict=True):
            assert line.startswith(f"{reader.name} does not load this folder: ")
            assert words in line
            assert line.endswith(f"({reader.source}, read on {reader.read_on})")
    assert "knows no tensor model.layers.0.x" in readers.refusals(config, ["model.layers.0.x"])[0]
    # As transformers 5 saves a LLaVA: vLLM renames them, SGLang does not.
    assert [line.split()[0] for line in readers.refusals(config, ["model.language_model.norm.weight"])] == [
        "SGLang"
    ]


def test_every_layout_is_opened_again(tmp_path):
    made_run(tmp_path / "run", "llama", "clip", "lora")
    for kind in ("hf", "peft", "gguf"):
        command("export", "run", kind, "--to", kind, cwd=tmp_path)
    shown = {kind: command("export", "--check", kind, cwd=tmp_path).stdout for kind in ("hf", "peft", "gguf")}
    assert "transformers: loads, 98 tensors in float32" in shown["hf"]
    assert "answers: 4 of 4 as at the export" in shown["hf"]
    assert "tensors of rank 4 over " in shown["peft"]
    assert "projector: 4 tensors" in shown["peft"]
    assert "model-f16.gguf: llama, 39 tensors" in shown["gguf"]
    assert "mmproj-f16.gguf: clip, 57 tensors" in shown["gguf"]
    for kind, count in (("hf", 1), ("peft", 2), ("gguf", 2)):
        assert f"files: {count} of {count} as they were exported" in shown[kind]

    # a file that was exchanged, one that is gone, and folders that are something else
    state = load_file(tmp_path / "hf/model.safetensors")
    name = next(name for name in state if "linear_2.weight" in name)
    save_file(state | {name: state[name] + 1}, tmp_path / "hf/model.safetensors", metadata={"format": "pt"})
    refused = command("export", "--check", "hf", cwd=tmp_path, expect=2)
    assert "model.safetensors has changed since the export" in refused.stderr
    (tmp_path / "hf/export.json").unlink()
    assert "answers" not in command("export", "--check", "hf", cwd=tmp_path).stdout
    state.pop(name)
    save_file(state, tmp_path / "hf/model.safetensors", metadata={"format": "pt"})
    refused = command("export", "--check", "hf", cwd=tmp_path, expect=2)
    assert "does not load: " in refused.stderr
    (tmp_path / "gguf/model-f16.gguf").rename(tmp_path / "text.gguf")
    assert "model-f16.gguf is missing" in command("export", "--check", "gguf", cwd=tmp_path, expect=2).stderr
    assert "run is a run, not an export" in command("export", "--check", "run", cwd=tmp_path, expect=2).stderr
    assert "nowhere is no folder" in command("export", "--check", "nowhere", cwd=tmp_path, expect=2).stderr
    assert "basic-lite export run OUT" in command("export", "run", cwd=tmp_path, expect=2).stderr


def halve(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGED = {
    "hf": {
        "config.json": (halve, "broken/config.json is cut off or damaged: export the run again, or get"),
        "model.safetensors": (halve, "broken does not load: "),
        "tokenizer.json": (Path.unlink, "broken/tokenizer.json is missing: export the run again, or get"),
        "processor_config.json": (lambda path: path.write_text("[]"), "is cut off or damaged"),
        "generation_config.json": (lambda path: path.write_text("{}"), "broken does not load: "),
    },
    "peft": {
        "projector.safetensors": (Path.unlink, "broken/projector.safetensors is missing"),
        "adapter_model.safetensors": (halve, "broken does not load: "),
    },
    "gguf": {
        "model-f16.gguf": (halve, "broken does not load: model-f16.gguf is cut off or damaged"),
        "mmproj-f16.gguf": (lambda path: path.write_bytes(b"GGUF"), "mmproj-f16.gguf is cut off or damaged"),
    },
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_folder_is_one_line_whatever_its_reader_raises(tmp_path, kind):
    if kind == "gguf":
        pytest.importorskip("gguf")
    made_run(tmp_path / "run", "llama", "clip", "lora")
    command("export", "run", "out", "--to", kind, cwd=tmp_path)
    (tmp_path / "out/export.json").unlink()
    for name, (damage, words) in DAMAGED[kind].items():
        shutil.copytree(tmp_path / "out", tmp_path / "broken")
        damage(tmp_path / "broken" / name)
        refused = command("export", "--check", "broken", cwd=tmp_path, expect=2).stderr.splitlines()
        assert sum(line.startswith("error: ") for line in refused) == 1
        assert words in refused[-1], name
        shutil.rmtree(tmp_path / "broken")
    if kind == "gguf":
        shutil.copy(tmp_path / "out/mmproj-f16.gguf", tmp_path / "out/model-f16.gguf")
        refused = command("export", "--check", "out", cwd=tmp_path, expect=2)
        assert "model-f16.gguf is of the architecture clip: the files were confused" in refused.stderr


def test_halves_of_two_models_do_not_fit(tmp_path):
    gguf = pytest.importorskip("gguf")
    import numpy as np

    made_run(tmp_path / "run", "llama", "clip", "stage1")
    command("export", "run", "out", "--to", "gguf", cwd=tmp_path)
    (tmp_path / "out/export.json").unlink()
    writer = gguf.GGUFWriter(tmp_path / "out/mmproj-f16.gguf", "clip")
    writer.add_tensor("mm.2.bias", np.zeros(48, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused = command("export", "--check", "out", cwd=tmp_path, expect=2)
    assert (
        "halves do not fit: width of the embeddings model-f16.gguf 32, mmproj-f16.gguf 48" in refused.stderr
    )


@pytest.fixture
def hub(monkeypatch):
    """Return what a hub was told; nothing leaves the machine."""
    told: list[tuple[str, dict]] = []
    monkeypatch.setattr(
        huggingface_hub.HfApi, "create_repo", lambda self, name, **more: told.append((name, more))
    )
    monkeypatch.setattr(
        huggingface_hub.HfApi, "upload_folder", lambda self, **more: told.append(("sent", more))
    )
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    return told


def test_nothing_is_sent_without_a_yes(tmp_path, monkeypatch, hub):
    made_run(tmp_path / "run", "llama", "clip", "stage1")
    command("export", "run", "out", cwd=tmp_path)
    for said in ("", "y", "no"):
        monkeypatch.setattr(builtins, "input", lambda question, said=said: said)
        refused = command("export", "out", "--push", "me/mine", cwd=tmp_path, expect=2)
        assert refused.stderr == "error: nothing was sent: --push me/mine needs a typed yes, or --yes\n"

    def ended(question: str) -> str:
        raise EOFError

    monkeypatch.setattr(builtins, "input", ended)
    command("export", "out", "--push", "me/mine", cwd=tmp_path, expect=2)
    assert hub == []

    questions: list[str] = []
    monkeypatch.setattr(builtins, "input", lambda question: questions.append(question) or "yes")
    command("export", "out", "--push", "me/mine", cwd=tmp_path)
    assert "to me/mine on the hub, private?" in questions[0]
    assert hub[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert hub[1][1]["repo_id"] == "me/mine"
    assert "export.json" in hub[1][1]["ignore_patterns"]
    assert (hub[1][1]["folder_path"].resolve() / "README.md").name == "README.md"


def test_yes_needs_no_answer_and_public_is_said(tmp_path, monkeypatch, hub):
    made_run(tmp_path / "run", "llama", "clip", "lora")
    monkeypatch.setattr(builtins, "input", lambda question: pytest.fail("asked"))
    command("export", "run", "out", "--to", "peft", "--push", "me/mine", "--public", "--yes", cwd=tmp_path)
    assert hub[0] == ("me/mine", {"private": False, "exist_ok": True})
    assert json.loads((tmp_path / "out/export.json").read_text())["to"] == "peft"


def test_without_a_network_a_push_ends_in_one_line(tmp_path, monkeypatch, hub):
    """huggingface_hub lets its HTTP library's own errors through, which are no `OSError`."""

    class ConnectError(Exception):
        pass

    def unreachable(self: object, name: str, **more: object) -> None:
        raise ConnectError("[Errno -2] Name or service not known")

    made_run(tmp_path / "run", "llama", "clip", "stage1")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", unreachable)
    refused = command("export", "run", "out", "--push", "me/mine", "--yes", cwd=tmp_path, expect=2)
    assert refused.stderr.endswith("error: me/mine was not sent: [Errno -2] Name or service not known\n")
    assert hub == []


def test_a_wrong_name_is_refused_before_the_work(tmp_path, monkeypatch, hub):
    made_run(tmp_path / "run", "llama", "clip", "stage1")
    for name, words in (("mine", "takes OWNER/NAME"), ("me/mi ne", "--push me/mi ne: ")):
        refused = command("export", "run", "out", "--push", name, cwd=tmp_path, expect=2)
        assert words in refused.stderr
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    refused = command("export", "run", "out", "--push", "me/mine", cwd=tmp_path, expect=2)
    assert "needs a login at the hub" in refused.stderr
    assert (
        "--public is for --push" in command("export", "run", "out", "--public", cwd=tmp_path, expect=2).stderr
    )
    assert not (tmp_path / "out").exists()
    assert hub == []
