"""The three terms against their formulas, and their cost at the real shapes of 7B models, without a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from basic_lite.memory.available import unraised_bytes
from basic_lite.method.chunks import rows_in_chunk
from basic_lite.method.losses import directional_alignment, next_token, semantic_distribution
from basic_lite.method.types import Refinement, Window
from basic_lite.models.zoo import DECODER_CONFIGS


def refinement(rows: int, width: int, images: int = 2, scale: float = 1.0, dtype=torch.float32) -> Refinement:
    generator = torch.Generator().manual_seed(0)
    initial, target = torch.randn(2, rows, width, generator=generator) * scale
    importance = torch.rand(rows, generator=generator)
    image = torch.arange(rows) * images // rows
    return Refinement(initial.to(dtype).requires_grad_(), target, importance, image, images)


def naive_sds(initial, target, importance, embedding):
    """`sum a * KL(softmax(target E^T) || softmax(v E^T))`, all logits at once."""
    log_p = (target @ embedding.T).float().log_softmax(-1)
    log_q = (initial @ embedding.T).float().log_softmax(-1)
    return (importance * (log_p.exp() * (log_p - log_q)).sum(-1)).sum()


def in_fp64(seen: Refinement, embedding: torch.Tensor):
    """Value and gradient of the formula in fp64, from the same (rounded) inputs."""
    initial = seen.initial.detach().double().requires_grad_()
    log_p = (seen.target.double() @ embedding.double().T).log_softmax(-1)
    log_q = (initial @ embedding.double().T).log_softmax(-1)
    total = (seen.importance.double() * (log_p.exp() * (log_p - log_q)).sum(-1)).sum()
    return total, torch.autograd.grad(total, initial)[0]


def error(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return float((ours.detach().double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("rows_per_chunk", [None, 1, 5, 37, 999])
@pytest.mark.parametrize(
    ("scale", "tolerance"),
    [(0.2, 1e-5), (3.0, 1e-5), (60.0, 1e-4)],  # fp32 itself rounds a logit of 2,000 by 1e-4
)
def test_semantic_distribution_equals_the_formula(rows_per_chunk, scale, tolerance):
    seen, embedding = refinement(37, 48, scale=scale), torch.randn(1234, 48)
    term = semantic_distribution(seen, embedding, rows_per_chunk)
    term.total.backward()
    total, gradient = in_fp64(seen, embedding)
    assert error(term.total, total.detach()) < tolerance
    assert error(seen.initial.grad, gradient) < tolerance
    assert term.items == 2


def test_semantic_distribution_in_bf16_is_not_worse_than_the_naive_code():
    """Truth in fp64 from the same bf16 inputs: our error <= the naive code's + 1e-3."""
    embedding = torch.randn(1234, 48).bfloat16()
    seen = refinement(37, 48, dtype=torch.bfloat16)
    semantic_distribution(seen, embedding).total.backward()
    total, gradient = in_fp64(seen, embedding)
    naive = seen.initial.detach().clone().requires_grad_()
    naive_total = naive_sds(naive, seen.target.bfloat16(), seen.importance, embedding)
    naive_total.backward()
    assert error(semantic_distribution(seen, embedding).total, total.detach()) < 1e-5
    assert error(seen.initial.grad, gradient) <= error(naive.grad, gradient) + 1e-3


