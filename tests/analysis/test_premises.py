"""`analyze premise` over several LLMs: a line each, and figures that can be collected."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from types import SimpleNamespace
from typing import Any

from command import run
from rich.console import Console
from tiny import llm_folder

from basic_lite.analysis.premise import overview
from basic_lite.data.world.parts import DECODER

WORDS = ["a box and a bag", "the red fox jumps", "over a lazy dog", "and sees the moon"] * 60


def test_several_llms_give_a_line_each_and_append_to_one_file(tmp_path):
    text = "\n".join(WORDS)
    (tmp_path / "words.txt").write_text(text)
    llms = [llm_folder("llama"), llm_folder("gemma")]
    words = [
        "analyze",
        "premise",
        "--bits",
        "16",
        "--text",
        "words.txt",
        "--tokens",
        "64",
        "--json",
        "p.jsonl",
    ]
    said = run(*words, "--llm", llms[0], "--llm", llms[1], cwd=tmp_path).stdout
    assert "--target" in said
    assert said.count("untrained") == 2
    run(*words, "--llm", llms[0], "--random-weights", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["model"] for line in lines] == [*map(str, llms), f"{llms[0]} with random weights"]
    assert [line["model_type"] for line in lines] == ["llama", "gemma", "llama"]
    assert all(line["verdict"]["case"] == "untrained" and line["targets"]["raw"] for line in lines)
    assert all("torch" in line["versions"] for line in lines)
    assert {line["text"] for line in lines} == {"words.txt"}
    assert {line["text_sha256"] for line in lines} == {hashlib.sha256(text.encode()).hexdigest()}
    # The same folder is known again wherever it lies, and whatever it is called there.
    shutil.copytree(llms[0], tmp_path / "copy")
    (tmp_path / "p.jsonl").write_text((tmp_path / "p.jsonl").read_text().rstrip("\n"))
    run(*words, "--llm", "copy", cwd=tmp_path)
    *before, last = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert before == lines
    assert last["fingerprint"] == lines[0]["fingerprint"] != lines[1]["fingerprint"]
    assert last | {"model": lines[0]["model"]} == lines[0]


def test_names_of_llms_stay_whole_in_a_narrow_terminal():
    target = {15: SimpleNamespace(own=1.0, cosine=-0.04)}
    measured = SimpleNamespace(loss=13.44, unigram=15.79, targets={"raw": target, "translated": target})
    verdict = SimpleNamespace(case="untrained", target="translated")
    result: Any = SimpleNamespace(measured=measured, verdict=verdict)
    name, console = "HuggingFaceTB/SmolLM2-135M-Instruct", Console(width=80, file=io.StringIO())
    console.print(overview({name: result}))
    lines = console.file.getvalue().splitlines()[2:]
    assert "".join(line.split()[0] for line in lines) == name
    assert lines[0].split()[1:] == "15 13.44 / 15.79 100.0 100.0 -0.04 untrained translated".split()


def test_what_is_wrong_is_said_before_the_first_is_read_or_after_the_last(tmp_path):
    base = ["analyze", "premise", "--bits", "16", "--llm", llm_folder("llama")]
    refused = run(*base, "--llm", "nowhere", "--json", "p.jsonl", cwd=tmp_path, expect=2).stderr
    assert "nowhere" in refused
    refused = run(*base, "--llm", DECODER, "--out", "p.json", cwd=tmp_path, expect=2).stderr
    assert "--out is the page of one LLM" in refused
    (tmp_path / "p.jsonl").write_text("[1]\n")
    refused = run(*base, "--json", "p.jsonl", cwd=tmp_path, expect=2).stderr
    assert "--json p.jsonl holds something else" in refused
    assert (tmp_path / "p.jsonl").read_text() == "[1]\n"
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in llm_folder("llama").iterdir():
        if path.suffix != ".safetensors":
            (broken / path.name).write_bytes(path.read_bytes())
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    failed = run(*base, "--llm", broken, "--text", "words.txt", "--json", "q.jsonl", cwd=tmp_path, expect=2)
    assert "1 of 2 LLMs could not be examined, first" in failed.stderr
    assert "untrained" in failed.stdout
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 1
