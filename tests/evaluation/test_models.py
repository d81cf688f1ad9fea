"""Whatever is no run of ours: an exported folder, a LLaVA of the hub's layout, a file of answers."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import torch
from command import make_world, run, stage1
from PIL import Image
from tiled import llava_next_folder
from tiny import llm_folder, tiny_llava, tower_folder, write_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    LlavaProcessor,
    SiglipImageProcessor,
)

from basic_lite.evaluation import answer, hf_llava
from basic_lite.evaluation.question import Question
from basic_lite.models.generate import until_stop

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
    ("files", "message"),
    [
        ({}, "holds no model (no config.json): --model takes a LLaVA of transformers, such as llava-hf/"),
        ({"config.json": {"model_type": "llama"}}, "is a llama, not a LLaVA of transformers"),
        ({"config.json": {"model_type": "llava_next_video"}}, "is a llava_next_video, not a LLaVA of"),
        (
            {"config.json": {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}},
            "is a LlavaLlamaForCausalLM in its authors' layout, not a LLaVA of transformers",
        ),
        ({"manifest.json": {}}, "is a run: give it as --run; --model takes"),
        ({"adapter_config.json": {}}, "is an adapter without its model; --model takes"),
    ],
)
def test_what_is_no_llava_is_said_in_one_line(tmp_path, files, message):
    (tmp_path / "spoilt").mkdir()
    for name, content in files.items():
        (tmp_path / "spoilt" / name).write_text(json.dumps(content))
    base = ("eval", "mmbench", "--data", "bench.tsv", "--any-size", "--out", "out")
    refused = run(*base, "--model", "spoilt", cwd=tmp_path, expect=2)
    assert refused.stderr.startswith(f"error: spoilt {message}")
    assert refused.stderr.count("\n") == 1


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{{ '<image>\n' if c.type == 'image' else c.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SETTINGS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3], "do_center_crop": False}
PROCESSORS = {
    "clip": lambda: CLIPImageProcessor(**SETTINGS, size={"height": 24, "width": 24}),
    "siglip": lambda: SiglipImageProcessor(**SETTINGS, size={"height": 24, "width": 24}),
}


def transformers_folder(folder, decoder, tower):
    """Save a LLaVA with nothing but transformers' own classes; the tower "next" is a LLaVA-NeXT's."""
    if tower == "next":
        model = llava_next_folder(folder, [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]])
        (folder / "chat_template.jinja").write_text(CHATML)
        return model
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    more = {"vision_feature_select_strategy": "full"}
    if tower == "clip":
        more = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(
        PROCESSORS[tower](), tokenizer, patch_size=8, chat_template=CHATML, **more
    ).save_pretrained(folder)
    model = tiny_llava(decoder, tower)
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("decoder", "tower"), [("llama", "clip"), ("qwen2", "siglip"), ("llama", "next")])
def test_a_folder_of_transformers_answers_as_its_own_processor_and_model(tmp_path, decoder, tower):
    """But for LLaVA-NeXT's, pictures are of the right size already, so that only rounding could differ."""
    model = transformers_folder(tmp_path / "llava", decoder, tower)
    processor = AutoProcessor.from_pretrained(tmp_path / "llava")
    loaded = hf_llava.load(str(tmp_path / "llava"))
    assert loaded.stops == [2, 7, 5]  # the settings' two, and the template's <|im_end|>
    assert loaded.tokens_per_image == 9
    draw = torch.Generator().manual_seed(0)
    asked, known = [], {}
    for number, text in enumerate(("What?", "And what is this here?", "Who made it?", "No picture at all?")):
        shape = ((24, 72), (90, 31), (20, 40), (24, 24))[number] if tower == "next" else (24, 24)
        pixels = torch.randint(0, 256, (*shape, 3), generator=draw, dtype=torch.uint8).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        pictured = number < 3
        asked.append(Question(number, text, buffer.getvalue() if pictured else None, 12))
        content = [{"type": "image"}] * pictured + [{"type": "text", "text": text}]
        words = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        images = {"images": [Image.fromarray(pixels)]} if pictured else {}
        inputs = processor(text=[words], return_tensors="pt", **images)
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            ids = model.generate(
                **inputs, do_sample=False, max_new_tokens=12, eos_token_id=[2, 5, 7], pad_token_id=0
            )
        ids = until_stop(ids[0, inputs["input_ids"].shape[1] :].tolist(), [2, 5, 7])
        known[number] = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    answer.generate(loaded, asked, tmp_path / "answers.jsonl", batch_size=3)
    assert texts(tmp_path / "answers.jsonl") == known
    assert len(set(known.values())) == 4


def test_a_template_of_ours_takes_the_place_of_the_folders(trained, exported):
    loaded = hf_llava.load(str(exported), template="chatml")
    assert loaded.prompt("How many?", pictured=True) == (
        f"<|im_start|>user\n{loaded.processor.image_token}\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert loaded.tokenizer.convert_tokens_to_ids("<|im_end|>") in loaded.stops
    base = ("eval", "mmbench", "--data", "bench.tsv", "--any-size", "--out", "worded")
    run(*base, "--model", "my-llava", "--template", "chatml", "--max-steps", 1, cwd=trained)
    for more, message in (
        (("--model", "my-llava"), "holds answers made with another template"),
        (("--model", "my-llava", "--template", "chat"), "no template is named 'chat'; known: "),
        (("--run", "runs/stage1", "--template", "chatml"), "--template is for a --model"),
    ):
        assert message in run(*base, *more, cwd=trained, expect=2).stderr


@pytest.mark.slow
def test_an_exported_folder_of_another_family_answers_as_its_run(world, tmp_path):
    parts = ("--llm", llm_folder("gemma"), "--tower", tower_folder("siglip"))
    run(*stage1(world, *parts, "--max-steps", 1, "--bits", 16), cwd=tmp_path)
    run("export", "runs/stage1", "folder", "--device", "cpu", cwd=tmp_path)
    base = ("eval", "mmbench", "--data", world / "bench.tsv", "--any-size")
    run(*base, "--run", "runs/stage1", cwd=tmp_path)
    run(*base, "--model", "folder", "--batch-size", 5, cwd=tmp_path)
    known = texts(tmp_path / "runs/stage1/eval/mmbench/predictions.jsonl")
    assert texts(tmp_path / "runs/folder/eval/mmbench/predictions.jsonl") == known
    assert len(set(known.values())) > 1


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
