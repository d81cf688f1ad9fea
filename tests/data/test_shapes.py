"""Rows as people have them: what each shape becomes, and what is said of it."""

import base64
import copy
import gzip
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from basic_lite.recipes.data import app
from command import data_check
from data.made_rows import known_fault, row, write_tar
from PIL import Image
from typer.testing import CliRunner

from basic_lite.data.archives import archives_in, open_archive
from basic_lite.data.checks import check_budget, check_data, check_rows, unfit_findings
from basic_lite.data.conversation import IGNORE_INDEX
from basic_lite.data.dataset import TextEncoder
from basic_lite.data.findings import note_lines
from basic_lite.data.mix import open_sources, parse_sources
from basic_lite.data.pictures import load_image
from basic_lite.data.readers import Rows, open_rows
from basic_lite.data.stream import Stream
from basic_lite.data.templates import TEMPLATES
from basic_lite.data.tokenise import check_vocabulary, encoder_of

HUMAN, GPT = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cup."}
CHAT = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cup."}]
EXPECTED = [("user", "<image>\nWhat?"), ("assistant", "A cup.")]


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, picture: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    open_archive.cache_clear()
    archives_in.cache_clear()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    for number in range(2):
        picture(20 + number, 10).save(tmp_path / f"{number}.png")


def png(image: Image.Image) -> bytes:
    whole = io.BytesIO()
    image.save(whole, "PNG")
    return whole.getvalue()


def parts(*contents: object) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


