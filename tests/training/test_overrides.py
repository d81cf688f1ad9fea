"""What of other libraries this project overrides, and how it must look; a release that moves it fails."""

from __future__ import annotations

import inspect

import pytest
from accelerate import Accelerator
from transformers import Trainer, TrainingArguments

from basic_lite.training.trainer import BasicTrainer, ShardedArguments

PRIVATE = {
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model=None"],
    "_get_grad_norm": ["self", "model", "grad_norm=None"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
}
"""Methods that the Trainer promises to nobody: no public hook is called at these moments."""

PUBLIC = {
    "train": ["self", "resume_from_checkpoint=None", "trial=None", "ignore_keys_for_eval=None"],
    "get_train_dataloader": ["self"],
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "compute_loss": ["self", "model", "inputs", "return_outputs=False", "num_items_in_batch=None"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch=None"],
    "create_optimizer": ["self", "model=None"],
    "floating_point_ops": ["self", "inputs"],
    "log": ["self", "logs", "start_time=None"],
    "evaluate": ["self", "eval_dataset=None", "ignore_keys=None", "metric_key_prefix=eval"],
    "save_model": ["self", "output_dir=None", "_internal_call=False"],
}


def signature(function: object) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]


def overridden() -> set[str]:
    return {
        name
        for name in vars(BasicTrainer)
        if callable(getattr(Trainer, name, None)) and not name.startswith("__")
    }


def test_the_list_is_complete():
    assert overridden() == {*PRIVATE, *PUBLIC}


@pytest.mark.parametrize("name", [*PRIVATE, *PUBLIC])
def test_the_trainer_calls_what_we_override_as_before(name):
    assert signature(getattr(Trainer, name)) == (PRIVATE | PUBLIC)[name]


def test_what_is_replaced_in_an_accelerator():
    expected = ["self", "model", "device_placement=None", "evaluation_mode=False"]
    assert signature(Accelerator.prepare_model) == expected


def test_the_trainer_asks_its_arguments_where_the_model_goes():
    assert isinstance(TrainingArguments.place_model_on_device, property)
    assert ShardedArguments.place_model_on_device.fget(None) is False
    assert "args.place_model_on_device" in inspect.getsource(Trainer.__init__)
