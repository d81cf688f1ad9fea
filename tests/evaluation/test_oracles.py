"""Every row and column of the values that the real scorers computed."""

import json
from pathlib import Path

import pytest

from basic_lite.evaluation.choices import extract_option
from basic_lite.evaluation.open_answers import CONTRACTIONS, normalize, vqa_accuracy

ORACLES = json.loads((Path(__file__).parents[1] / "fixtures" / "oracles.json").read_text(encoding="utf-8"))

NORMALIZER = {
    "m4c_call": "m4c",
    "official_always_processed": "vqa_official",
    "vlmevalkit_always_processed": "vlmevalkit",
}
SCORER = {
    "official_raw": "vqa_official",
    "official_on_m4c_processed_pred": "vqa_official_on_m4c",
    "lmms_vqav2": "vqa_lmms",
    "m4c_textvqa": "vqa_m4c",
}
METHOD = {
    "lmms_can_infer": "lmms_can_infer",
    "lmms_static": "lmms_static",
    "vlmevalkit_can_infer": "exact_matching",
    "llava_sqa": "llava_sqa",
    "lmms_sqa_parse": "lmms_sqa",
}


def rows(table: str) -> list[dict]:
    columns = ORACLES[table]["columns"]
    return [dict(zip(columns, row, strict=True)) for row in ORACLES[table]["rows"]]


@pytest.mark.parametrize("column", NORMALIZER)
def test_normalised_answers_equal_the_oracle(column):
    expected = {row["input"]: row[column] for row in rows("vqa_norm")}
    assert {text: normalize(text, NORMALIZER[column]) for text in expected} == expected


@pytest.mark.parametrize("column", SCORER)
def test_vqa_accuracy_equals_the_oracle(column):
    scores = [100 * vqa_accuracy(row["pred"], row["gt10"], SCORER[column]) for row in rows("vqa_accuracy")]
    assert scores == pytest.approx([row[column] for row in rows("vqa_accuracy")])


@pytest.mark.parametrize("column", METHOD)
def test_extracted_options_equal_the_oracle(column):
    for row in rows("mcq"):
        expected = row[column]
        if column == "lmms_sqa_parse":  # the original returns the whole answer where it finds no letter
            expected = expected if expected in row["choices"] else None
        if expected in (False, "", "FAILED(-1)"):
            expected = None
        assert extract_option(row["prediction"], row["choices"], METHOD[column]) == expected, row


def test_contractions_are_the_published_ones():
    assert CONTRACTIONS == ORACLES["contractions"]
