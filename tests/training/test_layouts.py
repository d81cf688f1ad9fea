"""Three rows of each layout through `data check` and both stages: all take all of them, or say the same."""

from __future__ import annotations

import base64
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from command import data_check, run
from data.made_rows import write_tar
from PIL import Image

from basic_lite.data.archives import archives_in, open_archive
from basic_lite.data.findings import NOTED
from basic_lite.files import read_manifest

NUMBERS = range(3)


@pytest.fixture(autouse=True)
def _nothing_kept(tmp_path, monkeypatch):
    open_archive.cache_clear()
    archives_in.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def png(number: int) -> bytes:
    whole = io.BytesIO()
    picture = Image.new("RGB", (40 + number, 50), (200, 40 * number, 20))
    picture.putpixel((0, 0), (0, 0, 0))
    picture.save(whole, "PNG")
    return whole.getvalue()


def llava(number: int, **more: object) -> dict:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"thing {number}"}]
    return {"id": f"r{number}", "image": f"{number}.png", "conversations": turns} | more


def chat(number: int, content: object = "<image>What?", **more: object) -> dict:
    answer = {"role": "assistant", "content": f"thing {number}"}
    return {"messages": [{"role": "user", "content": content}, answer]} | more


def parts(number: int, **more: object) -> dict:
    """Parts in questions and answers, as Arrow wants them: all of one type, absent keys null."""
    answer = {"type": "text", "text": f"thing {number}"}
    return {"messages": [{"role": "user", "content": [{"type": "image", "text": None}, TEXT]},
                         {"role": "assistant", "content": [answer]}]} | more  # fmt: skip


def texts(number: int, **more: object) -> dict:
    return {"texts": [{"user": "What?", "assistant": f"thing {number}"}]} | more


Writer = Callable[[Path], tuple[object, ...]]
"""Writes three rows into a folder and returns what `data check` and `--data` are given."""

TEXT = {"type": "text", "text": "What?"}
PICTURE = {"type": "image"}


def url(number: int) -> dict:
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png(number)).decode()}"},
    }


def lines(make: Callable[[int], dict]) -> Writer:
    def write(folder: Path) -> tuple[object, ...]:
        pictures(folder)
        (folder / "rows.jsonl").write_text("".join(json.dumps(make(n)) + "\n" for n in NUMBERS))
        return folder / "rows.jsonl", "--images", folder

    return write


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in NUMBERS:
        (folder / f"{number}.png").write_bytes(png(number))


def file(name: str, content: Callable[[list[dict]], bytes]) -> Writer:
    def write(folder: Path) -> tuple[object, ...]:
        pictures(folder)
        (folder / name).write_bytes(content([llava(n) for n in NUMBERS]))
        return folder / name, "--images", folder

    return write


def folder_of_files(folder: Path) -> tuple[object, ...]:
    pictures(folder / "pictures")
    (folder / "rows").mkdir()
    for n in NUMBERS:
        (folder / "rows" / f"{n}.json").write_text(json.dumps([llava(n)]))
    return folder / "rows", "--images", folder / "pictures"


def one_row_a_file(folder: Path) -> tuple[object, ...]:
    given = folder_of_files(folder)
    for n in NUMBERS:
        (folder / "rows" / f"{n}.json").write_text(json.dumps(llava(n), indent=1))
    return given


def shards(name: str, member: Callable[[int], dict[str, bytes]]) -> Writer:
    def write(folder: Path) -> tuple[object, ...]:
        folder.mkdir()
        (folder / "shards").mkdir()
        for n in NUMBERS:
            write_tar(folder / "shards" / name.format(n), member(n))
        return (folder / "shards",)

    return write


def with_json(n: int) -> dict[str, bytes]:
    turns = {"conversations": llava(n)["conversations"]}
    return {f"{n}.png": png(n), f"{n}.json": json.dumps(turns).encode()}


