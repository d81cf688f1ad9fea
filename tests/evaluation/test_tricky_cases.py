"""The cases that make two correct-looking scorers disagree, one test each."""

import pytest

from basic_lite.evaluation.choices import extract_option, resolve_option
from basic_lite.evaluation.open_answers import normalize, vqa_accuracy
from basic_lite.evaluation.tasks import pope
from basic_lite.evaluation.tasks.mmbench import circular_accuracy, normalise_cn

COLOURS = {"A": "red", "B": "blue", "C": "green", "D": "yellow"}
YES_NO = {"A": "yes", "B": "no"}
FARBEN = {"A": "红色", "B": "蓝色", "C": "绿色", "D": "黄色"}


@pytest.mark.parametrize("variant", ["m4c", "vqa_official", "vlmevalkit"])
def test_articles_alone_become_empty_and_match_an_empty_answer(variant):
    assert [normalize(text, variant) for text in ("a", "A", "the", "An")] == ["", "", "", ""]
    assert normalize("n/a", variant) == "n"
    assert vqa_accuracy("the", ["a"] * 10, "vqa_m4c") == 1.0


@pytest.mark.parametrize("variant", ["m4c", "vqa_official", "vlmevalkit"])
def test_none_is_zero_eleven_is_a_word_and_numbers_go_word_by_word(variant):
    assert normalize("none", variant) == normalize("zero", variant) == "0"
    assert normalize("eleven", variant) == "eleven"
    assert normalize("twenty one", variant) == "twenty 1"


def test_a_comma_between_digits_deletes_all_punctuation_except_in_m4c():
    assert normalize("1,000-2", "vqa_official") == "10002"
    assert normalize("1,000-2", "m4c") == "1000 2"
    assert normalize("3, 4", "vqa_official") == normalize("3, 4", "m4c") == "3 4"


@pytest.mark.parametrize("variant", ["m4c", "vqa_official", "vlmevalkit"])
def test_only_the_first_32_dots_are_removed(variant):
    assert normalize("x" + "." * 40 + "y", variant) == "x" + "." * 8 + "y"


def test_a_dot_behind_a_final_digit_stays_in_vlmevalkit_alone():
    values = {variant: normalize("5.", variant) for variant in ("m4c", "vqa_official", "vlmevalkit")}
    assert values == {"m4c": "5", "vqa_official": "5", "vlmevalkit": "5."}


def test_possessives_match_themselves_in_m4c_and_fail_on_the_server():
    answers = ["woman's"] * 10
    assert vqa_accuracy("woman's", answers, "vqa_m4c") == 1.0
    assert vqa_accuracy("woman's", answers, "vqa_official") == 1.0
    assert vqa_accuracy("woman's", answers, "vqa_official_on_m4c") == 0.0


def test_identical_answers_are_compared_with_their_case():
    assert vqa_accuracy("Yes", ["yes"] * 10, "vqa_official") == 0.0
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["no"], "vqa_official") == 1.0
    assert vqa_accuracy("yes\n", [" yes\t"] * 10, "vqa_official") == 1.0  # breaks go before the comparison


def test_a_as_an_article_is_a_letter_for_vlmevalkit_and_not_for_lmms():
    # VLMEvalKit would refuse it too under its VERBOSE variable, which is ignored here.
    assert extract_option("A dog is here", COLOURS, "exact_matching") == "A"
    assert extract_option("A dog is here", COLOURS, "lmms_can_infer") is None
    assert extract_option("A dog here", COLOURS, "lmms_can_infer") == "A"


def test_verbose_in_the_environment_changes_nothing(monkeypatch):
    monkeypatch.setenv("VERBOSE", "1")
    assert extract_option("A dog is here", COLOURS, "exact_matching") == "A"


def test_an_option_inside_another_word_is_resolved_by_text_and_reported():
    assert resolve_option("I don't know", YES_NO, "lmms_static") == ("B", "text")
    assert resolve_option("nothing", YES_NO, "exact_matching") == ("B", "text")
    rows = [{"index": 1, **YES_NO, "answer": "B", "category": "c", "l2-category": "l"}]
    assert circular_accuracy(rows, {1: "nothing"}, "exact_matching").figures["resolved_by_text"] == 100


def test_an_option_that_reads_as_missing_is_no_option():
    rows = [{"index": 1, "A": "5.0", "B": "None", "C": None, "D": float("nan"), "answer": "B"}]
    assert circular_accuracy(rows, {1: "B"}, "exact_matching").unparsed == 1
    rows = [{"index": 1, "A": "5.0", "B": "", "C": "x", "answer": "C"}]  # "" would be part of every answer
    assert circular_accuracy(rows, {1: "an x"}, "exact_matching").value == 100
    rows = [{"index": 1, "A": "5.0", "B": "none of these", "answer": "B"}]
    assert circular_accuracy(rows, {1: "B"}, "exact_matching").value == 100


def test_pope_takes_an_answer_without_denial_for_a_yes_an_empty_one_too():
    said = {
        text: pope.yes_or_no(text, "pope_llava") for text in ("", "Yes.", "no", "No, there is", "not one")
    }
    assert said == {"": "yes", "Yes.": "yes", "no": "no", "No, there is": "no", "not one": "no"}
    assert pope.yes_or_no("There is. No doubt", "pope_llava") == "yes"  # only the first sentence counts
    assert pope.yes_or_no("NO", "pope_llava") == "yes"  # the three spellings are exact
    assert [pope.yes_or_no(text, "pope_lmms") for text in (" Yes", "no.", "")] == ["yes", "other", "other"]


