"""Files of the benchmarks as people have them: tables of other harnesses, other names, deeper folders."""

from __future__ import annotations

import base64
import csv
import json
import shutil

import pytest

from basic_lite.evaluation import files
from basic_lite.evaluation.benchmark import published
from basic_lite.evaluation.table import BENCHMARKS, load

TABLES = {  # benchmark -> (file, split, columns of its own)
    "mme": ("MME.tsv", None, {"category": "existence", "image_path": "existence/1.jpg", "answer": "Yes"}),
    "pope": ("POPE.tsv", None, {"category": "adversarial,popular", "answer": "Yes"}),
    "seed": ("SEEDBench_IMG.tsv", "image", {"category": "Scene Understanding", "answer": "B"}),
    "scienceqa": ("ScienceQA_TEST.tsv", None, {"answer": "B"}),
    "gqa": ("GQA_TestDev_Balanced.tsv", None, {"answer": "red"}),
    "textvqa": ("TextVQA_VAL.tsv", None, {"answer": str(["red"] * 9 + ["blue"])}),
    "mmvet": ("MMVet.tsv", None, {"category": "ocr,math", "answer": "red"}),
}
OPTIONS = {"A": "red", "B": "blue", "C": "green", "D": "none"}


def table(path, png, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, [*rows[0], "image"], delimiter="\t")
        out.writeheader()
        image = base64.b64encode(png()).decode()
        out.writerows({**row, "image": image if number == 0 else "0"} for number, row in enumerate(rows))
    return path


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("renamed", [False, True])
def test_vlmevalkits_tables_of_the_older_benchmarks(tmp_path, png, name, renamed):
    file, split, own = TABLES[name]
    style = "llava_no_ocr" if name == "textvqa" else "llava"
    rows = [
        {"index": n, "question": f"Which {n}? Please answer yes or no.", **OPTIONS, **own} for n in range(2)
    ]
    data = table(tmp_path / ("mine.tsv" if renamed else file), png, rows)
    questions = load(name, data if renamed else tmp_path, split=split, prompt_style=style, limit=9)
    assert len(questions) == (4 if name == "pope" else 2)
    assert all(question.open_image().size == (4, 4) for question in questions)
    assert len({question.picture for question in questions}) == 1 or name == "scienceqa"
    given = {q.id: str(q.answer or q.answers[0]) for q in questions}
    row = BENCHMARKS[name]
    score = row.score(questions, given, "proxy_substring" if name == "mmvet" else row.scorers[0])
    assert score.value == {"mme": 200, "textvqa": 100}.get(name, 100)
    if name == "pope":
        assert {question.category for question in questions} == {"adversarial", "popular"}
        assert len(load(name, data, split="popular", limit=9)) == 2
        assert questions[0].text.startswith("Which 0?\nAnswer")
    if name == "textvqa":
        with pytest.raises(ValueError, match="holds no OCR tokens: use --prompt-style llava_no_ocr"):
            load(name, data, limit=9)
    if name == "seed":
        assert questions[0].category == "Scene Understanding"
        with pytest.raises(ValueError, match="use --split image"):
            load(name, data, limit=9)


def test_vlmevalkits_tables_of_vizwiz_llava_bench_and_mmvp(tmp_path, png):
    rows = [{"index": n, "question": "What?", "answer": str(["can"] * 9 + ["tin"])} for n in range(2)]
    first, second = load("vizwiz", table(tmp_path / "VizWiz.tsv", png, rows), limit=9)
    assert BENCHMARKS["vizwiz"].score([first, second], {"0": "can", "1": "x"}, "vqa_m4c").value == 50
    assert first.text.endswith("'Unanswerable'.\nAnswer the question using a single word or phrase.")
    own = {"caption": "A bay.", "gpt4_ans": "Reference.", "category": "conv"}
    rows = [{"index": n, "question": "What?", **own} for n in range(2)]
    table(tmp_path / "LLaVABench.tsv", png, rows)
    first, _ = load("llava-bench", tmp_path, limit=9)
    assert (first.text, first.answer, first.fields["caption"]) == ("What?", "Reference.", "A bay.")
    rows = [
        {"index": n, "question": "Open?", "A": "Open", "B": "Closed", "answer": "AB"[n]} for n in range(2)
    ]
    table(tmp_path / "MMVP.tsv", png, rows)
    pair = load("mmvp", tmp_path, limit=9)
    assert [(q.id, q.picture, q.answer) for q in pair] == [(1, "pair 1", "A"), (2, "pair 1", "B")]
    assert pair[0].text.startswith("Open?\nA. Open\nB. Closed\n")
    assert BENCHMARKS["mmvp"].score(pair, {1: "A", 2: "B"}, "mmvp").value == 100
    assert all(question.open_image().size == (4, 4) for question in [first, *pair])


