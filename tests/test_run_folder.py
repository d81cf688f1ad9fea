"""What a manifest says of its files: hashes that are compared once, and again when a file has changed."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from basic_lite import files


@pytest.fixture
def folder(tmp_path):
    """A run with two files of weights, and a checkpoint that holds one of them."""
    out = tmp_path / "run"
    manifest = {"format": files.FORMAT, "method": {"embedding_space": files.EMBEDDING_SPACE}}
    for place in (out, out / "checkpoint-4"):
        place.mkdir()
        (place / "a.safetensors").write_bytes(b"first")
        (place / "optimizer.pt").write_bytes(b"moments")
        sums = {"a.safetensors": hashlib.sha256(b"first").hexdigest()}
        state = {"optimizer.pt": hashlib.sha256(b"moments").hexdigest()}
        files.write_json(place / "manifest.json", manifest | {"weights": sums, "state": state})
    (out / "checkpoint-4/trainer_state.json").touch()
    return out


def test_a_log_is_read_wherever_a_kill_cut_it(tmp_path):
    """Cut at each byte, and gone on after; texts hold brackets and what Python takes for ends of lines."""
    rows = [{"step": 1, "answers": [{"text": "a} \u2028 b"}]}, {"step": 2, "text": "\x85 ä }"}]
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
    path = tmp_path / "log.jsonl"
    assert files.read_log(path) == []
    for end in range(len(lines[1])):
        path.write_bytes(lines[0] + lines[1][:end])
        whole = 1 + (end == len(lines[1]) - 1)  # only its newline is missing
        assert files.read_log(path) == rows[:whole]
        path.write_bytes(lines[0] + lines[1][:end] + b"\n" + lines[0])
        assert files.read_log(path) == [*rows[:whole], rows[0]]


def test_hashes_are_of_the_weights_and_of_no_draft(folder):
    (folder / ".b.safetensors.part").touch()
    (folder / ".c.safetensors").touch()
    assert files.hashes(folder) == {"a.safetensors": hashlib.sha256(b"first").hexdigest()}
    assert list(files.hashes(folder, files.STATE)) == ["optimizer.pt"]


def test_a_file_is_read_once_until_it_changes(folder, monkeypatch):
    read = []
    whole = files.file_hash
    monkeypatch.setattr(files, "file_hash", lambda path: read.append(path.name) or whole(path))
    for _ in range(2):
        files.check_files(folder, "weights")
        files._hash_in.cache_clear()  # as another process
    assert read == ["a.safetensors"]
    files.check_files(folder, "weights", "state")
    assert read == ["a.safetensors", "optimizer.pt"]
    path = folder / "a.safetensors"
    times = path.stat()
    path.write_bytes(b"furst")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as long and as old as before
    with pytest.raises(ValueError, match=r"a\.safetensors is not what the run wrote") as refused:
        files.check_files(folder, "weights")
    assert str(refused.value).endswith(
        f"copy {folder / 'checkpoint-4/a.safetensors'} over it, which is whole"
    )
    path.write_bytes((folder / "checkpoint-4/a.safetensors").read_bytes())
    files.check_files(folder, "weights")


def test_what_to_do_depends_on_what_is_left(folder):
    (folder / "checkpoint-4/a.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is missing: remove .*checkpoint-4, and --resume goes on"):
        files.check_files(folder / "checkpoint-4", "weights")
    (folder / "a.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="bring it back from a copy, or train the stage again"):
        files.check_files(folder, "weights")


def test_a_manifest_without_hashes_is_read_unchecked(folder):
    manifest = files.read_manifest(folder)
    files.write_json(folder / "manifest.json", {k: manifest[k] for k in ("format", "method")})
    (folder / "a.safetensors").write_bytes(b"anything")
    files.check_files(folder, "weights", "state")
    assert not (folder / files.CHECKED).exists()


def test_a_folder_that_cannot_be_written_is_checked_all_the_same(folder, monkeypatch):
    def refuse(path, content):
        raise PermissionError(path)

    monkeypatch.setattr(files, "write_json", refuse)
    files.check_files(folder, "weights")
    assert not (folder / files.CHECKED).exists()
