"""Optimizers by name: fp32 AdamW, and 8-bit moments for adapters."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import optim
from tiny import adapted, tiny_llava
from tiny_trainer import log_of, trainer

from basic_lite.files import file_hash


def wide(rank: int = 128):
    """Adapters above the 4,096 weights from which bitsandbytes uses 8 bits."""
    return adapted(tiny_llava(), r=rank, target_modules=r".*language_model.*\.q_proj", init_lora_weights=True)


def test_eight_bit_moments_for_adapters_and_fp32_for_the_projector(tmp_path):
    model = wide()
    run = trainer(tmp_path, model, optimizer_name="paged-adamw-8bit", projector_learning_rate=1e-4)
    run.train()
    states = {name: run.optimizer.state[p] for name, p in model.named_parameters() if p.requires_grad}
    kinds = {name: state["state1"].dtype for name, state in states.items()}
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.uint8}
    assert {kind for name, kind in kinds.items() if "projector" in name} == {torch.float32}
    assert [group["initial_lr"] for group in run.optimizer.param_groups] == [1e-2, 1e-4]


def test_one_runs_choice_is_not_left_to_the_next(tmp_path):
    """By `id`, a freed projector's choice of fp32 moments would fall to whatever parameter comes after it."""
    run = trainer(tmp_path, wide(), optimizer_name="paged-adamw-8bit")
    run.create_optimizer()
    assert run.optimizer.mng.pid2config
    assert optim.GlobalOptimManager.get_instance().pid2config == {}


def test_its_steps_are_close_to_those_of_adamw(tmp_path):
    losses = {}
    for name in ("adamw", "paged-adamw-8bit"):
        run = trainer(tmp_path / name, wide(), optimizer_name=name, max_steps=6, learning_rate=1e-3)
        run.train()
        losses[name] = [row["loss"] for row in log_of(tmp_path / name)]
    assert losses["adamw"] == pytest.approx(losses["paged-adamw-8bit"], rel=0.01)  # eight bits
    assert losses["adamw"] != losses["paged-adamw-8bit"]


def test_a_resumed_run_has_its_moments_back(tmp_path):
    settings = {
        "optimizer_name": "paged-adamw-8bit",
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    trainer(tmp_path / "whole", wide(), **settings).train()
    first = trainer(tmp_path / "broken", wide(), **settings)
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    first.add_callback(Stop())
    first.train()
    second = trainer(tmp_path / "broken", wide(), **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-2"))
    name = "checkpoint-4/adapter_model.safetensors"
    assert file_hash(tmp_path / "broken" / name) == file_hash(tmp_path / "whole" / name)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be one of adamw, paged-adamw-8bit, got 'lion'"):
        trainer(tmp_path, optimizer_name="lion")
    with pytest.raises(ValueError, match="is for adapters"):
        trainer(tmp_path, optimizer_name="paged-adamw-8bit").train()