def test_semantic_distribution_under_autocast_keeps_fp32_logits():
    seen, embedding = refinement(8, 16), torch.randn(99, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        term = semantic_distribution(seen, embedding)
    assert error(term.total, in_fp64(seen, embedding)[0].detach()) < 1e-5


def test_semantic_distribution_gradcheck():
    seen, embedding = refinement(4, 6), torch.randn(11, 6, dtype=torch.float64)
    initial = seen.initial.detach().double().requires_grad_()

    def function(initial):
        wide = Refinement(initial, seen.target.double(), seen.importance.double(), seen.image, 2)
        return semantic_distribution(wide, embedding, 3).total

    assert torch.autograd.gradcheck(function, (initial,))


def test_only_the_initial_embeddings_get_a_gradient():
    seen, embedding = refinement(6, 8), torch.randn(50, 8, requires_grad=True)
    seen.target.requires_grad_()
    seen.importance.requires_grad_()
    semantic_distribution(seen, embedding).total.backward()
    assert seen.initial.grad is not None
    assert embedding.grad is None
    assert seen.target.grad is None
    assert seen.importance.grad is None


def test_the_mean_is_over_images_and_the_sum_over_patches():
    one, two = refinement(6, 8, images=1), refinement(6, 8, images=2)
    embedding = torch.randn(50, 8)
    for term in (directional_alignment, lambda seen: semantic_distribution(seen, embedding)):
        torch.testing.assert_close(term(one).mean(), 2 * term(two).mean())


def test_directional_alignment_is_two_minus_two_cosines():
    seen = refinement(9, 16)
    expected = (seen.importance * (2 - 2 * F.cosine_similarity(seen.initial, seen.target, dim=-1))).sum()
    term = directional_alignment(seen)
    torch.testing.assert_close(term.total, expected, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(term.total, seen.initial)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(expected, seen.initial)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows_per_chunk", [None, 1, 4])
def test_next_token_equals_cross_entropy(rows_per_chunk):
    hidden = torch.randn(3, 10, 16, requires_grad=True)
    head = torch.nn.Linear(16, 77, bias=False)
    labels = torch.randint(0, 77, (3, 10))
    labels[0, :6] = labels[2] = -100
    term = next_token(hidden, labels, head, rows_per_chunk)
    term.total.backward()
    ours = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None
    logits = head(hidden[:, :-1]).flatten(0, 1)
    expected = F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    expected.backward()
    assert term.items == int((labels[:, 1:] != -100).sum())
    torch.testing.assert_close(term.total, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1], head.weight.grad, rtol=1e-5, atol=1e-5)


def test_next_token_without_supervision_is_zero_and_attached():
    hidden = torch.randn(2, 4, 8, requires_grad=True)
    term = next_token(hidden, torch.full((2, 4), -100), torch.randn(20, 8))
    term.mean().backward()
    assert term.items == 0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: next_token(torch.ones(2, 3, 4), torch.ones(2, 4, dtype=torch.long), torch.ones(5, 4)),
            "labels",
        ),
        (
            lambda: next_token(torch.ones(1, 4), torch.ones(1, dtype=torch.long), torch.nn.Linear(4, 5)),
            "without bias",
        ),
        (lambda: semantic_distribution(refinement(4, 4), torch.ones(9, 4), 0), "at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_window_divides_by_its_own_counts():
    window = Window(text_tokens=12, images=3)
    assert (window.items("lm"), window.items("das"), window.items("sds")) == (12, 3, 3)
    assert Window(0, 0).items("das") == 1


@pytest.mark.parametrize(
    ("rows", "vocabulary", "expected"),
    [
        (4608, 32_000, 768),
        (4608, 256_000, 256),
        (576, 256_000, 192),  # one picture: three equal chunks
        (577, 256_000, 256),
        (800, 32_000, 448),
        (100, 32_000, 100),
        (0, 32_000, 1),
    ],
)
def test_chunks_are_bounded_in_bytes_and_fixed_by_shape(rows, vocabulary, expected):
    assert rows_in_chunk(rows, vocabulary) == expected


@pytest.mark.parametrize("name", ["vicuna-7b", "vicuna-13b", "gemma-2b", "phi3-mini", "mistral-7b"])
def test_chunks_take_less_than_the_inputs_for_eight_pictures(name):
    sizes = DECODER_CONFIGS[name]
    width, vocabulary, rows = sizes["hidden_size"], sizes["vocab_size"], 8 * 576
    inputs = 2 * vocabulary * width + (2 + 4) * rows * width
    extra = 8 * vocabulary * rows_in_chunk(rows, vocabulary) + 4 * rows * width
    assert extra < inputs


@pytest.mark.parametrize(("free", "rows"), [(0, 128), (1 << 28, 128), (600 << 20, 256), (1 << 40, 768)])
def test_on_a_gpu_chunks_take_what_the_decoder_has_let_go(monkeypatch, free, rows):
    """Without a GPU: its figures are given."""
    held = {"mem_get_info": (1 << 40, 1 << 41), "memory_reserved": 0, "memory_allocated": 5 << 30}
    held["max_memory_allocated"] = (5 << 30) + free
    for name, value in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert rows_in_chunk(4608, 256_000, unraised_bytes("cuda")) == rows


def test_a_tight_card_halves_what_is_free(monkeypatch):
    held = {"mem_get_info": (1 << 30, 1 << 34), "memory_reserved": 8 << 30, "memory_allocated": 7 << 30}
    held["max_memory_allocated"] = 30 << 30
    for name, value in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert unraised_bytes("cuda") == 1 << 30


# Vicuna-7B and Gemma-2B, two images of 576 patches: more than one chunk. bf16 is what a GPU holds; fp32 is
# what a CPU run holds.
REAL = {"vicuna-7b": (4096, 32_000), "gemma-2b": (2048, 256_000)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", REAL)
def test_bytes_and_flops_at_real_shapes(name, dtype):
    width, vocabulary = REAL[name]
    rows, chunk = 2 * 576, rows_in_chunk(2 * 576, vocabulary)
    with FakeTensorMode():
        embedding = torch.empty(vocabulary, width, dtype=dtype)
        initial = torch.empty(rows, width, dtype=dtype, requires_grad=True)
        target, importance = torch.empty(rows, width), torch.empty(rows)
        seen = Refinement(initial, target, importance, torch.empty(rows, dtype=torch.long), 2)
        inputs = sum(t.untyped_storage().nbytes() for t in (embedding, initial, target, importance))
        tracker, flops = MemTracker(), FlopCounterMode(display=False)
        tracker.track_external(embedding, initial, target, importance)
        with tracker, flops:
            semantic_distribution(seen, embedding)
    peak = (
        sum(tracker.get_tracker_snapshot("peak")[torch.device("cpu")].values()) // 2
    )  # the total is one entry
    beyond = peak - inputs
    assert beyond <= 8 * chunk * vocabulary + 4 * rows * width + (64 << 20)
    assert beyond >= 8 * chunk * vocabulary  # the tracker did see the buffers
    products = 3 * 2 * rows * vocabulary * width
    assert flops.get_total_flops() == pytest.approx(products, rel=0.02)


@pytest.mark.parametrize("name", REAL)
def test_bytes_do_not_grow_with_the_batch(name):
    width, vocabulary = REAL[name]

    def beyond(images: int) -> int:
        rows = images * 576
        with FakeTensorMode():
            embedding = torch.empty(vocabulary, width, dtype=torch.bfloat16)
            initial = torch.empty(rows, width, dtype=torch.bfloat16, requires_grad=True)
            target, importance = torch.empty(rows, width), torch.empty(rows)
            seen = Refinement(initial, target, importance, torch.empty(rows, dtype=torch.long), images)
            tracker = MemTracker()
            tracker.track_external(embedding, initial, target, importance)
            inputs = sum(t.untyped_storage().nbytes() for t in (embedding, initial, target, importance))
            with tracker:
                semantic_distribution(seen, embedding, 256)
        peak = sum(tracker.get_tracker_snapshot("peak")[torch.device("cpu")].values()) // 2
        return peak - inputs - 4 * rows * width

    assert beyond(2) == pytest.approx(beyond(1), rel=0.02)


@pytest.mark.parametrize("name", REAL)
def test_the_head_costs_supervised_rows_only(name):
    width, vocabulary = REAL[name]
    with FakeTensorMode():
        hidden = torch.empty(512, width, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(vocabulary, width, dtype=torch.bfloat16)
        labels = torch.zeros(512, dtype=torch.long)
        with FlopCounterMode(display=False) as flops:
            next_token(hidden, labels, weight)
    assert flops.get_total_flops() == pytest.approx(2 * 2 * 512 * vocabulary * width, rel=0.02)
