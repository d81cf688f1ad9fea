"""Measures of held-out scenes, rows of a file and questions, against one at a time."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from embedded import needs_parts
from PIL import Image
from tiny import tiny_assembled

from basic_lite import BasicSupervision
from basic_lite.data.batches import Collator
from basic_lite.data.dataset import SupervisedRows
from basic_lite.data.readers import open_rows
from basic_lite.data.templates import TEMPLATES
from basic_lite.data.world.render import render
from basic_lite.data.world.world import SHOWN, held_out_scenes
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.statistics import Score, save_score
from basic_lite.experiments import measure as module
from basic_lite.experiments.measure import (
    Inspection,
    Measure,
    inspect_model,
    measure_rows,
    measuring,
    of_questions,
    of_run,
    read_measures,
    rows_of_file,
    shares_right,
    write_measures,
)
from basic_lite.models import zoo
from basic_lite.models.llava import Sources, assemble
from basic_lite.models.parts import parts_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    rows = []
    for number in range(7):
        picture = Image.effect_noise((30, 30), 40 + 20 * number).convert("RGB")
        picture.save(folder / f"{number}.png")
        said = ["red thing", "green one here", "blue", "white thing over there"][number % 4]
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": said}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    rows.append({"id": "text", "conversations": [{**t, "value": "no picture"} for t in turns]})
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def test_every_figure_is_that_of_the_row_alone(data):
    assembled = tiny_assembled()
    rows = rows_of_file(assembled, str(data / "rows.json"), str(data), 99, "rows")
    measures = {m.name: m for m in measure_rows(assembled, rows)}
    assert {len(measure.values) for measure in measures.values()} == {7}
    opened, transform = open_rows(data / "rows.json", data), assembled.transform("crop")
    dataset = SupervisedRows(
        opened,
        template=TEMPLATES["plain"],
        tokenizer=assembled.tokenizer,
        transform=transform,
        image_token_id=assembled.image_token_id,
        tokens_per_image=assembled.tokens_per_image,
    )
    collate = Collator(pad_token_id=assembled.pad_token_id, image_token_id=assembled.image_token_id)
    supervision = BasicSupervision(assembled.model)
    for row in range(7):
        batch = collate([dataset[row]])
        pixels = transform.normalise(batch["pixel_values"], torch.float32)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        with torch.no_grad(), supervision:
            loss = assembled.model(**inputs, pixel_values=pixels, use_cache=False).loss
        seen = supervision.refinement
        cosine = F.cosine_similarity(seen.initial, seen.target, dim=-1).mean()
        wanted = {"caption_loss": loss, "cosine": cosine}
        wanted |= {name: supervision.terms[name].total for name in ("das", "sds")}
        for name, value in wanted.items():
            assert measures[name].values[row] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


def test_fewer_rows_are_spread_over_the_file_as_more_are(data):
    assembled = tiny_assembled()
    rows = {"data": str(data / "rows.json"), "images": str(data), "count": 100, "label": "rows"}
    whole, few = (measuring(assembled, 0, rows=rows, terms=False, most=most)() for most in (None, 3))
    for ours, theirs in zip(few, whole, strict=True):
        first, *_, last = theirs.values  # all that there are
        assert ours.values[::2] == pytest.approx([first, last], abs=1e-5)
        assert ours.values[1] == pytest.approx(theirs.values[round((len(theirs.values) - 1) / 2)], abs=1e-5)


def test_pictures_of_different_tiles_count_alike(data, tmp_path):
    """Each picture's cosine is the mean over its own patches, of which another has more."""
    assembled, rows = tiny_assembled(tiles=4), json.loads((data / "rows.json").read_text())[:3]
    for row, size in zip(rows, [(40, 44), (24, 60), (90, 31)], strict=True):
        Image.open(data / row["image"]).resize(size).save(tmp_path / row["image"])
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    where = (str(tmp_path / "rows.json"), str(tmp_path), 99, "rows")
    together, alone = (measure_rows(assembled, rows_of_file(assembled, *where, size=n)) for n in (3, 1))
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.values == pytest.approx(theirs.values, rel=1e-4, abs=1e-6), ours.name
    assert len({round(value, 4) for value in together[1].values}) == 3