TEXT = {"type": "text", "text": "What?"}
SHAPES: dict[str, tuple[dict, list]] = {
    "ShareGPT with images": ({"images": ["0.png"], "conversations": [HUMAN, GPT]}, EXPECTED),
    "chat messages": ({"images": ["0.png"], "messages": CHAT}, EXPECTED),
    "parts, pictures in a column": (
        {"images": ["0.png"], "messages": parts([{"type": "image"}, TEXT], "A cup.")},
        EXPECTED,
    ),
    "parts that hold the path": (
        {
            "messages": parts(
                [{"type": "image", "image": "0.png"}, TEXT], [{"type": "text", "text": "A cup."}]
            )
        },
        EXPECTED,
    ),
    "parts as OpenAI writes them": (
        {"messages": parts([TEXT, {"type": "image_url", "image_url": {"url": "0.png"}}], "A cup.")},
        EXPECTED,
    ),
    "query and response": ({"query": "<image>What?", "response": "A cup.", "images": ["0.png"]}, EXPECTED),
    "history": (
        {"query": "And?", "response": "B", "history": [["<image>What?", "A cup."]], "image": "0.png"},
        [*EXPECTED, ("user", "And?"), ("assistant", "B")],
    ),
    "instruction and output": (
        {"instruction": "<image>What?", "input": "", "output": "A cup.", "image": "0.png"},
        EXPECTED,
    ),
    "instruction, input and output": (
        {"instruction": "Translate.", "input": "Tasse", "output": "A cup.", "system": "Be brief."},
        [("user", "Be brief.\n\nTranslate.\nTasse"), EXPECTED[1]],
    ),
    "instruction, output and history": (
        {"instruction": "And?", "output": "B", "history": [["<image>What?", "A cup."]], "images": ["0.png"]},
        [*EXPECTED, ("user", "And?"), ("assistant", "B")],
    ),
    "question and answer": ({"question": "<image>What?", "answer": "A cup.", "image": "0.png"}, EXPECTED),
    "question and answers that agree": (
        {"question": "<image>What?", "answers": ["A cup.", "A cup."], "images": ["0.png"]},
        EXPECTED,
    ),
    "question and answers of VQAv2": (
        {"question": "<image>What?", "answers": [{"answer": "A cup.", "answer_id": 1}], "image": "0.png"},
        EXPECTED,
    ),
    "prompt and completion": ({"prompt": "What?", "completion": "A cup."}, [("user", "What?"), EXPECTED[1]]),
    "prompt and response": ({"prompt": "<image>What?", "response": "A cup.", "images": ["0.png"]}, EXPECTED),
    "prompt and completion as turns": (
        {
            "prompt": [{"role": "system", "content": "Be brief."}, CHAT[0]],
            "completion": CHAT[1:],
            "image": "0.png",
        },
        [("user", "<image>\nBe brief.\n\nWhat?"), EXPECTED[1]],
    ),
    "a prompt of parts": (
        {"prompt": parts([{"type": "image"}, TEXT]), "completion": "A cup.", "images": ["0.png"]},
        EXPECTED,
    ),
    "a path in a mapping": ({"images": [{"path": "0.png", "bytes": None}], "messages": CHAT}, EXPECTED),
    "a system turn": (
        {"image": "0.png", "messages": [{"role": "system", "content": "Be brief."}, *CHAT]},
        [("user", "<image>\nBe brief.\n\nWhat?"), EXPECTED[1]],
    ),
    "a system column": (
        {"image": "0.png", "system": "Be brief.", "conversations": [HUMAN, GPT]},
        [("user", "<image>\nBe brief.\n\nWhat?"), EXPECTED[1]],
    ),
    "a picture in a later question": (
        {"images": ["0.png", "1.png"], "messages": CHAT + parts("And <image>", "A hat.")},
        [*EXPECTED, ("user", "<image>\nAnd"), ("assistant", "A hat.")],
    ),
    "names of pictures": (
        {"images": ["0.png", "1.png"], "messages": parts("Image-1: <image>\nImage-2: <image>\nBoth?", "Yes")},
        [("user", "Image-1: <image>\nImage-2: <image>\nBoth?"), ("assistant", "Yes")],
    ),
    "a placeholder in the system text": (
        {
            "image": "0.png",
            "system": "<image>\nBe brief.",
            "conversations": [{**HUMAN, "value": "What?"}, GPT],
        },
        [("user", "<image>\nBe brief.\n\nWhat?"), EXPECTED[1]],
    ),
    "two pictures, one in the system text": (
        {
            "images": ["0.png", "1.png"],
            "messages": [
                {"role": "system", "content": "Like <image>"},
                *parts("Image-2: <image>\nBoth?", "Yes"),
            ],
        },
        [("user", "<image>\nLike\n\nImage-2: <image>\nBoth?"), ("assistant", "Yes")],
    ),
    "the same picture in two columns": (
        {"image": "0.png", "images": ["./0.png"], "image_url": "https://a.b/c.png", "messages": CHAT},
        EXPECTED,
    ),
    "a literal placeholder in an answer": (
        {"image": "0.png", "messages": parts("<image>What?", "The tag <image>.")},
        [("user", "<image>\nWhat?"), ("assistant", "The tag <image>.")],
    ),
    "caption and picture": ({"image": "0.png", "caption": "A cup."}, [("user", "<image>"), EXPECTED[1]]),
    "a caption row with chat roles": ({"image_path": "0.png", "conversations": CHAT}, EXPECTED),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_and_its_conversion(shape: str, tmp_path: Path, write_rows: Callable) -> None:
    stored, turns = SHAPES[shape]
    rows = open_rows(write_rows([stored], "rows.jsonl"), tmp_path)
    sample = rows[0]
    assert sample.turns == turns
    widths = [load_image(image).width for image in sample.images]
    assert widths == [20, 21][: sum(text.count("<image>") for _, text in turns[::2])]
    assert check_data(rows) == []
    assert (
        CliRunner()
        .invoke(app, ["convert", str(rows.path), str(tmp_path / "out"), "--images", str(tmp_path)])
        .exit_code
        == 0
    )
    again = open_rows(tmp_path / "out" / "rows.jsonl", tmp_path)[0]
    assert again.turns == turns
    assert [image.name for image in again.images] == [image.name for image in sample.images]


def test_pictures_inside_a_row(tmp_path: Path, write_rows: Callable, picture: Callable) -> None:
    url = "data:image/png;base64," + base64.b64encode(png(picture(9, 7))).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    rows = open_rows(write_rows([{"messages": parts([part, TEXT], "A cup.")}]), tmp_path)
    assert load_image(rows[0].images[0]).size == (9, 7)
    result = CliRunner().invoke(app, ["convert", str(rows.path), str(tmp_path / "out")])
    assert result.stdout.startswith("1 rows in ")
    again = open_rows(tmp_path / "out" / "rows.jsonl")
    assert load_image(again[0].images[0]).size == (9, 7)
    refused = CliRunner().invoke(app, ["convert", str(rows.path), str(tmp_path / "out")]).exception
    assert "is not an empty folder" in str(refused)


NOTED: dict[str, tuple[dict, str]] = {
    "no placeholder": (row("a", "What?", "A cup.", image="0.png"), "no_placeholder"),
    "image_path, no placeholder": ({"image_path": "0.png", **row("a", "What?", "A cup.")}, "no_placeholder"),
    **{
        f"{column}, no placeholder": ({column: "0.png", **row("a", "What?", "A cup.")}, "no_placeholder")
        for column in ("image_file", "image_url", "img", "picture", "pictures")
    },
    "starts with an answer": ({"image": "0.png", "conversations": [GPT, HUMAN, GPT]}, "dropped_turn"),
    "tools": ({"image": "0.png", "tools": "[{}]", "conversations": [HUMAN, GPT]}, "not_used"),
    "two columns of turns": (
        {"image": "0.png", "conversations": [HUMAN, GPT], "messages": parts("Else?", "No.")},
        "not_used",
    ),
    **{
        f"question, answer and {more}": (
            {"image": "0.png", "question": "<image>What?", "answer": "A cup.", more: value},
            "not_used",
        )
        for more, value in {"choices": ["a", "b"], "context": "C", "answers": ["B"], "response": "B"}.items()
    },
    "several answers": (
        {"image": "0.png", "question": "<image>What?", "answers": ["B", "A cup.", "A cup."]},
        "not_used",
    ),
    "conversations beside question and answer": (
        {"image": "0.png", "question": "Else?", "answer": "No.", "conversations": [HUMAN, GPT]},
        "not_used",
    ),
    "conversations beside a caption": (
        {"image": "0.png", "caption": "C", "conversations": [HUMAN, GPT]},
        "not_used",
    ),
    "the messages of a preference": (
        {"image": "0.png", "prompt": "p", "chosen": CHAT, "rejected": CHAT, "messages": CHAT},
        "not_used",
    ),
    "question, answer, no placeholder": (
        {"image": "0.png", "question": "What?", "answer": "A cup."},
        "no_placeholder",
    ),
    "objects": ({"image": "0.png", "objects": {"bbox": [[1, 2]]}, "conversations": [HUMAN, GPT]}, "not_used"),
    "boxes": ({"image": "0.png", "bbox": [[1, 2]], "conversations": [HUMAN, GPT]}, "not_used"),
    "reasoning": (
        {"image": "0.png", "conversations": [HUMAN, {**GPT, "reasoning_content": "Hm."}]},
        "not_used",
    ),
    "half a weight": ({"image": "0.png", "conversations": [HUMAN, {**GPT, "weight": 0.5}]}, "weight_ignored"),
}


@pytest.mark.parametrize("shape", NOTED)
def test_what_is_done_otherwise_is_said(shape: str, tmp_path: Path, write_rows: Callable) -> None:
    stored, code = NOTED[shape]
    rows = open_rows(write_rows([stored, stored]), tmp_path)
    assert rows[0].turns == EXPECTED
    findings = [finding for finding in check_data(rows) if finding.code != "duplicate_id"]
    assert [(finding.row, finding.code) for finding in findings] == [(0, code), (1, code)]
    assert len(note_lines(rows)) == 1
    assert note_lines(rows)[0].startswith("2 rows: ")
    assert check_rows(rows) == []
    assert rows.usable.all()


REFUSED: dict[str, tuple[dict, str]] = {
    "a video column": ({"video": "a.mp4", **row("a", "What?", "A cup.")}, "unsupported_media"),
    "a video line": (row("a", "<video>\nWhat?", "A cup."), "unsupported_media"),
    "a video part": (
        {"messages": parts([{"type": "video", "video": "a.mp4"}, TEXT], "A")},
        "unsupported_media",
    ),
    "weight 0": ({"weight": 0, **row("a", "Hi", "Ho")}, "no_supervision"),
    "train false": ({"train": False, **row("a", "Hi", "Ho")}, "no_supervision"),
    "loss false": ({"loss": False, **row("a", "Hi", "Ho")}, "no_supervision"),
    "no answer with loss": (
        {"conversations": [{"from": "human", "value": "Hi"}, {**GPT, "train": False}]},
        "no_supervision",
    ),
    "two numbers of pictures": (
        {"image": "0.png", "images": ["0.png", "1.png"], "messages": CHAT},
        "malformed_row",
    ),
    "other pictures in two columns": (
        {"image": "0.png", "images": ["1.png"], "messages": CHAT},
        "malformed_row",
    ),
    "a path in the text": (row("a", "Picture 1: <img>0.png</img>\nWhat?", "A cup."), "placeholder_mismatch"),
    "fewer placeholders": ({"images": ["0.png", "1.png"], "messages": CHAT}, "placeholder_mismatch"),
    "a tool turn": ({"messages": [*CHAT, {"role": "tool", "content": "{}"}]}, "bad_roles"),
    "a preference": ({"prompt": "Hi", "chosen": "Ho", "rejected": "Hm"}, "malformed_row"),
    "a preference with an answer": (
        {"question": "Hi", "answer": "Ho", "chosen": "Ho", "rejected": "Hm"},
        "malformed_row",
    ),
    "an undesirable completion": ({"prompt": "Hi", "completion": "Ho", "label": False}, "no_supervision"),
    "ranked outputs": ({"instruction": "Hi", "output": ["Ho", "Hm"]}, "malformed_row"),
    "the number of an answer": ({"question": "Hi", "answer": 2}, "malformed_row"),
    "no answers": ({"question": "Hi", "answers": []}, "malformed_row"),
    "an input that is no text": ({"instruction": "Hi", "input": [1], "output": "Ho"}, "malformed_row"),
    "a history that is no list": ({"query": "Hi", "response": "Ho", "history": 5}, "malformed_row"),
    "a completion without turns": ({"prompt": "Hi", "completion": []}, "no_supervision"),
    "no base64": ({"image": "data:image/png;base64,!!", "messages": CHAT}, "undecodable_image"),
}


@pytest.mark.parametrize("shape", REFUSED)
def test_what_cannot_be_honoured_is_a_finding(shape: str, tmp_path: Path, write_rows: Callable) -> None:
    stored, code = REFUSED[shape]
    rows = open_rows(write_rows([stored, {"image": "0.png", "messages": CHAT}]), tmp_path)
    assert [known_fault(rows, 0), known_fault(rows, 1)] == [code, None]
    assert [(finding.row, finding.code) for finding in check_rows(rows)] == [(0, code)]


def test_a_finding_has_the_id_of_a_row_that_cannot_be_read(tmp_path: Path, write_rows: Callable) -> None:
    stored = [{"id": "a", "instruction": "Hi"}, {"id": ["b"], "caption": "c"}, 3, row("c", "<image>", "Ho")]
    rows = open_rows(write_rows(stored), tmp_path)
    assert [(f.row, f.id) for f in check_rows(rows)] == [(0, "a"), (1, ""), (2, ""), (3, "c")]
    with pytest.raises(ValueError, match=r"^row 0 \(id 'a'\) of "):
        rows[0]
    again = shutil.copy(rows.path, tmp_path / "again.json")
    mix = open_sources(parse_sources([rows.path, again], None))
    assert [finding.id for finding in check_rows(mix)] == ["a", "", "", "c"] * 2


def test_a_missing_answer_and_a_preference_are_named(write_rows: Callable) -> None:
    rows = open_rows(write_rows([{"question": "Hi"}, {"chosen": "Ho", "rejected": "Hm"}, row("c", "a", "b")]))
    answer, preference = (finding.detail for finding in check_rows(rows))
    assert answer == "'question' has no answer in 'answer' or 'answers', in a row with 'question'"
    assert preference.startswith("preferences ('chosen', 'rejected') are not trained on: ")


def test_only_a_completion_has_loss(tmp_path: Path, write_rows: Callable, tokenizer: object) -> None:
    turns = parts("One?", "Alpha", "Two?", "Beta")
    system = [{"role": "system", "content": "Sys."}]
    rows = open_rows(write_rows([{"prompt": [*system, *turns[:3]], "completion": turns[3:]}]))
    encoded = TextEncoder("chatml", tokenizer, 999, 4, None)(rows[0])
    assert tokenizer.decode([label for label in encoded.labels if label != IGNORE_INDEX]) == "Beta<|im_end|>"
    assert "Alpha<|im_end|>" in tokenizer.decode(encoded.input_ids)
    assert CliRunner().invoke(app, ["convert", str(rows.path), str(tmp_path / "out")]).exit_code == 0
    assert open_rows(tmp_path / "out" / "rows.jsonl")[0].silent == {1}


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
def test_an_answer_without_loss(key: str, tmp_path: Path, write_rows: Callable, tokenizer: object) -> None:
    turns = parts("One?", "Alpha", "Two?", "Beta")
    turns[1][key] = 0 if key == "weight" else False
    turns[3][key] = 1 if key == "weight" else True
    rows = open_rows(write_rows([{"messages": [{"role": "system", "content": "Sys."}, *turns]}]))
    encoded = TextEncoder("chatml", tokenizer, 999, 4, None)(rows[0])
    learned = [label for label in encoded.labels if label != IGNORE_INDEX]
    assert tokenizer.decode(learned) == "Beta<|im_end|>"
    assert "Alpha<|im_end|>" in tokenizer.decode(encoded.input_ids)
    assert CliRunner().invoke(app, ["convert", str(rows.path), str(tmp_path / "out")]).exit_code == 0
    assert open_rows(tmp_path / "out" / "rows.jsonl")[0].silent == {1}


def held(rows: Rows) -> list[tuple[str, int]]:
    assert check_data(rows) == []
    return [(sample.id, load_image(sample.images[0]).width) for sample in rows]


ROWS = [{"id": str(i), "image": f"{i}.png", "conversations": [HUMAN, GPT]} for i in range(2)]
BOTH = [("0", 20), ("1", 21)]


def test_files_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"version": "1", "data": ROWS, "more": {"x": [1]}}))
    assert held(open_rows(tmp_path / "a.json")) == BOTH
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(stored) + "\n" for stored in ROWS)
    assert held(open_rows(tmp_path / "b.jsonl.gz")) == BOTH
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode())[:-20])
    with pytest.raises(ValueError, match=r"c\.json\.gz cannot be unpacked") as caught:
        open_rows(tmp_path / "c.json.gz")
    assert "\n" not in str(caught.value)
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "1.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1]))
    (tmp_path / "many" / "2.json").write_text(json.dumps(ROWS[1], indent=1))  # one row, over several lines
    for _ in range(2):  # built, then loaded
        rows = open_rows(tmp_path / "many", tmp_path)
        assert held_ids(rows) == ["0", "1", "1"]
    (tmp_path / "many" / "3.json").write_text(json.dumps(ROWS))
    assert held_ids(open_rows(tmp_path / "many", tmp_path)) == ["0", "1", "1", "0", "1"]


