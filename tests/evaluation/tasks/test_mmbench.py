"""MMBench: the published file format, the prompts byte for byte, and what is refused."""

import base64
import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from basic_lite.evaluation.files import Source
from basic_lite.evaluation.tasks import mmbench
from basic_lite.evaluation.tasks.mmbench import circular_accuracy

EVAL = Path(__file__).parents[2] / "fixtures" / "eval"
ENGLISH, CHINESE = mmbench.BENCHMARKS
HEADER = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit"
RIGHT = {
    **{7: "B", 1000007: "A", 2000007: "C", 12: "A", 1000012: "B"},
    **{20: "D", 1000020: "C", 2000020: "B", 3000020: "A"},
}


def read(path, benchmark=ENGLISH, style="llava"):
    return benchmark.read(Source(path, "dev"), style)


def picture(colour="red") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write(path, *rows, header=HEADER):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def row(index, image=None, a="red", b="blue", c="", d="", answer="A", hint=""):
    cells = [index, "Which?", hint, a, b, c, d, answer, "colour", image or picture(), "s", "l2", "", "dev"]
    return "\t".join(str(cell) for cell in cells)


def score(predictions, method="exact_matching"):
    rows = [question.fields for question in read(EVAL / "mmbench_dev.tsv")]
    return circular_accuracy(rows, predictions, method)


def test_english_prompt_is_llavas_byte_for_byte():
    texts = {question.id: question.text for question in read(EVAL / "mmbench_dev.tsv")}
    assert texts[7] == (
        "Which object is largest?\nA. ball\nB. cube\nC. cone\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert texts[1000012] == (
        "The picture was taken at night.\nIs the lamp lit?\nA. no\nB. yes\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_chinese_prompt_is_llavas_byte_for_byte():
    texts = {question.id: question.text for question in read(EVAL / "mmbench_dev_cn.tsv", CHINESE)}
    assert texts[12] == "照片拍摄于夜晚。\n灯是亮的吗？\nA. 是的\nB. 不是\n请直接回答选项字母。"


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (
            "lmms",
            "The picture was taken at night. Is the lamp lit? There are several options:\nA. yes\nB. no\n\n"
            "Answer with the option's letter from the given choices directly.",
        ),
        (
            "vlmevalkit",
            "Hint: The picture was taken at night.\nQuestion: Is the lamp lit?\nOptions:\nA. yes\nB. no\n"
            "Please select the correct answer from the options above. \n",
        ),
        (
            "vlmevalkit_llava",
            "The picture was taken at night.\nIs the lamp lit?\nA. yes\nB. no\n"
            "Answer with the option's letter from the given choices directly.",
        ),
    ],
)
def test_harness_prompts_by_name(style, expected):
    questions = read(EVAL / "mmbench_dev.tsv", style=style)
    assert questions[3].text == expected


def test_lmms_chinese_prompt_has_its_own_heading_and_suffix():
    question = read(EVAL / "mmbench_dev_cn.tsv", CHINESE, "lmms")[0]
    assert question.text == (
        "哪个物体最大？ 有如下几个选项：\nA. 球\nB. 立方体\nC. 圆锥\n\n"
        "请直接使用所提供的选项字母作为答案回答。"
    )


def test_vlmevalkit_llava_suffix_follows_the_script_of_the_text():
    question = read(EVAL / "mmbench_dev_cn.tsv", style="vlmevalkit_llava")[0]
    assert question.text.endswith("\n请直接回答选项字母。")


def test_rotations_share_the_picture_that_their_image_cell_points_at():
    questions = {question.id: question for question in read(EVAL / "mmbench_dev.tsv")}
    assert questions[2000007].image is questions[7].image
    assert questions[7].open_image().size == (4, 4)
    assert questions[7].max_new_tokens == 1024


def test_cells_are_text_and_missing_as_pandas_and_llava_read_them(tmp_path):
    path = write(
        tmp_path / "a.tsv",
        row(1, a="5.0", b="None", c="7"),
        row(2, a="1e3", b="n/a", hint="NaN"),
        row(3, a="01", b='"NA"', c="NONE"),
    )
    questions = read(path)
    # As in LLaVA the prompt stops at the first missing option; both harnesses still score the third.
    assert questions[0].text.split("\n")[1:-1] == ["A. 5.0"]
    assert dict(questions[0].choices) == {"A": "5.0", "C": "7"}
    assert questions[1].text.split("\n")[:2] == ["Which?", "A. 1e3"]
    assert dict(questions[2].choices) == {"A": "01"}


