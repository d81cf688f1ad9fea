"""The benchmarks of one share right per question: their rules beside the public ones, and their files.

The references are written anew from the sources that each module names, in the originals' own steps.
"""

from __future__ import annotations

import base64
import csv
import json
import random
import re

import numpy as np
import pytest

from basic_lite.evaluation.question import Question
from basic_lite.evaluation.statistics import bootstrap_interval, value_of, weighted_groups
from basic_lite.evaluation.table import BENCHMARKS, load
from basic_lite.evaluation.tasks import chartqa, cvbench, docvqa, hallusionbench, mmmu, mmstar, mmvp, ocrbench
from basic_lite.evaluation.tasks import realworldqa as rwqa

OPTIONS = {"A": "red", "B": "dark blue", "C": "green", "D": "no"}
PIECES = (
    *("A", "B", "C", "D", "a", "b", "(A)", "(b)", "B.", "C:", "option ", "Option B", "the answer is ", "The"),
    *(
        "red",
        "dark blue",
        "green",
        "no",
        "yes",
        "Yes.",
        "NO",
        "not",
        "1,234",
        "1234",
        "5%",
        "0.05",
        "0",
        "3.14",
    ),
    *(
        "-2",
        "1e3",
        "so ",
        "is ",
        "= ",
        "answer ",
        "therefore ",
        "\n",
        " ",
        " ",
        ". ",
        ",",
        "!",
        "'",
        "x",
        "",
        "Red",
    ),
)


def answers(count=400):
    chance = random.Random(0)
    drawn = ["".join(chance.choices(PIECES, k=chance.randrange(1, 9))) for _ in range(count)]
    return [*drawn, *PIECES]


def asked(answer=None, several=(), **more):
    return Question("1", "?", None, 1, answer=answer, answers=tuple(several), choices=OPTIONS, **more)


def mmstar_reference(pred, gt):
    answer, predict = gt.lower().strip().replace("\n", " "), pred.lower().strip().replace("\n", " ")
    try:
        if answer == predict[0]:
            return 1.0
        if predict[0] == "(" and answer == predict[1]:
            return 1.0
        if predict[0:7] == "option " and answer == predict[7]:
            return 1.0
        if predict[0:14] == "the answer is " and answer == predict[14]:
            return 1.0
    except IndexError:
        return 0.0
    return 0.0


def relaxed_reference(prediction, target):
    def number(text):
        try:
            return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
        except ValueError:
            return None

    said, true = number(prediction), number(target)
    if said is not None and true:
        return abs(said - true) / abs(true) <= 0.05
    return prediction.lower() == target.lower()


def anls_reference(said, truths):
    def levenshtein(a, b):
        table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
        table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
        for i in range(len(a)):
            for j in range(len(b)):
                change = table[i, j] + (a[i] != b[j])
                table[i + 1, j + 1] = min(table[i, j + 1] + 1, table[i + 1, j] + 1, change)
        return table[-1, -1]

    distances = []
    for truth in truths:
        clean = [" ".join(text.strip().lower().split()) for text in (truth, said)]
        length = max(len(truth.upper()), len(said.upper()))
        distances.append(0.0 if length == 0 else levenshtein(*clean) / length)
    result = 1 - min(distances)
    return 0 if result < 0.5 else result


def ocrbench_reference(pred, truths, formula):
    score = 0
    for truth in truths:
        if formula:
            said = pred.strip().replace("\n", " ").replace(" ", "")
            score |= truth.strip().replace("\n", " ").replace(" ", "") in said
        else:
            said = pred.lower().strip().replace("\n", " ")
            score |= truth.lower().strip().replace("\n", " ") in said
    return score


def yes_no_reference(output):
    def process(text):
        out = text
        for mark in ';/[]"{}()=+\\_-><@`,?!':
            if mark + " " in text or " " + mark in text or re.search(r"(\d)(,)(\d)", text):
                out = out.replace(mark, "")
            else:
                out = out.replace(mark, " ")
        return re.sub(r"(?<!\d)\.(?!\d)", "", out, count=32)

    words = process(output.lower()).split()
    if "yes" in words and "no" not in words:
        return "yes"
    return "no" if "yes" not in words and "no" in words else None


