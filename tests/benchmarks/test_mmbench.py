"""MMBench: the published file format, the prompts byte for byte, and what is refused."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from basic_lite.benchmarks import mmbench
from basic_lite.scoring import circular_accuracy

EVAL = Path(__file__).parents[1] / "fixtures" / "eval"
HEADER = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit"
RIGHT = {
    **{7: "B", 1000007: "A", 2000007: "C", 12: "A", 1000012: "B"},
    **{20: "D", 1000020: "C", 2000020: "B", 3000020: "A"},
}


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
    rows = [question.fields for question in mmbench.read_tsv(EVAL / "mmbench_dev.tsv")]
    return circular_accuracy(rows, predictions, method)


def test_english_prompt_is_llavas_byte_for_byte():
    texts = {question.id: question.text for question in mmbench.read_tsv(EVAL / "mmbench_dev.tsv")}
    assert texts[7] == (
        "Which object is largest?\nA. ball\nB. cube\nC. cone\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert texts[1000012] == (
        "The picture was taken at night.\nIs the lamp lit?\nA. no\nB. yes\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_chinese_prompt_is_llavas_byte_for_byte():
    texts = {question.id: question.text for question in mmbench.read_tsv(EVAL / "mmbench_dev_cn.tsv", "cn")}
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
    questions = mmbench.read_tsv(EVAL / "mmbench_dev.tsv", prompt_style=style)
    assert questions[3].text == expected


def test_lmms_chinese_prompt_has_its_own_heading_and_suffix():
    question = mmbench.read_tsv(EVAL / "mmbench_dev_cn.tsv", "cn", "lmms")[0]
    assert question.text == (
        "哪个物体最大？ 有如下几个选项：\nA. 球\nB. 立方体\nC. 圆锥\n\n"
        "请直接使用所提供的选项字母作为答案回答。"
    )


def test_vlmevalkit_llava_suffix_follows_the_script_of_the_text():
    question = mmbench.read_tsv(EVAL / "mmbench_dev_cn.tsv", "en", "vlmevalkit_llava")[0]
    assert question.text.endswith("\n请直接回答选项字母。")


def test_rotations_share_the_picture_that_their_image_cell_points_at():
    questions = {question.id: question for question in mmbench.read_tsv(EVAL / "mmbench_dev.tsv")}
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
    questions = mmbench.read_tsv(path)
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
    for question, (_, cells) in zip(mmbench.read_tsv(path), expected.iterrows(), strict=True):
        for name in ("question", "A", "B", "C", "category", "l2-category", "comment"):
            assert question.fields[name] == (None if pandas.isna(cells[name]) else cells[name]), name


def test_capital_column_names_and_other_column_order(tmp_path):
    header = "split\tL2-category\tIndex\tquestion\tA\tB\tC\tD\tanswer\tcategory\timage"
    path = write(tmp_path / "a.tsv", f"dev\tx\t3.0\tWhich?\tr\tb\t\t\tA\tc\t{picture()}", header=header)
    question = mmbench.read_tsv(path)[0]
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
        ("duplicate", "row index 1 comes twice"),
        ("base64", r"row 1: the image cell does not decode \(base64\)"),
        ("picture", r"row 1: the image cell does not decode \(picture\)"),
        ("pointer", "row 1: its image cell points at row 99"),
        ("loop", "holds no picture"),
        ("index", "row index 'one' is no whole number"),
        ("empty", "has a header and no rows"),
        ("absent", "does not exist"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name, message):
    with pytest.raises(ValueError, match=message) as error:
        mmbench.read_tsv(broken(tmp_path, name))
    assert "\n" not in str(error.value)


def test_unknown_prompt_style_names_the_known_ones():
    with pytest.raises(ValueError, match="llava, lmms"):
        mmbench.read_tsv(EVAL / "mmbench_dev.tsv", prompt_style="mine")


@pytest.mark.parametrize("method", ["exact_matching", "lmms_static"])
def test_all_right_is_one_everywhere(method):
    result = score(RIGHT, method)
    assert result.overall == result.vanilla == result.all_rows == 1.0
    assert set(result.per_category.values()) == set(result.per_l2_category.values()) == {1.0}
    assert (result.n_questions, result.n_rows, result.n_unparsed) == (3, 9, 0)


@pytest.mark.parametrize("method", ["exact_matching", "lmms_static"])
def test_one_wrong_rotation_loses_its_question(method):
    result = score({**RIGHT, 2000007: "A"}, method)
    assert result.overall == pytest.approx(2 / 3)
    assert result.per_l2_category == {
        "finegrained_perception (instance-level)": 0.5,
        "logic_reasoning": 1.0,
    }
    assert result.per_category["object_localization"] == 0.0


@pytest.mark.parametrize("method", ["exact_matching", "lmms_static"])
def test_a_lower_case_letter_is_not_parsed(method):
    result = score({**RIGHT, 20: "a"}, method)
    assert result.overall == pytest.approx(2 / 3)
    assert result.n_unparsed == 1


def test_always_the_same_letter_scores_zero():
    result = score(dict.fromkeys(RIGHT, "A"))
    assert result.overall == 0.0
    assert result.vanilla == result.all_rows == pytest.approx(1 / 3)
    assert result.histogram == {"A": 9}


@pytest.mark.parametrize(("method", "expected"), [("lmms_static", 1.0), ("exact_matching", 2 / 3)])
def test_a_long_answer_is_matched_by_text_in_lmms_only(method, expected):
    result = score({**RIGHT, 12: "It is lit, yes"}, method)
    assert result.overall == pytest.approx(expected)
    assert result.text_share == pytest.approx(1 / 9 if method == "lmms_static" else 0)


def test_a_missing_prediction_is_wrong_and_counted():
    result = score({index: text for index, text in RIGHT.items() if index != 12})
    assert result.overall == pytest.approx(2 / 3)
    assert result.n_missing == result.n_unparsed == 1
