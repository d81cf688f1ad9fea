"""Every model that is known by name loads as its repository publishes it, through both stages' ends."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from command import run
from models.published_models import (
    COMMIT,
    JUNK,
    PUBLISHED,
    publish,
    sentencepiece_model,
    write_llama_tokenizer,
    write_weights,
)
from safetensors import safe_open
from tiny import llm_folder, tower_folder

from basic_lite.files import MANIFEST
from basic_lite.models import converted, quantised, repository, zoo
from basic_lite.models.checkpoint import identity
from basic_lite.models.llava import Sources, assemble, load_decoder_alone

DINO, CLIP = "facebook/dinov2-large", "clip-l-336"
VICUNA, EYES = zoo.LLMS["vicuna-7b"].hub_id, zoo.TOWERS[CLIP].hub_id


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A hub's cache with all repositories in it, which nobody may write to: not so much as a lock."""
    cache = tmp_path_factory.mktemp("hub")
    for hub_id in PUBLISHED:
        publish(hub_id, cache)
    return cache


@pytest.fixture(autouse=True)
def hub(published, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(published))
    monkeypatch.setenv(quantised.VARIABLE, str(tmp_path / "cache"))
    return published


def files_below(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


NAMED = [(name, "clip-l-336") for name in zoo.LLMS if name != zoo.TINY]
NAMED += [("vicuna-7b", tower) for tower in zoo.TOWERS if tower not in (CLIP, zoo.TINY)]
NAMED += [("vicuna-7b", DINO)]
SAME_FILES = {
    "vicuna-13b",
    "qwen2.5-1.5b",
    "qwen3-1.7b",
    "qwen3-4b",
    "smollm2-360m",
    "smollm2-1.7b",
    "gemma3-1b",
}
SAME_FILES |= {"siglip-base-224", "siglip2-base-224", "siglip2-so400m-384"}
"""Published in the same files as a name that is tried anyway, but for sizes."""


@pytest.mark.parametrize(
    ("llm", "tower"),
    [
        pytest.param(llm, tower, marks=[pytest.mark.full] * bool({llm, tower} & SAME_FILES))
        for llm, tower in NAMED
    ],
)
def test_a_named_model_trains_from_its_repository_and_is_exported(llm, tower, world, tmp_path, hub):
    """Stage 1, the same again from the pre-quantised copy, and an export that says what the run says."""
    before = files_below(hub)
    data = ["--data", world / "captions.json", "--global-batch", 4, "--micro-batch", 2, "--workers", 0]
    command = ["stage1", "--model", llm, "--tower", tower, "--precision", "fp32", "--max-steps", 1, *data]
    first = run(*command, cwd=tmp_path).stdout
    assert "pre-quantised copy written" in first
    pickled = ["pytorch_model-00001-of-00002.bin"] * ("vicuna" in llm) + ["pytorch_model.bin"] * (
        tower == CLIP
    )
    for name in pickled:
        assert f"is published as {name}, which is converted to safetensors once" in " ".join(first.split())
    assert len(list((tmp_path / "cache").glob("converted/*/copy.json"))) == len(pickled)
    again = run(*command, "--overwrite", cwd=tmp_path).stdout
    assert "pre-quantised copy read" in again
    assert "converted" not in again
    manifest = json.loads((tmp_path / "runs/stage1" / MANIFEST).read_text())
    assert manifest["finished"]
    assert manifest["llm"]["revision"] == COMMIT
    assert str(tmp_path) not in json.dumps(manifest["sources"])
    run("export", "runs/stage1", "out", "--base", "dequantised", cwd=tmp_path)
    parity = json.loads((tmp_path / "out/export.json").read_text())["parity"]
    assert parity["gap"] < 1e-4
    assert parity["equal_texts"] == parity["texts"]
    assert files_below(hub) == before  # nothing is written where the hub's client keeps its files


def test_every_name_has_its_layout():
    named = {row.hub_id for name, row in (zoo.LLMS | zoo.TOWERS).items() if name != zoo.TINY}
    assert named == set(PUBLISHED) - {DINO}


TEXTS = (
    "the cat sat",
    "A chat: 12 red, blue.",
    "你好 the",
    "\n the\n\ncat ",
    "don't\tstop",
    "x" * 5,
    "naïve 🙂",
    "",
)


@pytest.mark.parametrize("legacy", [None, True, False])
def test_a_sentencepiece_model_alone_gives_its_own_ids(tmp_path, legacy):
    write_llama_tokenizer(tmp_path, legacy)
    shutil.copy(publish(VICUNA, tmp_path / "hub") / "config.json", tmp_path)
    tokenizer = repository.read_tokenizer(str(tmp_path))
    piece = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False).input_ids == piece.encode(text), text
        assert tokenizer(text).input_ids == [1, *piece.encode(text)]
    # Behind a special token legacy code starts a text of its own; the other goes on in the same string.
    for text in ("cat", " cat", "\ncat"):
        ids = tokenizer(f"the</s>{text}", add_special_tokens=False).input_ids
        own = piece.encode(text) if legacy else piece.encode(f"x{text}")[len(piece.encode("x")) :]
        assert ids == [*piece.encode("the"), 2, *own], text
    assert (tokenizer.pad_token, tokenizer.unk_token, len(tokenizer)) == ("<unk>", "<unk>", 340)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_converted_weights_are_the_pickled_ones(tmp_path, dtype, monkeypatch):
    """Each tensor in its own dtype, tied ones and views included, in shards of bounded size."""
    table = torch.randn(40, 8).to(dtype)
    state = {
        "a.weight": table,
        "b.weight": table,
        "c": torch.randn(6, 5)[:, 1:3].to(dtype),
        "n": torch.arange(3),
    }
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    monkeypatch.setattr(converted, "SHARD_BYTES", 20)
    lines: list[str] = []
    made = converted.safetensors_folder(str(folder), say=lines.append)
    files = repository.weight_files(made)
    assert len(files) > 1
    read = {}
    for path in files:
        with safe_open(path, "pt") as file:
            read |= {name: file.get_tensor(name) for name in file.keys()}
    assert read.keys() == state.keys()
    assert all(
        torch.equal(read[name], state[name]) and read[name].dtype == state[name].dtype for name in state
    )
    assert len(lines) == 1
    assert converted.safetensors_folder(str(folder), say=lines.append) == made
    assert len(lines) == 1  # once
    (folder / "config.json").write_text('{"a": 1}')
    assert (converted.safetensors_folder(str(folder)) / "config.json").read_text() == '{"a": 1}'
    state["n"] += 1
    torch.save(state, folder / "pytorch_model.bin")
    other = converted.safetensors_folder(str(folder), say=lines.append)
    assert len(lines) == 2
    assert other != made
    assert not made.exists()  # nothing can ask for it any more


