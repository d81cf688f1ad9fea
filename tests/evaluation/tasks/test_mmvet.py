"""MM-Vet: questions, judge prompts, grades of a named judge, and the proxy that says it is one."""

import json

import pytest

from basic_lite.evaluation.files import Source
from basic_lite.evaluation.judge import read_grades, read_rule, write_prompts
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.table import scorer_of
from basic_lite.evaluation.tasks import mmvet
from basic_lite.evaluation.tasks.mmvet import OWN_TABLE, proxy_substring

FIRST, SECOND = mmvet.BENCHMARKS

ANSWERS = {"v1_0": "x is -2", "v1_1": "The Sedan.", "v1_2": "A dog.\nIt sleeps."}


def questions(fixtures, style="llava"):
    return FIRST.read(Source(fixtures, "test", with_images=False), style)


def judged(asked, path, judge="gpt-4-0613"):
    return FIRST.grading.score(asked, ANSWERS, read_grades(path, asked, FIRST.grading), judge)


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_llava_asks_the_bare_question(folder):
    data = folder({"mm-vet.json": "mm-vet.json"}, [f"images/v1_{i}.png" for i in range(3)])
    first = FIRST.read(Source(data, "test"))[0]
    assert (first.id, first.text, first.max_new_tokens) == ("v1_0", "What is x in the equation?", 1024)
    assert first.image == data / "images" / "v1_0.png"


def test_lmms_asks_for_reasoning(fixtures):
    text = questions(fixtures, "lmms")[0].text
    assert text.startswith("First please perform reasoning, and think step by step")
    assert text.endswith("following question: \n\nWhat is x in the equation?")


def test_grades_of_the_fixture(fixtures, tmp_path):
    grades = write(tmp_path / "g.json", {"v1_0": 0.5, "v1_1": 1.0, "v1_2": 0.0})
    result = judged(questions(fixtures), grades)
    assert result.value == 50.0
    assert result.breakdown["capability"] == {
        **{"gen": 0.0, "math": 50.0, "ocr": 75.0, "rec": 50.0, "spat": 100.0}
    }
    assert result.breakdown["capability_set"] == {"gen+rec": 0.0, "math+ocr": 50.0, "ocr+rec+spat": 100.0}
    assert result.metric == "MM-Vet score, judged by gpt-4-0613"


def test_runs_of_mmvets_own_grade_file_are_averaged(fixtures, tmp_path):
    runs = {"v1_0": [0.5, 0.7], "v1_1": [1.0, 1.0], "v1_2": [0.0, 0.1]}
    content = {identity: {"model": [], "content": [], "score": scores} for identity, scores in runs.items()}
    result = judged(questions(fixtures), write(tmp_path / "g.json", content))
    assert result.figures["runs"] == pytest.approx([50.0, 60.0])
    assert result.value == pytest.approx(55.0)
    assert result.figures["std_of_runs"] == pytest.approx(5.0)  # numpy's, as the original prints it


