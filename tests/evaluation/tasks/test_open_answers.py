"""VQAv2, TextVQA and VizWiz: files, prompts, scores of the fixtures, submissions."""

import json

import pytest

from basic_lite.evaluation.files import Source
from basic_lite.evaluation.table import load
from basic_lite.evaluation.tasks import textvqa, vizwiz, vqav2

SHORT = "Answer the question using a single word or phrase."
IDS = (101000, 101001, 202000)


def vqa_questions(fixtures):
    return vqav2.BENCHMARK.read(Source(fixtures, "val", with_images=False))


def test_vqav2_prompt_and_record(folder):
    data = folder(
        {
            "vqav2_questions.json": "v2_OpenEnded_mscoco_val2014_questions.json",
            "vqav2_annotations.json": "v2_mscoco_val2014_annotations.json",
        },
        ["val2014/COCO_val2014_000000000101.jpg", "val2014/COCO_val2014_000000000202.jpg"],
    )
    first = load("vqav2", data, limit=3)[0]
    assert first.text == f"Is the kettle red?\n{SHORT}"
    assert (first.id, first.max_new_tokens, first.category) == (101000, 128, "yes/no")
    assert first.image == data / "val2014" / "COCO_val2014_000000000101.jpg"
    assert first.open_image().size == (4, 4)
    assert first.answers == ("yes",) * 10
    assert load("vqav2", data, prompt_style="lmms", limit=1)[0].max_new_tokens == 16


@pytest.mark.parametrize(
    ("answers", "scorer", "each", "overall"),
    [
        (("yes", "2", "mat"), "vqa_official", (100, 100, 100), 100.0),
        (("Yes", "two", "a rug"), "vqa_official", (0, 100, 60), 53.33),
        (("Yes", "two", "a rug"), "vqa_official_on_m4c", (100, 100, 60), 86.67),
        (("yes.", "2 cups", "door-mat"), "vqa_official", (0, 30, 30), 20.0),
    ],
)
def test_vqav2_scores_of_the_fixture(fixtures, answers, scorer, each, overall):
    result = vqav2.BENCHMARK.score(vqa_questions(fixtures), dict(zip(IDS, answers, strict=True)), scorer)
    assert [100 * result.items[identity] for identity in IDS] == pytest.approx(each)
    assert round(result.value, 2) == overall
    assert result.breakdown["answer_type"]["yes/no"] == pytest.approx(each[0])
    assert result.breakdown["question_type"]["how many"] == pytest.approx(each[1])
    assert "test-dev" in result.notes[0]


def test_vqav2_default_scorer_is_what_llava_submits(fixtures):
    assert vqav2.BENCHMARK.scorers[0] == "vqa_official_on_m4c"


def test_vqav2_missing_and_empty_answers_are_counted(fixtures):
    result = vqav2.BENCHMARK.score(vqa_questions(fixtures), {101000: "yes", 101001: " "}, "vqa_lmms")
    assert (result.missing, result.unparsed) == (1, 1)
    assert result.value == pytest.approx(100 / 3)


def test_vqav2_submission_normalises_and_fills_up(fixtures, tmp_path):
    path = vqav2.BENCHMARK.export(
        vqa_questions(fixtures), {101001: "Two."}, tmp_path / "out" / "submission.json"
    )
    assert json.loads(path.read_text()) == [
        {"question_id": 101000, "answer": ""},
        {"question_id": 101001, "answer": "2"},
        {"question_id": 202000, "answer": ""},
    ]


def test_vqav2_test_questions_come_from_llavas_file_too(folder, png):
    data = folder({}, ["test2015/COCO_test2015_000000262144.jpg"])
    row = {"question_id": 262144000, "image": "COCO_test2015_000000262144.jpg", "category": "default"}
    text = f"Is the ball flying towards the batter?\n{SHORT}"
    (data / "llava_vqav2_mscoco_test-dev2015.jsonl").write_text(json.dumps({**row, "text": text}) + "\n")
    question = vqav2.BENCHMARK.read(Source(data, "test-dev"))[0]
    assert question.text == text
    assert question.image == data / "test2015" / "COCO_test2015_000000262144.jpg"
    assert question.answers == ()
    with pytest.raises(ValueError, match="no public labels"):
        vqav2.BENCHMARK.score([question], {262144000: "yes"}, "vqa_official")