def test_llavas_own_files_of_textvqa_and_gqa(tmp_path, fixtures, png):
    """The OCR tokens stand in LLaVA's prompts; GQA's file has no answers, so it ends in a submission."""
    original = json.loads((fixtures / "textvqa_val.json").read_text())["data"]
    tokens = {
        row["image_id"]: row["ocr_tokens"]
        for row in json.loads((fixtures / "textvqa_ocr.json").read_text())["data"]
    }
    for name in ("rosetta", "llava"):
        (tmp_path / name).mkdir()
        shutil.copy(fixtures / "textvqa_val.json", tmp_path / name / "TextVQA_0.5.1_val.json")
    shutil.copy(fixtures / "textvqa_ocr.json", tmp_path / "rosetta/textvqa_ocr.json")
    lines = [
        {"question_id": row["image_id"], "image": f"{row['image_id']}.jpg"}
        | {"text": f"Q\nReference OCR token: {', '.join(tokens[row['image_id']])}\nAnswer."}
        for row in original
    ]
    asked = tmp_path / "llava/llava_textvqa_val_v051_ocr.jsonl"
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rosetta, llava = (
        load("textvqa", tmp_path / name, limit=9, with_images=False) for name in ("rosetta", "llava")
    )
    assert [question.text for question in llava] == [question.text for question in rosetta]
    asked.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(ValueError, match="lacks the tokens of 1 pictures"):
        load("textvqa", tmp_path / "llava", limit=9, with_images=False)
    gqa = tmp_path / "gqa"
    (gqa / "images").mkdir(parents=True)
    official = json.loads((fixtures / "gqa_testdev_balanced_questions.json").read_text())
    lines = [
        {
            "question_id": identity,
            "image": f"{row['imageId']}.jpg",
            "text": f"{row['question']}\nAnswer the question using a single word or phrase.",
        }
        for identity, row in official.items()
    ]
    for line in lines:
        (gqa / "images" / line["image"]).write_bytes(png())
    path = gqa / "llava_gqa_testdev_balanced.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for data in (gqa, path):
        bare = load("gqa", data, limit=9)
        assert [question.text for question in bare] == [line["text"] for line in lines]
        assert not any(question.has_label for question in bare)
    shutil.copy(fixtures / "gqa_testdev_balanced_questions.json", gqa)
    for data in (gqa, path):
        assert all(question.has_label for question in load("gqa", data, limit=9))


def test_mmbench_version_1_1_is_found_and_compared_with_nothing(tmp_path, fixtures):
    for language, name, fixture in (
        ("EN", "mmbench", "mmbench_dev.tsv"),
        ("CN", "mmbench-cn", "mmbench_dev_cn.tsv"),
    ):
        folder = tmp_path / language
        folder.mkdir()
        shutil.copy(fixtures / fixture, folder / f"MMBench_DEV_{language}_V11.tsv")
        assert load(name, folder, limit=99, with_images=False)
        row = BENCHMARKS[name]
        assert row.figures(4_876) == ({}, "")
        assert row.figures(4_329) == row.published
        row.check_size("dev", load(name, folder, limit=1, with_images=False)[:1] * 4_876)


def test_mme_one_folder_deeper_and_two(tmp_path, png):
    for deeper in ("MME_Benchmark_release_version", "MME_Benchmark_release_version/MME_Benchmark"):
        root = tmp_path / deeper.replace("/", "-") / deeper / "existence"
        root.mkdir(parents=True)
        (root / "1.jpg").write_bytes(png())
        (root / "1.txt").write_text("Is it?\tYes\nIs it not?\tNo\n")
        questions = load("mme", tmp_path / deeper.replace("/", "-"), limit=9)
        assert [question.answer for question in questions] == ["yes", "no"]