def test_no_score_without_a_judge(fixtures):
    result = FIRST.score(questions(fixtures), ANSWERS, "unjudged")
    assert result.value is result.interval() is None
    assert "no judge" in result.notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"v1_0": 0.5}, "2 ids differ"),
        ({"v1_0": 0.5, "v1_1": 1.0, "v1_2": 1.5}, "grade of v1_2 is 1.5"),
        ({"v1_0": 0.5, "v1_1": True, "v1_2": 0.5}, "grade of v1_1 is True"),
        ({"v1_0": 0.5, "v1_1": "1.0", "v1_2": 0.5}, "grade of v1_1 is '1.0'"),
        ({"v1_0": 0.5, "v1_1": {"score": []}, "v1_2": 0.5}, "grade of v1_1"),
        ({"v1_0": 0.5, "v1_1": {"score": [1, 1]}, "v1_2": 0.5}, "different numbers of runs"),
        (["v1_0"], "does not grade exactly"),
    ],
)
def test_grades_that_do_not_fit_are_refused(fixtures, tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        judged(questions(fixtures), write(tmp_path / "g.json", content))


def test_judge_prompt_ends_where_the_grade_belongs(fixtures, tmp_path):
    path = write_prompts(FIRST.grading, questions(fixtures), ANSWERS, tmp_path / "p.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["v1_0", "v1_1", "v1_2"]
    assert rows[0]["prompt"] == OWN_TABLE + "\nWhat is x in the equation? | -2 <AND> 7 | x is -2 | "
    assert rows[1]["prompt"].endswith("| blue sedan <OR> sedan | The Sedan. | ")
    assert rows[2]["prompt"].endswith("| A dog.\nIt sleeps. | ")


def test_the_official_table_is_taken_from_the_evaluators_script(tmp_path):
    script = tmp_path / "mm-vet_evaluator.py"
    script.write_text('import os\nprompt = """Grade it.\n\nQuestion | Correctness\n"""\nprint(prompt)\n')
    assert read_rule(script) == "Grade it.\n\nQuestion | Correctness\n"
    question = Question("v1_0", "Q?", None, 1, answer="a", fields={"question": "Q?"})
    assert mmvet.judge_prompt(question, "b", read_rule(script)) == (
        "Grade it.\n\nQuestion | Correctness\n\nQ? | a | b | "
    )
    (tmp_path / "table.txt").write_text("T\n")
    assert read_rule(tmp_path / "table.txt") == "T\n"
    script.write_text("prompt = 3")
    for path in (script, tmp_path / "none.txt"):
        with pytest.raises(ValueError, match="holds no judge prompt"):
            read_rule(path)


@pytest.mark.parametrize(
    ("prediction", "answer", "share"),
    [
        ("x is -2", "-2<AND>7", 0.5),
        ("-2 or 7", "-2<AND>7", 1.0),
        ("a Sedan", "blue sedan<OR>sedan", 1.0),
        ("red", "blue sedan<OR>sedan", 0.0),
        ("a and c", "a<AND>b<OR>c", 1.0),
    ],
)
def test_substring_proxy(prediction, answer, share):
    assert proxy_substring(prediction, answer) == share


def test_the_proxy_says_that_it_is_no_mmvet_score(fixtures):
    result = mmvet.score(questions(fixtures), ANSWERS, "proxy_substring")
    assert result.notes[0].startswith("proxy, not MM-Vet")
    assert "not MM-Vet" in result.metric
    with pytest.raises(ValueError, match="unjudged, proxy_substring"):
        scorer_of("mmvet", "gpt")


def test_result_file_and_parquet(fixtures, tmp_path, parquet, png):
    path = mmvet.export(questions(fixtures), ANSWERS, tmp_path / "r.json")
    assert json.loads(path.read_text()) == ANSWERS
    rows = [
        {
            "question_id": q.id,
            "image": {"bytes": png(), "path": None},
            "question": q.text,
            "answer": q.answer,
            "image_source": "fixture",
            "capability": ",".join(q.fields["capability"]),
        }
        for q in questions(fixtures)
    ]
    rows[2]["image"] = {"bytes": png("blue"), "path": None}
    there = FIRST.read(Source(parquet(rows), "test"))
    assert there[0].picture == there[1].picture != there[2].picture  # the rows do not name their pictures
    assert [(q.id, q.text, q.answer, q.category) for q in there] == [
        (q.id, q.text, q.answer, q.category) for q in questions(fixtures)
    ]


V2 = {
    "v2_0": {"question": "What is x?<IMG>v2_0_0.png", "answer": "1<AND>2", "capability": ["math", "ocr"]},
    "v2_1": {
        "question": "Is <IMG>v2_1_0.jpg<IMG> like\n<IMG>v2_1_1.png<IMG> and <IMG>v2_1_0.jpg<IMG>?",
        **{"answer": "yes", "capability": ["seq", "rec"]},
    },
    "v2_2": {"question": "What is 1 + 1?", "answer": "2", "capability": ["math"]},
}


@pytest.fixture
def second(folder, png):
    data = folder({}, ["images/v2_0_0.png"])
    (data / "images/v2_1_0.jpg").write_bytes(png("blue", (10, 30)))
    (data / "images/v2_1_1.png").write_bytes(png("red", (40, 20)))
    return write(data / "mm-vet-v2.json", V2).parent


def test_version_2_puts_several_pictures_into_one_numbered_grid(second):
    first, several, none = SECOND.read(Source(second, "test"))
    assert (first.text, first.image) == ("What is x?", second / "images/v2_0_0.png")
    assert several.text == "Is (image 1) like\n(image 2) and (image 3)?"
    assert (none.image, none.open_image(), none.category) == (None, None, "math")
    grid = several.open_image()
    assert grid.size == (2 * (40 + 20), 2 * (30 + 30))  # cells of the largest sides and the margin
    # Of the cell's 60 x 60: the picture of 10 x 30 stands in the middle, its number above it.
    assert grid.getpixel((30, 45)) == grid.getpixel((30, 60 + 45)) == (0, 0, 255)
    assert grid.getpixel((60 + 30, 40)) == (255, 0, 0)
    assert grid.getpixel((60 + 30, 60 + 40)) == (255, 255, 255)  # there is no fourth
    assert grid.crop((20, 0, 45, 20)).getextrema() != ((255, 255),) * 3
    texts = [question.text for question in SECOND.read(Source(second, "test", with_images=False))]
    assert texts == [first.text, several.text, none.text]


def test_version_2_from_the_hubs_columns_equals_the_files(second, parquet, png):
    datasets = pytest.importorskip("datasets")
    asked = ["What is x?<image_0>", "Is <image_0> like\n<image_1> and <image_2>?", "What is 1 + 1?"]
    picture = {"bytes": png("blue"), "path": None}
    rows = [
        {"id": name, **V2[name], "question": text, "capability": ",".join(V2[name]["capability"])}
        | {f"image_{n}": picture if f"<image_{n}>" in text else None for n in range(3)}
        for name, text in zip(V2, asked, strict=True)
    ]
    table = datasets.Dataset.from_list(rows)
    for n in range(3):
        table = table.cast_column(f"image_{n}", datasets.Image())
    (second / "hub/data").mkdir(parents=True)
    table.to_parquet(second / "hub/data/test-00000-of-00001.parquet")
    there = SECOND.read(Source(second / "hub", "test"))
    files = SECOND.read(Source(second, "test"))
    assert [(q.id, q.text, q.answer, q.category) for q in there] == [
        (q.id, q.text, q.answer, q.category) for q in files
    ]
    assert [q.open_image() and q.open_image().size for q in there] == [(4, 4), (48, 68), None]
    table.rename_column("image_2", "picture").to_parquet(second / "hub/data/test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="question v2_1 has no picture in column image_2"):
        SECOND.read(Source(second / "hub", "test"))


def test_version_2_asks_its_judge_in_one_line_a_row(second):
    asked = SECOND.read(Source(second, "test", with_images=False))
    prompt = SECOND.grading.prompt(asked[1], "Yes,\nboth.", "T\n")
    assert prompt == "T\n| Is <image> like<br><image> and <image>? | yes | Yes,<br>both. | "
    assert SECOND.grading.prompt(asked[0], "1", "T\n") == "T\n| What is x?<image> | 1 <AND> 2 | 1 | "
