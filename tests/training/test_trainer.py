"""The training loop: exact accumulation, what moves, what is logged, and resuming to the same bytes."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from tiny import IMAGE_TOKEN, adapted, tiny_batch, tiny_llava
from tiny_trainer import Rows, Waits, log_of, sgd_trainer, trainer, weights
from transformers import TrainerCallback

from basic_lite import BasicSupervision, BasicTrainer
from basic_lite.data.layout import layout_of
from basic_lite.files import file_hash
from basic_lite.method.objective import Objective
from basic_lite.models.parts import parts_of


@pytest.mark.parametrize("lora", [False, True])
def test_any_split_of_a_step_gives_the_same_update(tmp_path, lora):
    """4x1 = 2x2 = 1x4: SGD without clipping, so that a parameter's move *is* its gradient."""
    results, losses = [], []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        model = tiny_llava()
        if lora:
            model = adapted(model)
        before = weights(model)
        out = tmp_path / f"{batch}"
        run = sgd_trainer(out, model, 1e-2, batch=batch, accumulation=accumulation, max_grad_norm=0)
        # The same rows in every step: plain order, of which each third row has no image.
        rows = list(range(24))
        run.batches = [rows[i : i + batch] for i in range(0, 24, batch)]
        run.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(run.optimizer, factor=1.0)
        run.train()
        results.append(weights(model))
        losses.append([{k: row[k] for k in ("loss", "lm", "das", "sds", "cosine")} for row in log_of(out)])
    moved = [name for name, value in results[0].items() if not torch.equal(value, before[name])]
    assert moved == [name for name, p in model.named_parameters() if p.requires_grad]
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-6)
    for other in losses[1:]:
        for ours, theirs in zip(losses[0], other, strict=True):
            for key, value in ours.items():
                assert theirs[key] == pytest.approx(value, rel=1e-5)


def test_logged_terms_add_up_to_the_loss(tmp_path):
    run = trainer(tmp_path, objective=Objective(0.5, 0.25))
    run.train()
    rows = log_of(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    keys = "step steps loss lm das sds cosine grad_norm learning_rate samples_per_second peak_mib".split()
    assert rows[0].pop("rows_per_chunk") == 18  # two rows of nine patches; said once
    for row in rows:
        assert list(row) == keys
        assert row["loss"] == pytest.approx(row["lm"] + 0.5 * row["das"] + 0.25 * row["sds"], rel=1e-5)
        assert row["samples_per_second"] > 0
        assert row["peak_mib"] > 0


def test_stage_one_moves_the_projector_and_nothing_else(tmp_path):
    model = tiny_llava()
    before = weights(model)
    trainer(tmp_path, model).train()
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]) == ("multi_modal_projector" not in name), name


def test_a_run_of_text_only_steps_neither_fails_nor_moves_anything(tmp_path):
    model = tiny_llava()
    before = weights(model)
    trainer(tmp_path, model, Rows(24, images=False)).train()
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert log_of(tmp_path)[0]["das"] is None