def stored(kind: str, make: Callable[[int], dict], column: str = "image") -> Writer:
    def write(folder: Path) -> tuple[object, ...]:
        folder.mkdir()
        made = datasets.Dataset.from_list([make(n) for n in NUMBERS])
        feature = datasets.List(datasets.Image()) if column == "images" else datasets.Image()
        made = made.cast_column(column, feature)
        if kind == "arrow":
            made.save_to_disk(folder / "set")
        else:
            (folder / "set").mkdir()
            made.to_parquet(folder / "set" / "train-00000.parquet")
        return (folder / "set",)

    return write


def inside(number: int) -> dict:
    return {"bytes": png(number), "path": None}


def archive(name: str, prefix: str = "images/train/") -> Writer:
    def write(folder: Path) -> tuple[object, ...]:
        folder.mkdir()
        (folder / "rows.json").write_text(json.dumps([llava(n) for n in NUMBERS]))
        members = {f"{prefix}{n}.png": png(n) for n in NUMBERS}
        if name.endswith("zip"):
            with zipfile.ZipFile(folder / name, "w") as packed:
                for path, data in members.items():
                    packed.writestr(path, data)
        else:
            write_tar(folder / name, members)
        return folder / "rows.json", "--images", folder / name

    return write


def named(stored_as: str, written: str) -> Writer:
    """Pictures under one name that rows write in another way."""

    def write(folder: Path) -> tuple[object, ...]:
        for n in NUMBERS:
            path = folder / stored_as.format(n)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(n))
        rows = [llava(n) | {"image": written.format(n)} for n in NUMBERS]
        (folder / "rows.json").write_text(json.dumps(rows))
        return folder / "rows.json", "--images", folder

    return write


def without_placeholder(n: int) -> dict:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": f"thing {n}"}]
    return {"image_path": f"{n}.png", "conversations": turns}


