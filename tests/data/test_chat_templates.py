"""Every family's template against the chat template that its tokenizer publishes, and what a row becomes."""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from basic_lite.data.conversation import (
    IGNORE_INDEX,
    check_tokenizer,
    choose_template,
    encode,
    encode_prompt,
    render,
    stop_ids,
)
from basic_lite.data.templates import TEMPLATES

FOLDER = Path(__file__).parents[1] / "fixtures" / "templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
CONVERSATIONS = (
    [("user", "What is this?"), ("assistant", "A cat.")],
    [("user", "Sure?\n\nLook."), ("assistant", "Yes:\n  1. one"), ("user", "Why?"), ("assistant", "你好")],
    [("user", "{{ x }} 'y' \"z\"\\n"), ("assistant", "A"), ("user", "B"), ("assistant", "C"), ("user", "D")],
)
SYSTEM = [("system", "Be brief.\nAnd kind.")]
IMAGE = 7


@lru_cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Byte-level, with the special tokens of a template, and its published chat template."""
    row = TEMPLATES[name]
    texts = ["<bos>", *dict.fromkeys([*row.special(), *row.stop])]
    texts += sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({text: number for number, text in enumerate(texts)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    added = texts[: texts.index("!")] if "!" in texts else texts
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in added])
    end = "<|endoftext|>" if "<|endoftext|>" in texts else row.end
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token=end)
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    return tokenizer


def published(name: str, turns: list[tuple[str, str]]) -> str:
    """What the tokenizer writes, with the one date that may stand in training text, without BOS."""
    tokenizer = tokenizer_of(name)
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns],
        tokenize=False,
        add_generation_prompt=turns[-1][0] == "user",
        enable_thinking=False,
    )
    if name == "smollm3":
        text = re.sub("Today Date: .*", "Today Date: 01 July 2025", text)
    return text.removeprefix(tokenizer.bos_token)


@pytest.mark.parametrize("system", [[], SYSTEM], ids=["plain", "system"])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_written_byte_for_byte_as_the_tokenizer_writes_it(name, system):
    row = TEMPLATES[name]
    for conversation in CONVERSATIONS:
        turns = [*system, *conversation]
        if system and name in ("mistral_v3", "mistral_tekken"):
            # Theirs joins it with the last question, and drops it when an answer follows: with another turn
            # the beginning of the text would change. Ours stands in front of the first question.
            turns = [*system, ("user", "Only one.")]
        theirs = published(name, turns)
        if turns[-1][0] == "assistant" and name in ("phi3", "phi4_mini"):
            theirs = theirs.removesuffix("<|endoftext|>")  # behind the answer's own end, which stops it
        if turns[-1][0] == "assistant" and name == "olmo3":
            theirs = theirs.removesuffix("<|endoftext|>") + "<|im_end|>\n"  # theirs ends the last otherwise
        if turns[-1][0] == "assistant" and name == "glm4":
            theirs += row.end  # theirs leaves the end to the next turn
        assert render(row, turns, add_generation_prompt=turns[-1][0] == "user") == theirs


@pytest.mark.parametrize("name", NAMES)
def test_the_template_follows_from_what_the_tokenizer_writes(name):
    said = []
    assert choose_template(tokenizer_of(name), "vicuna_v1", said.append) == name
    assert not said


@pytest.mark.parametrize("name", ["smollm2", "qwen3"])
def test_a_beginning_of_sequence_that_a_turn_starts_with_is_part_of_the_template(name):
    """As in the published SmolLM2."""
    tokenizer, said = copy.deepcopy(tokenizer_of(name)), []
    tokenizer.bos_token = "<|im_start|>"
    assert choose_template(tokenizer, "vicuna_v1", said.append) == name
    assert not said


def test_a_template_of_nobody_is_named_with_the_choice_made():
    said = []
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of("chatml").backend_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}### {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert choose_template(tokenizer, "vicuna_v1", said.append) == "chatml"
    assert said == [
        "the tokenizer's own chat template is none of those known here: chatml is taken (--template)"
    ]
    said.clear()
    tokenizer.chat_template = tokenizer_of("smollm2").chat_template.replace("You are a helpful AI", "I am an")
    assert choose_template(tokenizer, "vicuna_v1", said.append) == "chatml"
    assert said[0].startswith("the tokenizer's own chat template writes a default system text that is none")


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_the_whole_string_and_the_prompt_begins_the_row(name):
    tokenizer = tokenizer_of(name)
    check_tokenizer(name, tokenizer)
    settings = {"image_token_id": IMAGE, "tokens_per_image": 2}
    for system in ([], SYSTEM):
        for conversation in CONVERSATIONS[:2]:
            turns = [*system, *conversation]
            ids = encode(name, tokenizer, turns, **settings).input_ids
            bos = [tokenizer.bos_token_id] if TEMPLATES[name].needs_bos else []
            whole = tokenizer(render(name, turns), add_special_tokens=False).input_ids
            assert ids == bos + whole
            prompt = encode_prompt(name, tokenizer, turns[:-1], **settings)
            assert ids[: len(prompt)] == prompt


# What carries loss, in order: each answer and its end, nothing else.
LEARNED = {
    name: ["Yes:\n  1. one" + end, "你好" + end]
    for name, end in {
        "chatml": "<|im_end|>",
        "qwen2_5": "<|im_end|>",
        "qwen3": "<|im_end|>",
        "smollm2": "<|im_end|>",
        "smollm3": "<|im_end|>",
        "llama3": "<|eot_id|>",
        "llama3_1": "<|eot_id|>",
        "gemma_instruct": "<end_of_turn>",
        "mistral_tekken": "</s>",
        "mistral_v7": "</s>",
        "olmo2": "<|endoftext|>",
        "olmo3": "<|im_end|>",
        "stablelm": "<|endoftext|>",
        "phi3": "<|end|>",
        "phi4_mini": "<|end|>",
        "granite": "<|end_of_text|>",
        "cohere": "<|END_OF_TURN_TOKEN|>",
    }.items()
}
LEARNED["mistral_v3"] = [" Yes:\n  1. one</s>", " 你好</s>"]
LEARNED["glm4"] = ["\nYes:\n  1. one<|user|>", "\n你好<|user|>"]


@pytest.mark.parametrize("system", [[], SYSTEM], ids=["plain", "system"])
@pytest.mark.parametrize("name", NAMES)
def test_only_answers_and_their_ends_carry_loss(name, system):
    tokenizer = tokenizer_of(name)
    encoded = encode(name, tokenizer, [*system, *CONVERSATIONS[1]], image_token_id=IMAGE, tokens_per_image=2)
    runs, before = [], IGNORE_INDEX
    for label in encoded.labels:
        if label != IGNORE_INDEX:
            runs = [*runs, []] if before == IGNORE_INDEX else runs
            runs[-1].append(label)
        before = label
    assert [tokenizer.decode(run) for run in runs] == LEARNED[name]
    assert runs[0][-1] == stop_ids(name, tokenizer)[0]


@pytest.mark.parametrize("name", NAMES)
def test_special_strings_in_a_row_stay_text(name):
    tokenizer = tokenizer_of(name)
    nasty = "a" + "b".join(TEMPLATES[name].special()) + "c"
    settings = {"image_token_id": IMAGE, "tokens_per_image": 2}
    turns, plain = ([("system", t), ("user", t), ("assistant", t)] for t in (nasty, "x"))
    ids, innocent = (encode(name, tokenizer, some, **settings).input_ids for some in (turns, plain))
    reserved = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    assert [i for i in ids if i in reserved] == [i for i in innocent if i in reserved]


def test_an_image_keeps_its_place_behind_a_system_turn():
    turns = [("system", "S"), ("user", "<image>\nQ"), ("assistant", "A <image>")]
    for name in NAMES:
        ids = encode(name, tokenizer_of(name), turns, image_token_id=999, tokens_per_image=3).input_ids
        assert ids.count(999) == 3


def test_a_system_turn_stands_in_front_alone():
    with pytest.raises(ValueError, match="turn 2 is from 'system' where 'user' is due"):
        render("chatml", [("user", "Q"), ("assistant", "A"), ("system", "S"), ("user", "Q")])
    with pytest.raises(ValueError, match="has no user turn"):
        render("chatml", [("system", "S")])
