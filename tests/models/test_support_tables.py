"""The tables of families and towers in the package's page: complete, and of tests that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ALL_DECODERS, ALL_TOWERS

from basic_lite.models import zoo

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "basic_lite/models/README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table_of(text: str) -> list[dict[str, str]]:
    head, _, *rows = (line for line in text.splitlines() if line.startswith("|"))
    names = [cell.strip() for cell in head.strip("|").split("|")]
    cells = ([cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows)
    return [dict(zip(names, row, strict=True)) for row in cells]


def functions_of(text: str) -> dict[str, list[str]]:
    """Return for each column the tests that its cells are cases of."""
    lines = re.findall(r"^- \*\*(.+?)\*\*: (.+)$", text, re.MULTILINE)
    return {name: re.findall(r"`([\w/.]+::\w+)`", line) for name, line in lines}


@pytest.fixture(scope="module")
def collected() -> list[str]:
    names = {test for title in SECTIONS for tests in functions_of(section(title)).values() for test in tests}
    files = sorted({f"tests/{name.partition('::')[0]}" for name in names})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-m", "", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line.removeprefix("tests/") for line in done.stdout.splitlines() if "::" in line]


SECTIONS = {"Families": ALL_DECODERS, "Towers": ALL_TOWERS}


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_every_cell_is_a_case_of_a_test_that_exists(title, collected):
    text = section(title)
    tests, rows = functions_of(text), table_of(text)
    assert {row["case"] for row in rows} == set(SECTIONS[title])
    assert set(tests) == set(rows[0]) - {"family", "tower", "case", "by name"}
    for row in rows:
        for column, functions in tests.items():
            for case in re.findall(r"\w+", row[column]):
                cases = [re.compile(rf"{re.escape(f)}\[(.+-)?{case}(-.+)?\]") for f in functions]
                assert any(one.fullmatch(name) for one in cases for name in collected), (row["case"], column)


def test_every_family_and_every_name_has_its_row():
    families, towers = (table_of(section(title)) for title in SECTIONS)
    assert {row["family"] for row in families} == set(zoo.FAMILIES)
    assert {row["tower"] for row in towers} == set(zoo.TOWER_FAMILIES)
    named = {name for row in families for name in re.findall(r"[\w.-]+", row["by name"])}
    assert named - {"none"} == set(zoo.LLMS)
    assert {name for row in towers for name in re.findall(r"[\w.-]+", row["by name"])} - {"none"} == set(
        zoo.TOWERS
    )
    for row in families:
        for name in re.findall(r"[\w.-]+", row["by name"]):
            if name in zoo.LLMS:
                assert zoo.LLMS[name].family == row["family"]
                assert zoo.LLMS[name].template in re.findall(r"\w+", row["template"])
