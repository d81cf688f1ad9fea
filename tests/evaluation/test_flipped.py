"""The page of flipped questions."""

from basic_lite.evaluation.compare import compare
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.show import write_page
from basic_lite.evaluation.statistics import Score
from basic_lite.evaluation.table import load
from basic_lite.evaluation.tasks.mmbench import score


def test_a_page_shows_pictures_and_both_answers_and_escapes_them(tmp_path, png):
    asked = [
        Question(1, "Is <b> bold?\nShort.", png("blue"), 8, answer="yes"),
        Question(2, "Two?", None, 8, answers=("2", "two")),
        Question(3, "Same?", None, 8, answer="no"),
    ]
    before = Score("accuracy", "s", 66.7, {1: 1.0, 2: 0.0, 3: 1.0}, right_wrong=True)
    after = Score("accuracy", "s", 66.7, {1: 0.0, 2: 1.0, 3: 1.0}, right_wrong=True)
    answers = {"plain": {1: "yes", 2: "<script>", 3: "no"}, "basic": {1: "no", 3: "no"}}
    path = write_page(compare(before, after), "gqa", asked, answers, tmp_path / "f.html")
    page = path.read_text(encoding="utf-8")
    assert "Is &lt;b&gt; bold?" in page
    assert "<script>" not in page
    assert page.count("data:image/jpeg;base64,") == 1
    assert page.count('<article class="lost">') == page.count('<article class="gained">') == 1
    assert "Same?" not in page
    assert "(none)" in page
    assert "McNemar, exact" in page
    assert "2, two" in page


def test_an_mmbench_question_comes_with_its_rotations(tmp_path, fixtures):
    asked = load("mmbench", fixtures / "mmbench_dev.tsv", limit=9)
    right = {question.id: question.answer for question in asked}
    wrong = {**right, 1000012: "A"}
    result = compare(score(asked, right, "exact_matching"), score(asked, wrong, "exact_matching"))
    answers = {"A": right, "B": wrong}
    path = write_page(result, "mmbench", asked, answers, tmp_path / "f.html")
    page = path.read_text(encoding="utf-8")
    assert result.lost == (12,)
    assert page.count("<article") == 1
    assert page.count("Is the lamp lit?") == 2
    short = write_page(result, "mmbench", asked, answers, tmp_path / "g.html", most=0)
    assert "0 of 1 lost questions are shown." in short.read_text(encoding="utf-8")
