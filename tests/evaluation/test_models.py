"""Whatever is no run of ours: an exported folder, a LLaVA of the hub's layout, a file of answers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from command import make_world, run
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor

from basic_lite.evaluation import hf_llava

pytestmark = pytest.mark.usefixtures("short_answers")
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: {} ASSISTANT:"
)


def texts(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["question_id"]: row["text"] for row in rows}


@pytest.fixture(scope="module")
def exported(trained):
    """The run's folder for transformers, with a benchmark beside it."""
    make_world(trained)
    run("export", "runs/stage1", "my-llava", "--device", "cpu", cwd=trained)
    return trained / "my-llava"


def test_an_exported_folder_answers_as_the_run_it_came_from(trained, exported):
    base = ("eval", "mmbench", "--data", "bench.tsv", "--any-size", "--batch-size", 4)
    run(*base, "--run", "runs/stage1", cwd=trained)
    run(*base, "--model", "my-llava", cwd=trained)
    known = texts(trained / "runs/stage1/eval/mmbench/predictions.jsonl")
    assert texts(trained / "runs/my-llava/eval/mmbench/predictions.jsonl") == known
    assert len(known) == 12
    assert len(set(known.values())) > 1
    there, here = (
        json.loads((trained / "runs" / name / "eval/mmbench/results.json").read_text())
        for name in ("stage1", "my-llava")
    )
    assert here["value"] == there["value"]
    assert here["run"]["folder"] == "my-llava"
    assert here["manifest_hash"] != there["manifest_hash"]
    shown = run("compare", "runs/stage1", "runs/my-llava", cwd=trained)
    assert "12 questions" in shown.stdout or "3 questions" in shown.stdout


def test_other_weights_do_not_go_on_with_the_answers_of_the_first(trained, exported):
    base = ("eval", "mmbench", "--data", "bench.tsv", "--any-size", "--out", "mine")
    run(*base, "--model", "my-llava", "--max-steps", 1, "--batch-size", 2, cwd=trained)
    other = shutil.copytree(exported, trained / "other")
    weights = next(other.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # the last mantissa of one weight
    weights.write_bytes(content)
    refused = run(*base, "--model", "other", cwd=trained, expect=2)
    assert "holds answers made with another run" in refused.stderr


def test_pictures_go_through_llavas_square_and_the_ids_are_the_processors(exported):
    """The same as what a stranger's `processor(text, images)` makes."""
    loaded = hf_llava.load(str(exported))
    picture = Image.new("RGB", (40, 17), (200, 30, 60))
    processor = AutoProcessor.from_pretrained(exported)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    written = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    known = processor(text=[written], images=[picture], return_tensors="pt")
    assert loaded.prompt_ids("What is it?", pictured=True) == known["input_ids"][0].tolist()
    transform = loaded.transform("pad")
    pixels = transform.normalise(transform(picture)[None])
    torch.testing.assert_close(pixels, known["pixel_values"], rtol=0, atol=0.05)  # rounding of one grey level


def test_a_folder_without_a_chat_template_is_asked_in_llavas_words(exported, tmp_path):
    bare = shutil.copytree(exported, tmp_path / "bare")
    for name in ("chat_template.json", "chat_template.jinja"):
        (bare / name).unlink()
    config = json.loads((bare / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = hf_llava.load(str(bare))
    image = loaded.processor.image_token
    assert loaded.prompt("How many?", pictured=False) == VICUNA.format("How many?")
    assert loaded.prompt("How many?", pictured=True) == VICUNA.format(f"{image}\nHow many?")


def test_a_beginning_that_a_template_writes_itself_is_not_written_twice(exported):
    loaded = hf_llava.load(str(exported))
    tokenizer = loaded.tokenizer
    start = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{start[0]} $A", None, [start])
    plain = loaded.prompt_ids("x", pictured=False)
    loaded.processor.chat_template = start[0] + loaded.processor.chat_template
    assert loaded.prompt_ids("x", pictured=False) == plain
    assert plain.count(start[1]) == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no model (no config.json)"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
            "is a llama, not a LLaVA of transformers",
        ),
    ],
)
def test_what_is_no_llava_is_said_in_one_line(trained, exported, tmp_path, spoil, message):
    folder = shutil.copytree(exported, tmp_path / "spoilt")
    spoil(folder)
    base = ("eval", "mmbench", "--data", "bench.tsv", "--any-size", "--out", tmp_path / "out")
    refused = run(*base, "--model", folder, cwd=trained, expect=2)
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_file_of_answers_needs_neither_run_nor_model(trained, fixtures, tmp_path):
    data = fixtures / "coco_pope_random.json"
    labels = [json.loads(line) for line in data.read_text().splitlines()]
    lines = [
        {"question_id": f"random/{row['question_id']}", "text": row["label"].capitalize(), "model_id": "x"}
        for row in labels
    ]
    given = tmp_path / "theirs.jsonl"
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    base = ("eval", "pope", "--data", data, "--any-size", "--predictions", given)
    run(*base, cwd=tmp_path)
    content = json.loads((tmp_path / "theirs-scored/eval/pope/results.json").read_text())
    assert content["value"] == 100
    assert content["manifest_hash"] is None
    assert content["run"]["folder"] == str(given)
    for more, message in (
        (("--model", "x"), "give one of them"),
        (("--step", "generate"), "without --step generate"),
    ):
        assert message in run(*base, *more, cwd=tmp_path, expect=2).stderr
    given.write_text(json.dumps({"question_id": "nobody", "text": "yes"}) + "\n")
    assert "questions that were not asked" in run(*base, cwd=tmp_path, expect=2).stderr