def test_vqav2_from_parquet_equals_the_files(fixtures, parquet, png):
    content = {row["question_id"]: row for row in read(fixtures / "vqav2_annotations.json")["annotations"]}
    rows = [
        {**content[row["question_id"]], **row, "image": {"bytes": png(), "path": None}}
        for row in read(fixtures / "vqav2_questions.json")["questions"]
    ]
    data = parquet(rows, "data/validation-00000-of-00001.parquet")
    there = vqav2.BENCHMARK.read(Source(data, "val"))
    assert [(q.id, q.text, q.answers, q.category) for q in there] == [
        (q.id, q.text, q.answers, q.category) for q in vqa_questions(fixtures)
    ]
    assert there[0].open_image().size == (4, 4)


def test_vqav2_files_that_do_not_belong_together(folder, fixtures):
    data = folder({"vqav2_questions.json": "vqav2_questions.json"})
    content = read(fixtures / "vqav2_annotations.json")
    content["annotations"] = content["annotations"][:1]
    (data / "vqav2_annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"2 questions have no annotation \(first: 101001\)"):
        vqav2.BENCHMARK.read(Source(data, "val"))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def textvqa_questions(fixtures, style="llava"):
    return textvqa.BENCHMARK.read(Source(fixtures, "val", with_images=False), style)


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("llava", f"What is the brand of the bottle?\nReference OCR token: COLA, Zero, 300ml\n{SHORT}"),
        ("llava_no_ocr", f"What is the brand of the bottle?\n{SHORT}"),
        ("lmms", f"What is the brand of the bottle?\n{SHORT}"),
        ("lmms_ocr", f"What is the brand of the bottle?\nReference OCR token: COLA, Zero, 300ml\n{SHORT}"),
    ],
)
def test_textvqa_prompts(fixtures, style, expected):
    assert textvqa_questions(fixtures, style)[0].text == expected


@pytest.mark.parametrize(
    ("answers", "each", "value"),
    [
        (("cola", "40"), (1.0, 1.0), 100.0),
        (("Coca-Cola", "forty"), (0.6, 0.3), 45.0),
        (("Cola", "40 mph"), (1.0, 0.3), 65.0),
        (("coke", ""), (0.3, 0.0), 15.0),
    ],
)
def test_textvqa_scores_of_the_fixture(fixtures, answers, each, value):
    result = textvqa.BENCHMARK.score(
        textvqa_questions(fixtures), dict(zip((50001, 50002), answers, strict=True)), "vqa_m4c"
    )
    assert list(result.items.values()) == pytest.approx(each)
    assert result.value == pytest.approx(value)
    assert result.breakdown["image_class"]["Bottle"] == pytest.approx(100 * each[0])


def test_textvqa_tells_questions_about_one_picture_apart(folder, fixtures):
    data = folder(
        {"textvqa_ocr.json": "TextVQA_Rosetta_OCR_v0.2_val.json"}, ["train_images/aaaa000000000001.jpg"]
    )
    content = read(fixtures / "textvqa_val.json")
    for row in content["data"]:
        row["image_id"] = "aaaa000000000001"
    (data / "TextVQA_0.5.1_val.json").write_text(json.dumps(content))
    questions = textvqa.BENCHMARK.read(Source(data, "val"))
    assert [question.id for question in questions] == [50001, 50002]
    assert textvqa.BENCHMARK.score(questions, {50001: "cola", 50002: "40"}, "vqa_m4c").value == 100.0


def test_textvqa_without_tokens_says_what_to_do(folder):
    data = folder({"textvqa_val.json": "TextVQA_0.5.1_val.json"})
    with pytest.raises(ValueError, match="--prompt-style llava_no_ocr"):
        textvqa.BENCHMARK.read(Source(data, "val", with_images=False))
    assert len(textvqa.BENCHMARK.read(Source(data, "val", with_images=False), "llava_no_ocr")) == 2


def test_textvqa_tokens_of_another_split(folder, fixtures):
    data = folder({"textvqa_val.json": "TextVQA_0.5.1_val.json"})
    (data / "textvqa_ocr.json").write_text(
        json.dumps({"data": read(fixtures / "textvqa_ocr.json")["data"][:1]})
    )
    with pytest.raises(ValueError, match=r"lacks the tokens of 1 pictures \(first: aaaa000000000002\)"):
        textvqa.BENCHMARK.read(Source(data, "val", with_images=False))


