"""What an exported folder says around the weights: prompts, ids, stops, for readers old and new."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jinja
import pytest
from made_runs import export, made_run
from tiny import tiny_assembled

from basic_lite.data.conversation import IMAGE, render
from basic_lite.data.templates import TEMPLATES
from basic_lite.export import parity
from basic_lite.export.chat_template import chat_template
from basic_lite.export.vocabulary import write_tokenizer

CONVERSATIONS = [
    [("user", f"{IMAGE}\nWhat is it?")],
    [("user", f'{IMAGE}\nWhat\'s "this"\\n?'), ("assistant", "A cat."), ("user", "Sure?\nLook.")],
    [("user", f"{IMAGE}\n{IMAGE}\nCompare."), ("assistant", "  spaced"), ("user", "{{ x }} {% y %}")],
    [("user", "你好")],
    [("system", "Be brief."), ("user", "Q1"), ("assistant", "A1"), ("user", "Q2")],
]


def fill(template: str, messages: list[dict], generate: bool) -> str:
    return jinja.fill(chat_template(TEMPLATES[template]), messages, generate)


def take_the_name_away(own) -> None:
    """Let the token `<image>` of a tokenizer be called `<free>`."""
    specification = json.loads(own.backend_tokenizer.to_str())
    vocabulary = specification["model"]["vocab"]
    vocabulary["<free>"] = vocabulary.pop("<image>")
    for added in specification["added_tokens"]:
        added["content"] = added["content"].replace("<image>", "<free>")
    own._tokenizer = type(own.backend_tokenizer).from_str(json.dumps(specification))


@pytest.mark.parametrize("template", [name for name, row in TEMPLATES.items() if not row.caption])
def test_the_jinja_writes_what_training_writes(template):
    """String and list content, with and without the header of the next answer."""
    for turns in CONVERSATIONS:
        plain = [{"role": role, "content": text} for role, text in turns]
        for messages in (plain, parity.messages(turns)):
            expected = render(template, turns, add_generation_prompt=True)
            assert fill(template, messages, True) == expected
            answered = [*messages, {"role": "assistant", "content": "Yes."}]
            assert fill(template, answered, False) == render(template, [*turns, ("assistant", "Yes.")])


def test_a_system_message_stands_where_the_own_one_stood():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert fill("vicuna_v1", messages, True) == "Be brief. USER: Hi ASSISTANT:"
    start = "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n"
    assert fill("phi3_instruct", messages, True) == start
    joined = "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    assert fill("gemma_instruct", messages, True) == joined  # there is no system role


SPOKEN = [name for name, row in TEMPLATES.items() if not row.caption]
OPENAI = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What differs?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/b.png"}},
        ],
    },
    {"role": "assistant", "content": "The colour."},
    {"role": "user", "content": "Which <image> tag do you read?"},
]
"""As chat pages send it to a server: a system message, parts in any order, two pictures, a literal tag."""


@pytest.mark.parametrize("template", SPOKEN)
def test_a_conversation_of_openai_s_shape(template):
    """It is training's own text of the same turns, with the system message in its place."""
    row = TEMPLATES[template]
    pictures = f"{IMAGE}\n{IMAGE}\nWhat differs?"
    turns = [("user", pictures), ("assistant", "The colour."), OPENAI[3]["content"]]
    turns[2] = ("user", turns[2])
    if row.system_turn:
        spoken = render(row, turns, add_generation_prompt=True).removeprefix(row.system)
        expected = row.system_turn.replace("{}", "Be brief.") + spoken
    else:
        turns[0] = ("user", f"Be brief.\n\n{pictures}")
        expected = render(row, turns, add_generation_prompt=True)
    assert fill(template, OPENAI, True) == expected
    developer = [OPENAI[0] | {"role": "developer"}, *OPENAI[1:]]
    assert fill(template, developer, True) == expected


@pytest.mark.parametrize("template", SPOKEN)
def test_what_no_template_can_say_is_an_error(template):
    with pytest.raises(ValueError, match="roles system, user and assistant, not tool"):
        fill(template, [*OPENAI, {"role": "tool", "content": "42"}], True)
    if not TEMPLATES[template].system_turn:
        with pytest.raises(ValueError, match="as part of the user message after it"):
            fill(template, OPENAI[:1], True)


