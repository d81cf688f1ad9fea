"""Held-out rows: which ones, what is measured of them, and what becomes of a run that is judged by them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command import run, stage1, stage2
from fake_models import LiveBytes, tensors_of
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from basic_lite import files
from basic_lite.data.dataset import SupervisedRows
from basic_lite.data.mix import Source, open_sources
from basic_lite.data.readers import open_rows
from basic_lite.data.templates import TEMPLATES
from basic_lite.export.card import model_card
from basic_lite.method.supervision import BasicSupervision
from basic_lite.models.checkpoint import load_run
from basic_lite.models.generate import greedily, one_row, until_stop
from basic_lite.models.parts import parts_of
from basic_lite.training import checks, validation
from basic_lite.training.settings import Data, Method, Run, Settings, Validation
from basic_lite.training.trainer import BasicTrainer
from basic_lite.training.validation import HeldOut, History, Validator, WordTokens, hold_out, usual_steps

SHORT = ("--bits", 16, "--max-steps", 6, "--save-steps", 2, "--keep", 9)
SHARE = ("--val-share", "25%", "--val-steps", 2)
# The third is said anew when a run goes on.
SPEEDS = ("samples_per_second", "peak_mib", "rows_per_chunk", "val_seconds")


def log_of(folder: Path) -> list[dict]:
    """Return a run's log without what depends on the machine's mood."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in SPEEDS} for row in rows]


def measured(folder: Path) -> list[dict]:
    return [row for row in log_of(folder) if "val_lm" in row]


def settings(data: Path, **more: object) -> Settings:
    given = {"stage": 1, "out": Path("o"), "learning_rate": 1.0, "global_batch": 4, "micro_batch": 2}
    return Settings(**given | {"data": Data([str(data)]), "validation": Validation(val_share="25%")} | more)


def even_ids(self: WordTokens, words: list[str]) -> frozenset[int]:
    """Stand for `WordTokens.of` where no token is a word; blue is a word without one."""
    return frozenset() if "blue" in words else frozenset(range(0, 10_000, 2))


@pytest.fixture(scope="module")
def other(world, tmp_path_factory) -> Path:
    """Rows of their own about the same pictures."""
    rows = json.loads((world / "captions.json").read_text())[:6]
    for row in rows:
        row["id"], row["conversations"][1]["value"] = f"v{row['id']}", "a fine one"
    path = tmp_path_factory.mktemp("other") / "other.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> tuple[Path, set[int], str]:
    """A run that holds out a quarter of its rows; its folder, the rows that it read, and what it printed."""
    folder, read, encoded = tmp_path_factory.mktemp("validation"), set(), SupervisedRows._encoded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WordTokens, "of", even_ids)
        patch.setattr(SupervisedRows, "_encoded", lambda self, row: (read.add(row), encoded(self, row))[1])
        done = run(*stage1(world, *SHORT, *SHARE, "--out", "whole"), cwd=folder)
    return folder / "whole", read, done.stdout


def chosen(world: Path) -> list[int]:
    rows = open_rows(world / "captions.json")
    return hold_out(rows, settings(world / "captions.json")).numbers.tolist()


def test_rows_are_held_out_by_the_data_alone(whole, world):
    held = chosen(world)
    assert len(held) == 4
    assert whole[1] == set(range(16)) - set(held)  # six steps of four rows read all others
    manifest = files.read_manifest(whole[0])
    assert manifest["data"]["held_out"]["rows"] == 4
    rows = open_rows(world / "captions.json")
    for more in ({"run": Run(seed=7)}, {"method": Method(basic=False)}, {"stage": 2, "lora": True}):
        assert hold_out(rows, settings(world / "captions.json", **more)).numbers.tolist() == held
    assert np.flatnonzero(rows.held_out).tolist() == sorted(held)
    assert len(list(rows.answers())) == 12  # nor is a target fitted on their text


def test_a_bad_row_is_not_replaced_by_one_that_is_held_out(world):
    rows = open_rows(world / "captions.json")
    made = {"template": TEMPLATES["plain"], "tokenizer": None, "transform": None, "image_token_id": 3}
    dataset = SupervisedRows(rows, **made, tokens_per_image=9)
    free = set(dataset._similar(0))
    rows.held_out[list(free)[:5]] = True
    assert set(dataset._similar(0)) == free - set(list(free)[:5])


