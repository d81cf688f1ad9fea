"""A whole analysis of small runs: what is shown, who judges, before and after, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from basic_lite.recipes import analyze
from made_runs import made_run
from PIL import Image
from rich.console import Console
from tiny import tiny_assembled
from typer.testing import CliRunner

from basic_lite import files
from basic_lite.analysis import replacement, report
from basic_lite.analysis.inspection import InspectionSettings, ModelResults, PictureResults, inspect_layers
from basic_lite.analysis.judges import by_truth
from basic_lite.analysis.report import common_table, depth_table, replacement_table
from basic_lite.analysis.samples import BEFORE, Sample, choose_samples, method_of, subjects
from basic_lite.analysis.tokens import analyse
from basic_lite.data.templates import TEMPLATES
from basic_lite.data.world.dataset import write_world
from basic_lite.data.world.render import render
from basic_lite.data.world.world import held_out_scenes
from basic_lite.experiments.measure import inspect_model
from basic_lite.method.words import token_texts
from basic_lite.models import zoo
from basic_lite.models.llava import Sources, assemble
from basic_lite.models.parts import parts_of


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "deep/c.png", "deep/a.png")):
        Image.radial_gradient("L").rotate(40 * number).resize((40, 24)).convert("RGB").save(folder / name)
    return folder


def write_captions(folder, *rows: tuple[str, str]):
    path = folder.parent / "captions.json"
    content = [
        {
            "id": str(number),
            "image": image,
            "conversations": [
                {"from": "human", "value": "Say what it is.\n<image>"},
                {"from": "gpt", "value": text},
            ],
        }
        for number, (image, text) in enumerate(rows)
    ]
    path.write_text(json.dumps(content))
    return path


def test_pictures_are_drawn_evenly_and_unreadable_ones_are_skipped_and_counted(pictures):
    assert [one.name for one in choose_samples(pictures, None, 9).chosen] == [
        *("a.png", "b.jpg", "deep/a.png", "deep/c.png")
    ]
    two = choose_samples(pictures, None, 2)
    assert [one.name for one in two.chosen] == ["b.jpg", "deep/c.png"]
    assert (two.available, two.chosen[0].caption) == (4, None)
    (pictures / "b.jpg").write_bytes(b"no picture")
    shown = choose_samples(pictures, None, 9)
    assert len(shown.chosen) == 3
    assert len(shown.unreadable) == 1
    assert "b.jpg" in shown.unreadable[0]


def test_captions_are_found_by_path_and_by_a_file_name_that_is_no_others(pictures):
    path = write_captions(
        pictures, ("deep/a.png", "a deep one"), ("elsewhere/b.jpg", "bees"), ("x/a.png", "which of two?")
    )
    shown = choose_samples(pictures, path, 9)
    assert {one.name: (one.question, one.caption) for one in shown.chosen} == {
        "deep/a.png": ("Say what it is.", "a deep one"),
        "b.jpg": ("Say what it is.", "bees"),
    }
    assert shown.chosen[0].turns(True)[-1] == ("assistant", "bees")


def test_what_cannot_be_shown_is_refused_in_one_line(pictures, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    other = write_captions(pictures, ("z.png", "not there"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"")
    for arguments, told in (
        ((empty, None, 4), "holds no pictures"),
        ((tmp_path / "nowhere", None, 4), "is no folder"),
        ((pictures, other, 4), "no row of --captions"),
        ((pictures, tmp_path / "none.json", 4), "is no file"),
        ((broken, None, 4), "none of the 1 pictures"),
    ):
        with pytest.raises(ValueError, match=told) as caught:
            choose_samples(*arguments)
        assert "\n" not in str(caught.value)


def test_a_drawn_world_stands_for_its_held_out_scenes(tmp_path):
    write_world(tmp_path, seed=5, captions=2, conversations=2, questions=7)
    (tmp_path / "world.json").write_text('{"seed": 5}')
    shown, again = choose_samples(tmp_path, None, 3), choose_samples(None, None, 3, seed=5)
    assert [one.scene[0] for one in shown.chosen] == held_out_scenes(3, 5)
    assert [one.caption for one in shown.chosen] == [one.caption for one in again.chosen]
    assert [one.name for one in choose_samples(tmp_path / "images", None, 1).chosen] != []
    by_caption = choose_samples(tmp_path, tmp_path / "stage1.json", 9)
    assert len(by_caption.chosen) == 2
    (tmp_path / "world.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say which world"):
        choose_samples(tmp_path, None, 3)


def test_the_embedded_worlds_truth_and_target_are_the_demos():
    assembled = assemble(Sources.named(zoo.TINY, bits=16, dtype=torch.float32))
    shown = choose_samples(None, None, 5, seed=2)
    truth = inspect_model(assembled, held_out_scenes(5, 2), seed=2)
    texts = token_texts(assembled.tokenizer, len(parts_of(assembled.model).embedding))
    judges = [by_truth(*one.scene, texts) for one in shown.chosen]
    found = inspect_layers(
        assembled,
        shown.chosen,
        judges,
        InspectionSettings(TEMPLATES["plain"], "pad", max_new_tokens=0, views=2),
    )
    initial, target = found.depths[0], found.depths[-1]
    assert (initial.judged, initial.meaningful) == (sum(truth.shown), sum(truth.meaningful))
    assert target.cosine["mean"] == pytest.approx(sum(truth.cosine) / 5, abs=1e-5)
    shown_texts = [[texts[token] for token in rows[0]] for rows, _ in found.views]
    assert [[text.strip() for text in row] for row in shown_texts] == [
        [text.strip() for text in view.tokens] for view in truth.views[:2]
    ]
    assert [verdicts[0] for _, verdicts in found.views] == [view.meaningful for view in truth.views[:2]]
    assert initial.cosine == pytest.approx(dict.fromkeys(("q1", "median", "q3", "mean"), 1), abs=1e-6)
    assert render(shown.chosen[0].scene[0]).image.tobytes() == shown.chosen[0].open().tobytes()


def test_pictures_in_the_place_of_others_are_the_ones_before_them(pictures):
    assembled, settings = (
        tiny_assembled("llama"),
        InspectionSettings(TEMPLATES["plain"], "pad", max_new_tokens=0),
    )
    shown = [
        Sample(name, lambda name=name: Image.open(pictures / name).convert("RGB"), caption="one two")
        for name in ("a.png", "b.jpg")
    ]
    found = inspect_layers(assembled, shown, [None, None], settings)
    swapped = inspect_layers(assembled, shown[::-1], [None, None], settings)
    own = [one.losses[replacement.ORIGINAL] for one in found.pictures]
    assert found.pictures[0].losses[replacement.SHUFFLED] != pytest.approx(own[0], abs=1e-4)
    assert found.pictures[0].losses == pytest.approx(swapped.pictures[1].losses, abs=1e-5)
    # Its caption is the same for both, so each loss with the other's embeddings is the other's own.
    assert [one.losses[replacement.SHUFFLED] for one in found.pictures] == pytest.approx(own[::-1], abs=1e-5)
    alone = inspect_layers(assembled, shown[:1], [None], settings)
    assert replacement.SHUFFLED not in alone.pictures[0].losses
    assert found.depths[0].meaningful is None
    assert found.depths[0].meaningful_share is None


def losses(own: float, tokens: float, shuffled: float, blank: float) -> dict[str, float]:
    kinds = (replacement.ORIGINAL, replacement.DIRECTION, replacement.SHUFFLED, replacement.BLANK)
    return dict(zip(kinds, (own, tokens, shuffled, blank), strict=True))


def test_what_survives_is_measured_from_the_lower_floor_and_only_where_a_picture_helps():
    rows = [losses(1.0, 1.5, 3.0, 2.0), losses(1.2, 1.6, 3.0, 2.1), losses(0.9, 1.3, 2.0, 2.1)]
    found = ModelResults(pictures=[PictureResults(one, {}, {}, "x") for one in rows] * 3)
    means = [sum(one[kind] for one in rows) / 3 for kind in rows[0]]
    assert found.survives(replacement.DIRECTION) == pytest.approx(
        (means[3] - means[1]) / (means[3] - means[0])
    )
    assert found.survives(replacement.ORIGINAL) == 1
    assert ModelResults(pictures=found.pictures[:7]).survives(replacement.ORIGINAL) is None
    noise = ModelResults(
        pictures=[
            PictureResults(losses(1, 1, 1.5, 0.6), {}, {}, "x"),
            PictureResults(losses(1, 1, 1.5, 1.5), {}, {}, "x"),
        ]
        * 5
    )
    assert noise.survives(replacement.DIRECTION) is None
    assert ModelResults(pictures=[PictureResults({}, {}, {}, None)]).survives(replacement.DIRECTION) is None


@pytest.mark.parametrize("kind", ["stage1", "lora", "whole", "lora, 4 bits"])
def test_runs_of_all_kinds_are_held_against_their_own_beginning(kind, pictures, tmp_path):
    bits = {"bits": 4} if "4 bits" in kind else {}
    run = made_run(tmp_path / "run", "llama", "clip", kind.split(",")[0], **bits)
    path = write_captions(pictures, ("a.png", "red bees"), ("deep/c.png", "a dog"))
    chosen = subjects(run)
    assert [(one.label, one.seed) for one in chosen] == [
        (BEFORE, 0),
        (f"plain, stage {1 if kind == 'stage1' else 2}", None),
    ]
    found = analyse(chosen, choose_samples(pictures, path, 4), "cpu", views=1, max_new_tokens=3)
    before, after = found.results
    assert before.loss(replacement.ORIGINAL) != pytest.approx(after.loss(replacement.ORIGINAL), abs=1e-3)
    fresh = tiny_assembled("llama", **bits)
    alike = inspect_layers(
        fresh, found.samples.chosen, [None] * 2, InspectionSettings(_template(kind), "pad", max_new_tokens=0)
    )
    assert before.loss(replacement.ORIGINAL) == pytest.approx(alike.loss(replacement.ORIGINAL), abs=1e-5)
    assert found.judged_by == "captions"
    assert after.depths[0].judged == 2 * 9
    assert {len(one.texts) for one in after.pictures} == {5}


def _template(kind: str):
    return TEMPLATES["plain" if kind == "stage1" else "chatml"]


def test_other_models_are_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    one = made_run(tmp_path / "one", "llama", "clip", "stage1")
    other_run = made_run(tmp_path / "other", "llama", "clip", "stage1")
    llm = made_run(tmp_path / "llm", "gemma", "clip", "stage1")
    tower = made_run(tmp_path / "tower", "llama", "siglip", "stage1")
    labels = [found.label for found in subjects(one, other_run)]
    assert labels == [BEFORE, f"plain, stage 1 ({other_run})", f"plain, stage 1 ({one})"]
    for other, told in ((llm, "another LLM"), (tower, "another vision tower"), (tmp_path, "holds no run")):
        with pytest.raises(ValueError, match=told) as caught:
            subjects(one, other)
        assert "\n" not in str(caught.value)


def test_the_first_seed_is_the_one_of_the_stage_1_that_a_stage_2_came_from(tmp_path):
    first = made_run(tmp_path / "first", "llama", "clip", "stage1")
    second = made_run(tmp_path / "second", "llama", "clip", "lora")
    manifest = files.read_manifest(first)
    files.write_json(first / "manifest.json", manifest | {"training": {"seed": 7}})
    projector = files.file_hash(first / files.PROJECTOR)
    own = files.read_manifest(second) | {"training": {"seed": 3}}
    for origin, seed, told in (
        ({"stage1": str(first), "projector": projector}, 7, "its stage 1's"),
        ({"stage1": str(first), "projector": "another"}, 3, "no longer there"),
        ({"stage1": str(tmp_path / "gone"), "projector": projector}, 3, "no longer there"),
        (None, 3, "the run's own"),
    ):
        files.write_json(second / "manifest.json", own | {"from": origin})
        chosen = subjects(second)
        assert chosen[0].seed == seed
        assert told in chosen[0].seed_from
    files.write_json(
        second / "manifest.json", own | {"method": {"layers": 3, "weighting": "linear"} | own["method"]}
    )
    assert method_of(subjects(second)) == (3, "linear")
    assert method_of(subjects(first)) == (None, "quadratic")


@pytest.mark.parametrize("decoder", ["llama", "gemma"])
def test_the_command_prints_and_writes_figures_and_a_page(decoder, pictures, tmp_path):
    run = made_run(tmp_path / "run", decoder, "clip", "stage1")
    (tmp_path / "words.txt").write_text("a\nred\n")
    for arguments, judged in (([], None), (["--words", str(tmp_path / "words.txt")], "words")):
        command = ["tokens", str(run), "--images", str(pictures), "--views", "2", "--max-new-tokens", "2"]
        done = CliRunner().invoke(analyze.app, command + arguments, catch_exceptions=False)
        assert done.exit_code == 0
        assert ("true%" in done.output) is (judged is not None)
        content = json.loads((run / "analysis" / "tokens.json").read_text())
        assert content["judged_by"] == judged
        assert [len(model["depths"]) for model in content["models"]] == [6, 6]
        shares = [depth["meaningful_share"] for model in content["models"] for depth in model["depths"]]
        assert all((share is None) is (judged is None) for share in shares)
        assert [model["caption_loss"][replacement.ORIGINAL] for model in content["models"]] == [None, None]
        page = (run / "analysis" / "tokens.html").read_text()
        assert page.count("data:image/jpeg") == 2
        assert not re.search(r"(?:src|href|url\()=?[\"']?http", page)  # one file, nothing is fetched
        data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
        assert data["judged"] is (judged is not None)
        assert len(data["pictures"][0]["views"][1]["ids"]) == 6
        assert {len(kinds) for kinds in data["pictures"][0]["views"][0]["kinds"]} == {9}
        assert data["pictures"][0]["views"][0]["judged"] == (9 if judged else 0)


def test_a_table_shows_tokens_that_look_like_markup(pictures, tmp_path):
    run = made_run(tmp_path / "run", "llama", "clip", "stage1")
    found = analyse(subjects(run), choose_samples(pictures, None, 2), "cpu", views=0, max_new_tokens=0)
    found.texts = ["[/INST]"] * len(found.texts)
    console = Console(width=80, record=True)
    for table in (depth_table, common_table, replacement_table):
        console.print(table(found))
    assert "[/INST]" in console.export_text()


def test_a_page_is_safe_whatever_a_token_a_caption_or_a_name_says(pictures, tmp_path):
    hostile = "</script><b>&'\""
    (pictures / "a<b>.png").write_bytes((pictures / "a.png").read_bytes())
    path = write_captions(pictures, ("a<b>.png", hostile))
    run = made_run(tmp_path / "run", "llama", "clip", "stage1")
    found = analyse(subjects(run), choose_samples(pictures, path, 1), "cpu", views=1, max_new_tokens=0)
    found.texts = [hostile] * len(found.texts)
    page = report.write(tmp_path / "page.html", found).read_text()
    assert "<b>" not in page
    assert page.count("</script>") == 2
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    assert (data["pictures"][0]["name"], data["pictures"][0]["caption"]) == ("a<b>.png", hostile)
    assert set(data["exact"]) == {repr(hostile)}


def test_a_run_without_pictures_to_look_at_says_what_to_give(tmp_path):
    run = made_run(tmp_path / "run", "llama", "clip", "stage1")
    with pytest.raises(ValueError, match="--images DIR"):
        CliRunner().invoke(analyze.app, ["tokens", str(run)], catch_exceptions=False)
    with pytest.raises(ValueError, match="holds no run"):
        CliRunner().invoke(analyze.app, ["tokens", str(tmp_path)], catch_exceptions=False)