def test_a_step_of_text_alone_leaves_the_projector_where_it_is(tmp_path):
    """Zeros instead of no gradient would let Adam's momentum move it."""
    rows = Rows(8)
    rows.rows.sort(key=lambda row: not row["pixels"])
    model = tiny_llava()
    run = trainer(tmp_path, model, rows, accumulation=1, max_steps=2, lr_scheduler_type="constant")
    run.batches = [[0, 1], [6, 7]]  # the last two rows have no picture
    seen = [weights(model)]

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(weights(model))

    run.add_callback(Look())
    run.train()
    before, first, second = seen
    assert any(not torch.equal(first[name], before[name]) for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("pictures", [False, True])
def test_a_long_beginning_of_text_alone_is_no_broken_contract(tmp_path, pictures):
    """Adapters learn from it; what pictures alone reach is judged by steps that have some."""
    rows = Rows(12)
    text = [row["row"] for row in rows.rows if not row["pixels"]]
    run = trainer(
        tmp_path, adapted(tiny_llava()), rows, batch=1, accumulation=1, max_steps=26, learning_rate=1e-4
    )
    run.batches = [[text[step % len(text)]] for step in range(24)] + [[0], [1]] * 2
    if pictures:  # and a gradient that never comes is reported all the same
        run.batches = [[0], [1]] * 13
        parts_of(run.model).llava.multi_modal_projector.register_forward_hook(lambda m, a, y: y.detach())
        with pytest.raises(RuntimeError, match=r"no gradient in 20 steps, first: .*multi_modal_projector"):
            run.train()
        return
    run.train()
    assert run.state.global_step == 26


def test_the_plain_twin_sees_the_same_rows_and_trains_on_lm_alone(tmp_path):
    seen = {}
    for name, objective in (("basic", Objective()), ("plain", Objective(0, 0))):
        run = trainer(tmp_path / name, objective=objective)
        fetch, order = run.get_batch_samples, []

        def record(*args, fetch=fetch, order=order):
            batches, window = fetch(*args)
            order += [batch["rows"] for batch in batches]
            return batches, window

        run.get_batch_samples = record
        run.train()
        seen[name] = order
    assert seen["basic"] == seen["plain"]
    plain, basic = log_of(tmp_path / "plain"), log_of(tmp_path / "basic")
    assert plain[0]["lm"] == pytest.approx(basic[0]["lm"], rel=1e-6)  # the same first forward pass
    for row in plain:
        assert row["loss"] == pytest.approx(row["lm"], rel=1e-6)
        assert row["das"] is None
        assert row["sds"] is None
        assert row["cosine"] is not None  # looked at, not trained on
    assert plain[0]["cosine"] == pytest.approx(basic[0]["cosine"], rel=1e-5)


def test_the_head_never_sees_an_unsupervised_row(tmp_path, monkeypatch):
    import basic_lite.method.losses as losses

    run, projected = trainer(tmp_path, max_steps=1, accumulation=1), []
    original = losses.project

    def spy(rows, matrix, out):
        if matrix is run.model.lm_head.weight:
            projected.append(len(rows))
        original(rows, matrix, out)

    monkeypatch.setattr(losses, "project", spy)
    shapes = []
    run.model.lm_head.register_forward_hook(lambda m, a, o: shapes.append(a[0].shape[1]))
    batch = next(iter(run.get_train_dataloader()))
    run.train()
    assert sum(projected) == int((batch["labels"] != -100).sum())
    assert set(shapes) == {0}  # the model's own head gets no row at all


def test_a_trained_parameter_without_gradient_is_reported(tmp_path):
    model = tiny_llava()
    model.model.vision_tower.encoder.layers[-1].requires_grad_(True)  # behind the feature layer: no gradient
    with pytest.raises(RuntimeError, match="had no gradient in"):
        trainer(tmp_path, model, max_steps=30).train()


@pytest.mark.parametrize("kind", ["projector", "lora"])
@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, monkeypatch, kind, stop):
    """Six steps over two epochs, interrupted after `stop`; dropout is on, so the random state counts too."""

    def build():
        model = tiny_llava()
        if kind == "lora":
            model = adapted(model, lora_dropout=0.3)
        return model

    def run(out, model):
        return trainer(
            out,
            model,
            Rows(16),
            max_steps=6,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=2,
            group=True,
        )

    read, original = [], Rows.__getitem__
    monkeypatch.setattr(Rows, "__getitem__", lambda self, row: read.append(row) or original(self, row))
    run(tmp_path / "whole", build()).train()
    whole = read.copy()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == stop

    first = run(tmp_path / "broken", build())
    first.add_callback(Stop())
    first.train()
    second = run(tmp_path / "broken", build())
    read.clear()
    second.train(resume_from_checkpoint=str(tmp_path / "broken" / f"checkpoint-{stop}"))
    # What was trained on before is not read again: the rows are the last ones of the uninterrupted run.
    assert read == whole[-len(read) :]
    assert len(read) <= len(whole) - 3 * stop

    names = ["projector.safetensors"] if kind == "projector" else ["adapter_model.safetensors"]
    for name in names:
        ours, theirs = (file_hash(tmp_path / run / "checkpoint-6" / name) for run in ("broken", "whole"))
        assert ours == theirs
    left = sorted(path.name for path in (tmp_path / "broken").iterdir() if path.is_dir())
    assert left == ["checkpoint-5", "checkpoint-6"]