@pytest.mark.parametrize("decoder", ["llama", "gemma"])
def test_a_literal_tag_is_read_as_transformers_own_llava_reads_it(tmp_path, decoder):
    """A tag takes a picture; tags and pictures that are not as many are refused, never read as text."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    run = made_run(tmp_path / "run", decoder, "clip", "stage1")
    export(run, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    literal = [{"role": "user", "content": "Which <image> tag?"}]
    text = processor.apply_chat_template(literal, add_generation_prompt=True, tokenize=False)
    assert text.count(IMAGE) == 1
    row, patches = model.config.image_token_id, model.config.image_seq_length
    shown = parity.pictures()
    one = processor(text=[text], images=shown[:1], return_tensors="pt")
    assert one["input_ids"][0].tolist().count(row) == patches
    parts = [{"type": "image"}, {"type": "text", "text": "Which <image> tag?"}]
    twice = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
    )
    assert twice.count(IMAGE) == 2
    for said, given in ((text, None), (twice, shown[:1])):
        with pytest.raises(ValueError, match=r"no images were passed|number of images|do not match"):
            model(**processor(text=[said], images=given, return_tensors="pt"))


def rewritten(assembled, folder: Path):
    from transformers import AutoTokenizer

    folder.mkdir()
    write_tokenizer(assembled, folder, chat_template(assembled.template))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("token", ["<image>", "<s>x", None])
def test_the_patch_row_is_called_image_and_no_text_changes(tmp_path, token):
    """Its own row, a renamed one, or a padded row that no token had."""
    assembled = tiny_assembled("llama")
    own = assembled.tokenizer
    if token == "<s>x":
        own.add_tokens(["<unused0>"], special_tokens=False)
        assembled.image_token_id = own.convert_tokens_to_ids("<unused0>")
        # The row that had the name makes room for it.
        take_the_name_away(own)
    elif token is None:
        take_the_name_away(own)
        assembled.image_token_id = len(own)
    found = rewritten(assembled, tmp_path / "out")
    assert found.convert_tokens_to_ids("<image>") == assembled.image_token_id
    assert found("a<image>b").input_ids.count(assembled.image_token_id) == 1
    for text in ("Hello, wörld!\n  two", "<|im_start|>user\nx<|im_end|>", "1 2 3 你好"):
        assert found(text).input_ids == own(text).input_ids
    assert found.eos_token == "<|im_end|>"
    assert found.pad_token_id == assembled.pad_token_id
    assert found.padding_side == "left"


def test_vicunas_unknown_row_becomes_the_image(tmp_path):
    """The real tokenizer: byte fallback spells what the vocabulary lacks, so the row is free."""
    from transformers import AutoTokenizer

    fixture = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "vicuna"
    if not fixture.is_dir():
        pytest.skip("the real tokenizer is not here")
    assembled = tiny_assembled("llama")
    assembled.tokenizer = own = AutoTokenizer.from_pretrained(fixture)
    assembled.template = TEMPLATES["vicuna_v1"]
    assembled.image_token_id, assembled.pad_token_id = 0, 2
    found = rewritten(assembled, tmp_path / "out")
    text = render("vicuna_v1", CONVERSATIONS[2], add_generation_prompt=True)
    ids = found(text).input_ids
    assert ids.count(0) == 2
    assert ids[0] == own.bos_token_id
    assert found("你好 ☃ <unk>").input_ids.count(0) == 0
    for plain in ("A chat between", "  two spaces\n\nand lines", "你好 ☃"):
        assert found(plain).input_ids == own(plain).input_ids
        assert found.decode(found(plain).input_ids, skip_special_tokens=True) == plain
    assert found.eos_token == "</s>"


READER = """
import json, sys, torch, transformers
from transformers import AutoProcessor, LlavaForConditionalGeneration
from PIL import Image
folder = sys.argv[1]
processor = AutoProcessor.from_pretrained(folder)
model, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
picture = Image.new("RGB", (61, 40), (10, 200, 30)); picture.paste((200, 0, 90), (5, 5, 30, 20))
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
batch = processor(images=[picture], text=[text], return_tensors="pt")
with torch.inference_mode():
    logits = model.eval()(**batch).logits[0, -1].tolist()
    answer = model.generate(**batch, max_new_tokens=8, do_sample=False)[0].tolist()
eos, stops = processor.tokenizer.eos_token_id, model.generation_config.eos_token_id
version, ids = transformers.__version__, batch["input_ids"][0].tolist()
print(json.dumps({"version": version, "ids": ids,
    "pixels": batch["pixel_values"].sum().item(), "logits": logits, "answer": answer, "eos": eos,
    "stops": stops, "text": text}))
"""


def read_elsewhere(folder: Path, library: str | None) -> dict:
    environment = os.environ | ({"PYTHONPATH": library} if library else {}) | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decoder", "tower"), [("llama", "clip"), ("gemma", "siglip"), ("phi3", "clip"), ("mistral", "siglip")]
)
def test_other_releases_of_transformers_read_the_folder(tmp_path, decoder, tower):
    """Folders with other releases stand in `BASIC_LITE_TRANSFORMERS`, separated by colons."""
    libraries = [path for path in os.environ.get("BASIC_LITE_TRANSFORMERS", "").split(":") if path]
    if not libraries:
        pytest.skip("no other release of transformers is named in BASIC_LITE_TRANSFORMERS")
    run = made_run(tmp_path / "run", decoder, tower, "lora")
    export(run, tmp_path / "out")
    here = read_elsewhere(tmp_path / "out", None)
    for library in libraries:
        there = read_elsewhere(tmp_path / "out", library)
        old = there["version"].startswith("4.") and decoder == "gemma"
        if old:  # image features are scaled there too: a folder of its own
            export(run, tmp_path / "old", old_gemma=True)
            there = read_elsewhere(tmp_path / "old", library)
        for key in ("ids", "text", "eos", "stops"):
            assert there[key] == here[key], (key, there["version"])
        assert there["pixels"] == pytest.approx(here["pixels"], abs=1e-3)
        assert there["logits"] == pytest.approx(here["logits"], abs=1e-3), there["version"]
        assert there["answer"] == here["answer"]
