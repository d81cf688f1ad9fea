"""What the README shows exists: every command parses, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from basic_lite.cli import app

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "recipes/README.md"]
PAGES += [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("basic_lite/*/*.md"))]
TEXT = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)


def commands(text: str) -> list[str]:
    """Return the commands of code blocks and of the prose, one line each."""
    text = text.replace("\\\n", " ")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    shown = (re.search(r"(?:^|-m )basic[-_]lite( .*)", line) for line in lines)
    return list(dict.fromkeys(found[1].strip() for found in shown if found))


def anchor(heading: str) -> str:
    """Return the anchor that a hosting site gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("shown", commands(TEXT))
def test_every_command_parses(shown):
    words = [word for word in shlex.split(shown, comments=True) if word != "..."]
    command, context = typer.main.get_command(app), None
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"there is no command {words[0]}"
        name = words.pop(0)
        command = command.commands[name]
        if not words:  # a command that is only named
            return
    if len(words) == 1 and words[0].isupper():  # `eval NAME`: a value that stands for any
        return
    context = command.make_context(name, words)
    assert context.args == [] or name == "ablate"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        other = (ROOT / page).parent / path if path else ROOT / page
        assert other.exists(), target
        if heading:
            headings = re.findall(r"(?m)^#+ (.*)$", other.read_text(encoding="utf-8"))
            assert heading in {anchor(words) for words in headings}, target


def test_the_three_headline_commands_stand_in_it():
    assert {"stage1 --model gemma-2b", "stage2 --lora", "eval mmbench"} <= {
        command.split("#")[0].strip() for command in commands(TEXT)
    }