def test_reading_agrees_with_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [row(1, a='"a ""quoted""\tcell"', b='"two\nlines"'), row(2, a='5" wide', b="null", c="<NA>")]
    path = write(tmp_path / "a.tsv", *rows)
    expected = pandas.read_csv(path, sep="\t", dtype=str)
    for question, (_, cells) in zip(read(path), expected.iterrows(), strict=True):
        for name in ("question", "A", "B", "C", "category", "l2-category", "comment"):
            assert question.fields[name] == (None if pandas.isna(cells[name]) else cells[name]), name


def test_missing_cells_are_pandas_own():
    parsers = pytest.importorskip("pandas._libs.parsers")
    assert mmbench.PANDAS_NA == parsers.STR_NA_VALUES


def test_capital_column_names_and_other_column_order(tmp_path):
    header = "split\tL2-category\tIndex\tquestion\tA\tB\tC\tD\tanswer\tcategory\timage"
    path = write(tmp_path / "a.tsv", f"dev\tx\t3.0\tWhich?\tr\tb\t\t\tA\tc\t{picture()}", header=header)
    question = read(path)[0]
    assert question.id == 3
    assert question.fields["l2-category"] == "x"


def broken(tmp_path, name):
    path = tmp_path / "broken.tsv"
    if name == "columns":
        return write(path, "1\tWhich?", header="index\tquestion")
    if name == "cut off":
        text = write(path, row(1), row(2)).read_text()
        path.write_text(text[: text.rindex("\tcolour") + 30])
        return path
    if name == "duplicate":
        return write(path, row(1), row(1))
    if name == "base64":
        return write(path, row(1, image="@" * 100))
    if name == "picture":
        return write(path, row(1, image=base64.b64encode(b"x" * 90).decode()))
    if name == "pointer":
        return write(path, row(1, image="99"))
    if name == "loop":
        return write(path, row(1, image="2"), row(2, image="1"))
    if name == "index":
        return write(path, row("one"))
    if name == "empty":
        return write(path)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("columns", "is no MMBench TSV: column A, B, C, D, image, answer, category is missing"),
        ("cut off", "row 3 has 10 of 14 columns"),
        ("duplicate", "id 1 comes twice"),
        ("base64", r"row 1: the image cell does not decode \(base64\)"),
        ("picture", r"row 1: the image cell does not decode \(picture\)"),
        ("pointer", "row 1: its image cell '99' leads to no picture"),
        ("loop", "row 1: its image cell '2' leads to no picture"),
        ("index", "row index 'one' is no whole number"),
        ("empty", "has a header and no rows"),
        ("absent", "does not exist"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name, message):
    with pytest.raises(ValueError, match=message) as error:
        read(broken(tmp_path, name))
    assert "\n" not in str(error.value)


def test_unknown_prompt_style_names_the_known_ones():
    with pytest.raises(ValueError, match="llava, lmms"):
        read(EVAL / "mmbench_dev.tsv", style="mine")


@pytest.mark.parametrize("method", ["exact_matching", "lmms_static"])
def test_all_right_is_one_everywhere(method):
    result = score(RIGHT, method)
    assert result.value == result.figures["vanilla"] == result.figures["all_rows"] == 100
    assert {value for groups in result.breakdown.values() for value in groups.values()} == {100}
    assert (result.figures["n_questions"], result.figures["n_rows"], result.unparsed) == (3, 9, 0)


@pytest.mark.parametrize("method", ["exact_matching", "lmms_static"])
def test_one_wrong_rotation_loses_its_question(method):
    result = score({**RIGHT, 2000007: "A"}, method)
    assert result.value == pytest.approx(200 / 3)
    assert result.breakdown["l2-category"] == {
        "finegrained_perception (instance-level)": 50,
        "logic_reasoning": 100,
    }
    assert result.breakdown["category"]["object_localization"] == 0


@pytest.mark.parametrize("method", ["exact_matching", "lmms_static"])
def test_a_lower_case_letter_is_not_parsed(method):
    result = score({**RIGHT, 20: "a"}, method)
    assert result.value == pytest.approx(200 / 3)
    assert result.unparsed == 1


def test_always_the_same_letter_scores_zero():
    result = score(dict.fromkeys(RIGHT, "A"))
    assert result.value == 0
    assert result.figures["vanilla"] == result.figures["all_rows"] == pytest.approx(100 / 3)
    assert result.figures["letters"] == {"A": 9}


@pytest.mark.parametrize(("method", "expected"), [("lmms_static", 100), ("exact_matching", 200 / 3)])
def test_a_long_answer_is_matched_by_text_in_lmms_only(method, expected):
    result = score({**RIGHT, 12: "It is lit, yes"}, method)
    assert result.value == pytest.approx(expected)
    assert result.figures["resolved_by_text"] == pytest.approx(100 / 9 if method == "lmms_static" else 0)


def test_a_missing_prediction_is_wrong_and_counted():
    result = score({index: text for index, text in RIGHT.items() if index != 12})
    assert result.value == pytest.approx(200 / 3)
    assert (result.missing, result.unparsed) == (1, 0)