def mmvp_reference(text):
    text = text.strip()
    for pattern in (
        r"^\s*\(?([AB])\)?\.?\s*$",
        r"^\s*\(?([AB])\)?[\.\s]",
        r"answer\s+is\s+\(?([AB])\)?",
        r"option\s+\(?([AB])\)?",
        r"\(?([AB])\)?(?:\s|$)",
    ):
        match = re.search(pattern, text, flags=re.IGNORECASE)
        if match:
            return match.group(1).upper()
    return text[0].upper() if text and text[0].upper() in "AB" else ""


def mmmu_choice_reference(response, choices):
    for char in [",", ".", "!", "?", ";", ":", "'"]:
        response = response.strip(char)
    response = " " + response + " "
    by_index, bracket = True, False
    candidates = [c for c in choices if f"({c})" in response]
    bracket = bool(candidates)
    candidates = candidates or [c for c in choices if f"{c} " in response]
    candidates = candidates or [c for c in choices if f"{c}." in response]
    if not candidates and len(response.split()) > 5:
        candidates = [c for c, text in choices.items() if text.lower() in response.lower()]
        by_index = False
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    if not by_index:
        starts = [response.lower().rfind(choices[c].lower()) for c in candidates]
    else:
        starts = [response.rfind(f"({c})" if bracket else f" {c} ") for c in candidates]
    return candidates[int(np.argmax(starts))]


def mmmu_open_reference(response, truth):
    def normal(text):
        text = text.strip()
        try:
            return [round(float(text.replace(",", "")), 2)]
        except ValueError:
            return [" " + text.lower(), text.lower() + " "] if len(text) == 1 else [text.lower()]

    response = response.strip().strip(".").lower()
    parts = re.split(r"\.\s(?=[A-Z])|\n", response)
    marks = ["could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "]
    keys = []
    for number, part in enumerate(parts):
        if number == len(parts) - 1:
            marks.append("=")
        shortest = None
        for mark in marks:
            if mark in part:
                end = part.split(mark)[-1].strip()
                if not shortest or len(end) < len(shortest):
                    shortest = end
        if shortest and shortest not in [":", ",", ".", "!", "?", ";", "'"]:
            keys.append(shortest)
    keys = keys or [response]
    said = list(keys)
    for key in keys:
        said += re.findall(r"-?\b\d{1,3}(?:,\d{3})+\b", key)
        said += re.findall(r"-?\d+(?:\.\d+)?[eE][+-]?\d+", key)
        said += re.findall(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])", key)
    said = [form for text in said for form in normal(text)]
    true = normal(truth)
    return any(
        any(isinstance(t, str) and t in form for t in true) if isinstance(form, str) else form in true
        for form in said
    )


def test_letters_as_mmstar_mmvp_cvbench_and_mmmu_read_them():
    hits = dict.fromkeys(("mmstar", "mmvp", "cv", "mmmu"), 0)
    for text in answers():
        for letter in "AB":
            row = asked(letter)
            assert mmstar.starts_with(text, row) == mmstar_reference(text, letter)
            assert (mmvp.letter_of(text) or "") == mmvp_reference(text)
            match = re.match(r"[\(\s]*([A-Z])[\)\.\s]*", text.strip(), flags=re.IGNORECASE)
            known = match.group(1).upper() == letter if match else None
            assert cvbench.RULES["cv_bench"](text, row) == known
            assert mmmu.chosen(text, OPTIONS, mmmu.LMMS) == mmmu_choice_reference(text, OPTIONS)
            hits["mmstar"] += mmstar.starts_with(text, row)
            hits["mmvp"] += mmvp.letter_of(text) == letter
            hits["cv"] += bool(known)
            hits["mmmu"] += mmmu.right(text, row) == 1
    assert min(hits.values()) > 20  # the strings do reach the rules


def test_open_answers_as_chartqa_docvqa_ocrbench_realworldqa_and_mmmu_compare_them():
    right = dict.fromkeys(("chart", "doc", "ocr", "mmmu"), 0)
    for text in answers():
        for truth in ("5%", "0", "1234", "1,234", "Dark Blue", "red", "x"):
            row = asked(truth, (truth, "green"), fields={"formula": False})
            formula = asked(truth, (truth, "green"), fields={"formula": True})
            assert chartqa.relaxed(text, row) == relaxed_reference(text, truth)
            assert docvqa.anls(text, row) == pytest.approx(anls_reference(text, (truth, "green")), abs=1e-12)
            for question in (row, formula):
                known = ocrbench_reference(text, question.answers, question.fields["formula"])
                assert ocrbench.holds(text, question) == known
            assert rwqa.equal(text, row) == (text.lower().strip().rstrip(".") == truth.lower().strip())
            opened = Question("1", "?", None, 1, answers=(truth,))
            assert mmmu.right(text, opened) == mmmu_open_reference(text, truth)
            right["chart"] += chartqa.relaxed(text, row)
            right["doc"] += docvqa.anls(text, row) > 0
            right["ocr"] += ocrbench.RULES["ocrbench"](text, formula)
            right["mmmu"] += mmmu.right(text, opened)
    assert min(right.values()) > 20


