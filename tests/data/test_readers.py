import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.made_rows import FIXTURES, known_fault, row
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from basic_lite.data import index
from basic_lite.data.conversation import IMAGE
from basic_lite.data.formats import FORMATS
from basic_lite.data.index import estimated_tokens
from basic_lite.data.readers import open_rows
from basic_lite.data.rows import ImageRef, RawRow, Sample, normal_form


def test_published_stage_1_rows(tmp_path: Path) -> None:
    path = tmp_path / "blip.json"
    path.write_bytes((FIXTURES / "train_pretrain.json").read_bytes())
    rows = open_rows(path, tmp_path)
    assert len(rows) == 2
    assert rows[0].id == "000000001"
    assert [(image.name, image.root) for image in rows[0].images] == [("00000/000000001.jpg", str(tmp_path))]
    # LLaVA's preprocess_multimodal moves the placeholder in front, wherever the file has it.
    assert rows[0].turns == [
        ("user", "<image>\nRender a clear and concise summary of the photo."),
        ("assistant", "a red square on a white wall"),
    ]
    assert rows.has_image.tolist() == [True, True]


def test_published_stage_2_rows(tmp_path: Path) -> None:
    path = tmp_path / "mix.json"
    path.write_bytes((FIXTURES / "train_mix665k.json").read_bytes())
    rows = open_rows(path, tmp_path)
    assert [len(sample.turns) for sample in rows] == [4, 2, 2]
    assert rows[0].turns[0] == ("user", "<image>\nWhat is on the table?")
    assert rows[1].turns[0] == ("user", "Write a haiku.")  # the dangling gpt turn is gone
    assert rows[1].images == ()
    assert rows[2].turns[0][1].startswith("<image>\nWho wrote this book?")  # one line break, not two
    assert rows.has_image.tolist() == [True, False, True]
    assert rows[-1] == rows[2]
    with pytest.raises(IndexError):
        rows[3]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("options", [{}, {"ensure_ascii": False}, {"indent": 1}], ids=str)
def test_array_and_lines_give_the_same(write_rows: Callable[..., Path], name: str, options: dict) -> None:
    if name.endswith("l"):
        options = {k: v for k, v in options.items() if k != "indent"}
    data = [
        row("q", 'He said "yes" \\ then {[,]}', 'back\\\\slash \\" end\\'),
        row("中", "图中是什么？\u2028", "银鸥。 é 👋"),
        row("", "", "x" * 3000),
    ]
    rows = open_rows(write_rows(data, name, **options))
    assert len(rows) == 3
    for sample, given_row in zip(rows, data, strict=True):
        assert [text for _, text in sample.turns] == [turn["value"] for turn in given_row["conversations"]]
        assert sample.id == given_row["id"]


