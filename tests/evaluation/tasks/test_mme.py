"""MME: two questions a picture, points per category, the files of its calculation script."""

import pytest

from basic_lite.evaluation.files import Source
from basic_lite.evaluation.statistics import value_of
from basic_lite.evaluation.tasks import mme

PLEASE = " Please answer yes or no."
SHORT = "Answer the question using a single word or phrase."


def make(folder):
    data = folder(
        {},
        ["MME/artwork/images/1.jpg", "MME/count/b.png", "MME/count/a.png", "MME/code_reasoning/c.png"],
    )
    root = data / "MME"
    (root / "artwork" / "questions_answers_YN").mkdir()
    texts = {
        "artwork/questions_answers_YN/1.txt": "Is it by X? Please answer yes or no.\tYes",
        "count/a.txt": f"Are there 2?{PLEASE}\tYes\nAre there 3?{PLEASE}\tNo\n",
        "count/b.txt": f"Is there 1?{PLEASE}\tYes\nIs it 4?{PLEASE}\tNo\n",
        "code_reasoning/c.txt": "Is it 8? Please answer yes or no.\tNo",
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    return root


def test_questions_of_both_folder_layouts(folder):
    root = make(folder)
    asked = {question.id: question for question in mme.BENCHMARK.read(Source(root, "test"))}
    assert list(asked) == [
        *("count/a.png/1", "count/a.png/2", "count/b.png/1", "count/b.png/2"),
        *("artwork/1.jpg/1", "code_reasoning/c.png/1"),
    ]
    assert asked["count/a.png/1"].text == f"Are there 2?\n{SHORT}"
    assert asked["count/a.png/2"].answer == "no"
    assert asked["artwork/1.jpg/1"].image == root / "artwork" / "images" / "1.jpg"


def test_points(folder):
    asked = mme.BENCHMARK.read(Source(make(folder), "test"))
    answers = dict(zip([q.id for q in asked], ["yes", "No.", "yes", "yes", "no", "no"], strict=True))
    result = mme.score(asked, answers, "mme_official")
    # count: 3 of 4 answers and 1 of 2 pictures; artwork: nothing; code_reasoning: all.
    assert result.breakdown["points"] == {"artwork": 0.0, "code_reasoning": 200.0, "count": 125.0}
    assert result.value == result.figures["perception"] == 125.0
    assert result.figures["cognition"] == 200.0
    assert result.metric == "perception points"
    assert value_of(result.outcomes.values(), result.statistic) == result.value  # cognition is left out


READ = {"Yes": "yes yes", "no.": "no no", "Yes, it is": "yes yes", "None": "no no", "I know": "None None"}
READ |= {"": "None None", "y": "None yes", "   yes": "None yes"}


@pytest.mark.parametrize("text", READ)
def test_an_answer_is_read_from_its_start(text):
    read = [mme.yes_or_no(text, scorer) for scorer in mme.RULES]
    assert " ".join(map(str, read)) == READ[text]
