"""What is fetched from a hub, what its refusals are in one line, and what the doctor says before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from types import SimpleNamespace

import pytest
from command import COMMAND, run
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from basic_lite.bench import doctor
from basic_lite.models import quantised, repository

HUB_ID = "someone/model"


def refused(kind: type[Exception], status: int = 401) -> Exception:
    """Make an error as the hub's client raises it."""
    answer = SimpleNamespace(headers={}, request=None, status_code=status)
    return kind(f"{status} Client Error.\n\nsecond line", response=answer)


class FakeHub:
    """A hub of one repository, which counts what is asked of it."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self.folder, self.files, self.fetched = folder, files, []
        folder.mkdir()

    def hf_hub_download(self, source: str, name: str, revision: str | None = None) -> str:
        if name not in self.files:
            raise refused(RemoteEntryNotFoundError, 404)
        self.fetched.append(name)
        (self.folder / name).write_text(self.files[name])
        return str(self.folder / name)


def index(*names: str) -> str:
    return json.dumps({"weight_map": {f"tensor {number}": name for number, name in enumerate(names)}})


SAFE = {f"model.safetensors{repository.INDEX}": index("model-1.safetensors", "model-2.safetensors")}
SAFE |= {"model-1.safetensors": "", "model-2.safetensors": ""}
PICKLES = {f"pytorch_model.bin{repository.INDEX}": index("pytorch_model-1.bin"), "pytorch_model-1.bin": ""}
OTHERS = dict.fromkeys(
    (
        "consolidated.safetensors",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.gguf",
        "modeling.py",
        "original/a",
    ),
    "",
)
CONFIG = {"config.json": "{}", "generation_config.json": "{}"}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (SAFE | PICKLES, set(SAFE)),
        (PICKLES, set(PICKLES)),
        ({"model.safetensors": ""} | PICKLES, {"model.safetensors"}),
        ({"pytorch_model.bin": ""}, {"pytorch_model.bin"}),
    ],
    ids=["both", "pickles", "one file", "one pickle"],
)
def test_one_form_is_fetched_and_nothing_else(tmp_path, monkeypatch, files, wanted):
    hub = FakeHub(tmp_path / "snapshot", files | OTHERS | CONFIG)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.hf_hub_download)
    assert repository.fetch(HUB_ID) == hub.folder
    assert set(hub.fetched) == wanted | set(CONFIG)


@pytest.mark.parametrize("files", [OTHERS, {}])
def test_a_repository_without_weights_is_refused(tmp_path, monkeypatch, files):
    hub = FakeHub(tmp_path / "snapshot", files)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.hf_hub_download)
    with pytest.raises(ValueError, match=r"it has neither model\.safetensors nor pytorch_model\.bin") as said:
        repository.fetch(HUB_ID)
    assert "\n" not in str(said.value)
    assert hub.fetched == []


def test_a_shard_that_does_not_come_ends_the_fetch(tmp_path, monkeypatch):
    """The pickles are no way out: half of a download would be of another form."""
    files = SAFE | PICKLES | CONFIG
    del files["model-2.safetensors"]
    hub = FakeHub(tmp_path / "snapshot", files)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.hf_hub_download)
    with pytest.raises(ValueError, match="no weights can be loaded from 'someone/model': 404"):
        repository.fetch(HUB_ID)
    assert not any("pytorch_model" in name for name in hub.fetched)


REFUSALS = [
    (refused(GatedRepoError), "https://huggingface.co/google/gemma-2b-it, then log in with `hf auth login`"),
    (
        refused(RepositoryNotFoundError),
        "look at https://huggingface.co/google/gemma-2b-it; for a private one log",
    ),
    (LocalEntryNotFoundError("no connection\nmore"), "while a hub can be reached"),
    (OfflineModeIsEnabled("offline"), "while a hub can be reached"),
]


@pytest.mark.parametrize(("error", "words"), REFUSALS, ids=["gated", "absent", "no network", "offline"])
def test_a_start_ends_in_one_line_with_the_page_and_the_command(tmp_path, monkeypatch, error, words):
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(f"transformers.utils.hub.{name}", refuse)
    (tmp_path / "rows.json").write_text("[]")
    done = run("stage1", "--model", "gemma-2b", "--data", "rows.json", cwd=tmp_path, expect=2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_hub_that_does_not_answer_is_asked_once_and_the_missing_model_is_named(tmp_path):
    calls = []

    class Mute(BaseRequestHandler):
        def handle(self) -> None:
            calls.append(self.request.recv(100))  # and closes: the client would ask five times for each file

    with ThreadingTCPServer(("127.0.0.1", 0), Mute) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        silent = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "NO_PROXY": "*"}
        silent.pop("HF_HUB_OFFLINE", None)
        command = [*COMMAND, "stage1", "--model", "tiny", "--llm", "nobody/nothing", "--dry-run"]
        done = subprocess.run(
            command, cwd=tmp_path, env=silent, capture_output=True, text=True, timeout=300, check=False
        )
        server.shutdown()
    assert done.returncode == 2
    assert "'nobody/nothing'" in done.stderr
    assert f"{silent['HF_ENDPOINT']} does not answer" in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(calls) == 1


@pytest.mark.parametrize(("error", "words"), REFUSALS[:2], ids=["gated", "absent"])
def test_weights_and_tokenizers_that_are_refused_say_the_same(monkeypatch, error, words):
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", refuse)
    monkeypatch.setattr("transformers.utils.hub.snapshot_download", refuse)
    for read in (repository.fetch, repository.read_tokenizer):
        with pytest.raises(ValueError, match=r"hf auth login") as said:
            read("google/gemma-2b-it")
        assert words in str(said.value)


def info(sizes: dict[str, int], gated: object = False) -> SimpleNamespace:
    files = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
    return SimpleNamespace(siblings=files, gated=gated)


LLM = {"pytorch_model-00001-of-00002.bin": 9_000_000_000, "pytorch_model-00002-of-00002.bin": 4_000_000_000}
LLM |= {"pytorch_model.bin.index.json": 20_000_000, "tokenizer.model": 500_000_000, "README.md": 10**12}
EYES = {
    "model.safetensors": 2_000_000_000,
    "pytorch_model.bin": 10**12,
    "pytorch_model.bin.index.json": 10**12,
}
EYES |= {"tf_model.h5": 10**12, "original/consolidated.00.pth": 10**12, "preprocessor_config.json": 0}


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Ask the doctor about vicuna-7b on a machine with a hub, and return its last findings by name."""
    monkeypatch.setenv(quantised.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def ask(gated: object = False, error: Exception | None = None, free: int = 10**12, here: tuple = ()):
        def model_info(self: object, source: str, files_metadata: bool, timeout: float) -> SimpleNamespace:
            assert files_metadata
            assert timeout == doctor.TIMEOUT_SECONDS
            return info(LLM, gated) if source.startswith("lmsys") else info(EYES)

        def auth_check(source: str) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
        monkeypatch.setattr("huggingface_hub.auth_check", auth_check)
        monkeypatch.setattr(
            "huggingface_hub.try_to_load_from_cache", lambda source, name: name if name in here else None
        )
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**13, 0, free))
        return {name: check() for name, check in doctor._checks_of("vicuna-7b")}

    return ask