def test_yes_and_no_as_vlmevalkit_reads_them():
    said = [hallusionbench.yes_or_no(text) for text in answers()]
    assert said == [yes_no_reference(text) for text in answers()]
    assert {"yes", "no", None} == set(said)
    assert hallusionbench.yes_or_no("yes and no") is None


def test_numbers_near_zero_and_per_cent():
    assert rwqa.equal(" Red. ", asked("red")) == 1
    # The B ends a word: for lmms-eval a candidate, but not the last one, for MMMU none.
    assert mmmu.chosen("A CB", OPTIONS) == mmmu.chosen("A CB", OPTIONS, mmmu.LMMS) == "A"
    assert mmmu.chosen("CB", OPTIONS) is None
    assert mmmu.chosen("CB", OPTIONS, mmmu.LMMS) == "B"
    assert chartqa.relaxed("10.5", asked("10")) == 1
    assert chartqa.relaxed("10.51", asked("10")) == 0
    assert chartqa.relaxed("0.05", asked("5%")) == 1
    assert chartqa.relaxed("0.0", asked("0")) == 0  # a zero is compared as words
    assert docvqa.anls("abcd", asked("", ("abxx",))) == 0.5
    assert docvqa.anls("abcd", asked("", ("axxx",))) == 0


def test_hallusionbenchs_three_shares():
    def question(category, figure, number, answer="yes"):
        identity = f"{category}_map_0_{figure}_{number}"
        fields = {"category": category, "subcategory": "map", "figure": figure}
        fields |= {"by_figure": f"map_0_{figure}", "by_question": f"map_0_{number}"}
        return Question(identity, "?", None, 1, answer=answer, fields=fields)

    rows = [question("VS", "0", "0"), question("VS", "1", "0", "no"), question("VS", "1", "1")]
    rows += [question("VD", "1", "0")]
    given = dict(zip((row.id for row in rows), ("Unsure", "No", "no", "yes"), strict=True))
    kit = hallusionbench.score(rows, given, "yes_no_vlmevalkit")
    assert kit.value == pytest.approx(50)  # of four answers the two in the middle of the list and the last
    assert kit.figures["fAcc"] == pytest.approx(0)  # figure 0 unclear; figure 1 has a wrong answer
    assert kit.figures["qAcc"] == pytest.approx(0)
    own = hallusionbench.score(rows, given, "yes_no_original")
    assert own.value == pytest.approx(75)  # unclear without a picture is right
    assert own.figures["fAcc"] == pytest.approx(50)  # VS figure 1 wrong, VD figure 1 right, figure 0 left out
    assert own.figures["qAcc"] == pytest.approx(200 / 3)  # VS 0 right, VS 1 wrong, VD 0 right
    assert own.unparsed == 0
    assert kit.unparsed == 1