LAYOUTS: dict[str, Writer] = {
    "LLaVA, an array": file("rows.json", lambda rows: json.dumps(rows).encode()),
    "LLaVA, lines": lines(llava),
    "packed": file("rows.json.gz", lambda rows: gzip.compress(json.dumps(rows).encode())),
    "packed lines": file(
        "rows.jsonl.gz", lambda rows: gzip.compress("\n".join(map(json.dumps, rows)).encode())
    ),
    "data in an object": file("rows.json", lambda rows: json.dumps({"version": 1, "data": rows}).encode()),
    "a byte order mark": file("rows.json", lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode()),
    "a folder of arrays": folder_of_files,
    "a folder of a row each": one_row_a_file,
    "ShareGPT with images": lines(lambda n: llava(n) | {"image": None, "images": [f"{n}.png"]}),
    "messages": lines(lambda n: chat(n, images=[f"{n}.png"])),
    "messages of parts": lines(lambda n: chat(n, [PICTURE, TEXT], images=[f"{n}.png"])),
    "parts that hold the path": lines(lambda n: chat(n, [PICTURE | {"image": f"{n}.png"}, TEXT])),
    "parts that hold the picture": lines(lambda n: chat(n, [TEXT, url(n)])),
    "a system turn": lines(
        lambda n: {
            "image": f"{n}.png",
            "messages": [{"role": "system", "content": "Be brief."}, *chat(n)["messages"]],
        }
    ),
    "a system column": lines(lambda n: llava(n, system="Be brief.")),
    "query and response": lines(
        lambda n: {"query": "<image>What?", "response": f"thing {n}", "images": [f"{n}.png"]}
    ),
    "instruction, input and output": lines(
        lambda n: {"instruction": "What?", "input": "Say it.", "output": f"thing {n}", "image": f"{n}.png"}
    ),
    "question and answer": lines(
        lambda n: {"question": "What?", "answer": f"thing {n}", "images": [f"{n}.png"]}
    ),
    "question and answers": lines(
        lambda n: {"question": "What?", "answers": [f"thing {n}", "it"], "image": f"{n}.png"}
    ),
    "prompt and completion": lines(
        lambda n: {"prompt": "<image>What?", "completion": f"thing {n}", "image": f"{n}.png"}
    ),
    "prompt and response": lines(
        lambda n: {"prompt": "What?", "response": f"thing {n}", "images": [f"{n}.png"]}
    ),
    "prompt and completion as turns": lines(
        lambda n: {
            "prompt": chat(n)["messages"][:1],
            "completion": chat(n)["messages"][1:],
            "images": [f"{n}.png"],
        }
    ),
    "Parquet, instruction and output": stored(
        "parquet",
        lambda n: {"image": inside(n), "instruction": "What?", "input": None, "output": f"thing {n}"},
    ),
    "Parquet, image, question and answers": stored(
        "parquet",
        lambda n: {"image": inside(n), "question": "What?", "answers": [{"answer": "it", "answer_id": n}]},
    ),
    "Parquet, prompt and completion of parts": stored(
        "parquet",
        lambda n: {
            "images": [inside(n)],
            "prompt": parts(n)["messages"][:1],
            "completion": parts(n)["messages"][1:],
        },
        "images",
    ),
    "texts in JSON": lines(lambda n: texts(n, images=[f"{n}.png"])),
    "captions": lines(lambda n: {"image": f"{n}.png", "caption": f"thing {n}"}),
    "a literal placeholder in an answer": lines(
        lambda n: llava(
            n,
            conversations=[
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "The tag <image> is text."},
            ],
        )
    ),
    "image_path, no placeholder": lines(without_placeholder),
    "shards of jpg and json": shards("{}.tar", with_json),
    "shards of captions": shards("{}.tar", lambda n: {f"{n}.png": png(n), f"{n}.txt": b"a thing"}),
    "packed shards": shards("{}.tar.gz", with_json),
    "Parquet, image and conversations": stored(
        "parquet", lambda n: {"image": inside(n), "conversations": llava(n)["conversations"]}
    ),
    "Parquet, images and conversations": stored(
        "parquet", lambda n: {"images": [inside(n)], "conversations": llava(n)["conversations"]}, "images"
    ),
    "Parquet, images and texts": stored("parquet", lambda n: texts(n, images=[inside(n)]), "images"),
    "Parquet, images and messages": stored("parquet", lambda n: chat(n, images=[inside(n)]), "images"),
    "Parquet, images and messages of parts": stored(
        "parquet", lambda n: parts(n, images=[inside(n)]), "images"
    ),
    "Arrow, images and texts": stored("arrow", lambda n: texts(n, images=[inside(n)]), "images"),
    "Arrow, image and messages": stored("arrow", lambda n: chat(n, image=inside(n))),
    "pictures in a zip": archive("p.zip", ""),
    "pictures in folders of a zip": archive("p.zip"),
    "pictures in folders of a tar": archive("p.tar"),
    "pictures in folders of a tar.gz": archive("p.tar.gz"),
    "backslashes": named("a/{}.png", "a\\{}.png"),
    "the suffix in the other case": named("{}.PNG", "{}.png"),
    "percent codes": named("a {}.png", "a%20{}.png"),
    "no suffix": named("{}.png", "{}"),
    "blanks and a newline": named("{}.png", "{}.png \n"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_three_rows_through_check_and_training(layout: str, tmp_path: Path) -> None:
    given = LAYOUTS[layout](tmp_path / "data")
    code, out, err = data_check(*given, "--stage", 1, "--report", tmp_path / "report.json")
    assert code == 0, out + err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rows"] == 3
    notes = {finding["code"] for finding in report["findings"]}
    data = ("--data", *given, "--global-batch", 3, "--micro-batch", 3, "--workers", 0, "--max-steps", 1)
    for stage, more in (("stage1", ["--model", "tiny"]), ("stage2", [])):
        done = run(stage, *data, *more, cwd=tmp_path)
        rows = read_manifest(tmp_path / "runs" / stage)["rows"]
        assert rows == {"seen": 3, "truncated": 0, "replaced": 0, "left_out": 0}
        assert not (tmp_path / "runs" / stage / "bad.jsonl").exists()
        for note in notes & set(NOTED):
            assert f"3 rows: {NOTED[note]}." in done.stdout
    assert ("other_name" in notes) == (layout in OTHERWISE_NAMED)


OTHERWISE_NAMED = {
    "backslashes",
    "the suffix in the other case",
    "percent codes",
    "no suffix",
    "blanks and a newline",
}