def test_textvqa_from_parquet_equals_the_files(fixtures, parquet, png):
    tokens = {row["image_id"]: row["ocr_tokens"] for row in read(fixtures / "textvqa_ocr.json")["data"]}
    rows = [
        {**row, "ocr_tokens": tokens[row["image_id"]], "image": {"bytes": png(), "path": None}}
        for row in read(fixtures / "textvqa_val.json")["data"]
    ]
    there = textvqa.BENCHMARK.read(Source(parquet(rows, "data/validation-00000-of-00001.parquet"), "val"))
    assert [(q.id, q.text, q.answers) for q in there] == [
        (q.id, q.text, q.answers) for q in textvqa_questions(fixtures)
    ]


def test_textvqa_submission(fixtures, tmp_path):
    path = textvqa.BENCHMARK.export(textvqa_questions(fixtures), {50001: "A Cola."}, tmp_path / "s.json")
    assert read(path) == [{"question_id": 50001, "answer": "cola"}, {"question_id": 50002, "answer": ""}]


def vizwiz_questions(fixtures, split="val", style="llava"):
    return vizwiz.BENCHMARK.read(Source(fixtures, split, with_images=False), style)


def test_vizwiz_prompt(fixtures):
    assert vizwiz_questions(fixtures)[0].text == (
        "What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT
    )


@pytest.mark.parametrize(
    ("answers", "official", "m4c"),
    [
        (("a can", "Unanswerable.", "yes"), (1, 1, 0), (1, 1, 0)),
        (("tin can", "unsuitable", "no"), (0.3, 1, 1), (0.3, 1, 1)),
    ],
)
def test_vizwiz_scores_of_the_fixture(fixtures, answers, official, m4c):
    questions = vizwiz_questions(fixtures)
    predictions = dict(zip((question.id for question in questions), answers, strict=True))
    result = vizwiz.score(questions, predictions, "vizwiz_official")
    assert list(result.items.values()) == pytest.approx(official)
    assert list(vizwiz.score(questions, predictions, "vqa_m4c").items.values()) == pytest.approx(m4c)
    assert result.figures["vqa_m4c"] == pytest.approx(100 * sum(m4c) / 3)
    assert result.figures["unanswerable"] == 100.0
    assert result.breakdown["answer_type"]["other"] == pytest.approx(100 * official[0])


def test_vizwiz_official_does_not_normalise_the_humans(fixtures):
    import dataclasses

    question = dataclasses.replace(vizwiz_questions(fixtures)[0], answers=("a can",) * 10)
    values = {name: vizwiz.score([question], {question.id: "a can"}, name).value for name in vizwiz.SCORERS}
    assert values == {"vizwiz_official": 0.0, "vqa_m4c": 100.0}


def test_vizwiz_test_has_no_labels_and_a_submission(fixtures, tmp_path):
    questions = vizwiz_questions(fixtures, "test")
    path = vizwiz.export(questions, {"VizWiz_test_00000001": "The can"}, tmp_path / "s.json")
    assert read(path) == [{"image": "VizWiz_test_00000001.jpg", "answer": "can"}]
    with pytest.raises(ValueError, match="no public labels"):
        vizwiz.score(questions, {"VizWiz_test_00000001": "can"}, "vizwiz_official")
    with pytest.raises(ValueError, match="1 questions have no prediction"):
        vizwiz.export(questions, {}, tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_vizwiz_from_parquet_equals_the_files(fixtures, parquet, png):
    rows = [
        {
            "question_id": question.id,
            "image": {"bytes": png(), "path": None},
            "question": question.text.split("\n")[0],
            "answers": list(question.answers),
            "category": question.category,
        }
        for question in vizwiz_questions(fixtures)
    ]
    there = vizwiz.BENCHMARK.read(Source(parquet(rows, "data/val-00000-of-00001.parquet"), "val"))
    assert [(q.id, q.text, q.answers, q.fields) for q in there] == [
        (q.id, q.text, q.answers, q.fields) for q in vizwiz_questions(fixtures)
    ]
