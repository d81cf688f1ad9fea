"""A conversation: turns build on each other, pictures wait for a message, nothing ends it but the user."""

from __future__ import annotations

import io
import json

import pytest
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


def said(chat: chats.Chat, text: str) -> str:
    return "".join(chat.say(text)).strip()


def test_an_answer_is_the_one_that_an_evaluation_gets(picture):
    assembled = tiny_assembled("llama")
    asked = Question(0, "what is this", picture.read_bytes(), 6)
    chat = chats.Chat(assembled, max_new_tokens=6)
    chat.show(picture)
    pieces = list(chat.say("what is this"))
    assert "".join(pieces).strip() == answer_one(assembled, asked)
    assert chat.turns[-1] == ("assistant", "".join(pieces).strip())


def test_words_come_while_the_model_still_answers(monkeypatch):
    assembled = tiny_assembled("llama")
    chat, steps = chats.Chat(assembled, max_new_tokens=40), []
    generate = assembled.model.generate

    def watched(stopping_criteria, **more):
        (has_left,) = stopping_criteria

        def counted(ids, scores, **more):
            steps.append(bool(has_left(ids, scores).all()))
            return has_left(ids, scores)

        return generate(stopping_criteria=[counted], **more)

    monkeypatch.setattr(assembled.model, "generate", watched)
    answer = chat.say("hello")
    next(answer)
    answer.close()
    assert steps[-1]  # the model heard that nobody listens any more, and stopped
    assert len(steps) < 40
    assert chat.turns == []
    assert chat.lock.acquire(timeout=5)  # the model is free again


def test_what_is_drawn_follows_temperature_top_p_and_seed():
    assembled = tiny_assembled("llama")

    def answers(*sampling: object) -> list[str]:
        chat = chats.Chat(assembled, 12, chats.Sampling(*sampling))
        return [said(chat, "one"), said(chat, "two")]

    greedy = answers()
    assert answers(0.0, 0.5, 3) == greedy  # temperature 0 draws nothing
    assert answers(1.5, 1.0, 3) == answers(1.5, 1.0, 3) != greedy
    assert answers(1.5, 1.0, 4) != answers(1.5, 1.0, 3)
    assert answers(1.5, 1e-6, 3) == greedy  # the smallest share is the likeliest token alone
    options = chats.Sampling(0.7, 0.9).options([2], 0, 5, [3])
    assert (options["do_sample"], options["temperature"], options["top_p"], options["top_k"]) == (
        True,
        0.7,
        0.9,
        0,
    )


def test_bytes_that_are_no_text_are_an_error_about_the_chat():
    chat = chats.Chat(tiny_assembled("llama"), max_new_tokens=2)
    heard = talk(chat, b"caf\xe9".decode("utf-8", "surrogateescape"), "hi")
    assert heard.startswith("the message holds bytes that are no text (UTF-8); send it again\n")
    assert "row" not in heard.split("\n")[0]
    assert len(chat.turns) == 2


def test_a_saved_conversation_holds_its_pictures(picture, tmp_path):
    chat = chats.Chat(tiny_assembled("llama"), max_new_tokens=3)
    out = tmp_path / "talk.json"
    assert "no conversation to save yet" in talk(chat, f"/save {out}")
    assert "/save needs a file" in talk(chat, "/save")
    heard = talk(chat, f"/image {picture}", "what is it", "and now", f"/save {out}")
    assert f"Saved: {out}" in heard
    messages = json.loads(out.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    image, text = messages[0]["content"]
    assert (image, text) == ({"type": "image", "path": str(picture)}, {"type": "text", "text": "what is it"})
    assert messages[1]["content"] == [{"type": "text", "text": chat.turns[1][1]}]
    assert "exists already" in talk(chat, f"/save {out}")
    assert "cannot be written" in talk(chat, f"/save {picture / 'x.json'}")


def test_turns_build_on_each_other_and_pictures_add_up(picture):
    chat = chats.Chat(tiny_assembled("llama"), max_new_tokens=3)
    talk(chat, f"/image {picture}", "one", "two", f"/image {picture}", "three")
    assert len(chat.turns) == 6
    assert [text.count(IMAGE) for _, text in chat.turns] == [1, 0, 0, 0, 1, 0]
    assert len(chat.shown) == 2
    first = chat.turns[1]
    talk(chat, "/reset")
    assert chat.turns == chat.shown == []
    talk(chat, f"/image {picture}", "one")
    assert chat.turns[1] == first


def test_mistakes_are_answered_and_the_conversation_goes_on(tmp_path):
    chat = chats.Chat(tiny_assembled("llama"), max_new_tokens=2)
    (tmp_path / "x.png").write_text("no picture")
    heard = talk(chat, "", f"/image {tmp_path / 'x.png'}", "/image nowhere.png", "/nothing", "x" * 200, "hi")
    assert "image 'x.png' cannot be decoded: no known picture format\n" in heard
    assert "image 'nowhere.png' does not exist\n" in heard
    assert "There is no /nothing" in heard
    assert "the decoder takes 128; start a new conversation (/reset in a terminal)" in heard
    assert len(chat.turns) == 2
    talk(chat, "/exit", "never")
    assert len(chat.turns) == 2


def test_an_interrupted_answer_is_forgotten(picture, monkeypatch):
    chat = chats.Chat(tiny_assembled("llama"), max_new_tokens=5)
    chat.show(picture)

    def interrupt(self: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chats.TextIteratorStreamer, "__next__", interrupt)
        assert "cut off" in talk(chat, "hello")
    assert (len(chat.turns), len(chat.waiting)) == (0, 1)
    talk(chat, "hello")
    assert (len(chat.turns), len(chat.waiting)) == (2, 0)


def test_the_command_reads_standard_input(tmp_path, picture, monkeypatch):
    from command import run

    made_run(tmp_path / "runs/stage2", "llama", "clip", "lora")
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it?\n/image nowhere\nand now?"))
    done = run("chat", "--image", picture, "--max-new-tokens", 4, cwd=tmp_path)
    assert "image 'nowhere' does not exist\n" in done.stdout
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\nhello\n"), encoding="utf-8"))
    done = run("chat", "--max-new-tokens", 3, "--temperature", 1, "--seed", 2, cwd=tmp_path)
    assert "the message holds bytes that are no text" in done.stdout
    refused = run("chat", "--top-p", 0, cwd=tmp_path, expect=2)
    assert "--top-p" in refused.stderr
    refused = run("chat", "--image", "missing.png", cwd=tmp_path, expect=2)
    assert refused.stderr == "error: missing.png is no file\n"
