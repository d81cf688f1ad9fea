"""Pre-quantised copies: the same bits as a fresh quantisation, never a stale one, never half of one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from command import run, stage1
from filelock import FileLock
from forked import Forked
from tiny import DECODERS, IMAGE_TOKEN, llm_folder, tiny_batch, tower_folder

from basic_lite.data.layout import layout_of
from basic_lite.files import MANIFEST
from basic_lite.method.objective import Objective
from basic_lite.method.types import Window
from basic_lite.models import decoder, quantised, trainable
from basic_lite.models.llava import Assembled, Sources, assemble, load_decoder_alone


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(quantised.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "quantised"


@pytest.fixture
def base(tmp_path) -> Path:
    """A base of the test's own, to change."""
    return Path(shutil.copytree(llm_folder(), tmp_path / "my llm"))


def sources(llm: Path, dtype: torch.dtype = torch.float32, bits: int = 4) -> Sources:
    return Sources(str(llm), str(tower_folder()), bits=bits, dtype=dtype)


def load(llm: Path, copies: quantised.Copies = "keep", **settings: object) -> tuple[object, list[str]]:
    lines: list[str] = []
    return load_decoder_alone(sources(llm, **settings), "cpu", copies, lines.append), lines


def unread(monkeypatch) -> None:
    """Let nobody read a decoder's base from now on."""
    load = decoder.converted.load

    def towers_alone(kind: object, *given: object, **settings: object) -> object:
        assert kind is not decoder.AutoModelForCausalLM, "the base was read"
        return load(kind, *given, **settings)

    monkeypatch.setattr(decoder.converted, "load", towers_alone)