def test_a_pickle_of_old_torch_is_read(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (file,) = repository.weight_files(converted.safetensors_folder(str(tmp_path)))
    with safe_open(file, "pt") as opened:
        assert torch.equal(opened.get_tensor("a"), torch.ones(3))


class _Runs:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "kind", ["code", "code in a zip", "nested", "number", "list", "cut", "junk", "stretched"]
)
def test_a_pickle_of_anything_else_is_refused_in_one_line(tmp_path, kind):
    path, touched = tmp_path / "pytorch_model.bin", tmp_path / "touched"
    good = {"a": torch.ones(300)}
    if kind == "code":
        path.write_bytes(pickle.dumps({"a": _Runs(touched)}, protocol=2))
    elif kind == "junk":
        path.write_bytes(JUNK)
    else:
        torch.save(
            {
                "code in a zip": good | {"b": _Runs(touched)},
                "nested": {"state_dict": good, "epoch": 3},
                "number": good | {"step": 3},
                "list": [torch.ones(3)],
                "cut": good,
                "stretched": {"a": torch.ones(1).expand(10**12)},
            }[kind],
            path,
        )
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin (holds|is damaged)") as refused:
        converted.safetensors_folder(str(tmp_path))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
    assert not touched.exists()
    assert not list((tmp_path / "cache" / "converted").glob("[!.]*"))


def test_only_the_restricted_unpickler_is_asked(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    seen, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: seen.append(kwargs) or load(*args, **kwargs))
    converted.safetensors_folder(str(tmp_path))
    assert [(call["weights_only"], call["mmap"]) for call in seen] == [(True, True)]


@pytest.mark.parametrize("listed", ["../other.bin", "/etc/passwd", "a/b.bin", ""])
def test_an_index_names_files_beside_it_alone(tmp_path, listed):
    index = {"weight_map": {"a": listed}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="which is no file beside it"):
        converted.safetensors_folder(str(tmp_path))


def test_without_a_cache_or_room_it_is_said(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(converted.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2, 1, 10**9))
    with pytest.raises(ValueError, match=r"needs 0\.0 GB and 1 GB to spare, 1\.0 GB are free in"):
        converted.safetensors_folder(str(tmp_path))
    monkeypatch.setenv(quantised.VARIABLE, "off")
    with pytest.raises(ValueError, match=r"a cache that \$BASIC_LITE_CACHE switches off: set it to a folder"):
        converted.safetensors_folder(str(tmp_path))


def test_another_pickle_is_another_model(tmp_path):
    """A run's manifest tells pickled bases apart, and the pre-quantised copy follows them."""
    folder = Path(shutil.copytree(publish(VICUNA, tmp_path / "hub"), tmp_path / "own"))
    sources = Sources(str(folder), str(tower_folder()), dtype=torch.float32)
    load_decoder_alone(sources, "cpu", "keep")
    lines: list[str] = []
    load_decoder_alone(sources, "cpu", "read", lines.append)
    assert lines[0].startswith("pre-quantised copy read")
    known = identity(str(folder), None)
    path = folder / "pytorch_model-00001-of-00002.bin"
    path.write_bytes(JUNK)
    assert identity(str(folder), None) != known
    lines.clear()
    with pytest.raises(ValueError, match="damaged"):
        load_decoder_alone(sources, "cpu", "read", lines.append)
    assert not any("pre-quantised copy read" in line for line in lines)


def test_a_tower_that_lacks_a_tensor_is_refused(tmp_path):
    folder = Path(shutil.copytree(publish(EYES, tmp_path / "hub"), tmp_path / "own"))
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del state["vision_model.encoder.layers.1.mlp.fc1.weight"]
    write_weights(folder, state, "pytorch_model.bin", 1)
    with pytest.raises(ValueError, match=r"lack 1 tensors, first: .*layers\.1\.mlp\.fc1\.weight"):
        assemble(Sources(str(llm_folder()), str(folder), bits=16, dtype=torch.float32))
