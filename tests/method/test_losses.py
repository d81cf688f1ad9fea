"""The three terms against their formulas, and their cost at the real shapes of 7B models, without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from basic_lite.memory.available import unraised_bytes
from basic_lite.method import losses
from basic_lite.method.chunks import CHUNK_BYTES, LEAST_BYTES, Chunk, chunk_of, rows_in_chunk
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


WHOLE_ROWS = [None, 1, 5, 37, 999]
TILES = [Chunk(37, 1233), Chunk(5, 100), Chunk(16, 617), Chunk(999, 256), Chunk(1, 9)]


@pytest.mark.parametrize("chunk", [*WHOLE_ROWS, *TILES], ids=str)
@pytest.mark.parametrize(
    ("scale", "tolerance"),
    [(0.2, 1e-5), (3.0, 1e-5), (60.0, 1e-4)],  # fp32 itself rounds a logit of 2,000 by 1e-4
)
def test_semantic_distribution_equals_the_formula(chunk, scale, tolerance):
    seen, embedding = refinement(37, 48, scale=scale), torch.randn(1234, 48)
    term = semantic_distribution(seen, embedding, chunk)
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


def test_tiles_take_one_tile_far_above_or_below_the_others():
    """Logits of 500 in one tile alone: the shares of all others are 0 in fp32, and nothing is NaN."""
    torch.manual_seed(0)
    embedding = torch.randn(400, 16) * 0.1
    for tile in range(4):
        for high in (500.0, -500.0):
            seen = refinement(3, 16)
            shifted = embedding.clone()
            shifted[tile * 100 : tile * 100 + 100, 0] = high
            for states in (seen.initial.data, seen.target):
                states[:, 0] = 1.0
            term = semantic_distribution(seen, shifted, Chunk(2, 100))
            term.total.backward()
            total, gradient = in_fp64(seen, shifted)
            # fp32 knows a logit of 500 to 3e-5, and the term is 0.25.
            assert error(term.total, total.detach()) < 5e-4
            # Of the shifted dimension 500 times what fp32 rounds off a sum of probabilities is left.
            assert error(seen.initial.grad[:, 1:], gradient[:, 1:]) < 1e-4


@pytest.fixture
def products_as_on_a_gpu(monkeypatch):
    """Operands in bf16, sums in fp32: what a CPU has no product for."""
    product = torch.mm

    def mm(a, b, *, out, out_dtype=None):
        assert a.dtype == b.dtype
        return product(a, b, out=out) if out_dtype is None else out.copy_(a.to(out_dtype) @ b.to(out_dtype))

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(losses, "_accumulates_in_fp32", lambda matrix: matrix.dtype == torch.bfloat16)


@pytest.mark.parametrize("chunk", [5, *TILES[1:4]], ids=str)
@pytest.mark.parametrize("apart", [1.0, 0.03])
def test_narrow_weights_round_the_difference_and_not_both_sides(products_as_on_a_gpu, chunk, apart):
    """In bf16 as on a GPU. Where q and p are alike, rounding each of them would cost a digit and more."""
    embedding, seen = torch.randn(1234, 48).bfloat16(), refinement(37, 48, dtype=torch.bfloat16)
    target = (seen.initial.detach() + apart * seen.target).bfloat16().float()
    seen = replace(seen, target=target)
    term = semantic_distribution(seen, embedding, chunk)
    term.total.backward()
    total, gradient = in_fp64(seen, embedding)
    assert error(term.total, total.detach()) < 2e-4
    assert error(seen.initial.grad, gradient) < 3e-3
    q, p = (
        (states.detach().double() @ embedding.double().T).softmax(-1).bfloat16().double()
        for states in (seen.initial, target)
    )
    both_sides = (q - p) @ embedding.double() * seen.importance.double()[:, None]
    assert apart == 1 or error(both_sides, gradient) > 3 * error(seen.initial.grad, gradient)


@pytest.mark.parametrize("chunk", [None, Chunk(4, 20)], ids=str)
def test_patches_that_weigh_nothing_get_nothing_and_change_nothing(chunk):
    embedding, seen = torch.randn(50, 8), refinement(9, 8)
    importance = seen.importance.clone()
    importance[[1, 7]] = 0.0
    weighed = replace(seen, importance=importance)
    term = semantic_distribution(weighed, embedding, chunk)
    (gradient,) = torch.autograd.grad(term.total, seen.initial)
    assert torch.equal(gradient[[1, 7]], torch.zeros(2, 8))
    kept = importance > 0
    initial = seen.initial.detach()[kept].requires_grad_()
    fewer = Refinement(initial, seen.target[kept], importance[kept], seen.image[kept], 2)
    alone = semantic_distribution(fewer, embedding, chunk)
    torch.testing.assert_close(term.total, alone.total)
    torch.testing.assert_close(gradient[kept], torch.autograd.grad(alone.total, initial)[0])


@pytest.mark.parametrize("chunk", [None, Chunk(4, 20)], ids=str)
def test_no_patch_is_a_zero_that_is_attached(chunk):
    seen = refinement(0, 8)
    total = semantic_distribution(seen, torch.randn(50, 8), chunk).total
    total.backward()
    assert float(total.detach()) == 0.0
    assert seen.initial.grad.shape == (0, 8)


def test_pictures_one_by_one_add_up_to_all_at_once_whatever_the_chunk():
    """As micro-batches of an optimizer step do: sums, each scaled by what `backward` receives."""
    embedding, seen = torch.randn(300, 16), refinement(12, 16, images=3)
    whole = semantic_distribution(seen, embedding, Chunk(5, 64)).total / 3
    (together,) = torch.autograd.grad(whole, seen.initial)
    values, gradients = [], []
    for image, chunk in enumerate((None, Chunk(3, 299), Chunk(2, 100))):
        own = seen.image == image
        initial = seen.initial.detach()[own].requires_grad_()
        part = Refinement(initial, seen.target[own], seen.importance[own], seen.image[own] * 0, 1)
        value = semantic_distribution(part, embedding, chunk).total / 3
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, initial)[0])
    torch.testing.assert_close(sum(values), whole.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat(gradients), together, rtol=1e-5, atol=1e-6)
    assert error(together, in_fp64(seen, embedding)[1] / 3) < 1e-5


def test_semantic_distribution_under_autocast_keeps_fp32_logits():
    seen, embedding = refinement(8, 16), torch.randn(99, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        term = semantic_distribution(seen, embedding)
    assert error(term.total, in_fp64(seen, embedding)[0].detach()) < 1e-5


@pytest.mark.parametrize("chunk", [3, Chunk(3, 4)], ids=str)
def test_semantic_distribution_gradcheck(chunk):
    seen, embedding = refinement(4, 6), torch.randn(11, 6, dtype=torch.float64)
    initial = seen.initial.detach().double().requires_grad_()

    def function(initial):
        wide = Refinement(initial, seen.target.double(), seen.importance.double(), seen.image, 2)
        return semantic_distribution(wide, embedding, chunk).total

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
        (lambda: semantic_distribution(refinement(4, 4), torch.ones(9, 4), 0), "rows.* at least 1, got 0"),
        (lambda: Chunk(4, 0), "columns_per_chunk must be at least 1, got 0"),
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


NAMES = ["vicuna-7b", "vicuna-13b", "gemma-2b", "phi3-mini", "mistral-7b"]


@pytest.mark.parametrize("budget", [None, 0, 100 << 20, 200 << 20, 1 << 30, 1 << 40])
@pytest.mark.parametrize("rows", [1, 64, 100, 576, 729, 1152, 4608])
@pytest.mark.parametrize("name", NAMES)
def test_a_chunk_of_l_sds_stays_within_its_budget(name, rows, budget):
    width, vocabulary = (DECODER_CONFIGS[name][key] for key in ("hidden_size", "vocab_size"))
    chunk = chunk_of(rows, vocabulary, width, 2, budget)
    allowed = min(rows * (288 << 10), CHUNK_BYTES) if budget is None else budget
    assert chunk.bytes(vocabulary, width, 2) <= max(allowed, LEAST_BYTES)
    assert chunk.columns * chunk.tiles(vocabulary) >= vocabulary
    assert 3 <= chunk.products(vocabulary) < 4
    if chunk.columns < vocabulary:  # the same rows would not fit whole, and one tile less would not either
        fewer = -(-vocabulary // (chunk.tiles(vocabulary) - 1))
        assert Chunk(chunk.rows, fewer).bytes(vocabulary, width, 2) > max(allowed, LEAST_BYTES)


@pytest.mark.parametrize(
    ("name", "rows", "budget", "expected"),
    [
        ("vicuna-7b", 4608, None, Chunk(768, 32_000)),
        ("vicuna-7b", 576, None, Chunk(576, 32_000)),
        ("phi3-mini", 9216, None, Chunk(768, 32_064)),
        ("gemma-2b", 4608, None, Chunk(256, 256_000)),
        ("gemma-2b", 576, None, Chunk(192, 85_504)),  # three tiles; 192 whole rows are 395 MB
        ("gemma-2b", 576, 1 << 40, Chunk(576, 256_000)),
        ("gemma-2b", 576, 300 << 20, Chunk(128, 256_000)),  # whole rows again, where 128 of them fit
    ],
)
def test_whole_rows_where_they_fit_and_tiles_where_they_do_not(name, rows, budget, expected):
    width, vocabulary = (DECODER_CONFIGS[name][key] for key in ("hidden_size", "vocab_size"))
    assert chunk_of(rows, vocabulary, width, 2, budget) == expected


def test_a_state_wider_than_the_budget_goes_through_all_the_same():
    chunk = chunk_of(64, 32_000, 1 << 20, 4, 0)
    assert chunk == Chunk(64, 1024)


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (0, Chunk(192, 36_608)),
        (1 << 28, Chunk(128, 256_000)),
        (600 << 20, Chunk(256, 256_000)),
        (1 << 40, Chunk(768, 256_000)),
    ],
)
def test_on_a_gpu_chunks_take_what_the_decoder_has_let_go(monkeypatch, free, expected):
    """Without a GPU: its figures are given."""
    held = {"mem_get_info": (1 << 40, 1 << 41), "memory_reserved": 0, "memory_allocated": 5 << 30}
    held["max_memory_allocated"] = (5 << 30) + free
    for name, value in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert chunk_of(4608, 256_000, 2048, 2, unraised_bytes("cuda")) == expected


def test_a_tight_card_halves_what_is_free(monkeypatch):
    held = {"mem_get_info": (1 << 30, 1 << 34), "memory_reserved": 8 << 30, "memory_allocated": 7 << 30}
    held["max_memory_allocated"] = 30 << 30
    for name, value in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert unraised_bytes("cuda") == 1 << 30


# Shapes of real models. bf16 is what a GPU holds; fp32 is what a CPU run holds.
REAL = {"vicuna-7b": (4096, 32_000), "gemma-2b": (2048, 256_000), "phi3-mini": (3072, 32_064)}


def cost_of(
    name: str, dtype: torch.dtype, pictures: int, chunk: Chunk | None = None, gpu: bool = True
) -> dict[str, float]:
    """Count what `L_sds` and its backward pass hold beyond the inputs and multiply, on fake tensors.

    Args:
        name: of the decoder.
        dtype: of its embeddings and states.
        pictures: 576 patches each.
        chunk: `None` for the rule's.
        gpu: take the path of a GPU: bf16 products that are summed in fp32, and the row kernel's tensors. On
            a CPU products are not counted.
    """
    width, vocabulary = REAL[name]
    rows = pictures * 576
    products = []

    def mm(a, b, *, out, out_dtype):
        products.append(a.shape[0] * a.shape[1] * b.shape[1] / (rows * vocabulary * width))
        return out

    def kernel(logits, norms, dtype, keep_teacher):
        return logits.new_empty(logits.shape[1]), logits.view(dtype)[:, :, : logits.shape[2]]

    with FakeTensorMode(), pytest.MonkeyPatch.context() as patch:
        if gpu:
            patch.setattr(torch, "mm", mm)
            patch.setattr(losses, "_accumulates_in_fp32", lambda matrix: matrix.dtype == torch.bfloat16)
            patch.setattr(losses, "_row_kernel", lambda logits: kernel)
        embedding = torch.empty(vocabulary, width, dtype=dtype)
        initial = torch.empty(rows, width, dtype=dtype, requires_grad=True)
        target, importance = torch.empty(rows, width), torch.empty(rows)
        seen = Refinement(initial, target, importance, torch.empty(rows, dtype=torch.long), pictures)
        inputs = sum(t.untyped_storage().nbytes() for t in (embedding, initial, target, importance))
        tracker = MemTracker()
        tracker.track_external(embedding, initial, target, importance)
        with tracker:
            semantic_distribution(seen, embedding, chunk).total.backward()
    peak = (
        sum(tracker.get_tracker_snapshot("peak")[torch.device("cpu")].values()) // 2
    )  # the total is an entry
    return {"bytes": peak - inputs, "inputs": inputs, "products": sum(products)}


@pytest.mark.parametrize(("name", "pictures"), [("vicuna-7b", 2), ("gemma-2b", 2), ("gemma-2b", 1)])
def test_bytes_and_products_at_real_shapes(name, pictures):
    """As on a GPU, to the byte but for some vectors `(N,)`."""
    (width, vocabulary), rows = REAL[name], pictures * 576
    chunk = chunk_of(rows, vocabulary, width)
    cost = cost_of(name, torch.bfloat16, pictures)
    assert cost["bytes"] == pytest.approx(chunk.bytes(vocabulary, width, 2) + 4 * rows * width, abs=64 * rows)
    assert cost["products"] == pytest.approx(chunk.products(vocabulary), rel=0.002)


def test_one_picture_on_gemma_takes_at_most_200_mb():
    cost = cost_of("gemma-2b", torch.bfloat16, 1)
    assert cost["bytes"] <= 200e6
    assert cost["products"] == pytest.approx(3 + 2 / 3, rel=0.002)
    assert cost_of("gemma-2b", torch.bfloat16, 1, Chunk(192, 256_000))["bytes"] > 390e6


def test_one_picture_on_gemma_takes_at_most_200_mb_on_a_cpu_too():
    """Which widens a bf16 matrix block by block."""
    assert cost_of("gemma-2b", torch.bfloat16, 1, gpu=False)["bytes"] <= 200e6


@pytest.mark.parametrize("pictures", [8, pytest.param(16, marks=pytest.mark.full)])  # 8 have the least room
@pytest.mark.parametrize("name", REAL)
def test_eight_pictures_take_less_than_the_inputs(name, pictures):
    cost = cost_of(name, torch.bfloat16, pictures)
    assert cost["bytes"] <= cost["inputs"]
    assert cost["products"] == pytest.approx(3)


@pytest.mark.parametrize("chunk", [Chunk(256, 256_000), Chunk(256, 32_000)], ids=str)
def test_bytes_do_not_grow_with_the_batch(chunk):
    one, two = (cost_of("gemma-2b", torch.bfloat16, pictures, chunk)["bytes"] for pictures in (1, 2))
    assert two - one == pytest.approx(4 * 576 * 2048, rel=0.02)


class Counted(TorchDispatchMode):
    """Notes what a GPU would have to start: all but views and new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        schema = function._schema
        aliases = [value.alias_info for value in schema.returns]
        if "empty" not in schema.name and all(alias is None or alias.is_write for alias in aliases):
            self.names.append(schema.name.removeprefix("aten::"))
        return function(*args, **(kwargs or {}))


def test_a_chunk_of_rows_is_two_products_and_a_kernel(monkeypatch):
    """Beside them: two copies of states, and the start of the sums. Weights are applied once, in backward."""

    def kernel(logits, norms, dtype, keep_teacher):
        return torch.ops.aten.sum.dim_IntList(logits[0], [1]), logits  # one operation in its place

    monkeypatch.setattr(losses, "_row_kernel", lambda logits: kernel)
    embedding = torch.randn(50, 8)

    def operations(rows: int) -> list[str]:
        seen = refinement(rows, 8)
        with Counted() as counted:
            semantic_distribution(seen, embedding, 4).total.backward()
        return counted.names

    one, three = operations(4), operations(12)
    assert len(three) - len(one) == 2 * 6
    assert three.count("mm") == 6
    assert len(one) - 6 <= 9


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