def ask(name="mmbench_dev.tsv", benchmark=ENGLISH):
    return read(EVAL / name, benchmark)


def test_score_reports_all_figures():
    result = mmbench.score(ask(), {**RIGHT, 12: "?"}, "exact_matching")
    assert result.value == pytest.approx(200 / 3)
    assert (result.unparsed, result.missing, result.metric) == (1, 0, "circular accuracy")
    assert result.items == {7: 1.0, 12: 0.0, 20: 1.0}
    assert result.categories[20] == "future_prediction"
    assert result.figures["vanilla"] == pytest.approx(200 / 3)
    assert result.figures["all_rows"] == pytest.approx(800 / 9)
    assert result.figures["letters"] == {"A": 2, "B": 3, "C": 2, "D": 1}
    assert (result.figures["n_questions"], result.figures["n_rows"]) == (3, 9)
    assert result.breakdown["l2-category"]["logic_reasoning"] == 100.0


def test_chinese_answers_are_counted_both_ways():
    asked = ask("mmbench_dev_cn.tsv", CHINESE)
    answers = {question.id: f"答案：{question.answer}" for question in asked}
    plain = mmbench.score(asked, answers, "exact_matching")
    folded = mmbench.score(asked, answers, "exact_matching_normalise_cn")
    assert (plain.value, folded.value) == (0.0, 100.0)
    for result in (plain, folded):
        assert result.figures["as_answered"] == {"value": 0.0, "parse_failures": 5}
        assert result.figures["normalise_cn"] == {"value": 100.0, "parse_failures": 0}
    assert "normalise_cn" not in mmbench.score(ask(), RIGHT, "exact_matching").figures


def test_a_row_without_an_answer_cannot_be_scored(tmp_path):
    asked = read(write(tmp_path / "a.tsv", row(1, answer="")))
    with pytest.raises(ValueError, match="row 1 has no answer: score a labelled split, or export"):
        mmbench.score(asked, {1: "A"}, "exact_matching")


def test_hub_rows_with_nan_texts(parquet, png, fixtures):
    line = json.loads((fixtures / "mmbench_hf_row.json").read_text())
    rows = [
        {**line, "image": {"bytes": png(), "path": None}},
        {**line, "index": 7, "hint": None, "image": None},
    ]
    data = parquet(rows, "en/dev-00000-of-00001.parquet")
    first, second = ENGLISH.read(Source(data, "dev"))
    assert first.text == (
        "Which object is largest?\nA. cube\nB. cone\nC. ball\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert first.id == 1000007
    assert first.fields["l2-category"] == "finegrained_perception (instance-level)"
    assert first.open_image().size == (4, 4)
    assert second.image is None


def test_a_test_file_may_lack_answers(tmp_path):
    header = "index\tquestion\tA\tB\tC\tD\timage"
    path = write(tmp_path / "a.tsv", f"3\tWhich?\tr\tb\t\t\t{picture()}", header=header)
    assert ENGLISH.read(Source(path, "test"))[0].answer is None
    with pytest.raises(ValueError, match="column answer, category is missing"):
        ENGLISH.read(Source(path, "dev"))


def test_submission_needs_openpyxl_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(ValueError, match="pip install openpyxl"):
        mmbench.export(ask(), RIGHT, tmp_path / "s.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_submission_has_the_servers_columns(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    path = mmbench.export(ask(), {7: "=B\x00", 12: "A"}, tmp_path / "s.xlsx")
    rows = list(openpyxl.load_workbook(path).active.values)
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[1] == (7, "Which object is largest?", "ball", "cube", "cone", None, "=B", "B", "dev")
    assert rows[4][6] == "A"
    assert len(rows) == 10


def calls_to_score(questions: int) -> float:
    """Count the calls of functions, of Python and C, that scoring so many questions makes per row."""
    rows, answers = [], {}
    for question in range(questions):
        options = [f"an option with some words {question} {k}" for k in range(4 if question % 25 < 18 else 3)]
        for k in range(len(options)):
            index = question + k * 1_000_000
            turned = dict(zip("ABCD", options[k:] + options[:k], strict=False))
            rows.append(
                {"index": index, **turned, "answer": "A", "category": f"c{question % 20}", "l2-category": "l"}
            )
            answers[index] = f"I would say that it shows {options[question % 3]}, as far as I can see"
    count = 0

    def look(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(look)
    try:
        for method in ("exact_matching", "lmms_static"):
            circular_accuracy(rows, answers, method)
    finally:
        sys.setprofile(None)
    return count / len(rows)


def test_a_row_costs_the_same_whatever_the_size():
    """The published 4,329 rows take a twentieth of a second; nothing is looked for again in every row."""
    assert calls_to_score(1_000) < 1.1 * calls_to_score(100)
