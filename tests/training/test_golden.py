"""Twenty steps of each stage on the tiny model, against a recorded trajectory.

Recorded with `BASIC_LITE_RECORD=1 pytest tests/training/test_golden.py`; the file says with which
versions. A change that is not meant to change numbers must leave these alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from tiny import tiny_assembled
from tiny_trainer import Rows, log_of, trainer

from basic_lite.files import versions
from basic_lite.models import trainable

RECORD = Path(__file__).parent / "golden" / "trajectories.json"
KEYS = ("loss", "lm", "das", "sds", "cosine", "grad_norm")


@pytest.mark.parametrize("stage", ["stage 1", "stage 2, adapters", "stage 1, 4 bits"])
def test_twenty_steps_follow_the_record(tmp_path, stage):
    assembled = tiny_assembled("llama", bits=4 if "4 bits" in stage else 16)
    if "adapters" in stage:
        trainable.train_adapters(assembled, trainable.Adapters(4, 8, 0.0))
    else:
        trainable.train_projector(assembled)
    torch.manual_seed(0)
    rate = 1e-2 if "stage 1" in stage else 1e-3
    trainer(tmp_path, assembled.model, Rows(40), max_steps=20, learning_rate=rate, group="2" in stage).train()
    ours = [[row[key] or 0.0 for key in KEYS] for row in log_of(tmp_path)]  # no das in a step without image
    if os.environ.get("BASIC_LITE_RECORD"):
        content = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
        rounded = [" ".join(f"{value:.7g}" for value in row) for row in ours]
        content |= {stage: {"versions": versions(), "keys": " ".join(KEYS), "steps": rounded}}
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(content, indent=1) + "\n")
        pytest.skip("recorded")
    lines = json.loads(RECORD.read_text())[stage]["steps"]
    recorded = [[float(value) for value in line.split()] for line in lines]
    # Other processors sum in another order, and twenty steps of Adam amplify it.
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(recorded), rtol=2e-3, atol=2e-3)
    first = torch.tensor(ours[0])
    torch.testing.assert_close(first, torch.tensor(recorded[0]), rtol=1e-5, atol=1e-6)