def test_a_checkpoint_is_whole_or_absent(tmp_path, monkeypatch):
    run = trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    original = BasicTrainer._save_rng_state

    def fail(self, folder):
        if self.state.global_step == 2:
            raise OSError("No space left on device")
        original(self, folder)

    monkeypatch.setattr(BasicTrainer, "_save_rng_state", fail)
    with pytest.raises(OSError, match="No space"):
        run.train()
    from basic_lite.files import checkpoints

    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1"]
    assert not list(tmp_path.glob("checkpoint-2*"))


def test_a_kill_inside_a_save_leaves_the_last_good_one(tmp_path):
    run = trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    run.train()
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / ".checkpoint-2.part")  # as a kill would leave it
    from basic_lite.files import checkpoints

    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1"]


def test_the_model_is_not_changed_by_watching(tmp_path):
    model = tiny_llava()
    plain = copy.deepcopy(model)
    trainer(tmp_path, model, max_steps=1, learning_rate=0.0).train()
    ids = torch.tensor([[1, 7, 8, 9]])
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)


@pytest.mark.parametrize("basic", [True, False])
@pytest.mark.parametrize("decoder", ["llama", "gemma", "phi3", "mistral"])
def test_a_step_never_waits_for_the_device(tmp_path, decoder, basic):
    run = trainer(tmp_path, tiny_llava(decoder), objective=Objective() if basic else Objective(0, 0))
    batches, window = run.get_batch_samples(iter(run.get_train_dataloader()), 2, torch.device("cpu"))
    run.create_optimizer()
    run.current_gradient_accumulation_steps = 2
    with Waits() as waits:
        for batch in batches:
            run.training_step(run.model, batch, window)
    assert waits.found == []
    with Waits() as waits:  # the watch does see what it looks for
        float(torch.ones(1))
    assert waits.found


def test_narrowed_weights_do_not_wait_for_the_end_of_the_forward_pass(tmp_path):
    run, seen = trainer(tmp_path, tiny_llava("llama"), bf16=True, max_steps=1), []
    parts_of(run.model).decoder.norm.register_forward_hook(
        lambda *given: seen.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
    )
    run.train()
    assert set(seen) == {(True, False)}


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("decoder", ["llama", "gemma", "phi3", "mistral"])
def test_a_step_equals_the_face_for_other_loops(tmp_path, decoder, padding):
    """Own embedding of the pictures, no mask where causality suffices, no logits: the same gradients.

    Mistral's window (20) is shorter than the rows here, so its step does need the mask.
    """
    batch = tiny_batch(padding)
    model = tiny_llava(decoder)
    run = trainer(tmp_path, model)
    layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    assert layout.right_padded == (padding == "right")
    run.transform = None
    run.compute_loss(model, batch | {"layout": layout}).backward()
    other = tiny_llava(decoder)
    supervision = BasicSupervision(other)
    with supervision:
        outputs = other(**batch)
    (outputs.loss + supervision.loss()).backward()
    pairs = zip(model.named_parameters(), other.named_parameters(), strict=True)
    for (name, ours), (_, theirs) in pairs:
        if theirs.grad is not None:
            # Other orders of sums: in fp32 each of the two is 1e-5 from the truth.
            assert (ours.grad - theirs.grad).norm() <= 2e-5 * theirs.grad.norm(), name