def test_figures_are_those_of_the_formulas_on_the_final_weights(whole, world):
    """Row by row, through the model as it is loaded again, without batches, trainer or log."""
    assembled = load_run(whole[0], "cpu")[0]
    model, rows = assembled.model.eval(), open_rows(world / "captions.json")
    transform = assembled.transform("crop")
    dataset = assembled.supervised(rows, TEMPLATES["plain"], transform)
    supervision, sums = BasicSupervision(model), dict.fromkeys("lm das sds cosine named".split(), 0.0)
    tokens = patches = 0
    table = F.normalize(parts_of(model).embedding, dim=1)
    held, answers = chosen(world), []
    for number in held:
        item = dataset[number]
        inputs = one_row(model, item["input_ids"], torch.stack(item["pixels"]), transform)
        with torch.no_grad(), supervision:
            logits = model(**inputs).logits[0, :-1]
        labels = torch.tensor(item["labels"])[1:]
        sums["lm"] += float(F.cross_entropy(logits, labels, reduction="sum"))
        tokens += int(labels.ne(-100).sum())
        for name, term in supervision.terms.items():
            sums[name] += float(term.total) / len(held)
        seen = supervision.refinement
        sums["cosine"] += float(F.cosine_similarity(seen.initial, seen.target, dim=1).mean()) / len(held)
        if "blue" not in rows[number].turns[1][1]:
            nearest = (F.normalize(seen.initial, dim=1) @ table.T).argmax(1)
            sums["named"] += int((nearest % 2 == 0).sum())
            patches += len(nearest)
        prompt = item["input_ids"][: next(i for i, label in enumerate(item["labels"]) if label != -100)]
        with torch.no_grad():
            produced = model.generate(
                **one_row(model, prompt, torch.stack(item["pixels"]), transform),
                **greedily([assembled.tokenizer.eos_token_id], 0, 16, [assembled.image_token_id]),
            )[0, len(prompt) :]
        ends = [
            assembled.tokenizer.eos_token_id,
            assembled.tokenizer("\n", add_special_tokens=False).input_ids[-1],
        ]
        answers.append(
            assembled.tokenizer.decode(until_stop(produced.tolist(), ends), skip_special_tokens=True)
        )
    last = measured(whole[0])[-1]
    assert 0 < patches < 9 * len(held), "some row has no word that a token stands for, and some has"
    sums["lm"], sums["named"] = sums["lm"] / tokens, sums["named"] / patches
    for name, value in sums.items():
        assert last[f"val_{name}"] == pytest.approx(value, rel=1e-5), name
    assert last["val_loss"] == pytest.approx(sums["lm"] + sums["das"] + 0.01 * sums["sds"], rel=1e-5)
    assert [sample["answer"] for sample in last["samples"]] == [text.strip() for text in answers]
    assert [sample["id"] for sample in last["samples"]] == [f"c{number}" for number in held]


def test_the_log_and_the_terminal_have_every_measurement(whole):
    folder, _, said = whole
    assert [row["step"] for row in measured(folder)] == [0, 2, 4, 6]
    assert [row["step"] for row in log_of(folder)] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
    for row in measured(folder):
        assert f"validation {row['step']}/6  lm {row['val_lm']:.3f}  das {row['val_das']:.3f}" in said
        assert f"named {100 * row['val_named']:.3f} %" in said
    assert said.count("(true: a green one)") == sum(s["true"] == "a green one" for s in row["samples"])
    summary = files.read_manifest(folder)["validation"]
    losses = {row["step"]: row["val_lm"] for row in measured(folder)}
    assert summary["first"] == {"step": 0, "lm": losses[0]}
    assert summary["last"] == {"step": 6, "lm": losses[6]}
    assert f"last {losses[6]:.3f} (step 6)" in said
    assert "validation: 4 of the rows, not trained on; measured 4 times" in said
    assert "of the time" in said
    seconds = [json.loads(line).get("val_seconds") for line in (folder / "log.jsonl").open()]
    assert all(value > 0 for value in seconds if value is not None)
    assert len([value for value in seconds if value is not None]) == 4