def test_without_the_terms_the_rest_is_the_same(data):
    """As along the way, where attention need not be read."""
    assembled, where = tiny_assembled(), (str(data / "rows.json"), str(data), 99, "rows")
    both, few = (measure_rows(assembled, rows_of_file(assembled, *where, terms=on)) for on in (True, False))
    assert [measure.name for measure in both] == ["caption_loss", "cosine", "das", "sds"]
    assert [measure.name for measure in few] == ["caption_loss", "cosine"]
    for ours, theirs in zip(few, both, strict=False):
        assert ours.values == pytest.approx(theirs.values, rel=1e-5, abs=1e-6)


def test_rows_are_spread_evenly_over_the_file(data):
    assembled, where = tiny_assembled(), (str(data / "rows.json"), str(data))
    few, every = (
        measure_rows(assembled, rows_of_file(assembled, *where, n, "rows"))[0].values for n in (3, 99)
    )
    assert few == pytest.approx([every[0], every[3], every[6]], rel=1e-5)


def test_a_file_without_pictures_is_refused(data, tmp_path):
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hello"}]
    (tmp_path / "text.json").write_text(json.dumps([{"id": "0", "conversations": turns}]))
    with pytest.raises(ValueError, match="has no row with a picture"):
        rows_of_file(tiny_assembled(), str(tmp_path / "text.json"), None, 3, "rows")


def test_words_are_read_where_the_right_one_is_likeliest(data):
    """Every answer begins with one of four letters, a token each."""
    assembled = tiny_assembled()
    words = ("r", "g", "b", "w")
    rows = rows_of_file(assembled, str(data / "rows.json"), str(data), 99, "rows", words=words)
    (read,) = (measure for measure in measure_rows(assembled, rows) if measure.name == "read")
    ids = assembled.tokenizer.convert_tokens_to_ids(list(words))
    transform = assembled.transform("crop")
    wanted = []
    for number in range(7):
        with Image.open(data / f"{number}.png") as picture:
            pixels = transform.normalise(transform(picture.convert("RGB"))[None], torch.float32)
        prompt = torch.tensor([[1, *[assembled.image_token_id] * assembled.tokens_per_image]])
        with torch.no_grad():
            logits = assembled.model(input_ids=prompt, pixel_values=pixels).logits[0, -1]
        wanted.append(100.0 * (max(range(4), key=lambda i: logits[ids[i]]) == number % 4))
    assert read.values == wanted
    assert 0 < sum(wanted) < 700, "all or nothing would tell nothing"


@pytest.fixture(scope="module")
def tiny():
    return assemble(Sources.named(zoo.TINY, bits=16, dtype=torch.float32))


@needs_parts
def test_patches_that_say_what_they_show_are_all_meaningful_and_others_none(tiny, monkeypatch):
    scenes = held_out_scenes(4, seed=3)
    table, tokenizer = parts_of(tiny.model).embedding, tiny.tokenizer

    def features(word):
        rows = []
        for scene in scenes:
            picture = render(scene)
            words = [word(scene.things[i]) if i >= 0 else " the" for i in picture.thing]
            rows.append(table[[tokenizer.encode(w, add_special_tokens=False)[0] for w in words]])
        return torch.stack(rows)

    projector = parts_of(tiny.model).llava.multi_modal_projector
    for word, share in ((lambda thing: f" {thing.colour}", 1.0), (lambda thing: " the", 0.0)):
        made = features(word)
        monkeypatch.setattr(projector, "forward", lambda states, made=made: made)
        result = inspect_model(tiny, scenes, views=4)
        assert sum(result.meaningful) == share * sum(result.shown)
        shown = sum(share >= SHOWN for scene in scenes for share in render(scene).share)
        assert sum(result.shown) == shown > 0
    assert [len(view.tokens) for view in result.views] == [64] * 4
    assert min(result.views[0].importance) > 0


@needs_parts
def test_an_inspection_does_not_depend_on_how_scenes_are_batched(tiny):
    scenes = held_out_scenes(5, seed=1)
    one, many = (inspect_model(tiny, scenes, rows=rows) for rows in (1, 5))
    assert one.caption_loss == pytest.approx(many.caption_loss, abs=1e-4)
    assert one.cosine == pytest.approx(many.cosine, abs=1e-4)
    assert (one.shown, one.meaningful) == (many.shown, many.meaningful)


@needs_parts
def test_fewer_scenes_are_the_first_ones_with_the_same_values(tiny, tmp_path):
    where = {"world": str(tmp_path), "scenes": 5}
    whole, few = (measuring(tiny, 1, **where, most=most)() for most in (None, 2))
    for ours, theirs in zip(few, whole, strict=True):
        assert ours.values == pytest.approx(theirs.values[:2], abs=1e-4)
    assert len(few[0].values) == 2


