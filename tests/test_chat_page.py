"""The page's conversation is the terminal's; what it shows is all that it knows."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor

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
    answers = ["".join(chat.say(text)).strip() for text in ("one <image>", "two")]
    assert all(answers)
    history = [asked("one <image>", picture), assistant(answers[0]), asked("two")]
    history.append({"role": "assistant", "content": answers[1]})
    recalled = Chat(assembled, 4)
    whole_chat.recall(recalled, history)
    assert recalled.turns == chat.turns
    assert len(recalled.shown) == 1
    assert list(recalled.say("three")) == list(chat.say("three"))


def test_a_message_without_answer_is_forgotten_and_its_picture_waits(picture, tmp_path):
    (tmp_path / "b.png").write_text("no picture")
    history = [user("one", picture), assistant(f"{whole_chat.MISTAKE}too long")]
    history += [user("two", tmp_path / "b.png"), assistant(" "), user("three"), assistant("yes")]
    chat = Chat(tiny_assembled("llama"), 4)
    whole_chat.recall(chat, history)
    assert chat.turns == [("user", f"{IMAGE}\nthree"), ("assistant", "yes")]
    assert (len(chat.shown), len(chat.waiting)) == (1, 0)


def test_two_readers_at_once_do_not_mix(picture):
    """Each page's answer is the one that it would have got alone."""
    assembled, lock = tiny_assembled("llama"), threading.Lock()
    histories = [[user("one"), assistant("yes")], [user("two", picture), assistant("no")]]
    drawn = whole_chat.Sampling(1.2, 1.0, 5)

    def answer(history: list[dict], words: str) -> str:
        chat = Chat(assembled, 20, drawn, lock)
        whole_chat.recall(chat, history)
        return "".join(chat.say(words))

    alone = [answer(history, f"question {number}") for number, history in enumerate(histories)]
    assert alone[0] != alone[1]
    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(answer, history, f"question {n}") for n, history in enumerate(histories)]
            assert [job.result() for job in jobs] == alone


def test_a_mistake_reaches_the_reader():
    chat = Chat(tiny_assembled("llama"), 4)
    with pytest.raises(ValueError, match="the decoder takes 128"):
        list(chat.say("x" * 200))


def test_a_fault_of_the_model_reaches_the_reader(monkeypatch):
    """And does not leave it waiting for a word that never comes."""
    chat = Chat(tiny_assembled("llama"), 4)
    monkeypatch.setattr(chat.assembled.model, "generate", lambda **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(chat.say("hello"))
    assert chat.turns == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "localhost:9000", "origin": "http://localhost:9000"}, 200),  # behind a tunnel
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, 200),
        ({"host": "evil.example:7860"}, 403),
        ({"host": "evil.example:7860", "origin": "http://evil.example:7860"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "https://evil.example"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:8000"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "null"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({}, 403),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_requests_of_other_pages_are_refused(headers, status, kind):
    sent: list[dict] = []

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: dict) -> None:
        sent.append(message)

    raw = [(name.title().encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(whole_chat.SameOrigin(app)({"type": kind, "headers": raw}, None, send))
    if status == 403 and kind == "websocket":
        assert sent == [{"type": "websocket.close", "code": 1008}]
    else:
        assert sent[0]["status"] == status


def test_without_gradio_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    from command import run

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    refused = run("chat", "--web", cwd=tmp_path, expect=2)
    assert refused.stderr.startswith("error: --web needs gradio, which is not installed here: pip install")
    assert refused.stderr.count("\n") == 1


@needs_gradio
def test_a_browser_s_way_through_the_page(picture):
    import httpx
    from gradio_client import Client, handle_file

    assembled = tiny_assembled("llama")
    made = whole_chat.serve(assembled, "tiny", port=7937, max_new_tokens=5, wait=False)
    try:
        client = Client("http://127.0.0.1:7937", verbose=False)
        for headers, status in (
            ({}, 200),
            ({"Host": "evil.example"}, 403),
            ({"Origin": "http://evil.example"}, 403),
        ):
            assert httpx.get("http://127.0.0.1:7937/", headers=headers).status_code == status
        sending = {"files": ("big.png", b"x" * 21_000_000)}
        refused = httpx.post("http://127.0.0.1:7937/gradio_api/upload", files=sending)
        assert refused.status_code == 413
        job = client.submit({"text": "what is this", "files": [handle_file(picture)]}, api_name="/chat")
        answers = [job.result(), client.predict({"text": "and", "files": []}, api_name="/chat")]
        chat = Chat(assembled, 5)
        chat.show(picture)
        assert answers == ["".join(chat.say(text)).strip() for text in ("what is this", "and")]
        said = client.predict({"text": "", "files": [handle_file(picture)]}, api_name="/chat")
        assert said.startswith(whole_chat.MISTAKE)
        assert "ask something about it" in said
        with pytest.raises(ValueError, match=r"port 7937 of 127\.0\.0\.1 is taken"):
            whole_chat.serve(assembled, "tiny", port=7937, max_new_tokens=5, wait=False)
    finally:
        made.close()
