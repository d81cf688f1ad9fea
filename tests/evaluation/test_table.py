"""The table: names, sizes, limits, and every benchmark from its fixtures to its results."""

import json
import re

import pytest

from basic_lite.evaluation import files
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.run import Candidate, Evaluation
from basic_lite.evaluation.statistics import value_of
from basic_lite.evaluation.table import BENCHMARKS, PAPER, load, name_of, scorer_of


def test_names():
    assert name_of("MMBench_EN") == name_of("mmbench-en") == "mmbench"
    assert name_of("mmbench_cn") == "mmbench-cn"
    assert name_of("SQA") == "scienceqa"
    with pytest.raises(ValueError, match=r"use one of ai2d, .*mmbench, mmbench-cn"):
        name_of("imagenet")
    assert set(PAPER) < set(BENCHMARKS)
    assert all(name == row.name for name, row in BENCHMARKS.items())
    # Figures stand with what they were measured on; a benchmark whose figures nobody checked has none.
    assert all(bool(row.published[0]) == bool(row.published[1]) for row in BENCHMARKS.values())
    assert all(BENCHMARKS[name].published[0] for name in (*PAPER, "pope", "mme", "seed"))


def test_published_sizes_and_decoding():
    assert {name: row.sizes[row.split] for name, row in BENCHMARKS.items()} == {
        "vqav2": (214_354,),
        "gqa": (12_578,),
        "scienceqa": (2_017,),
        "textvqa": (5_000,),
        "mmbench": (4_329, 4_377, 4_876),
        "mmbench-cn": (4_329, 4_876),
        "mmvet": (218,),
        "vizwiz": (4_319,),
        "pope": (9_000, 8_910),
        "mme": (2_374,),
        "seed": (17_990, 19_242),
        "pope-gqa": (9_000, 8_910),
        "pope-aokvqa": (9_000, 8_910),
        "mmstar": (1_500,),
        "mmmu": (900,),
        "ai2d": (3_088,),
        "realworldqa": (765,),
        "hallusionbench": (951,),
        "cv-bench": (2_638,),
        "mmvp": (300,),
        "chartqa": (2_500,),
        "ocrbench": (1_000,),
        "docvqa": (5_349,),
        "infovqa": (2_801,),
        "mmvet-v2": (517,),
        "llava-bench": (60,),
        "mine": (),
    }
    assert all(next(iter(row.styles)) == "llava" for row in BENCHMARKS.values())


def test_scorers():
    assert scorer_of("mmbench", None) == "exact_matching"
    assert scorer_of("textvqa", None) == "vqa_m4c"
    assert scorer_of("mmbench-cn", "lmms_static_normalise_cn") == "lmms_static_normalise_cn"
    with pytest.raises(ValueError, match="Unknown scorer 'vqa_m4c' of gqa: use one of gqa_llava"):
        scorer_of("gqa", "vqa_m4c")


FIXTURES = {  # benchmark -> rows of the fixture, rows left by a limit of 2
    "vqav2": (3, 2),
    "gqa": (2, 2),
    "scienceqa": (2, 2),
    "textvqa": (2, 2),
    "mmbench": (9, 5),
    "mmbench-cn": (5, 5),
    "mmvet": (3, 2),
    "vizwiz": (3, 2),
    "pope": (2, 2),
}


@pytest.mark.parametrize("name", FIXTURES)
def test_every_fixture_from_questions_to_results(fixtures, tmp_path, name):
    row = BENCHMARKS[name]
    asked = load(name, fixtures, limit=100, with_images=False)
    assert len(asked) == FIXTURES[name][0]
    long = ("scienceqa", "mmbench", "mmbench-cn", "mmvet")
    assert {question.max_new_tokens for question in asked} == {1024 if name in long else 128}
    assert not any("<image>" in question.text for question in asked)
    answers = {question.id: str(question.answer or question.answers[0]) for question in asked}
    for scorer in row.scorers:
        score = row.score(asked, answers, scorer)
        assert score.value is None or score.value > 30
        if score.value is not None:
            assert value_of(score.outcomes.values(), score.statistic) == pytest.approx(score.value)
        content = Evaluation(Candidate(given=tmp_path), name, tmp_path).results(asked, score)
        json.dumps(content, allow_nan=False)
        if score.value is not None:
            assert content["interval_95"][0] <= score.value <= content["interval_95"][1]
    if row.export and row.submission.endswith(".json"):
        assert json.loads(row.export(asked, answers, tmp_path / "s.json").read_text())


PICTURES = {  # benchmark -> pictures of the fixture's questions (two of MMBench's hold the same)
    **{"vqav2": 2, "gqa": 2, "scienceqa": 2, "textvqa": 2, "mmbench": 2},
    **{"mmbench-cn": 2, "mmvet": 3, "vizwiz": 3, "pope": 1},
}


@pytest.mark.parametrize("name", FIXTURES)
def test_results_say_how_many_pictures_were_independent(fixtures, tmp_path, name):
    row = BENCHMARKS[name]
    asked = load(name, fixtures, limit=100, with_images=False)
    scorer = "proxy_substring" if name == "mmvet" else row.scorers[0]
    score = row.score(asked, {}, scorer)
    content = Evaluation(Candidate(given=tmp_path), name, tmp_path).results(asked, score)
    assert content["clusters"] == PICTURES[name]


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("style", range(4))
def test_every_prompt_style_asks(fixtures, name, style):
    styles = list(BENCHMARKS[name].styles)
    if style < len(styles):
        asked = load(name, fixtures, prompt_style=styles[style], limit=1, with_images=False)
        assert asked[0].text.strip()


@pytest.mark.parametrize("name", FIXTURES)
def test_a_limit_keeps_whole_units(fixtures, name):
    assert len(load(name, fixtures, limit=2, with_images=False)) == FIXTURES[name][1]