@pytest.mark.parametrize(("start", "remedy"), [(b"PK\3\4", "unpack it"), (b"\xff\xfe", "save it as UTF-8")])
def test_a_file_of_another_kind_is_named(start: bytes, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(start + b"[\0{\0")
    with pytest.raises(ValueError, match=rf"no line is a row; it is [\w-]+ ?\w*: {remedy}$"):
        open_rows(tmp_path / "a.json")


def test_odd_pictures_are_told_at_the_start_of_a_training(
    tmp_path: Path, write_rows: Callable, picture: Callable
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(20, 10).save(tmp_path / "turned.jpg", exif=exif)
    rows = open_rows(write_rows([row(name, "<image>", "x", image=name) for name in ("turned.jpg", "0.png")]))
    said: list[str] = []
    assert check_rows(rows, say=said.append) == []
    assert [line.partition(".")[0] for line in said] == ["Among the pictures looked at: 1 exif_rotation"]


def held_ids(rows: Rows) -> list[str]:
    return [sample.id for sample in rows]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_webdataset_shards(suffix: str, tmp_path: Path, picture: Callable) -> None:
    (tmp_path / "shards").mkdir()
    chat = {"conversations": [HUMAN, GPT], "image": "elsewhere.jpg"}
    write_tar(
        tmp_path / "shards" / f"0.{suffix}",
        {
            "d/0001.json": json.dumps(chat).encode(),
            "d/0001.png": png(picture(20, 10)),
            "d/0002.seg.png": png(picture(21, 10)),
            "d/0002.txt": b"A cup.\n",
        },
    )
    write_tar(
        tmp_path / "shards" / f"1.{suffix}",
        {"x.json": b'{"id": 7, "caption": "C"}', "x.png": png(picture(22, 9))},
    )
    rows = open_rows(tmp_path / "shards")
    assert held(rows) == [("0001", 20), ("0002", 21), ("7", 22)]
    assert [sample.turns for sample in rows][:2] == [EXPECTED, [("user", "<image>"), EXPECTED[1]]]
    assert data_check(tmp_path / "shards")[0] == 0
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "shards"), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert held(open_rows(tmp_path / "out" / "rows.jsonl")) == held(rows)
    write_tar(
        tmp_path / "crawled.tar",
        {"a.json": b'{"prompt": "cup, oil"}', "a.txt": b"A cup.", "a.png": png(picture(9, 9))},
    )
    assert open_rows(tmp_path / "crawled.tar")[0].turns[1] == EXPECTED[1]  # a question alone is no layout
    (tmp_path / "none.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match="no tar of samples"):
        open_rows(tmp_path / "none.tar")


@pytest.mark.parametrize("column", ["conversations", "messages", "texts"])
@pytest.mark.parametrize("pictures", ["images", "image"])
def test_parquet_with_pictures_beside_any_layout(
    column: str, pictures: str, tmp_path: Path, picture: Callable
) -> None:
    turns = {
        "conversations": [HUMAN, GPT],
        "messages": CHAT,
        "texts": [{"user": "What?", "assistant": "A cup."}],
    }
    stored = [{pictures: [picture(9, 7)] if pictures == "images" else picture(9, 7), column: turns[column]}]
    kind = datasets.List(datasets.Image()) if pictures == "images" else datasets.Image()
    made = datasets.Dataset.from_list(stored).cast_column(pictures, kind)
    made.to_parquet(tmp_path / "a.parquet")
    rows = open_rows(tmp_path / "a.parquet")
    assert check_data(rows) == []
    assert rows[0].turns == EXPECTED
    assert load_image(rows[0].images[0]).size == (9, 7)
    assert data_check(tmp_path / "a.parquet")[0] == 0


def test_columns_of_a_question_streamed_and_mixed(
    tmp_path: Path, write_rows: Callable, picture: Callable
) -> None:
    stored = [{"image": picture(9, 7), "question": "What?", "answers": [{"answer": "A cup."}]}]
    made = datasets.Dataset.from_list(stored).cast_column("image", datasets.Image())
    made.to_parquet(tmp_path / "a.parquet")
    assert [sample.turns for sample in Stream(tmp_path / "a.parquet").beginning(2)] == [EXPECTED]
    alpaca = write_rows([{"instruction": "What?", "input": "", "output": "A cup.", "image": "0.png"}])
    mix = open_sources(parse_sources([tmp_path / "a.parquet", f"{alpaca}:2"], None))
    assert [sample.turns for sample in mix] == [EXPECTED, EXPECTED]
    assert [load_image(sample.images[0]).width for sample in mix] == [9, 20]


@pytest.mark.parametrize("archive", ["p.zip", "p.tar", "p.tar.gz"])
@pytest.mark.parametrize("name", ["0.png", "train/0.png", "images/train/0.png"])
def test_folders_that_an_archive_starts_with(
    archive: str, name: str, tmp_path: Path, write_rows: Callable, picture: Callable
) -> None:
    (tmp_path / "packed").mkdir()
    path = tmp_path / "packed" / archive
    files = {f"images/train/{i}.png": png(picture(30 + i, 10)) for i in range(2)} | {"__MACOSX/._0.png": b""}
    if archive.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as packed:
            for inside, data in files.items():
                packed.writestr(inside, data)
    else:
        write_tar(path, files)
    rows = open_rows(write_rows([row("a", "<image>", "x", image=name)]), path)
    assert held(rows) == [("a", 30)]


@pytest.mark.parametrize(
    "name", ["sub\\a b.PNG", "sub/a b.png", "sub/a%20b.PNG", "sub/a b", "sub/a b.PNG \n", " sub\\a%20b.png"]
)
def test_other_names_of_a_picture(name: str, tmp_path: Path, write_rows: Callable, picture: Callable) -> None:
    (tmp_path / "sub").mkdir()
    picture(33, 10).save(tmp_path / "sub" / "a b.PNG")
    rows = open_rows(write_rows([row("a", "<image>", "x", image=name)]), tmp_path)
    assert load_image(rows[0].images[0]).width == 33
    for depth in ("present", "decode"):
        findings = check_data(rows, pictures=depth)
        assert [(finding.code, "'sub/a b.PNG'" in finding.detail) for finding in findings] == [
            ("other_name", True)
        ]
    assert check_rows(rows) == []
    CliRunner().invoke(app, ["convert", str(rows.path), str(tmp_path / "out"), "--images", str(tmp_path)])
    assert json.loads((tmp_path / "out" / "rows.jsonl").read_text())["image"] == "sub/a b.PNG"


def test_the_nearest_name_is_told(tmp_path: Path, write_rows: Callable, picture: Callable) -> None:
    (tmp_path / "sub").mkdir()
    picture(9, 9).save(tmp_path / "sub" / "COCO_000000000009.jpg")
    rows = open_rows(write_rows([row("a", "<image>", "x", image="sub/000000000009.jpg")]), tmp_path)
    assert check_rows(rows)[0].detail.endswith("the nearest name there is 'sub/COCO_000000000009.jpg'")
    picture(9, 9).save(tmp_path / "sub" / "CUP.png")
    rows = open_rows(write_rows([row("a", "<image>", "x", image="sub/cup.png")]), tmp_path)
    assert check_rows(rows)[0].detail.endswith("the nearest name there is 'sub/CUP.png'")


def test_a_web_address_is_no_path(tmp_path: Path, write_rows: Callable) -> None:
    rows = open_rows(write_rows([row("a", "<image>", "x", image="https://a.b/0.png")]), tmp_path)
    assert check_rows(rows)[0].detail.endswith("is a web address: download it, and give its path")


def test_rows_whose_pictures_do_not_fit_are_left_out_by_check_and_training(
    tmp_path: Path, write_rows: Callable, tokenizer: object
) -> None:
    pictures = {"images": ["0.png"] * 4}
    late = CHAT + parts("b" * 300 + "<image>", "B", "<image>", "C", "<image>", "D")
    data = [
        {**pictures, "messages": parts("<image>" * 4, "A" * 300)},  # only its text is cut
        {**pictures, "messages": late},
        {"images": ["0.png"], "messages": CHAT},
        {"messages": parts("b" * 1200, "B")},  # no answer is left
        {"messages": parts("b", "B" * 300)},
    ]
    rows = open_rows(write_rows(data), tmp_path)
    encoder = TextEncoder("chatml", tokenizer, 999, 40, 250)
    unfit = [(1, "no_supervision"), (3, "no_supervision")]
    assert [(finding.row, finding.code) for finding in unfit_findings(rows, encoder)] == unfit
    for counting in (encoder, None):
        findings = check_data(rows, pictures=None, encoder=counting, max_length=250, tokens_per_image=40)
        assert [finding.row for finding in findings if finding.code == "no_supervision"] == [1, 3]
    encoded = encoder(rows[0])
    assert (len(encoded.input_ids), encoded.input_ids.count(999)) == (250, 160)
    rows.faults = unfit_findings(rows, encoder)
    with pytest.raises(ValueError, match=r"--stage 2 --tokenizer LLM --max-length N` lists"):
        check_budget(rows)


def test_ids_beyond_the_embedding_matrix(tokenizer: object) -> None:
    chatml = TEMPLATES["chatml"]
    check_vocabulary(tokenizer, chatml, len(tokenizer))
    with pytest.raises(ValueError, match=r"1 tokens beyond the 257 rows .*'<\|im_start\|>' is 257"):
        check_vocabulary(tokenizer, chatml, 257)


def test_a_special_token_that_nothing_writes_may_lie_beyond_the_matrix(tokenizer: object) -> None:
    """Gemma 3's text models have a picture token without a row; a pad token needs one."""
    larger, chatml = copy.deepcopy(tokenizer), TEMPLATES["chatml"]
    rows = len(larger)
    larger.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    assert larger.convert_tokens_to_ids("<image_soft_token>") == rows
    check_vocabulary(larger, chatml, rows)
    encoder = encoder_of(chatml, larger, 999)
    assert max(encoder.ids("", "a <image_soft_token> in a text")) < rows
    larger.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(ValueError, match=r"1 tokens beyond .*'\[PAD\]' is "):
        check_vocabulary(larger, chatml, rows)


def test_repeated_ids_cost_the_start_of_a_training_nothing(
    write_rows: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaVA's own files name rows after their pictures; a check reads each id once, a training none."""
    rows = open_rows(write_rows([row(name, "Hi", "Ho") for name in "abababa"]))
    read, raw = [], Rows.raw
    monkeypatch.setattr(Rows, "raw", lambda self, number: read.append(number) or raw(self, number))
    assert check_rows(rows) == read == []
    findings = check_data(rows)
    assert [(f.row, f.id, f.detail.split()[1]) for f in findings] == [
        (number, "ab"[number % 2], str(number % 2)) for number in range(2, 7)
    ]
    assert read == [0, 1]
