"""The page in a real browser: what a reader types, pastes and drags arrives, and two readers do not mix.

It runs where gradio, playwright and Chromium are: `pip install -e ".[web]" playwright`.
"""

from __future__ import annotations

import base64
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_assembled

from basic_lite import chat as chats

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

TYPED = "textarea"
GIVE = """([selector, kind, name, content]) => {
    const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, {type: "image/png"}));
    const at = document.querySelector(selector), more = {bubbles: true, cancelable: true};
    at.dispatchEvent(kind === "paste" ? new ClipboardEvent("paste", {clipboardData: data, ...more})
                                      : new DragEvent("drop", {dataTransfer: data, ...more}));
}"""
"""A browser gives no script its clipboard or its pointer's files: the events are made as it makes them."""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is here")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def assembled():
    return tiny_assembled("llama")


@pytest.fixture(scope="module")
def address(assembled):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = chats.serve(assembled, "tiny", port=port, max_new_tokens=6, wait=False)
    yield f"http://127.0.0.1:{port}"
    served.close()


@pytest.fixture
def reader(browser, address):
    """Open the page as another reader each time."""
    contexts = []

    def enter():
        contexts.append(browser.new_context())
        page = contexts[-1].new_page()
        page.goto(address)
        page.wait_for_selector(TYPED)
        return page

    yield enter
    for context in contexts:
        context.close()


def picture(path: Path, colour: tuple[int, int, int]) -> Path:
    Image.radial_gradient("L").resize((30, 50)).convert("RGB").save(path)
    drawn = Image.open(path).convert("RGB")
    drawn.paste(colour, (0, 0, 15, 20))
    drawn.save(path)
    return path


def give(page, kind: str, file: Path) -> None:
    content = base64.b64encode(file.read_bytes()).decode()
    page.evaluate(GIVE, [TYPED if kind == "paste" else ".full-container", kind, file.name, content])
    page.wait_for_selector(".thumbnails img, .thumbnail-item img")


def send(page, words: str) -> None:
    page.fill(TYPED, words)
    page.press(TYPED, "Enter")


def hears(page, answers: list[str]) -> None:
    """Wait until the page's answers are these."""
    playwright.expect(page.locator(".bot.message")).to_have_text(answers, timeout=20_000)


def expected(assembled, *said: tuple[str, list[Path]]) -> list[str]:
    chat, heard = chats.Chat(assembled, 6), []
    for words, files in said:
        for file in files:
            chat.show(file)
        heard.append(" ".join("".join(chat.say(words)).split()))
    return heard


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_picture_is_pasted_or_dropped(reader, assembled, tmp_path, kind):
    page, file = reader(), picture(tmp_path / "red.png", (255, 0, 0))
    give(page, kind, file)
    send(page, "what is this")
    alone = expected(assembled, ("what is this", [file]))
    hears(page, alone)
    assert alone != expected(assembled, ("what is this", []))  # the picture mattered
    assert page.locator(".user-row img").count() == 1
    playwright.expect(page.get_by_label("Share")).to_be_hidden()  # it uploads to a hub


@pytest.mark.slow
def test_two_readers_at_once_do_not_mix(reader, assembled, tmp_path):
    """Both send before either is answered, twice; each sees its own conversation, as it would alone."""
    pages = [reader(), reader()]
    files = [picture(tmp_path / "red.png", (255, 0, 0)), picture(tmp_path / "blue.png", (0, 0, 255))]
    for page, file in zip(pages, files, strict=True):
        give(page, "paste", file)
    said = [["first of one", "more of one"], ["first of two", "more of two"]]
    for turn in range(2):
        for page, words in zip(pages, said, strict=True):
            send(page, words[turn])
        for number, (page, words) in enumerate(zip(pages, said, strict=True)):
            alone = expected(assembled, (words[0], [files[number]]), (words[1], []))
            hears(page, alone[: turn + 1])
    for number, page in enumerate(pages):
        shown = page.locator("[role=log]").inner_text()
        assert said[number][0] in shown
        assert said[1 - number][0] not in shown


def test_a_file_that_is_no_picture_is_answered_with_a_mistake(reader, tmp_path):
    page, file = reader(), tmp_path / "no.png"
    file.write_bytes(b"no picture")
    give(page, "paste", file)
    send(page, "what is this")
    mistake = page.locator(".bot.message")
    playwright.expect(mistake).to_contain_text(chats.MISTAKE.strip(), timeout=20_000)
    assert "image 'no.png' cannot be decoded" in mistake.inner_text()
    assert str(Path(tempfile.gettempdir())) not in mistake.inner_text()  # nor is any folder of the server
