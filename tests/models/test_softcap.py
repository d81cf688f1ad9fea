"""Capped attention and capped logits, against their formulas in fp64."""

from __future__ import annotations

import pytest
import torch
from tiny import llm_folder, tiny_batch, tiny_llava
from transformers import AutoModelForCausalLM

from basic_lite.memory.sizes import DecoderSize
from basic_lite.method.losses import next_token
from basic_lite.models import capped_map, softcap

CAP = 2.0


def formula(query, key, value, mask, scaling, cap=CAP):
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = cap * torch.tanh(query @ key.mT * scaling / cap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize(
    ("queries", "keys", "mask", "elements"),
    [
        (7, 7, None, 1 << 24),
        (5, 9, None, 40),  # after a prompt, two queries at a time
        (1, 9, None, 1 << 24),
        (7, 7, torch.bool, 100),
        (7, 7, torch.float64, 100),
        (600, 600, None, 1 << 24),  # pieces leave out the keys after them
    ],
)
def test_attention_and_its_gradients_equal_the_formula(queries, keys, mask, elements, monkeypatch):
    monkeypatch.setattr(capped_map, "MAP_ELEMENTS", elements)
    torch.manual_seed(0)
    query = (3 * torch.randn(2, 4, queries, 6, dtype=torch.double)).requires_grad_()
    key = (3 * torch.randn(2, 2, keys, 6, dtype=torch.double)).requires_grad_()
    value = torch.randn(2, 2, keys, 6, dtype=torch.double, requires_grad=True)
    seen = (torch.rand(2, 1, queries, keys) < 0.7) | torch.eye(queries, keys, dtype=torch.bool)
    if mask is not None:
        mask = seen if mask == torch.bool else torch.where(seen, 0.0, -1e9).double()
    ours, _ = softcap.attend(torch.nn.Module(), query, key, value, mask, scaling=0.4, softcap=CAP)
    truth = formula(query, key, value, mask, 0.4)
    torch.testing.assert_close(ours, truth, atol=1e-10, rtol=1e-10)
    upstream, inputs = torch.randn_like(truth), (query, key, value)
    for here, there in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(truth, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(here, there, atol=1e-10, rtol=1e-10)


def test_under_autocast_the_scores_are_wide():
    """In bf16 on a CPU, where autocast would also narrow the products of widened factors."""
    torch.manual_seed(0)
    query, key = (4 * torch.randn(1, 2, 64, 16) for _ in "qk")  # scores of 30, in steps of 0.125 in bf16
    value = torch.randn(1, 2, 64, 16)
    narrow = [x.bfloat16().double() for x in (query, key, value)]
    with torch.autocast("cpu", torch.bfloat16):
        seen, _ = softcap.attend(torch.nn.Module(), query, key, value, None, scaling=0.5, softcap=50.0)
    truth = formula(*narrow, None, 0.5, cap=50.0)
    assert seen.dtype == torch.bfloat16
    assert (seen.double() - truth).norm() / truth.norm() < 4e-3


def test_dropout_is_refused():
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="set attention_dropout to 0"):
        softcap.attend(torch.nn.Module(), states, states, states, None, softcap=CAP, dropout=0.1)


@pytest.mark.parametrize("rows", [3, 100])
def test_the_loss_of_a_capped_head_equals_the_formula(rows):
    torch.manual_seed(0)
    hidden = (2 * torch.randn(11, 8)).requires_grad_()
    head = torch.nn.Linear(8, 700, bias=False)
    head.weight.data.mul_(3)
    head.__class__, head.cap = softcap.CappedHead, CAP
    labels = torch.randint(0, 700, (11,))
    term = next_token(hidden, labels, head, rows)
    gradients = torch.autograd.grad(term.total, (hidden, head.weight))
    wide = [x.detach().double().requires_grad_() for x in (hidden, head.weight)]
    logits = CAP * torch.tanh(wide[0] @ wide[1].T / CAP)
    truth = -logits.log_softmax(-1).gather(1, labels[:, None]).sum()
    torch.testing.assert_close(term.total.double(), truth, rtol=1e-6, atol=0)
    torch.testing.assert_close(head(hidden).double(), logits, rtol=1e-5, atol=1e-5)
    for ours, expected in zip(gradients, torch.autograd.grad(truth, wide), strict=True):
        assert (ours - expected).norm() < 1e-5 * expected.norm()


def test_a_decoder_is_loaded_with_its_cap_and_generates_as_its_class():
    """The tiny one's scores reach far beyond 2: without the cap, or with sdpa, other tokens come."""
    own = AutoModelForCausalLM.from_pretrained(llm_folder("gemma2"), attn_implementation="eager").eval()
    assert softcap.implementation(own.config) == softcap.NAME
    model = tiny_llava("gemma2").eval()
    model.model.language_model.load_state_dict(own.model.state_dict())
    model.model.language_model.set_attn_implementation(softcap.NAME)
    ids = tiny_batch()["input_ids"][2:3, :12]
    options = {"max_new_tokens": 20, "do_sample": False, "output_logits": True, "eos_token_id": None}
    options["return_dict_in_generate"] = True
    ours, theirs = (
        m.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options) for m in (model, own)
    )
    assert torch.equal(ours.sequences, theirs.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), atol=1e-4, rtol=1e-4)


def test_the_plan_counts_the_map_in_pieces():
    size = DecoderSize.of(own_config())
    assert size.capped
    # 8 rows of 641 tokens: 256 queries at a time, four and a half times 4 bytes
    assert capped_map.working_bytes(8, 8, 641, 641) == 18 * 8 * 8 * 256 * 641
    assert capped_map.working_bytes(32, 8, 2048, 2048) <= 18 * capped_map.MAP_ELEMENTS


def own_config():
    return AutoModelForCausalLM.from_pretrained(llm_folder("gemma2")).config
