"""An ablation's folder: one set-up, one process at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from basic_lite.recipes import stage1
from embedded import needs_parts

from basic_lite.experiments import comparison
from basic_lite.experiments.measure import Measure, write_measures
from basic_lite.experiments.plans import PLANS


def test_a_folder_belongs_to_one_set_up(tmp_path):
    out = tmp_path / "out"
    comparison.claim(out, {"stage1": {"max_steps": 3}, "quick": False})
    comparison.claim(out, {"stage1": {"max_steps": 3}, "quick": False})
    with pytest.raises(ValueError, match=r'another stage1: \{"max_steps": 3\}, now \{"max_steps": 4\}'):
        comparison.claim(out, {"stage1": {"max_steps": 4}, "quick": False})
    with pytest.raises(ValueError, match="another quick"):
        comparison.claim(out, {"stage1": {"max_steps": 3}, "quick": True})
    comparison.claim(out, {"quick": False, "stage2": {"lora": True}})
    with pytest.raises(ValueError, match="another stage2"):
        comparison.claim(out, {"stage1": {"max_steps": 3}, "stage2": {}})
    with pytest.raises(ValueError, match="another stage1"):
        comparison.claim(out, {"stage1": {}})
    (tmp_path / "else").mkdir()
    (tmp_path / "else/file").touch()
    with pytest.raises(ValueError, match="holds no ablation"):
        comparison.claim(tmp_path / "else", {})


def a_comparison(plan: str, out) -> comparison.Comparison:
    return comparison.Comparison(
        plan=PLANS[plan],
        out=out,
        seeds=[4, 5],
        check=stage1.main,
        stage1={"model": "tiny"},
        stage2=None,
        quick=False,
        measured_on=None,
        measured_rows=9,
        benchmarks={},
        chosen=[],
    )


@needs_parts
def test_captions_that_name_less_are_the_data_of_their_level_alone(tmp_path, monkeypatch):
    asked = a_comparison("world", tmp_path / "out")
    runs = asked._runs(asked._variants(), 4)
    assert [run.variant for run in runs] == [
        *("basic=False named=2", "named=2", "basic=False named=4", "named=4", "basic=False", "default")
    ]
    data = [run.task["stages"]["stage1"]["data"].removeprefix(f"{tmp_path}/out/worlds/") for run in runs]
    assert data == [f"{world}/stage1.json" for world in ("named-2-4", "named-4-4", "seed-4") for _ in "ab"]
    assert len({run.task["measure"]["world"] for run in runs}) == 1  # all are shown the same scenes
    assert not any("named" in run.task["stages"]["stage1"] for run in runs)
    hashes = {run.folder / "stage1": {"data": {"sha256": name}} for run, name in zip(runs, data, strict=True)}
    monkeypatch.setattr(comparison, "read_manifest", hashes.__getitem__)
    asked._check_same_data(runs)
    hashes[runs[3].folder / "stage1"]["data"]["sha256"] = "other"
    with pytest.raises(ValueError, match=r"basic=False named=4, seed 4 and named=4, seed 4 were trained on"):
        asked._check_same_data(runs)
    with pytest.raises(ValueError, match="plan world is about captions of the embedded world"):
        replace(asked, stage1={"model": "tiny", "data": "captions.json"})._check_plan()


@needs_parts
def test_a_squeezed_decoder_is_trained_at_the_embedded_ones_pace(tmp_path):
    asked = a_comparison("space", tmp_path / "out")
    asked = replace(asked, stage1={"model": "tiny", "epochs": 1.0})
    options = [run.task["stages"]["stage1"] for run in asked._runs(asked._variants(), 4)]
    assert [o.get("llm", "").removeprefix(str(tmp_path)) for o in options] == [
        *[""] * 2,
        *(f"/out/decoders/squeezed-{times}" for times in (4, 4, 16, 16)),
    ]
    paces = [(o["epochs"], o.get("learning_rate"), o.get("global_batch"), o.get("bits")) for o in options]
    assert paces == [(1.0, None, None, None)] * 2 + [(1.0, 2e-3, 16, 16)] * 4
    assert {(o["tower"], o["template"], o["image_token"]) for o in options[2:]} == {
        ("tiny-tower", "chatml", "<image>")
    }
    for unfit in ({"stage1": {"model": "tiny", "data": "captions.json"}}, {"stage2": {}}):
        with pytest.raises(ValueError, match="plan space gives the embedded decoder another input space"):
            replace(asked, **unfit)._check_plan()


@needs_parts
def test_pictures_of_signs_are_twice_as_large_as_the_input_that_tiles_are_compared_at(tmp_path):
    asked = a_comparison("tiles", tmp_path / "out")
    runs = asked._runs(asked._variants(), 4)
    options = [run.task["stages"]["stage1"] for run in runs]
    assert [(given["image_size"], given.get("tiles"), given.get("pool")) for given in options] == [
        *((48, None, None), (48, 4, None), (48, 4, 2))
    ]
    assert {given["data"] for given in options} == {f"{tmp_path}/out/worlds/small-signs-4/stage1.json"}
    assert {run.folder.parent.parent for run in runs} == {tmp_path / "out/small-signs"}
    text = a_comparison("text", tmp_path / "out")  # whose signs are larger
    others = {run.task["stages"]["stage1"]["data"] for run in text._runs(text._variants(), 4)}
    assert others == {f"{tmp_path}/out/worlds/signs-4/stage1.json"}
    with pytest.raises(ValueError, match="sets --image-size itself"):
        replace(asked, stage1={"model": "tiny", "image_size": 72})._variants()
    mine = replace(asked, stage1={"model": "tiny", "data": "captions.json"})  # at the tower's own size
    assert [variant.options for variant in mine._variants()] == [{}, {"tiles": 4}, {"tiles": 4, "pool": 2}]


FIVE = "0.0002, 0.000667, 0.002, 0.006, 0.02"


@needs_parts
@pytest.mark.parametrize(
    ("of_first", "of_second", "best", "tried", "rounds"),
    [
        (6e-4, 6e-4, 0.000667, f"{FIVE} with the first seed, and 0.0002, 0.000667, 0.002 with all,", [5, 6]),
        # What the first seed bears another may not.
        (
            6e-3,
            2e-3,
            0.002,
            f"{FIVE} with the first seed, and 0.000667, 0.002, 0.006, 0.02 with all,",
            [5, 6, 8],
        ),
        (
            7e-2,
            7e-2,
            0.06,
            f"{FIVE}, 0.06, 0.2 with the first seed, and 0.02, 0.06, 0.2 with all,",
            [5, 6, 7, 6],
        ),
        (0.0, None, 2e-5, f"2e-05, 6.67e-05, {FIVE}", [5, 6, 7]),
    ],
)
def test_the_learning_rate_is_chosen_on_plain_alone(
    tmp_path, monkeypatch, of_first, of_second, best, tried, rounds
):
    """Of five around 2e-3, the embedded world's, those beyond while an end is best, and then by all seeds."""
    seen, said = [], []

    def run(self, console):
        seen.append(self)
        for made in made_by(self):
            rate = made.task["stages"]["stage1"].get("learning_rate", 2e-3)
            loss = abs(rate - of_first) if made.seed == 4 else 10 * abs(rate - of_second)
            (made.folder / "stage1").mkdir(parents=True, exist_ok=True)
            manifest = {"format": 1, "training": {"learning_rate": rate}}
            (made.folder / "stage1/manifest.json").write_text(json.dumps(manifest))
            write_measures(made.folder, "stage1", [Measure("caption_loss", "", "", "lower", "s", [loss])])

    def made_by(tries):
        return [made for seed in tries.seeds for made in tries._runs(tries._variants(), seed)]

    monkeypatch.setattr(comparison.Comparison, "run", run)
    monkeypatch.setattr(
        comparison, "read_manifest", lambda run: json.loads((run / "manifest.json").read_text())
    )
    seeds = [4] if of_second is None else [4, 5]
    asked = replace(
        a_comparison("losses", tmp_path / "out"), stage2={"lora": True}, chosen=["das"], seeds=seeds
    )
    console = SimpleNamespace(print=lambda line, **more: said.append(line))
    tuned = asked.tuned(console)
    assert tuned == replace(asked, stage1={"model": "tiny", "learning_rate": best})
    assert {tries.out for tries in seen} == {tmp_path / "out-tune"}
    assert [len(made_by(tries)) for tries in seen] == rounds
    for made in made_by(seen[-1]):
        assert made.task["stages"]["stage1"]["basic"] is False
        assert made.steps == ("stage1",)
    ends = " (at an end of what was tried)" if best == 2e-5 else ""
    assert said == [
        f"Learning rate {best:g}: of {tried} the one that gives plain the lowest caption loss{ends}."
    ]
    with pytest.raises(ValueError, match="leave out --learning-rate, or --tune"):
        tuned.tuned(console)