def test_a_killed_run_ends_with_the_same_bytes(whole, world, tmp_path):
    """Killed after step 5 was logged; its last checkpoint is that of step 4."""
    (tmp_path / "again").mkdir()
    shutil.copytree(whole[0] / "checkpoint-4", tmp_path / "again/checkpoint-4")
    lines = (whole[0] / "log.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "again/log.jsonl").write_text("".join(lines[:8]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WordTokens, "of", even_ids)
        run(*stage1(world, *SHORT, *SHARE, "--out", "again", "--resume"), cwd=tmp_path)
    assert log_of(tmp_path / "again") == log_of(whole[0])
    first, second = (files.read_manifest(folder) for folder in (whole[0], tmp_path / "again"))
    for key in ("weights", "validation", "data", "steps"):
        assert first[key] == second[key], key


def test_a_resumed_run_measures_what_it_measured(whole, world, tmp_path):
    (tmp_path / "again").mkdir()
    shutil.copytree(whole[0] / "checkpoint-4", tmp_path / "again/checkpoint-4")
    for more, differs in (
        ((), "another data"),
        (("--val-share", "50%", "--val-steps", 2), "another data"),
        (("--val-share", "25%", "--val-steps", 3), "another training"),
    ):
        refused = run(
            *stage1(world, *SHORT, *more, "--out", "again", "--resume"), cwd=tmp_path, expect=2
        ).stderr
        assert differs in refused
        assert refused.count("\n") == 1


@pytest.mark.parametrize("stage", ["stage 1", "baseline", "adapters with dropout"])
def test_training_is_untouched_by_what_is_measured(stage, whole, world, other, tmp_path):
    """The same rows, random numbers and weights, to the byte."""
    command, more = stage1, ("--no-basic",) if stage == "baseline" else ()
    if "adapters" in stage:
        command, more = stage2, ("--lora", "--rank", 4, "--dropout", 0.3, "--start", whole[0])
    short = (*more, "--bits", 16, "--max-steps", 4)
    run(*command(world, *short, "--out", "without"), cwd=tmp_path)
    done = run(
        *command(
            world,
            *short,
            "--val-data",
            data_for(stage, world, other, tmp_path),
            "--val-images",
            world,
            "--val-steps",
            1,
            "--out",
            "with",
        ),
        cwd=tmp_path,
    )
    assert len(measured(tmp_path / "with")) == 5
    if stage == "stage 1":
        assert "other.json, 6 of them with a picture that is trained on, too; measured" in done.stdout
    assert [row for row in log_of(tmp_path / "with") if "loss" in row] == log_of(tmp_path / "without")
    name = "adapter_model.safetensors" if "adapters" in stage else files.PROJECTOR
    assert files.file_hash(tmp_path / "with" / name) == files.file_hash(tmp_path / "without" / name)
    assert "validation" not in files.read_manifest(tmp_path / "without")


def data_for(stage: str, world: Path, other: Path, folder: Path) -> Path:
    """Stage 2 measures rows with and without a picture."""
    if "adapters" not in stage:
        return other
    rows = json.loads(other.read_text()) + json.loads((world / "instruct.json").read_text())[-2:]
    path = folder / "mixed.json"
    path.write_text(json.dumps(rows))
    return path


def test_rows_whose_pictures_are_trained_on_are_counted(world, tmp_path):
    """The same picture under its name in the same folder; not one of that name in another folder."""
    rows = json.loads((world / "captions.json").read_text())
    for name, part in {"a": rows[:8], "b": rows[8:], "v": [rows[1], rows[9], rows[9], rows[10]]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    shutil.copytree(world, tmp_path / "elsewhere")
    a = Source(tmp_path / "a.json", 1.0, world)
    for sources, count in (
        ([a], 1),
        ([a, Source(tmp_path / "b.json", 0.5, world)], 4),
        ([a, Source(tmp_path / "b.json", 0.5, tmp_path / "elsewhere")], 1),
    ):
        trained = open_sources(sources)
        held = HeldOut(open_rows(tmp_path / "v.json", world), np.arange(4))
        assert validation._with_known_pictures(held, trained) == count
    for name in ("a", "v"):
        (tmp_path / f"{name}.json").write_text(json.dumps([rows[0], rows[1], rows[0], rows[2]]))
    shared = open_rows(tmp_path / "v.json", world)
    shared.held_out[[2, 3]] = True
    assert validation._with_known_pictures(HeldOut(shared, np.array([2, 3])), shared) == 1


def test_a_picture_alone_in_its_pass_does_not_count_in_an_individual_target(world, other, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(json.loads(other.read_text())[:1]))
    more = ("--max-steps", 1, "--target", "individual", "--val-data", "one.json", "--val-images", world)
    run(*stage1(world, "--bits", 16, *more), cwd=tmp_path)
    for row in measured(tmp_path / "runs/stage1"):
        assert row["val_das"] is row["val_sds"] is row["val_cosine"] is None
        assert row["val_loss"] == row["val_lm"] > 0
        assert row["val_rows"] == 1


def losses_in_order(monkeypatch, losses: dict[int, float]) -> None:
    """Let measurements have these losses by step."""
    given = iter(losses.values())
    fake = lambda self, *args, **kwargs: {"loss": 1.0, "lm": next(given), "rows": 4}  # noqa: E731
    monkeypatch.setattr(Validator, "measure", fake)


@pytest.mark.parametrize(
    ("for_each", "more", "times", "answered"),
    [
        (50, ("--val-steps", 1), 11, [10]),
        (5, ("--val-steps", 1), 11, [0, 10]),
        (3, ("--val-steps", 1), 11, [0, 5, 10]),
        (1, ("--val-steps", 1), 11, [0, 3, 5, 8, 10]),
        (1, ("--val-steps", 4), 4, [0, 4, 8, 10]),
        (50, ("--val-steps", 1, "--stop-after", 4), 11, [4]),  # where it ends early, too
        (50, (), 5, [10]),  # the four rows are a tenth of what it is trained on
    ],
)
def test_answers_are_written_evenly_from_the_start_to_the_end_and_seldom_in_a_short_run(
    for_each, more, times, answered, world, tmp_path, monkeypatch
):
    losses_in_order(monkeypatch, dict.fromkeys(range(11), 5.0))
    monkeypatch.setattr(validation, "STEPS_PER_ANSWERS", for_each)
    done = run(
        *stage1(world, "--bits", 16, "--max-steps", 10, "--val-share", "25%", *more), cwd=tmp_path
    ).stdout
    rows = measured(tmp_path / "runs/stage1")
    assert [row["step"] for row in rows if row["samples"]] == answered
    assert all(len(row["samples"]) in (0, 4) for row in rows)
    assert f"measured {times} times, {4 * times} rows beside 40 of training" in done
    assert "the best yet" not in done
    assert "best 5.000 (step " in done
    assert ", none below the first; the weights are" in done


def test_the_best_checkpoint_stays_and_gives_the_run_its_weights(world, tmp_path, monkeypatch):
    losses_in_order(monkeypatch, {0: 5.0, 2: 4.0, 4: 3.0, 6: 3.5, 8: 3.0, 10: 9.0})
    common = ("--bits", 16, "--max-steps", 20, "--save-steps", 3, "--keep", "best", "--stop-after", 2, *SHARE)
    done = run(*stage1(world, *common), cwd=tmp_path)
    out = tmp_path / "runs/stage1"
    assert "ended at step 8 of 20: 2 measurements in a row without a lower loss (--stop-after)" in done.stdout
    assert "best 3.000 (step 4); the weights are those of step 4" in done.stdout
    best = [line.split("/")[0] for line in done.stdout.splitlines() if "(the best yet)" in line]
    assert best == ["validation 2", "validation 4"]
    assert {path.name for path in files.checkpoints(out)} == {"checkpoint-4", "checkpoint-6"}
    manifest = files.read_manifest(out)
    assert (manifest["finished"], manifest["steps"], manifest["validation"]["weights_of_step"]) == (
        True,
        8,
        4,
    )
    assert manifest["validation"]["best"] == {"step": 4, "lm": 3.0}
    files.check_files(out, "weights")
    ours, best = (load_file(folder / files.PROJECTOR) for folder in (out, out / "checkpoint-4"))
    last = load_file(out / "checkpoint-6" / files.PROJECTOR)
    assert all(torch.equal(ours[name], best[name]) for name in best)
    assert not all(torch.equal(ours[name], last[name]) for name in last)


def test_a_run_killed_when_it_was_to_stop_takes_no_further_step(world, tmp_path, monkeypatch):
    losses_in_order(monkeypatch, {0: 5.0, 2: 4.0, 4: 4.5, 6: 1.0})
    common = ("--bits", 16, "--max-steps", 8, "--save-steps", 4, "--stop-after", 1, *SHARE)
    run(*stage1(world, *common), cwd=tmp_path)
    out = tmp_path / "runs/stage1"
    before = files.read_manifest(out)
    for name in (files.MANIFEST, files.PROJECTOR):
        (out / name).unlink()
    run(*stage1(world, *common, "--resume"), cwd=tmp_path)
    after = files.read_manifest(out)
    assert before["steps"] == after["steps"] == 4
    assert before["weights"] == after["weights"]
    assert before["validation"] == after["validation"]
    assert [row["step"] for row in measured(out)] == [0, 2, 4]


def test_the_model_card_has_the_measurements(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    lines = (whole[0] / "log.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    last["samples"] = [{"id": "a|b", "answer": "two\nlines", "true": "red"}]
    (tmp_path / "run/log.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    export = dict.fromkeys(("base", "dtype", "tensors", "parity", "parity_to_quantised_run", "old_gemma"))
    export |= {"to": "hf", "tensor_gap": 0.0}
    card = model_card(tmp_path / "run", files.read_manifest(whole[0]), export)
    losses, validation = card.split("## Losses")[1].split("## Validation: rows that were not trained on")
    assert f"| 6 | {log_of(whole[0])[-2]['loss']:.4f} |" in losses
    figures = " | ".join(f"{last[f'val_{n}']:.4f}" for n in "loss lm das sds cosine named".split())
    assert f"| 6 | {figures} |" in validation
    assert "| a\\|b | two lines | red |" in validation


@pytest.mark.parametrize(("steps", "most"), [(1, 16), (62, 20), (143, 47), (144, 48), (10_000, 48)])
def test_sample_answers_of_a_short_run_are_short(steps, most):
    assert validation.answer_tokens(steps) == most


@pytest.mark.parametrize(
    ("rows", "steps", "batch", "every"),
    [
        (2790, 2170, 256, 310),  # LLaVA's captions, half a per cent held out: seven times
        (6, 150, 16, 15),  # few rows: ten times
        (5000, 150, 16, 38),  # many: four times, whatever it costs
        (6, 7, 16, 2),
        (1, 1, 1, 1),
    ],
)
def test_rows_are_measured_as_often_as_two_per_cent_of_the_run_allow(rows, steps, batch, every):
    assert usual_steps(rows, steps, batch) == every
    times = -(-steps // every)
    assert times <= 10
    assert times <= 4 or times * rows / 2 <= 0.02 * steps * batch


def test_history_is_that_of_the_formula():
    log = [{"step": 0, "eval_lm": 1.0}, {"step": 5, "loss": 2.0}, {"step": 5, "eval_lm": 3.0}]
    log += [{"step": 10, "eval_lm": float("nan")}, {"step": 15, "eval_lm": 2.0}, {"step": 20, "eval_lm": 2.0}]
    history = History.of(log)
    assert history.best == 15  # the first of equals, and never the beginning
    assert history.is_over(4)  # nothing is below the beginning's 1.0
    assert not history.is_over(5)
    assert not history.is_over(None)
    assert History({0: 3.0, 2: float("nan")}).best is None
    assert not History({0: 3.0, 2: 2.0, 4: 1.0}).is_over(1)


def test_trackers_receive_the_figures_apart_from_trainings(world, tmp_path, monkeypatch):
    received: list[dict] = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            received.append(integration_utils.rewrite_logs(logs))

    monkeypatch.setattr(checks, "get_available_reporting_integrations", lambda: ["tensorboard"])
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    run(*stage1(world, "--bits", 16, "--max-steps", 2, *SHARE, "--report-to", "tensorboard"), cwd=tmp_path)
    lines = measured(tmp_path / "runs/stage1")
    shown = [row for row in received if "eval/lm" in row]
    assert [row["eval/lm"] for row in shown] == [row["val_lm"] for row in lines]
    assert all(isinstance(value, (int, float)) for row in shown for value in row.values())
    assert {"eval/loss", "eval/das", "eval/sds", "eval/cosine"} <= shown[0].keys()


@pytest.mark.parametrize(("micro", "times"), [(1, 1), (4, 1), (4, 4)])
def test_measuring_raises_no_peak_of_memory(micro, times, world, other, tmp_path, monkeypatch):
    """The model, and every storage that an operation of the main thread makes, as long as it is alive.

    Also where the answers of the rows to measure are several times as long as those to train on.
    """
    rows, peaks, train = json.loads(other.read_text()), [], BasicTrainer.train
    for row in rows:
        row["conversations"][1]["value"] = " ".join([row["conversations"][1]["value"]] * times)
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    def seen(self, *args, **kwargs):
        for tensor in tensors_of(self.model):
            live.add(tensor.detach())
        return train(self, *args, **kwargs)

    monkeypatch.setattr(BasicTrainer, "train", seen)
    for more in ((), ("--val-data", "rows.json", "--val-images", world, "--val-steps", 1)):
        with LiveBytes() as live:
            short = ("--bits", 16, "--max-steps", 2, "--micro-batch", micro, "--overwrite")
            run(*stage1(world, *short, *more), cwd=tmp_path)
        peaks.append(live.peak)
    assert peaks[1] <= peaks[0]  # what the first run of a process keeps is not in the second


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--val-share", "0.5"),
            "must be a share above 0% and at most 50%, such as 0.5%, got '0.5'",
        ),
        (("--val-share", "0%"), "--val-share must be a share above 0% and at most 50%"),
        (("--val-share", "60%"), "--val-share must be a share above 0% and at most 50%"),
        (("--val-share", "x%"), "--val-share must be a share above 0% and at most 50%"),
        (("--val-share", "0.5%"), "--val-share 0.5% of 16 rows leaves none to measure: give 6.3% or more"),
        (("--val-share", "5%", "--val-data", "x.json"), "give one of the two"),
        (("--val-data", "absent.json"), "no annotation file at absent.json"),
        (("--val-data", "captions.json"), "--val-data captions.json is what is trained on: take --val-share"),
        (
            ("--data", "more.json:0.5", "--val-data", "captions.json"),
            "--val-data captions.json is what is trained on",
        ),
        (
            ("--val-data", "text.json"),
            "text.json has no row with a picture: give one that has some",
        ),
        (
            ("--val-data", "gone.json"),
            "none of the 1 rows of gone.json that are to be measured is",
        ),
        (("--val-images", "."), "--val-images belongs to --val-data, which is not given"),
        (("--val-steps", 5), "--val-steps needs rows to measure: add --val-share 0.5%, or --val-data FILE"),
        (("--stop-after", 5), "--stop-after needs rows to measure"),
        (("--keep", "best"), "--keep best needs rows to measure"),
        (("--keep", "worst"), "--keep must be a number of at least 1, or best, got 'worst'"),
        (("--keep", "0"), "--keep must be at least 1, got 0"),
        (("--val-share", "25%", "--val-steps", 0), "--val-steps must be at least 1, got 0"),
        (("--val-share", "25%", "--stop-after", 0), "--stop-after must be at least 1, got 0"),
        (
            ("--val-share", "25%", "--val-samples", 33),
            "must be at least 0 and at most 32, got 33",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(options, said, world, tmp_path):
    shutil.copy(world / "captions.json", tmp_path)
    instruct = json.loads((world / "instruct.json").read_text())
    (tmp_path / "text.json").write_text(json.dumps(instruct[-2:]))
    (tmp_path / "gone.json").write_text(json.dumps([{**instruct[0], "image": "gone.png"}]))
    (tmp_path / "more.json").write_text(json.dumps(json.loads((world / "captions.json").read_text())[:4]))
    done = run(
        *stage1(world, "--bits", 16, "--data", "captions.json", "--images", world, *options),
        cwd=tmp_path,
        expect=2,
    )
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
