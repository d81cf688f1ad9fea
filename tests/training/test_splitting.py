"""Out of memory in mid-run: the step is done again in smaller pieces and ends with the same parameters."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import IMAGE_TOKEN, adapted, tiny_batch, tiny_llava
from tiny_trainer import Rows, failing, log_of, sgd_trainer, trainer, weights

from basic_lite.data.layout import layout_of
from basic_lite.method.targets import TargetSpace
from basic_lite.training.guards import rows_of


def run(out, most=None, where="forward", after=0, batch=4, accumulation=2, lora=True):
    model = adapted(tiny_llava()) if lora else tiny_llava()
    made = sgd_trainer(out, model, 1e-3, batch=batch, accumulation=accumulation)
    seen = [] if most is None else failing(model, most, where, after)
    made.train()
    return weights(model), log_of(out), seen


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    ("after", "sizes"), [(0, [4, 2, 2, 2, 2]), (1, [4, 4, 2, 2, 2, 2]), (3, [4] * 4 + [2] * 4)]
)
def test_the_step_ends_as_if_nothing_had_happened(tmp_path, where, after, sizes, lora):
    """The failure comes in the first, second or fourth micro-batch; two make a step."""
    whole, expected, _ = run(tmp_path / "whole", lora=lora)
    split, ours, seen = run(tmp_path / "split", 2, where, after, lora=lora)
    assert seen[: len(sizes)] == sizes
    assert set(seen[len(sizes) :]) == {2}
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-6, atol=1e-6)
    keys = ("loss", "lm", "das", "sds", "cosine", "grad_norm")
    for mine, theirs in zip(ours, expected, strict=True):
        assert [mine[key] for key in keys] == pytest.approx([theirs[key] for key in keys], rel=1e-5)
        assert "micro_batch" not in theirs
    first = 0 if after < 2 else 1
    assert [row.get("micro_batch") for row in ours] == [None] * first + [2] * (3 - first)


def test_halves_of_halves_and_one_message_each(tmp_path, monkeypatch):
    messages = []
    from transformers.utils import logging

    logger = logging.get_logger("basic_lite.training.guards")
    monkeypatch.setattr(logger, "warning", messages.append)
    whole, *_ = run(tmp_path / "whole")
    split, ours, _ = run(tmp_path / "split", 1)
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-6, atol=1e-6)
    assert [row["micro_batch"] for row in ours] == [1, 1, 1]
    assert [message.split(";")[0] for message in messages] == [
        "out of memory with 4 rows at a time",
        "out of memory with 2 rows at a time",
    ]


def test_a_single_row_that_does_not_fit_is_an_error_in_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"out of memory with a single row of \d+ tokens: recompute"
    ) as raised:
        run(tmp_path, 0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_part_of_a_layout_is_the_layout_of_the_part(padding, cut):
    batch = tiny_batch(padding)
    batch["layout"] = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
    batch["rows"] = list(range(5))
    pictures = 0
    for start, stop in ((0, cut), (cut, 5)):
        part = rows_of(batch, start, stop)
        layout = part.pop("layout")
        images = layout.images
        fresh = layout_of(part["input_ids"], part["attention_mask"], IMAGE_TOKEN, images, part["labels"])
        for field in dataclasses.fields(fresh):
            ours, theirs = getattr(layout, field.name), getattr(fresh, field.name)
            if field.name in ("text", "is_text", "predicting_rows"):
                ours = ours[:, : theirs.shape[1]]  # the whole batch's width may be larger
            elif field.name == "slot":
                ours, theirs = (lay.predicting_rows.flatten()[lay.slot] for lay in (layout, fresh))
            elif field.name == "right_padded":
                continue  # of the whole batch: at worst a mask that was not needed
            same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
            assert same, field.name
        assert part["rows"] == list(range(start, stop))
        pixels = part["pixel_values"]
        assert (0 if pixels is None else len(pixels)) == images
        if images:
            assert torch.equal(pixels, batch["pixel_values"][pictures : pictures + images])
        pictures += images
    assert pictures == 5


def test_a_pass_whose_rows_belong_together_is_not_split(tmp_path):
    model = tiny_llava()
    failing(model, 1, "forward")
    run = trainer(tmp_path, model, Rows(8, images=True), target=TargetSpace("individual"))
    with pytest.raises(
        ValueError, match="an individual target depends on which rows share a pass: start again"
    ):
        run.train()