# Columns: prediction, choices, lmms_can_infer, lmms_static, exact_matching, llava_sqa, lmms_sqa.
EXTRACTIONS = [
    ("A.", COLOURS, "A", "A", "A", None, "A"),
    ("A. red", COLOURS, "A", "A", "A", "A", "A"),
    ("(A)", COLOURS, "A", "A", "A", None, None),
    ("A)", COLOURS, "A", "A", "A", None, None),
    ("A:", COLOURS, "A", "A", "A", None, None),
    ("A, B", COLOURS, "B", "B", None, None, None),
    ("A and B", COLOURS, None, "A", None, None, None),
    ("The answer is C.", COLOURS, "C", "C", "C", "C", None),
    ("Answer: B", COLOURS, "B", "B", "B", None, None),
    ("A dog is red", COLOURS, "A", "A", "A", None, None),
    ("D", YES_NO, "D", "D", None, None, None),
    ("I don't know", YES_NO, "B", "B", None, None, None),
    ("no", YES_NO, "B", "B", "B", None, None),
    ("  ", COLOURS, None, None, None, None, None),
    ("B\nbecause", COLOURS, "B", "B", "B", None, None),
    ("红色和蓝色", FARBEN, None, None, None, None, None),
]
METHODS = ("lmms_can_infer", "lmms_static", "exact_matching", "llava_sqa", "lmms_sqa")


@pytest.mark.parametrize("row", EXTRACTIONS, ids=lambda row: row[0])
def test_extraction_table_beyond_the_oracle(row):
    prediction, choices, *expected = row
    assert [extract_option(prediction, choices, method) for method in METHODS] == expected


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("B is what I see in this picture, I think", None),  # a letter too far from the end
        ("B is what I see in this picture. The correct answer is **C**", "C"),  # two letters, one stated
        ("see B here in this picture, I think. The answer is b", "B"),
        ("Sorry, I can't help with images of people yet.", "Z"),
        ("Failed to obtain answer via API: B", None),
        ("Failed to obtain answer via API: blue", None),
    ],
)
def test_exact_matching_looks_near_the_end_only(prediction, expected):
    choices = dict.fromkeys("ABCD", "x" * 40)
    assert extract_option(prediction, choices, "exact_matching") == expected


def test_a_stated_answer_is_read_where_two_letters_stand():
    assert extract_option("B or C? the correct answer is **C**", COLOURS, "exact_matching") == "C"
    assert extract_option("A or B, the answer is e", COLOURS, "exact_matching") is None


def test_the_last_resort_of_lmms_prefers_the_later_of_equal_surroundings():
    assert extract_option("(A) no, (B) yes", COLOURS, "lmms_static") == "B"
    assert extract_option("xA) no; 答案是C啊", COLOURS, "lmms_static") == "C"  # a phrase beats a bracket
    assert (
        extract_option("The answer is A; the correct answer is B or rather A", COLOURS, "lmms_static") == "A"
    )


def test_the_sqa_rule_wants_exactly_one_statement_in_range():
    three = {"A": "x", "B": "y", "C": "z"}
    assert extract_option("The answer is B. Or: The answer is C.", three, "llava_sqa") is None
    assert extract_option("The answer is D.", three, "llava_sqa") is None
    assert extract_option("C. because", three, "llava_sqa") == "C"
    assert extract_option("C.because", three, "llava_sqa") is None


@pytest.mark.parametrize("text", ["B。", "（B）", "答案：B", "Ｂ", "B、"])
def test_chinese_marks_and_full_width_letters_fold_on_request(text):
    assert extract_option(text, FARBEN, "exact_matching") is None
    assert extract_option(normalise_cn(text), FARBEN, "exact_matching") == "B"


@pytest.mark.parametrize(
    ("call", "known"),
    [
        (lambda: normalize("x", "mine"), "m4c, vqa_official, vlmevalkit"),
        (lambda: vqa_accuracy("x", ["x"], "mine"), "vqa_official, vqa_official_on_m4c"),
        (lambda: extract_option("A", COLOURS, "mine"), "exact_matching, lmms_static"),
        (lambda: vqa_accuracy("x", [], "vqa_m4c"), "no public labels"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(call, known):
    with pytest.raises(ValueError, match=known):
        call()


@pytest.mark.parametrize("variant", ["m4c", "vqa_official", "vlmevalkit"])
@pytest.mark.parametrize("mark", ';/[]"{}()=+\\_-><@`!')
def test_each_mark_is_a_space_inside_a_word_and_nothing_beside_one(variant, mark):
    assert normalize(f"x{mark}y", variant) == "x y"
    assert normalize(f"x{mark} y", variant) == normalize(f"x {mark}y", variant) == "x y"
    assert (
        normalize(f"x{mark}y z{mark} w", variant) == "xy z w"
    )  # beside a space anywhere: deleted everywhere


@pytest.mark.parametrize("variant", ["m4c", "vqa_official", "vlmevalkit"])
def test_other_marks_stay_and_contractions_are_written_out(variant):
    assert normalize("10:30 50% $5 #1 & * ~ ^ | ' ’", variant) == "10:30 50% $5 #1 & * ~ ^ | ' ’"
    assert normalize("dont Oclock", variant) == "don't o'clock"
    assert normalize("ive im", variant) == "ive im"  # keys with a capital never match