def same(a: object, b: object) -> bool:
    """Compare two values down to the bits."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, quantised_state()):
        return type(a) is type(b) and all(same(a.__dict__[k], b.__dict__[k]) for k in a.__dict__ | b.__dict__)
    return a == b


def quantised_state() -> type:
    from bitsandbytes.functional import QuantState

    return QuantState


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", DECODERS)
def test_every_tensor_and_state_is_equal_and_the_base_is_not_read(family, dtype, cache, monkeypatch):
    fresh, wrote = load(llm_folder(family), dtype=dtype)
    unread(monkeypatch)
    again, read = load(llm_folder(family), dtype=dtype)
    assert [wrote[0].split(":")[0], read[0].split(":")[0]] == [
        "pre-quantised copy written",
        "pre-quantised copy read",
    ]
    assert any(path.suffix == ".safetensors" for path in cache.rglob("*"))
    ours, theirs = again.state_dict(), fresh.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(same(ours[name], theirs[name]) for name in theirs)
    packed = 0
    for one, other in zip(fresh.modules(), again.modules(), strict=True):
        assert type(one) is type(other)
        if type(one).__name__ == "Linear4bit":
            packed += 1
            assert same(one.weight.quant_state, other.weight.quant_state)
            assert other.quant_state is other.weight.quant_state
            kept = {"quant_state", "module"}
            assert {k: v for k, v in one.weight.__dict__.items() if k not in kept} == {
                k: v for k, v in other.weight.__dict__.items() if k not in kept
            }
    assert packed == 4 * (4 if family == "phi3" else 7)
    tied = fresh.lm_head.weight is fresh.model.embed_tokens.weight
    assert tied == (again.lm_head.weight is again.model.embed_tokens.weight) == (family == "gemma")
    assert again.lm_head.weight.dtype == again.model.norm.weight.dtype == dtype
    assert again.config.to_dict() == fresh.config.to_dict()
    assert again.generation_config.to_dict() == fresh.generation_config.to_dict()
    assert again.is_loaded_in_4bit


def adapter_step(assembled: Assembled, out: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One optimizer step of stage 2: its loss and what the trained tensors are afterwards."""
    from tiny_trainer import trainer

    trainable.train_adapters(assembled, trainable.Adapters(4, 8, 0.0), seed=0)
    batch = tiny_batch()
    layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    loop = trainer(out, assembled.model, objective=Objective(0.7, 0.3))
    loop.transform = None
    optimizer = loop.create_optimizer()
    loss = loop.training_step(loop.model, batch | {"layout": layout}, Window(17, 5))
    optimizer.step()
    return loss, {name: p.detach() for name, p in assembled.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", DECODERS)
def test_a_training_step_is_the_same(family, tmp_path, monkeypatch):
    parts = sources(llm_folder(family))
    loss, trained = adapter_step(assemble(parts, copies="off"), tmp_path)
    assemble(parts, copies="keep")
    unread(monkeypatch)
    again, moved = adapter_step(assemble(parts), tmp_path)
    assert torch.equal(loss, again)
    assert len(trained) > 8
    assert trained.keys() == moved.keys()
    assert all(torch.equal(trained[name], moved[name]) for name in trained)


def test_a_changed_base_is_never_served_stale(base, cache):
    load(base)
    path = next(base.glob("*.safetensors"))
    state, content = path.stat(), bytearray(path.read_bytes())
    content[-4:] = b"\0\0\0\0"  # the same length and date
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    _, lines = load(base, "read")
    assert lines == []
    _, lines = load(base)
    assert lines[0].startswith("pre-quantised copy written")
    assert len(quantised.copies()) == 1  # what no base can ask for any more is gone
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert load(base, "read")[1] == []


def test_every_other_thing_that_the_bits_depend_on_is_another_copy(base, monkeypatch):
    load(base)
    assert load(base, "read", dtype=torch.bfloat16)[1] == []
    assert load(base, "read", bits=16)[1] == []
    config = load(base, "off")[0].config
    del config.quantization_config
    here = quantised.copy_of(str(base), config, torch.float32, "cpu")
    assert here.whole
    assert not quantised.copy_of(str(base), config, torch.float32, "cuda").whole
    monkeypatch.setattr(quantised, "version", lambda name: "0.1")
    assert not quantised.copy_of(str(base), config, torch.float32, "cpu").whole


def test_a_hub_id_is_known_by_its_commit_and_a_packed_base_not_at_all():
    config = DECODERS["llama"]()
    assert quantised.copy_of("someone/llm", config, torch.float32, "cpu") is None
    config._commit_hash = "abc"
    one = quantised.copy_of("someone/llm", config, torch.float32, "cpu")
    config._commit_hash = "abd"
    assert one.path != quantised.copy_of("someone/llm", config, torch.float32, "cpu").path
    config.quantization_config = {"quant_method": "bitsandbytes"}
    assert quantised.copy_of("someone/llm", config, torch.float32, "cpu") is None


@pytest.mark.parametrize("damage", ["cut", "garbage", "no stamp"])
def test_a_damaged_copy_is_made_anew(base, damage, monkeypatch):
    fresh, _ = load(base)
    folder = quantised.copies()[0]
    path = next(folder.glob("*.safetensors"))
    content = path.read_bytes()
    if damage == "no stamp":
        (folder / quantised.STAMP).unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else b"\xff" * len(content))
    again, lines = load(base)
    assert [line.split(":")[0] for line in lines][-1] == "pre-quantised copy written"
    assert ("cannot be read and is quantised anew" in lines[0]) == (damage == "garbage")
    unread(monkeypatch)
    assert load(base)[1][0].startswith("pre-quantised copy read")
    assert all(same(fresh.state_dict()[name], tensor) for name, tensor in again.state_dict().items())


def test_without_room_or_a_place_there_is_one_line_and_no_copy(base, cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(quantised.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2, 1, 10**9))
        _, lines = load(base)
    assert lines[0].startswith(
        "no pre-quantised copy written: it needs 0.0 GB and 1 GB to spare, 1.0 GB are free"
    )
    assert quantised.copies() == []
    monkeypatch.setenv(quantised.VARIABLE, str(base / "config.json"))
    _, lines = load(base)
    assert len(lines) == 1
    assert lines[0].startswith("no pre-quantised copy written in")