def test_blanks_byte_order_mark_and_missing_last_newline(tmp_path: Path) -> None:
    line = json.dumps(row("a", "Hi", "Ho"))
    (tmp_path / "a.jsonl").write_text(f"\ufeff{line}\r\n\n  {line}", encoding="utf-8")
    (tmp_path / "b.json").write_text(f"\ufeff\n [ {line}\n,\t{line} ] \n", encoding="utf-8")
    for name in ("a.jsonl", "b.json"):
        assert [sample.id for sample in open_rows(tmp_path / name)] == ["a", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[]", "holds no rows"),
        ("  \n ", "holds no rows"),
        ('[{"id": 1}, {"id": "', "ends inside row 1"),
        ('[{"id": 1}] [2]', "text follows the array"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        open_rows(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="no annotation file"):
        open_rows(tmp_path / "none.json")
    with pytest.raises(ValueError, match="no image folder"):
        open_rows(write_rows([row("a", "Hi", "Ho")]), tmp_path / "none")


FAULTS = [
    (row("x", "<image>\nHi", "Ho"), "placeholder_mismatch"),
    (row("x", "<image><image>", "Ho", image="a.png"), "placeholder_mismatch"),
    (row("x", "<image>", "Ho", "<image>", "Ha", image="a.png"), "placeholder_mismatch"),
    (row("x", "Hi", "<image>", "<image>", "Ha"), "placeholder_mismatch"),
    (row("x", "Hi", " \n"), "empty_answer"),
    (row("x", "Hi", "Ho", "Hu", ""), "empty_answer"),
    (row("x", "Hi"), "no_supervision"),
    (row("x", "Hi", "Ho", "Hu"), "bad_roles"),
    (
        {"id": "x", "conversations": [{"from": "human", "value": "a"}] * 2 + [{"from": "gpt", "value": "b"}]},
        "bad_roles",
    ),
    ({"id": "x", "conversations": [{"from": "tool", "value": "a"}]}, "bad_roles"),
    ({"id": "x", "conversations": [{"from": "gpt", "value": "a"}]}, "no_supervision"),
    ({"id": "x", "conversations": []}, "malformed_row"),
    ({"id": "x", "conversations": "Hi"}, "malformed_row"),
    ({"id": "x", "conversations": [None]}, "malformed_row"),
    ({"id": "x", "conversations": [{"from": "human", "value": 3}]}, "malformed_row"),
    ({"id": ["x"], "conversations": [{"from": "human", "value": "a"}]}, "malformed_row"),
    ({"id": "x", "image": 7, "conversations": [{"from": "human", "value": "a"}]}, "malformed_row"),
    ({"id": "x", "image": "", "conversations": [{"from": "human", "value": "a"}]}, "malformed_row"),
    ({"id": "x"}, "malformed_row"),
    (row("x", "Hi", "\ud83d alone"), "malformed_row"),
    ("x", "malformed_row"),
    (None, "malformed_row"),
    (float("nan"), "malformed_row"),
    ({"id": "x", "score": float("inf"), "conversations": [{"from": "human", "value": "a"}]}, "malformed_row"),
]


@pytest.mark.parametrize(("faulty", "code"), FAULTS)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_fault_names_row_id_and_file(
    write_rows: Callable[..., Path], faulty: object, code: str, name: str
) -> None:
    good = row("good", "Hi", "Ho")
    path = write_rows([good, faulty, good], name)
    rows = open_rows(path)
    assert [known_fault(rows, i) for i in range(3)] == [None, code, None]
    assert rows[0].id == rows[2].id == "good"
    with pytest.raises(ValueError, match="row 1") as caught:
        rows[1]
    assert caught.value.code == code
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if code not in ("malformed_row",) and "tool" not in str(faulty):
        assert "'x'" in str(caught.value)


def test_broken_utf8_and_broken_json_stay_in_their_row(tmp_path: Path) -> None:
    good = json.dumps(row("good", "Hi", "Ho")).encode()
    for name, text in (
        ("a.json", b"[" + good + b', {"id": "\xff"}, {"id": }, ' + good + b", , " + good + b"]"),
        ("b.jsonl", b"\n".join([good, b'{"id": "\xff"}', b'{"id": }', good, b"[", good])),
    ):
        (tmp_path / name).write_bytes(text)
        rows = open_rows(tmp_path / name)
        faults = [known_fault(rows, i) for i in range(len(rows))]
        assert faults == [None, "malformed_row", "malformed_row", None, "malformed_row", None]


def test_deep_nesting_and_long_numbers_are_findings(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[" * 100_000 + "\n" + '{"id": ' + "9" * 5000 + "}\n")
    # The first line starts with "[", so the whole is taken for an array, which never ends.
    with pytest.raises(ValueError, match="ends inside row"):
        open_rows(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"a":' * 100_000 + "\n" + '{"id": ' + "9" * 5000 + "}\n")
    rows = open_rows(tmp_path / "b.jsonl")
    assert [known_fault(rows, i) for i in range(2)] == ["malformed_row"] * 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='\\"{}[],: a中\n\x00', max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(alphabet='\\"{a', max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(json_values, min_size=1, max_size=8),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    block=st.integers(1, 40),
)
def test_spans_are_the_elements(
    values: list, indent: int | None, ascii_only: bool, block: int, monkeypatch
) -> None:
    monkeypatch.setattr(index, "BLOCK", block)  # every carry between blocks is met
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
    spans = index.row_spans(io.BytesIO(data))
    assert [json.loads(data[first : first + size]) for first, size in spans.tolist()] == values


def test_rows_travel_to_workers_without_the_data(write_rows: Callable[..., Path]) -> None:
    rows = open_rows(write_rows([row(str(i), "Hi", "x" * 10_000) for i in range(20)]))
    rows[3]
    sent = pickle.dumps(rows)
    assert len(sent) < 20_000  # the index of 20 rows, not 200 kB of text
    assert pickle.loads(sent)[7] == rows[7]


def test_index_is_used_again_and_renewed(
    write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from basic_lite.data import index

    path = write_rows([row("a", "Hi", "Ho")])
    first = open_rows(path)
    with monkeypatch.context() as patch:
        patch.setattr(index, "build_index", None)  # a second pass over the file would fail
        again = open_rows(path)
    assert again.sha256 == first.sha256
    path = write_rows([row("a", "Hi", "Ho"), row("b", "Hi", "Ho")])
    assert len(open_rows(path)) == 2
    kept = path.with_name("rows.json.index")
    kept.write_bytes(kept.read_bytes()[:40])  # a broken index is made anew
    assert len(open_rows(path)) == 2


def test_index_of_a_read_only_folder_is_cached(
    write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from basic_lite.data import index

    path = write_rows([row("a", "Hi", "Ho")])
    (tmp_path / "rows.json.index").mkdir()  # nobody, not even root, can put a file there
    open_rows(path)
    monkeypatch.setattr(index, "build_index", None)
    assert len(open_rows(path)) == 1


def test_estimated_tokens() -> None:
    assert estimated_tokens("") == 1
    assert estimated_tokens("a" * 400) == 101
    assert estimated_tokens("图" * 100) == 101
    assert estimated_tokens("[0.25, 0.5]") == (5 + 6 // 4) + 1
    assert 100 < estimated_tokens("привет" * 50) < 200
    assert estimated_tokens("👋" * 10) <= 20


def test_columns_of_the_index(write_rows: Callable[..., Path]) -> None:
    rows = open_rows(
        write_rows([row("a", "<image>" + "b" * 93, "c" * 100, image="x.png"), row("a", "Hi", "Ho")])
    )
    assert rows.lengths.tolist() == [51 + 8, 2 + 8]
    assert rows.index.images.tolist() == [1, 0]
    assert rows.batch_lengths(576).tolist() == [51 + 8 + 576, 10]
    assert rows.batch_lengths(576, 600).tolist() == [600, 10]
    assert rows.index.id_hash[0] == rows.index.id_hash[1] != 0
    assert rows.lengths.dtype == np.int32


def test_a_new_layout_is_one_function(
    write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def captions(stored: dict) -> RawRow:
        turns = [("user", f"{IMAGE}\nDescribe it."), ("assistant", stored["caption"])]
        return RawRow(str(stored["key"]), [stored["file"]], turns, "captions")

    path = write_rows([{"key": 7, "file": "a.png", "caption": "A cup."}, row("b", "Hi", "Ho")])
    monkeypatch.setitem(FORMATS, "caption", captions)
    rows = open_rows(path)
    assert rows[0] == Sample(
        "7",
        (ImageRef("a.png", str(path.parent)),),
        [("user", "<image>\nDescribe it."), ("assistant", "A cup.")],
        "captions",
    )
    assert rows[1].id == "b"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("<image>\nQ", "<image>\nQ"),
        ("Q\n<image>", "<image>\nQ"),
        ("  Q <image> R\n", "<image>\nQ  R"),
        ("<image>", "<image>"),
        ("  untouched without one \n", "  untouched without one \n"),
    ],
)
def test_the_placeholder_moves_to_the_front(value, expected):
    answer = ("assistant", " <b>A</b> ")
    raw = RawRow("0", [object()] * value.count("<image>"), [("user", value), answer])
    assert normal_form(raw).turns == [("user", expected), answer]