def test_cvbench_weighs_its_sources_and_mmvp_counts_pairs():
    sources = ["ADE20K"] * 3 + ["COCO"] + ["Omni3D"] * 2
    rows = [
        Question(n, "?", None, 1, answer="A", choices=OPTIONS, fields={"source": source, "task": "t"})
        for n, source in enumerate(sources)
    ]
    given = dict(enumerate(["A", "B", "B", "A", "A", "B"]))
    score = cvbench.score(rows, given, "cv_bench")
    assert score.value == pytest.approx(100 * 0.5 * ((1 / 3 + 1) / 2 + 1 / 2))
    assert score.figures["accuracy_over_questions"] == pytest.approx(50)
    low, high = score.interval()
    assert low < score.value < high
    cells = list(score.cells.values())
    assert bootstrap_interval(cells, weighted_groups, clusters=range(6)) == pytest.approx((low, high))
    assert value_of(cells, "weighted_groups") == score.value
    pairs = [
        Question(n, "?", None, 1, answer="AB"[n % 2], choices=OPTIONS, fields={"pair": (n + 1) // 2})
        for n in (1, 2, 99, 100)
    ]
    said = {1: "B", 2: "A", 99: "B", 100: "B"}
    plain = mmvp.score(pairs, said, "mmvp")
    assert (plain.value, plain.figures["accuracy_over_questions"]) == (50, 75)
    assert mmvp.score(pairs, {**said, 100: "A"}, "mmvp_corrected").value == 100
    assert mmvp.CORRECTED == {99: "B", 100: "A", 279: "B", 280: "A"}


TABLES = {  # name -> the file, and its columns besides index, question, answer and image
    line.split()[0]: line.split()[1:]
    for line in """
        mmstar MMStar.tsv A B C D category l2_category
        ai2d AI2D_TEST.tsv A B C D category
        realworldqa RealWorldQA.tsv A B C D
        chartqa ChartQA_TEST.tsv split
        docvqa DocVQA_VAL.tsv
        infovqa InfoVQA_VAL.tsv
        ocrbench OCRBench.tsv category
        cv-bench CV-Bench-2D.tsv A B source category
        hallusionbench HallusionBench.tsv category l2-category
        mmmu MMMU_DEV_VAL.tsv A B C D category split
    """.strip().splitlines()
}
CELLS = {
    "A": "red",
    "B": "dark blue",
    "C": "",
    "D": "",
    "category": "c",
    "l2_category": "d",
    "source": "COCO",
}
CELLS |= {"l2-category": "map", "question": "What?"}
OWN = {
    "chartqa": {"answer": "['12']", "split": "test_human"},
    "docvqa": {"answer": "['a page', 'the page']"},
    "infovqa": {"answer": "['a page']"},
    "ocrbench": {"answer": "['TEXT']"},
    "hallusionbench": {"answer": "Yes", "category": "VD"},
    "mmmu": {"split": "validation"},
}


def write_tsv(path, name, png):
    columns = ["index", "question", "answer", *TABLES[name][1:]]
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, delimiter="\t")
        out.writerow([*columns, "image"])
        for number in range(3):
            row = {"answer": "B", **CELLS, **OWN.get(name, {}), "index": number}
            if name == "hallusionbench":
                row["index"] = f"hallusion_VD_map_0_{number}_1"
            image = base64.b64encode(png(size=(4 + number % 2, 4))).decode()
            out.writerow(
                [row[column] for column in columns]
                + ["0" if number == 2 and name != "hallusionbench" else image]
            )


@pytest.mark.parametrize("name", TABLES)
def test_vlmevalkits_tables_are_read(tmp_path, png, name):
    write_tsv(tmp_path / TABLES[name][0], name, png)
    for data in (tmp_path, tmp_path / TABLES[name][0]):
        questions = load(name, data, limit=9)
        assert len(questions) == 3
        assert all(question.open_image() is not None for question in questions)
    row = BENCHMARKS[name]
    first = questions[0]
    if name not in ("hallusionbench",):
        assert questions[2].picture == first.picture != questions[1].picture
    if first.choices:
        assert {"A": "red", "B": "dark blue"} == dict(first.choices)
        assert "dark blue" in first.text
        assert first.text.endswith("Answer with the option's letter from the given choices directly.")
    given = {q.id: str(q.answer or q.answers[0]) for q in questions}
    for scorer in row.scorers:
        assert row.score(questions, given, scorer).value == 100
        assert row.score(questions, {}, scorer).value == 0
    cut = (tmp_path / TABLES[name][0]).read_text().replace("question", "quest", 1)
    (tmp_path / TABLES[name][0]).write_text(cut)
    with pytest.raises(ValueError, match="TSV: column question is missing"):
        load(name, tmp_path / TABLES[name][0], limit=9)


def test_the_hubs_rows_are_read(parquet, png, tmp_path):
    picture = {"bytes": png(), "path": None}
    text = {"question": "What?", "image": picture}
    listed = {"question": "What?", "options": ["red", "blue"], "answer": "1", "image": picture}
    kind = {"dataset": "HME100k", "question_type": "Handwritten Mathematical Expression Recognition"}
    figure = {"category": "VS", "subcategory": "map", "set_id": "0", "figure_id": "1", "question_id": "0"}
    rows = {
        "mmstar": {**text, "index": 0, "answer": "B", "category": "c", "l2_category": "d"},
        "ai2d": listed,
        "realworldqa": {**text, "answer": "B"},
        "chartqa": {**text, "answer": ["12"], "type": "human_test"},
        "ocrbench": {**text, **kind, "answer": ["x + 1"]},
        "cv-bench": {"idx": 0, "task": "Count", "prompt": "How many? (A) 1 (B) 2", "choices": ["1", "2"]}
        | {"answer": "(B)", "source": "COCO", "image": picture},
        "mmvp": {"Index": 1, "Question": "Open?", "Options": "(a) Open (b) Closed", "Correct Answer": "(b)"}
        | {"image": picture},
        "hallusionbench": {**text, **figure, "gt_answer": "1"},
    }
    splits = {"mmstar": "val", "hallusionbench": "image"}
    for name, row in rows.items():
        data = f"{name}/data/{splits.get(name, 'test')}-00000-of-00001.parquet"
        parquet([row], data)
        question = load(name, tmp_path / name, limit=9)[0]
        assert question.open_image().size == (4, 4)
        given = {question.id: str(question.answer or question.answers[0])}
        assert BENCHMARKS[name].score([question], given, BENCHMARKS[name].scorers[0]).value == 100
        with pytest.raises(ValueError, match="has 1 rows and not"):
            load(name, tmp_path / name)
    pages = {"questionId": "7", **text, "answers": ["a page"], "ucsf_document_id": "d"}
    parquet([{**pages, "ucsf_document_page_no": "1"}], "docvqa/DocVQA/validation-00000-of-00001.parquet")
    assert load("docvqa", tmp_path / "docvqa", limit=9)[0].picture == "d/1"
    choice = {"id": "validation_Art_Theory_3", "question": "<image 1> or <image 2>?", "answer": "B"}
    choice |= {"options": "['red', '<image 2>']", "question_type": "multiple-choice", "image_1": picture}
    parquet([choice], "mmmu/data/validation-00000-of-00001.parquet", image="image_1")
    question = load("mmmu", tmp_path / "mmmu", limit=9)[0]
    assert question.category == "Art_Theory"
    assert question.fields["pictures"] == 2
    assert question.text == (
        "<image 1> or <image 2>?\n(A) red\n(B) <image 2>\n\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_original_files_are_read(tmp_path, png):
    def put(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    put(
        "chartqa/test/test_human.json",
        json.dumps([{"imgname": "1.png", "query": "How much?", "label": "12"}]),
    )
    put("chartqa/png/1.png", png())
    (tmp_path / "chartqa/test/test_human.json").rename(tmp_path / "chartqa/test_human.json")
    page = {"questionId": 3, "question": "Who?", "image": "documents/p.png", "answers": ["me"]}
    put("docvqa/val_v1.0_withQT.json", json.dumps({"data": [page]}))
    put("docvqa/documents/p.png", png())
    line = {
        "image_path": "a/b.png",
        "question": "Which?",
        "answers": "word",
        "type": "Regular Text Recognition",
    }
    put("ocrbench/OCRBench.json", json.dumps([line]))
    put("ocrbench/OCRBench_Images/a/b.png", png())
    put("mmvp/Questions.csv", "Index,Question,Options,Correct Answer\n1,Open?,(a) Open (b) Closed,(a)\n")
    put("mmvp/MMVP Images/1.jpg", png())
    blind = {"category": "VS", "subcategory": "map", "set_id": "0", "figure_id": "0", "question_id": "1"}
    blind |= {"question": "Is it so?", "gt_answer": "0", "filename": None}
    seen = {**blind, "figure_id": "1", "filename": "./hallusion_bench/VS/map/0_1.png"}
    put("hallusionbench/HallusionBench.json", json.dumps([blind, seen]))
    put("hallusionbench/hallusion_bench/VS/map/0_1.png", png())
    for name in ("chartqa", "docvqa", "ocrbench", "mmvp", "hallusionbench"):
        (question,) = load(name, tmp_path / name, limit=9)
        assert question.open_image().size == (4, 4)
        assert BENCHMARKS[name].score(
            [question], {question.id: "no word me 12 A"}, BENCHMARKS[name].scorers[0]
        )
    both = load("hallusionbench", tmp_path / "hallusionbench", split="all", limit=9)
    assert [question.image is None for question in both] == [True, False]
    (tmp_path / "mmvp/MMVP Images/1.jpg").unlink()
    with pytest.raises(ValueError, match="1 of 1 pictures are missing"):
        load("mmvp", tmp_path / "mmvp", limit=9)
