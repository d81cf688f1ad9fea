"""A conversation: turns build on each other, pictures wait for a message, nothing ends it but the user."""

from __future__ import annotations

import io

import pytest
import torch
from made_runs import made_run
from PIL import Image
from tiny import tiny_assembled

from basic_lite import chat as chats
from basic_lite.data.conversation import IMAGE
from basic_lite.evaluation.answer import answer_one
from basic_lite.evaluation.question import Question


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "two words.png"
    Image.radial_gradient("L").resize((30, 50)).convert("RGB").save(path)
    return path


def talk(chat: chats.Chat, *lines: str) -> str:
    heard: list[str] = []
    chats.converse(chat, lines, heard.append)
    return "".join(heard)


def test_an_answer_is_the_one_that_an_evaluation_gets(picture):
    assembled = tiny_assembled("llama")
    asked = Question(0, "what is this", picture.read_bytes(), 6)
    chat = chats.Chat(assembled, max_new_tokens=6)
    chat.show(picture)
    pieces: list[str] = []
    answer = chat.say("what is this", pieces.append)
    assert answer == answer_one(assembled, asked)
    assert "".join(pieces).strip() == answer


def test_words_are_shown_while_the_answer_is_made():
    tokenizer, pieces = tiny_assembled("llama").tokenizer, []
    stream = chats._Stream(tokenizer, pieces.append)
    stream.put(torch.tensor([[1, 5]]))  # the prompt is not shown
    for number in tokenizer("two words, then more").input_ids:
        stream.put(torch.tensor([number]))
    shown = "".join(pieces)  # before the end; how much of it waits for a space depends on transformers
    assert shown.startswith("two words")
    assert "two words, then more".startswith(shown)
    stream.end()
    assert "".join(pieces) == "two words, then more"


def test_turns_build_on_each_other_and_pictures_add_up(picture):
    chat = chats.Chat(tiny_assembled("llama"), max_new_tokens=3)
    talk(chat, f"/image {picture}", "one", "two", f"/image {picture}", "three")
    assert len(chat.turns) == 6
    assert [text.count(IMAGE) for _, text in chat.turns] == [1, 0, 0, 0, 1, 0]
    assert len(chat.shown) == 2
    first = chat.turns[1]
    talk(chat, "/new")
    assert chat.turns == chat.shown == []
    talk(chat, f"/image {picture}", "one")
    assert chat.turns[1] == first


def test_mistakes_are_answered_and_the_conversation_goes_on(tmp_path):
    chat = chats.Chat(tiny_assembled("llama"), max_new_tokens=2)
    (tmp_path / "x.png").write_text("no picture")
    heard = talk(chat, "", f"/image {tmp_path / 'x.png'}", "/image nowhere.png", "/nothing", "x" * 200, "hi")
    assert "x.png is no picture that can be read" in heard
    assert "nowhere.png is no picture" in heard
    assert "There is no /nothing" in heard
    assert "the decoder takes 128; start a new conversation (/new in a terminal)" in heard
    assert len(chat.turns) == 2
    talk(chat, "/exit", "never")
    assert len(chat.turns) == 2


def test_an_interrupted_answer_is_forgotten(picture, monkeypatch):
    chat = chats.Chat(tiny_assembled("llama"), max_new_tokens=5)
    chat.show(picture)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            chats._Stream, "on_finalized_text", lambda self, text, stream_end=False: interrupt(text)
        )
        assert "cut off" in talk(chat, "hello")
    assert (len(chat.turns), len(chat.waiting)) == (0, 1)
    talk(chat, "hello")
    assert (len(chat.turns), len(chat.waiting)) == (2, 0)


def test_the_command_reads_standard_input(tmp_path, picture, monkeypatch):
    from command import run

    made_run(tmp_path / "runs/stage2", "llama", "clip", "lora")
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it?\n/image nowhere\nand now?"))
    done = run("chat", "--image", picture, "--max-new-tokens", 4, cwd=tmp_path)
    assert "nowhere is no picture" in done.stdout
    refused = run("chat", "--image", "missing.png", cwd=tmp_path, expect=2)
    assert refused.stderr == "error: missing.png is no file\n"
