"""VLMEvalKit's side is written down here as it calls a model; the toolkit itself is not installed."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
from test_export import export, made_run

from basic_lite.evaluation.answer import answer_one
from basic_lite.evaluation.question import Question
from basic_lite.export import parity, vlmevalkit
from basic_lite.models import checkpoint

RUN = """
import json, sys
from vlmeval.config import supported_VLM
name = sys.argv[sys.argv.index("--model") + 1]
model, said = supported_VLM[name](), []
for line in json.load(open(sys.argv[sys.argv.index("--data") + 1])):
    line = {key: float("nan") if value is None else value for key, value in line.items()}
    dataset = line.pop("dataset")
    if model.use_custom_prompt(dataset):
        message = model.build_prompt(line, dataset=dataset)
    else:  # a text part may come first
        parts = (("text", line["question"]), ("image", line["image_path"]))
        message = [{"type": kind, "value": value} for kind, value in parts]
    said.append(model.generate(message=message, dataset=dataset))
json.dump([name, said], open("said.json", "w"))
"""


class BaseModel:
    """The parts of VLMEvalKit's class that a run uses."""

    allowed_types = ("text", "image")

    def dump_image(self, line, dataset):
        return [line["image_path"]]

    def generate(self, message, dataset=None):
        assert all(part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)


@pytest.fixture
def toolkit(monkeypatch):
    content = {
        "vlmeval": {},
        "vlmeval.vlm": {},
        "vlmeval.config": {"supported_VLM": {}},
        "vlmeval.vlm.base": {"BaseModel": BaseModel},
        "vlmeval.dataset": {"DATASET_TYPE": lambda name: "MCQ" if name == "MMBench" else "VQA"},
    }
    for name, values in content.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)


def test_it_says_what_the_run_says(tmp_path, toolkit, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    run = made_run(tmp_path / "run", "llama", "clip", "lora")
    export(run, tmp_path / "my-llava")
    parity.pictures()[0].save("a.png")
    options = {"A": "red", "B": "blue", "C": None}
    rows = [
        {"dataset": "MMBench", "question": "which", "hint": None, **options, "image_path": "a.png"},
        {"dataset": "TextVQA", "question": "what is it", "image_path": "a.png"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "run.py").write_text(RUN)
    monkeypatch.setattr(vlmevalkit.Reader.__init__, "__defaults__", (6,))
    vlmevalkit.main(["run.py", "my-llava", "--data", "rows.json"])
    assembled, _ = checkpoint.load_run(run)
    asked = (
        "which\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly.",
        "what is it",
    )
    picture = (tmp_path / "a.png").read_bytes()
    expected = [answer_one(assembled, Question(0, text, picture, 6)) for text in asked]
    assert json.loads((tmp_path / "said.json").read_text()) == ["my-llava", expected]


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="two files are needed"):
        vlmevalkit.main(["run.py"])
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "vlmeval", None)
    with pytest.raises(ValueError, match="pip install -e VLMEvalKit"):
        vlmevalkit.main([__file__, str(tmp_path)])
