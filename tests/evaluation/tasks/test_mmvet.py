"""MM-Vet: questions, judge prompts, grades of a named judge, and the proxy that says it is one."""

import json

import pytest

from basic_lite.evaluation.files import Source
from basic_lite.evaluation.tasks import mmvet
from basic_lite.evaluation.tasks.mmvet import OWN_TABLE, judge_prompt, proxy_substring, read_table

ANSWERS = {"v1_0": "x is -2", "v1_1": "The Sedan.", "v1_2": "A dog.\nIt sleeps."}


def questions(fixtures, style="llava"):
    return mmvet.BENCHMARK.read(Source(fixtures, "test", with_images=False), style)


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_llava_asks_the_bare_question(folder):
    data = folder({"mm-vet.json": "mm-vet.json"}, [f"images/v1_{i}.png" for i in range(3)])
    first = mmvet.BENCHMARK.read(Source(data, "test"))[0]
    assert (first.id, first.text, first.max_new_tokens) == ("v1_0", "What is x in the equation?", 1024)
    assert first.image == data / "images" / "v1_0.png"


def test_lmms_asks_for_reasoning(fixtures):
    text = questions(fixtures, "lmms")[0].text
    assert text.startswith("First please perform reasoning, and think step by step")
    assert text.endswith("following question: \n\nWhat is x in the equation?")


def test_grades_of_the_fixture(fixtures, tmp_path):
    grades = write(tmp_path / "g.json", {"v1_0": 0.5, "v1_1": 1.0, "v1_2": 0.0})
    result = mmvet.judged(questions(fixtures), ANSWERS, grades, "gpt-4-0613")
    assert result.value == 50.0
    assert result.breakdown["capability"] == {
        **{"gen": 0.0, "math": 50.0, "ocr": 75.0, "rec": 50.0, "spat": 100.0}
    }
    assert result.breakdown["capability_set"] == {"gen+rec": 0.0, "math+ocr": 50.0, "ocr+rec+spat": 100.0}
    assert result.metric == "MM-Vet score, judged by gpt-4-0613"


def test_runs_of_mmvets_own_grade_file_are_averaged(fixtures, tmp_path):
    runs = {"v1_0": [0.5, 0.7], "v1_1": [1.0, 1.0], "v1_2": [0.0, 0.1]}
    content = {identity: {"model": [], "content": [], "score": scores} for identity, scores in runs.items()}
    result = mmvet.judged(questions(fixtures), ANSWERS, write(tmp_path / "g.json", content), "gpt-4-0613")
    assert result.figures["runs"] == pytest.approx([50.0, 60.0])
    assert result.value == pytest.approx(55.0)
    assert result.figures["std_of_runs"] == pytest.approx(5.0)  # numpy's, as the original prints it


@pytest.mark.parametrize("judge", [None, "", " "])
def test_no_score_without_a_named_judge(fixtures, tmp_path, judge):
    grades = write(tmp_path / "g.json", {"v1_0": 0.5, "v1_1": 1.0, "v1_2": 0.0})
    with pytest.raises(ValueError, match="name the judge with --judge"):
        mmvet.judged(questions(fixtures), ANSWERS, grades, judge)
    result = mmvet.score(questions(fixtures), ANSWERS, "unjudged")
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
        mmvet.judged(questions(fixtures), ANSWERS, write(tmp_path / "g.json", content), "j")


def test_judge_prompt_ends_where_the_grade_belongs(fixtures, tmp_path):
    path = mmvet.write_judge_prompts(questions(fixtures), ANSWERS, tmp_path / "p.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["v1_0", "v1_1", "v1_2"]
    assert rows[0]["prompt"] == OWN_TABLE + "\nWhat is x in the equation? | -2 <AND> 7 | x is -2 | "
    assert rows[1]["prompt"].endswith("| blue sedan <OR> sedan | The Sedan. | ")
    assert rows[2]["prompt"].endswith("| A dog.\nIt sleeps. | ")


def test_the_official_table_is_taken_from_the_evaluators_script(tmp_path):
    script = tmp_path / "mm-vet_evaluator.py"
    script.write_text('import os\nprompt = """Grade it.\n\nQuestion | Correctness\n"""\nprint(prompt)\n')
    assert read_table(script) == "Grade it.\n\nQuestion | Correctness\n"
    assert judge_prompt("Q?", "a", "b", read_table(script)) == (
        "Grade it.\n\nQuestion | Correctness\n\nQ? | a | b | "
    )
    (tmp_path / "table.txt").write_text("T\n")
    assert read_table(tmp_path / "table.txt") == "T\n"
    script.write_text("prompt = 3")
    for path in (script, tmp_path / "none.txt"):
        with pytest.raises(ValueError, match="holds no judge prompt"):
            read_table(path)


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
        mmvet.score(questions(fixtures), ANSWERS, "gpt")


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
    there = mmvet.BENCHMARK.read(Source(parquet(rows), "test"))
    assert there[0].picture == there[1].picture != there[2].picture  # the rows do not name their pictures
    assert [(q.id, q.text, q.answer, q.category) for q in there] == [
        (q.id, q.text, q.answer, q.category) for q in questions(fixtures)
    ]