@pytest.fixture
def asked(tmp_path):
    """Two questions in two orders each, and answers: three of four are right, and one question as a whole."""

    def question(index, answer):
        fields = {"index": index, "category": "colour" if index % 10**6 == 0 else "count"}
        choices = {"A": "red", "B": "blue"}
        return Question(
            index, "?", None, 5, answer=answer, choices=choices, category=fields["category"], fields=fields
        )

    questions = [question(0, "A"), question(10**6, "B"), question(1, "A"), question(10**6 + 1, "B")]
    answers = tmp_path / "predictions.jsonl"
    given = zip(questions, "ABAA", strict=True)
    lines = [json.dumps({"question_id": question.id, "text": said}) for question, said in given]
    answers.write_text("\n".join(lines) + "\n")
    return questions, answers


@pytest.mark.parametrize(
    ("metric", "answer_by", "wanted"),
    [
        ("circular accuracy", "likelihood", {"b, right answers": 75.0, "b, right in every order": 50.0}),
        ("circular accuracy", "option", {"b by option, right answers": 75.0}),
        ("accuracy", "text", {"b, right answers": 50.0}),
        ("accuracy", "mutual-information", {"b by mutual-information, right answers": 50.0}),
    ],
)
def test_answers_of_which_a_question_needs_every_order_are_counted_one_by_one_too(
    metric, answer_by, wanted, asked, tmp_path, monkeypatch
):
    questions, answers = asked
    save_score(Score(metric, "exact", 50.0, {0: 1.0, 1: 0.0}), tmp_path / "score.json")
    (tmp_path / "stage1").mkdir()
    evaluation = SimpleNamespace(out=tmp_path, answers=answers, answer_by=answer_by)
    evaluation.questions = lambda with_images: questions
    monkeypatch.setattr(module, "_evaluated", lambda run, name, **where: evaluation)
    measures = module.measure(tmp_path, "b", 0, benchmarks={"b": {"data": "b.tsv"}})
    assert {made.label: made.mean for made in measures} == wanted
    assert [made.name for made in measures] == ["b", "b_circular"][: len(wanted)]


def test_questions_count_by_rotation_and_as_a_whole(asked):
    questions, answers = asked
    right = shares_right(questions, answers)
    assert right == {0: 1.0, 1: 0.5}
    measures = {measure.name: measure for measure in of_questions("en", questions, right)}
    assert {name: measure.mean for name, measure in measures.items()} == {
        **{"answers_en": 75.0, "circular_en": 50.0, "colour_en": 100.0, "count_en": 50.0},
    }
    assert [name for name, measure in measures.items() if not measure.detail] == ["answers_en"]
    assert measures["answers_en"].heading == "right answers, in English (%)"


def test_the_share_of_true_tokens_is_of_all_patches_that_show_a_thing():
    inspection = Inspection([1.0, 2.0], [0.1, 0.3], shown=[1, 9], meaningful=[1, 0])
    assert {one.name: one.mean for one in inspection.measures()} == pytest.approx(
        {"caption_loss": 1.5, "cosine": 0.2, "meaningful": 10.0}
    )


def a_measure(name: str, value: float, detail: bool = False) -> Measure:
    return Measure(name, name, "", "lower", "scenes", [value], detail=detail)


def test_measures_come_back_from_their_files_and_tell_the_stages_apart(tmp_path):
    steps = {
        "stage1": [a_measure("loss", 1.0)],
        "stage2": [a_measure("loss", 2.0), a_measure("answers_en", 3.0)],  # as it was before `questions`
        "questions": [a_measure("answers_en", 4.0), a_measure("count_en", 5.0, detail=True)],
    }
    for step, measures in steps.items():
        write_measures(tmp_path, step, measures)
        assert read_measures(tmp_path, step) == measures
    assert {one.name: one.mean for one in of_run(tmp_path, ["stage1"])} == {"loss": 1.0}
    both = {one.name: one.mean for one in of_run(tmp_path, list(steps))}
    assert both == {"loss_stage1": 1.0, "loss_stage2": 2.0, "answers_en": 4.0}
    assert "count_en" in {one.name for one in of_run(tmp_path, list(steps), details=True)}