@pytest.mark.parametrize("name", FIXTURES)
def test_a_part_without_a_limit_is_refused(fixtures, name):
    with pytest.raises(ValueError, match=rf"^{name} \S+ has \d rows and not [\d,]+.*--limit"):
        load(name, fixtures, with_images=False)


def test_rows_alone_do_not_make_mmbench_whole(fixtures):
    asked = load("mmbench", fixtures, limit=9, with_images=False)
    whole = [asked[0]] * 4_329
    with pytest.raises(ValueError, match="has 1 questions with their rotations and not 1,164"):
        BENCHMARKS["mmbench"].check_size("dev", whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "train"}, "gqa has no split 'train': use one of testdev"),
        ({"prompt_style": "mine"}, "Unknown prompt style 'mine' of gqa: use one of llava, lmms"),
        ({"limit": 0}, "limit of 0 leaves no question"),
        ({"data": "/no/such/folder"}, "/no/such/folder does not exist"),
    ],
)
def test_wrong_arguments_are_answered_with_the_right_ones(fixtures, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load("gqa", **{"data": fixtures, "limit": 1, **arguments})


def test_a_hub_id_is_tried_under_both_owners(monkeypatch):
    datasets = pytest.importorskip("datasets")
    tried = []

    def refuse(name, config, split, streaming):
        tried.append((name, config, split))
        raise ConnectionError(f"no way to {name}\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"no data set at lmms-lab/VQAv2.*: lmms-lab/VQAv2: no way") as error:
        load("vqav2", limit=1)
    assert "\n" not in str(error.value)
    assert tried == [("lmms-lab/VQAv2", None, "validation"), ("lmms-lab-encoder/VQAv2", None, "validation")]


def test_a_configuration_that_the_hub_lacks_is_left_out(monkeypatch, fixtures, png):
    datasets = pytest.importorskip("datasets")
    row = json.loads((fixtures / "mmbench_hf_row.json").read_text())
    there = datasets.Dataset.from_list([{**row, "image": {"bytes": png(), "path": None}}])
    there = there.cast_column("image", datasets.Image())

    def answer(name, config, split, streaming):
        if config:
            raise ValueError(f"BuilderConfig '{config}' not found.")
        return there

    monkeypatch.setattr(datasets, "load_dataset", answer)
    assert load("mmbench", "lmms-lab/MMBench_EN", limit=1)[0].id == 1000007


def test_a_saved_data_set_opens_by_split(tmp_path, fixtures, png):
    datasets = pytest.importorskip("datasets")
    row = json.loads((fixtures / "mmbench_hf_row.json").read_text())
    data = datasets.Dataset.from_list([{**row, "image": {"bytes": png(), "path": None}}])
    datasets.DatasetDict({"dev": data}).save_to_disk(tmp_path / "saved")
    assert load("mmbench", tmp_path / "saved", limit=1)[0].open_image().size == (4, 4)
    with pytest.raises(ValueError, match="it has no split test, only dev"):
        load("mmbench", tmp_path / "saved", split="test", limit=1)


def test_a_data_set_without_its_columns_is_refused(parquet):
    data = parquet([{"question": "x", "answer": "y"}], "data/test-00000-of-00001.parquet")
    with pytest.raises(
        ValueError, match="lacks column question_id, category, image; it has question, answer"
    ):
        load("pope", data, limit=1)
    with pytest.raises(ValueError, match="has no Parquet files of split dev"):
        load("mmbench", data, limit=1)


@pytest.mark.parametrize("data", ["some/mme", "./a/b", "/no/where", "a/b.tsv", "a/b/c", "folder", "~/a"])
def test_what_looks_like_a_path_is_not_asked_of_the_hub(data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert files.hub_id(data) is None
    with pytest.raises(ValueError, match="does not exist: give a folder or a file"):
        load("mme", data, limit=1)
    assert files.hub_id(f"hf:{data}") == data
    (tmp_path / "lmms-lab/MME").mkdir(parents=True)
    assert files.hub_id("lmms-lab/MME") is None  # a folder of that name is here
    assert files.hub_id("lmms-lab/POPE") == "lmms-lab/POPE"


def test_what_is_a_table(tmp_path, parquet):
    assert files.is_table(Source("lmms-lab/GQA", "testdev"))
    assert not files.is_table(Source(tmp_path, "testdev"))
    data = parquet([{"x": 1}], "en/dev-00000-of-00001.parquet")
    assert files.is_table(Source(data, "dev"))


def test_a_named_file_is_read_whatever_else_lies_beside_it(folder):
    data = folder({"mm-vet.json": "mm-vet.json", "vizwiz_val.json": "vizwiz_val.json"})
    for name, original in (("mmvet", "mm-vet.json"), ("vizwiz", "vizwiz_val.json")):
        content = json.loads((data / original).read_text())
        part = dict([next(iter(content.items()))]) if isinstance(content, dict) else content[:1]
        (data / "mine.json").write_text(json.dumps(part))
        assert len(load(name, data / "mine.json", limit=9, with_images=False)) == 1
        assert len(load(name, data, limit=9, with_images=False)) == 3


def test_one_label_file_of_pope_is_that_category_alone(folder):
    names = ["coco_pope_random.json", "coco_pope_popular.json"]
    data = folder({"pope_questions.jsonl": "llava_pope_test.jsonl", "coco_pope_random.json": names[0]})
    (data / names[1]).write_text((data / names[0]).read_text())
    questions = load("pope", data / names[1], limit=9, with_images=False)
    assert [question.id for question in questions] == ["popular/1", "popular/2"]
    assert [question.id for question in load("pope", data, limit=9, with_images=False)] == [1, 2]