def pope_files(folder, prefix, png):
    (folder / "images").mkdir(parents=True)
    for kind in ("random", "popular", "adversarial"):
        row = {
            "question_id": 1,
            "image": f"{kind}.jpg",
            "text": "Is there a cat in the image?",
            "label": "no",
        }
        (folder / f"{prefix}_pope_{kind}.json").write_text(json.dumps(row) + "\n")
        (folder / "images" / f"{kind}.jpg").write_bytes(png())


@pytest.mark.parametrize(
    ("name", "prefix"), [("pope", "coco"), ("pope-gqa", "gqa"), ("pope-aokvqa", "aokvqa")]
)
def test_pope_on_other_pictures_and_one_split_alone(tmp_path, png, name, prefix):
    pope_files(tmp_path / "p", prefix, png)
    assert len(load(name, tmp_path / "p", limit=9)) == 3
    (question,) = load(name, tmp_path / "p", split="popular", limit=9)
    assert question.category == "popular"
    row = BENCHMARKS[name]
    assert bool(row.figures(9_000)[0]) == (name == "pope")
    assert not row.figures(3_000)[0]
    other = "pope-gqa" if name == "pope" else "pope"
    with pytest.raises(ValueError, match="has no POPE labels"):
        load(other, tmp_path / "p", limit=9)
    if name != "pope":
        with pytest.raises(ValueError, match="hold COCO's questions"):
            load(name, "hf:lmms-lab/POPE", limit=9)


def test_popes_folder_of_full_splits_alone(parquet, png, tmp_path):
    for number, kind in enumerate(("random", "popular", "adversarial")):
        row = {"question_id": str(number), "question": "Is there a cat?", "answer": "no", "category": kind}
        parquet([{**row, "image": {"bytes": png(), "path": None}}], f"p/Full/{kind}-00000-of-00001.parquet")
    assert [q.category for q in load("pope", tmp_path / "p", limit=9)] == ["random", "popular", "adversarial"]
    assert [q.category for q in load("pope", tmp_path / "p", split="popular", limit=9)] == ["popular"]


def test_seeds_figures_belong_to_the_set_that_they_were_measured_on():
    row = BENCHMARKS["seed"]
    assert row.sizes["test"] == (17_990, 19_242)
    measured_on = "all 19,242 questions, images and videos"
    assert row.figures(19_242) == published(58.6, 61.6, 60.1, 61.3, on=measured_on)
    assert row.figures(14_233)[0] == {"LLaVA-1.5-7B": 66.1}
    assert row.figures(17_990) == ({}, "")
    assert row.figures(100) == row.published  # of a part, which is marked as not comparable


def test_mmvet_v2_is_named(tmp_path):
    (tmp_path / "mm-vet-v2.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds MM-Vet v2: ask mmvet-v2"):
        load("mmvet", tmp_path, limit=9)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (
            b"index\tquestion\tanswer\timage\n1\ta\tb\tc\n",
            r"a table of tab-separated cells \(index, question",
        ),
        (b'{"a": 1}\n{"a": 2}\n', "JSON lines, one object each; one JSON value is read here"),
        (b"PK\x03\x04\xff", "a ZIP archive"),
        (b"PAR1\x15\xff", "a Parquet file"),
        (b"\x1f\x8b\x08\xff", "a gzip archive"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        (b"", "empty"),
    ],
)
def test_a_file_of_another_shape_is_named_for_what_it_is(tmp_path, content, named):
    path = tmp_path / "questions.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=named) as error:
        files.read_json(path)
    assert "damaged" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_json_list_where_lines_are_read_and_lines_that_are_broken(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('[\n{"a": 1},\n{"a": 2}\n]')
    with pytest.raises(ValueError, match="it is one JSON list; JSON lines is read here"):
        files.read_json_lines(path)
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"\n')
    with pytest.raises(ValueError, match="line 3 is no JSON: the file is cut off or damaged"):
        files.read_json_lines(path)