def test_one_process_writes_and_others_train_on(base, cache):
    load(base)
    copy = quantised.copies()[0]
    with FileLock(copy.with_name(f".{copy.name}.lock")):
        shutil.rmtree(copy)
        _, lines = load(base)
        assert "another process is writing" in lines[0]
        assert quantised.copies() == []
    assert load(base)[1][0].startswith("pre-quantised copy written")


def test_a_kill_inside_a_write_leaves_no_copy_and_no_litter(base, cache):
    code = (
        "import os, torch\n"
        "from basic_lite.models import quantised\n"
        "from basic_lite.models.llava import Sources, load_decoder_alone\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), 9)\n"
        f"load_decoder_alone(Sources({str(base)!r}, 'x', dtype=torch.float32), 'cpu', 'keep', print)"
    )
    died = Forked([sys.executable, "-c", code], base.parent)
    assert died.wait() == -signal.SIGKILL, died.communicate()[0][-500:]
    drafts = list(cache.glob(".*.part"))
    assert len(drafts) == 1
    assert list(drafts[0].glob("*.safetensors"))
    assert quantised.copies() == []
    assert load(base, "read")[1] == []
    drafts[0].rename(cache / ".another-base.part")  # of a base that nobody trains on any more
    assert load(base)[1][0].startswith("pre-quantised copy written")
    assert list(cache.glob(".*.part")) == []
    assert len(quantised.copies()) == 1


def test_a_failed_write_tidies_up_and_says_so(base, cache, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    model, lines = load(base)
    assert "No space left on device" in lines[0]
    assert [path for path in cache.iterdir() if not path.name.endswith(".lock")] == []
    assert model.generation_config.to_dict() == load(base, "off")[0].generation_config.to_dict()


def test_a_generation_config_that_transformers_would_not_write(base, monkeypatch):
    strange = {"temperature": 0.9, "top_p": 0.6, "do_sample": False, "eos_token_id": [2, 5]}  # as Vicuna's
    (base / "generation_config.json").write_text(json.dumps(strange))
    fresh, lines = load(base)
    assert lines[0].startswith("pre-quantised copy written")
    unread(monkeypatch)
    again, _ = load(base)
    assert again.generation_config.to_dict() == fresh.generation_config.to_dict()
    assert again.generation_config.eos_token_id == [2, 5]


@pytest.mark.parametrize("value", ["off", "0", ""])
def test_switched_off(base, value, monkeypatch):
    monkeypatch.setenv(quantised.VARIABLE, value)
    assert quantised.root() is None
    assert quantised.copies() == []
    assert load(base)[1] == []


def test_where_copies_are(monkeypatch):
    monkeypatch.delenv(quantised.VARIABLE)
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert quantised.root() == Path("/somewhere/basic-lite")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert quantised.root() == Path.home() / ".cache" / "basic-lite"
    monkeypatch.setenv("HF_HOME", "/large")
    assert quantised.root() == Path("/large/basic-lite")


def test_a_run_says_so_and_knows_its_base_not_the_copy(world, tmp_path, cache):
    options = ["--bits", 4, "--max-steps", 1]
    manifests = []
    for words, more in (
        ("pre-quantised copy written: ", []),
        ("pre-quantised copy read: ", ["--overwrite"]),
        ("", ["--overwrite", "--no-quantised-copy"]),
    ):
        done = run(*stage1(world, *options, *more), cwd=tmp_path)
        if words:
            assert words in done.stdout
        else:
            assert "pre-quantised" not in done.stdout
        manifests.append(json.loads((tmp_path / "runs/stage1" / MANIFEST).read_text()))
    assert str(cache) not in json.dumps(manifests)
    first = manifests[0]
    assert [m["llm"] for m in manifests] == [first["llm"]] * 3
    assert [m["sources"] for m in manifests] == [first["sources"]] * 3
    assert "fingerprint" in first["llm"]
