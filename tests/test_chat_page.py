"""The page's conversation is the terminal's; what it shows is all that it knows."""

from __future__ import annotations

import importlib.util
import itertools
import threading

import pytest
from PIL import Image
from tiny import tiny_assembled

from basic_lite import chat as whole_chat
from basic_lite.chat import Chat
from basic_lite.data.conversation import IMAGE

needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is an extra")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.radial_gradient("L").resize((30, 50)).convert("RGB").save(path)
    return path


def user(text: str, *files) -> dict:
    """As a browser sends it."""
    parts = [{"type": "file", "file": {"path": str(file)}} for file in files]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def sent(text: str, *files) -> dict:
    """As gradio's client sends it."""
    return {"role": "user", "content": [*({"path": str(file)} for file in files), text]}


@pytest.mark.parametrize("asked", [user, sent])
def test_a_page_recalls_what_a_terminal_remembers(picture, asked):
    assembled = tiny_assembled("llama")
    chat = Chat(assembled, 4)
    chat.show(picture)
    answers = [chat.say(text, lambda piece: None) for text in ("one <image>", "two")]
    assert all(answers)
    history = [asked("one <image>", picture), assistant(answers[0]), asked("two")]
    history.append({"role": "assistant", "content": answers[1]})
    recalled = whole_chat.recalled(assembled, history, 4)
    assert recalled.turns == chat.turns
    assert len(recalled.shown) == 1
    assert recalled.say("three", lambda piece: None) == chat.say("three", lambda piece: None)


def test_a_message_without_answer_is_forgotten_and_its_picture_waits(picture, tmp_path):
    (tmp_path / "b.png").write_text("no picture")
    history = [user("one", picture), assistant(f"{whole_chat.MISTAKE}too long")]
    history += [user("two", tmp_path / "b.png"), assistant(" "), user("three"), assistant("yes")]
    chat = whole_chat.recalled(tiny_assembled("llama"), history, 4)
    assert chat.turns == [("user", f"{IMAGE}\nthree"), ("assistant", "yes")]
    assert (len(chat.shown), len(chat.waiting)) == (1, 0)


def test_an_answer_grows(picture):
    assembled = tiny_assembled("llama")
    chat, other = Chat(assembled, 6), Chat(assembled, 6)
    for one in (chat, other):
        one.show(picture)
    *parts, whole = whole_chat.growing(chat, "what is this", threading.Lock())
    assert whole == parts[-1].strip() == other.say("what is this", lambda piece: None)
    assert all(after.startswith(before) for before, after in itertools.pairwise(parts))


def test_a_reader_who_leaves_stops_the_model():
    chat, lock = Chat(tiny_assembled("llama"), 60), threading.Lock()
    answer = whole_chat.growing(chat, "hello", lock)
    next(answer)
    answer.close()
    with lock:  # the model is free again
        assert chat.turns == []


def test_a_mistake_reaches_the_reader():
    chat = Chat(tiny_assembled("llama"), 4)
    with pytest.raises(ValueError, match="the decoder takes 128"):
        list(whole_chat.growing(chat, "x" * 200, threading.Lock()))


def test_without_gradio_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    from command import run

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    refused = run("chat", "--web", cwd=tmp_path, expect=2)
    assert refused.stderr.startswith("error: --web needs gradio, which is not installed here: pip install")
    assert refused.stderr.count("\n") == 1


@needs_gradio
def test_a_browser_s_way_through_the_page(picture):
    from gradio_client import Client, handle_file

    assembled = tiny_assembled("llama")
    made = whole_chat.serve(assembled, "tiny", port=7937, max_new_tokens=5, wait=False)
    try:
        client = Client("http://127.0.0.1:7937", verbose=False)
        job = client.submit({"text": "what is this", "files": [handle_file(picture)]}, api_name="/chat")
        answers = [job.result(), client.predict({"text": "and", "files": []}, api_name="/chat")]
        chat = Chat(assembled, 5)
        chat.show(picture)
        assert answers == [chat.say(text, lambda piece: None) for text in ("what is this", "and")]
        said = client.predict({"text": "", "files": [handle_file(picture)]}, api_name="/chat")
        assert said.startswith(whole_chat.MISTAKE)
        assert "ask something about it" in said
        with pytest.raises(ValueError, match=r"port 7937 of 127\.0\.0\.1 is taken"):
            whole_chat.serve(assembled, "tiny", port=7937, max_new_tokens=5, wait=False)
    finally:
        made.close()
