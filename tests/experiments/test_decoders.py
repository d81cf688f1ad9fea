"""A squeezed decoder says what the embedded one says, in a space of which half is short."""

from __future__ import annotations

import pytest
import torch
from embedded import needs_parts
from transformers import AutoModelForCausalLM, AutoTokenizer

from basic_lite.data.world.parts import DECODER
from basic_lite.experiments.decoders import described_twice, squeeze, write_squeezed


def test_half_of_all_directions_are_short_and_none_is_a_coordinate():
    to = squeeze(8, 16.0)
    assert torch.equal(to, to.T)
    lengths = torch.linalg.svdvals(to)
    torch.testing.assert_close(lengths, torch.tensor([1.0] * 4 + [1 / 16] * 4, dtype=torch.float64))
    assert to.diagonal().min() > 0.1
    torch.testing.assert_close(squeeze(8, 1.0), torch.eye(8, dtype=torch.float64))


@needs_parts
@pytest.mark.parametrize(("times", "most"), [(1.0, 1e-4), (16.0, 0.04)])
def test_a_squeezed_decoder_reads_text_as_the_embedded_one_does(times, most, tmp_path):
    write_squeezed(tmp_path / "decoder", times)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "decoder")
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (DECODER, tmp_path / "decoder")]
    table, squeezed = (model.get_input_embeddings().weight for model in models)
    torch.testing.assert_close(squeezed, table @ squeeze(table.shape[1], times).float(), atol=1e-5, rtol=0)
    losses = []
    for model in models:
        each = []
        for text in described_twice(20, seed=3):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                each.append(model(ids, labels=ids).loss.item())
        losses.append(sum(each) / len(each))
    assert losses[1] == pytest.approx(losses[0], abs=most)