def test_the_doctor_says_what_is_downloaded_and_whether_it_fits(told, monkeypatch):
    found = told()
    assert found["llm"].text == (
        "lmsys/vicuna-7b-v1.5: 13.5 GB (pickled, converted to safetensors once), 13.5 GB of it to download; "
        "no token needed"
    )
    assert found["tower"].text.endswith(": 2.0 GB (safetensors), 2.0 GB of it to download; no token needed")
    # 15.5 to download, 13.5 converted, 6.7e9 weights in 4 bits; one disk.
    assert found["room"].text.startswith("downloads and copies take 33.1 GB of 1000 GB free at ")
    assert {finding.state for name, finding in found.items() if name != "card"} == {"good"}
    assert found["card"].state == "note"
    card = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: card)
    assert doctor.card("vicuna-7b").text.startswith("this card (24.0 GiB): stage1 micro-batch 8 (")
    card.total_memory = 2 * 2**30
    assert doctor.card("vicuna-7b").state == "bad"


def test_what_is_in_the_cache_is_not_downloaded_again(told):
    found = told(here=("pytorch_model-00001-of-00002.bin", "model.safetensors"))
    assert "13.5 GB (pickled, converted to safetensors once), 4.5 GB of it to download" in found["llm"].text
    assert "2.0 GB (safetensors), 0.0 GB of it to download" in found["tower"].text


def test_a_full_disk_and_a_closed_gate_are_said(told):
    found = told(gated="manual", error=refused(GatedRepoError, 403), free=33_200_000_000)
    assert found["llm"].state == "bad"
    assert "it is gated: accept its terms on https://huggingface.co/lmsys/vicuna-7b-v1.5" in found["llm"].text
    assert "hf auth login" in found["llm"].remedy
    assert found["room"].state == "bad"
    assert "set HF_HOME and BASIC_LITE_CACHE to a larger disk" in found["room"].remedy
    assert told(gated="auto")["llm"].text.endswith("gated, and your login may read it")


@pytest.mark.parametrize("model", ["vicuna-7b", "vicuna-13b", "gemma-2b", "phi3-mini", "mistral-7b", "tiny"])
def test_without_a_hub_the_sizes_are_the_known_ones(tmp_path, monkeypatch, model):
    monkeypatch.setenv(quantised.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**13, 0, 10**12))
    found = {name: check() for name, check in doctor._checks_of(model)}
    known = {"vicuna-7b": 13.5, "vicuna-13b": 26.0, "gemma-2b": 5.0, "phi3-mini": 7.6, "mistral-7b": 14.5}
    if model == "tiny":
        assert found["llm"].text == "tiny-decoder ships with the package"
    else:
        assert f": about {known[model]} GB; whether" in found["llm"].text
        assert ": about 1.7 GB; whether" in found["tower"].text
        assert found["llm"].state == "note"
    assert found["room"].state == "good"
    assert "stage1 micro-batch" in found["card"].text


def test_the_command_takes_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda out, model: [doctor.Finding("llm", "good", str(model))])
    assert "vicuna-7b" in run("doctor", "--model", "vicuna-7b", cwd=tmp_path).stdout


def test_an_unknown_name_is_a_line(tmp_path):
    assert (
        "no model is named 'nope'; known: vicuna-7b"
        in run("doctor", "--model", "nope", cwd=tmp_path, expect=2).stderr
    )
