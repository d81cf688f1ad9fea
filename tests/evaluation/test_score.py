"""Statistics and their intervals, against plain loops; saving; the content of results.json."""

import json
import subprocess
import sys

import numpy as np
import pytest

from basic_lite.evaluation.question import Question
from basic_lite.evaluation.run import Candidate, Evaluation
from basic_lite.evaluation.statistics import (
    STATISTICS,
    Score,
    bootstrap_interval,
    load_score,
    mean_by,
    mean_of,
    resample,
    save_score,
    value_of,
)
from basic_lite.evaluation.table import BENCHMARKS


def naive_f1(rows):
    hits = sum(said and true for _, said, true in rows)
    precision = hits / max(sum(said for _, said, _ in rows), 1)
    recall = hits / max(sum(true for *_, true in rows), 1)
    return 100 * 2 * precision * recall / (precision + recall) if hits else 0.0


def yes_no_rows(n=200, seed=1):
    generator = np.random.default_rng(seed)
    return [
        (str(generator.choice(["x", "y", "z"])), *map(bool, generator.integers(0, 2, 2))) for _ in range(n)
    ]


def test_f1_statistics_equal_the_plain_formula():
    rows = yes_no_rows()
    assert value_of(rows, "pooled_f1") == pytest.approx(naive_f1(rows))
    expected = np.mean([naive_f1([row for row in rows if row[0] == name]) for name in "xyz"])
    assert value_of(rows, "mean_f1") == pytest.approx(expected)


def test_f1_of_nothing_right_is_zero():
    assert value_of([("x", False, True), ("x", True, False)], "mean_f1") == 0.0
    assert value_of([], "mean_f1") == 0.0


def test_mme_points_equal_the_plain_formula():
    pictures = [("count", 2, 2), ("count", 1, 2), ("count", 0, 2), ("OCR", 2, 2)]
    # count: 3 of 6 answers, 1 of 3 pictures; OCR: all.
    assert value_of(pictures, "pair_points") == pytest.approx(100 * (3 / 6 + 1 / 3) + 200)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_statistic_of_counts_equals_that_of_repeated_units(statistic):
    cells = {
        "mean": [0.0, 30.0, 100.0],
        "pair_points": [("a", 0, 2), ("a", 2, 2), ("b", 1, 2)],
    }.get(statistic, [("a", True, True), ("a", True, False), ("b", True, True)])
    counts = np.array([[2, 3, 4], [1, 1, 7]])
    repeated = [
        value_of([c for c, k in zip(cells, row, strict=True) for _ in range(k)], statistic) for row in counts
    ]
    assert STATISTICS[statistic](cells, counts) == pytest.approx(repeated)


def test_resamples_keep_the_size_of_each_group():
    cells = [("a", 1), ("a", 2), ("a", 1), ("b", 1)]
    outcomes, counts = resample(cells, lambda cell: cell[0], draws=50)
    of_a = [position for position, cell in enumerate(outcomes) if cell[0] == "a"]
    assert (counts[:, of_a].sum(axis=1) == 3).all()
    assert (counts.sum(axis=1) == 4).all()
    assert counts[:, of_a].std() > 0


def test_the_interval_of_a_share_is_the_binomial_one():
    right = [100.0] * 300 + [0.0] * 700
    low, high = bootstrap_interval(right, mean_of)
    half = 1.96 * 100 * np.sqrt(0.3 * 0.7 / 1000)  # normal approximation, exact to a few hundredths here
    assert (low, high) == pytest.approx((30 - half, 30 + half), abs=0.2)
    assert bootstrap_interval(right, mean_of) == (low, high)


def test_the_interval_agrees_with_resampling_copies():
    values = np.random.default_rng(3).choice([0.0, 30.0, 60.0, 90.0, 100.0], size=400)
    generator = np.random.default_rng(4)
    copies = [generator.choice(values, size=400).mean() for _ in range(4000)]
    assert bootstrap_interval(list(values), mean_of) == pytest.approx(
        np.percentile(copies, [2.5, 97.5]), abs=0.5
    )


def test_mean_by_leaves_out_items_without_a_group():
    assert mean_by({1: 1.0, 2: 0.0, 3: 0.5}, {1: "b", 2: "b", 3: None}.get) == {"b": 50.0}


def score(**more):
    return Score("accuracy", "exact", 50.0, {7: 1.0, "7": 0.0}, {7: "x", "7": "y"}, **more)


def test_a_saved_score_comes_back_with_the_types_of_its_ids(tmp_path):
    saved = score(cells={7: ("x", True, False)}, notes=("n",), breakdown={"by": {"x": 1.0}})
    save_score(saved, tmp_path / "score.json")
    assert load_score(tmp_path / "score.json") == saved


@pytest.mark.parametrize("content", [None, "{}", "[1", '{"items": 3}'])
def test_a_file_that_is_no_score_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "score.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"does not exist|holds no score"):
        load_score(path)


def test_results_say_what_was_measured(tmp_path):
    candidate = Candidate(tmp_path)
    candidate.__dict__["identity"] = "abc"
    evaluation = Evaluation(candidate, "gqa", tmp_path, limit=4)
    asked = [Question(number, "?", None, 8) for number in range(4)]
    content = evaluation.results(
        asked, score(unparsed=1, missing=2, notes=("note",), breakdown={"type": {"x": 100.0}})
    )
    assert json.loads(json.dumps(content)) == content
    assert content["value"] == 50.0
    assert content["interval_95"] == [0.0, 100.0]
    assert (content["parse_failures"], content["missing_predictions"], content["n"]) == (1, 2, 4)
    assert (content["metric"], content["scorer"], content["prompt_style"]) == ("accuracy", "exact", "llava")
    assert content["manifest_hash"] == "abc"
    assert {"python", "torch", "transformers"} <= set(content["versions"])
    assert content["published"]["values"]["LLaVA-1.5-7B"] == 62.0


def test_without_a_value_there_is_no_interval(tmp_path):
    evaluation = Evaluation(Candidate(given=tmp_path / "answers.jsonl"), "mmvet", tmp_path)
    content = evaluation.results([], Score("MM-Vet score", "unjudged", None, {}))
    assert content["value"] is content["interval_95"] is None


def test_published_figures():
    figures = {name: row.published[0] for name, row in BENCHMARKS.items()}
    assert figures["mmbench"] == {
        "LLaVA-1.5-7B": 64.3,
        "LLaVA-1.5-13B": 67.7,
        "LLaVA-1.5-7B LoRA": 66.1,
        "LLaVA-1.5-13B LoRA": 68.5,
        "BASIC-7B": 68.8,
    }
    assert figures["mme"]["LLaVA-1.5-7B"] == 1510.7
    assert {name: row["BASIC-7B"] for name, row in figures.items() if "BASIC-7B" in row} == {
        **{"vqav2": 79.2, "gqa": 63.5, "vizwiz": 52.5, "scienceqa": 70.6},
        **{"mmbench": 68.8, "mmbench-cn": 62.1, "mmvet": 33.8},
    }


def test_scoring_and_the_table_of_benchmarks_import_no_torch():
    code = (
        "import sys, basic_lite.evaluation.compare, basic_lite.evaluation.show;"
        "import basic_lite.evaluation.show, basic_lite.evaluation.predictions;"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
