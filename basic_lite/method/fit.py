"""Fit the space of a target on text alone: means, or one affine map per layer by ridge regression.

A decoder's states may hold their token without looking like its embedding: then a linear map finds it.
For each layer `l` the map takes the states after it, on text, to what the first layer received for the
same tokens, in closed form:

```python
x, y = states[l] - states[l].mean(0), received - received.mean(0)
map = solve(x.T @ x + ridge * mean(diag(x.T @ x)) * eye(D), x.T @ y)
```
Nothing but the sums `x.T @ x` and `x.T @ y` is kept: `2 * D * D` numbers per layer. For the 16 layers of
Vicuna-7B that is 16 * 2 * 4096^2 * 4 bytes = 2.1 GB in fp32 while it is fitted, and 16 * 4096^2 * 2 bytes =
0.54 GB in bf16 afterwards. Where the sums of all layers at once would take more than `SUM_BYTES`, the layers
go in groups and the text is run once per group: Vicuna-13B's 20 layers (4.2 GB) in two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from basic_lite.method.chunks import rows_in_chunk
from basic_lite.method.losses import column_blocks, log_softmax_, project
from basic_lite.method.targets import UNFITTED, TargetKind, TargetSpace, check_kind, supervised_layers
from basic_lite.models.llava import for_inference
from basic_lite.models.parts import embedding_of, layers_of, parts_of
from basic_lite.models.tower import passing_through

LENGTH: int = 128
"""Tokens of a row; shorter where there is little text, so that some rows can be held out."""


@dataclass(frozen=True)
class TextBatch:
    """What a decoder makes of some text, without the first token of each row.

    Many LLMs park attention there, and its states are a hundred times larger than all others.
    """

    ids: torch.Tensor  # `(n,)` the tokens
    # `(n, D)` what the first layer received for them; for Gemma with its factor sqrt(D)
    received: torch.Tensor
    states: dict[int, torch.Tensor]  # layer, from 1 -> `(n, D)` after it
    # `(R, S, D)` after the final norm, the rows whole; `None` where not all layers ran
    final: torch.Tensor | None


def token_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], tokens: int, length: int = LENGTH
) -> torch.Tensor:
    """Write texts one under the other and cut them into rows of one length, which need no padding.

    Texts are read until there are `tokens` tokens. Rows are shorter than `length` where the text would not
    fill twenty of them; every row begins with BOS where the tokenizer sets one. Returns `(R, S)` int64;
    raises ValueError if there is hardly any text.
    """
    ids: list[int] = []
    block: list[str] = []
    waiting = 0
    for text in texts:
        block.append(text)
        waiting += len(text)
        if waiting > 20_000:
            ids += _ids(tokenizer, "\n".join(block) + "\n")
            block, waiting = [], 0
        if len(ids) >= tokens:
            break
    if block:
        ids += _ids(tokenizer, "\n".join(block))
    ids = ids[:tokens]
    if len(ids) < 32:
        raise ValueError(f"{len(ids)} tokens of text are too few to look at a decoder; give more text")
    bos = tokenizer.bos_token_id
    first = [bos] if bos is not None and tokenizer("x").input_ids[0] == bos else []
    own = max(min(length, len(ids) // 20), 8) - len(first)
    rows = [first + ids[start : start + own] for start in range(0, len(ids) - own + 1, own)]
    return torch.tensor(rows)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids  # it is cut into rows below


@torch.no_grad()
def states_of(
    decoder: PreTrainedModel,
    rows: torch.Tensor,
    layers: Iterable[int],
    whole: bool = False,
    batch: int = 1024,  # tokens per forward pass
) -> Iterator[TextBatch]:
    """Run rows `(R, S)` of ids and yield the states after `layers` (from 1), a batch at a time.

    Nothing outlives its batch: 1024 tokens of Vicuna-7B hold 8 MB per layer in bf16. The decoder has no head,
    but may have adapters; unless `whole`, what comes after the last of `layers` does nothing.
    """
    device = embedding_of(decoder).device
    wanted = sorted(layers)
    states: dict[int, torch.Tensor] = {}

    def keep(number: int, layer: nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        states[number] = hidden[:, 1:].flatten(0, 1)

    layers_at = {number: layers_of(decoder)[number - 1] for number in wanted}
    hooks = [layer.register_forward_hook(partial(keep, number)) for number, layer in layers_at.items()]
    idle = [] if whole else [*layers_of(decoder)[wanted[-1] if wanted else 0 :], decoder.norm]
    try:
        with _at_rest(decoder), passing_through(idle):
            for part in rows.split(max(batch // rows.shape[1], 1)):
                part = part.to(device)
                received = decoder.get_input_embeddings()(part)
                final = decoder(inputs_embeds=received, use_cache=False).last_hidden_state
                yield TextBatch(
                    part[:, 1:].flatten(),
                    received[:, 1:].flatten(0, 1),
                    dict(states),
                    final if whole else None,
                )
                states.clear()
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _at_rest(decoder: nn.Module) -> Iterator[None]:
    """Switch dropout off, and leave every module in the mode that it was in."""
    before = [(module, module.training) for module in decoder.modules()]
    for_inference(decoder)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@dataclass(frozen=True)
class Reading:
    """How vectors read against the vocabulary: whose row is nearest, and how sharply; a number per vector."""

    own: torch.Tensor  # `(n,)` bool, whether the nearest row by cosine is the vector's own token
    cosine: torch.Tensor  # `(n,)` fp32, to what the first layer received for that token
    entropy: torch.Tensor  # `(n,)` fp32, of `softmax(h E^T)`, in nats


@torch.no_grad()
def read(
    vectors: torch.Tensor,
    received: torch.Tensor,
    ids: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
) -> Reading:
    """Read vectors against the vocabulary, a few hundred rows at a time.

    Args:
        vectors: `(n, D)`.
        received: `(n, D)` the embeddings that the first layer received there.
        ids: `(n,)` the tokens.
        table: `(V, D)` raw token embeddings.
        lengths: `(V,)` fp32, their norms; see `row_lengths`.
    """
    own, entropy = [], []
    vectors = vectors.float()
    rows = min(rows_in_chunk(len(vectors), len(table)), 256)
    buffer = vectors.new_empty((min(rows, len(vectors)), len(table)))
    for part, token in zip(vectors.split(rows), ids.split(rows), strict=True):
        logits = buffer[: len(part)]
        project(part, table, logits)
        own.append((logits / lengths).argmax(1) == token)
        log_softmax_(logits)
        total = logits.new_zeros(len(part))
        for block in column_blocks(logits):
            total -= (logits[:, block].exp() * logits[:, block]).sum(1)
        entropy.append(total)
    cosine = F.cosine_similarity(vectors, received.float(), dim=-1)
    return Reading(torch.cat(own), cosine, torch.cat(entropy))


def row_lengths(table: torch.Tensor) -> torch.Tensor:
    """Return `(V,)` fp32, the norms of the rows; a row of zeros is nearest to nothing."""
    return torch.linalg.vector_norm(table, dim=1, dtype=torch.float32).clamp_min(1e-12)


SUM_BYTES: int = 3 << 30
"""What the sums of all layers that are fitted at once may take."""

RIDGE: float = 1e-2
"""Ridge strength, as a share of the mean of the diagonal.

Tried on SmolLM2-135M, k = 15, with 3,700 tokens of captions and 380 held-out ones: between 1e-4 and 1e-1 the
share of held-out tokens that find their own row moves by 3 points (layer 15: 81, 81, 81, 78 %), and the
cosine of tokens that the fit never saw rises (0.52, 0.52, 0.53, 0.56)."""

ENOUGH: int = 4
"""Tokens for each of a map's D rows below which it is worth little: `analyze premise` fits none then."""

HELD_OUT: int = 10
"""Every tenth row of text is kept from the fit, to see how good it is."""


def tokens_for(width: int) -> int:
    """Return how many tokens a fit reads: 24 for each of the D rows of a map, 98,304 for a 7B."""
    return max(24 * width, 8192)


class Sums:
    """Normal equations of one layer, streamed, in fp32 or fp64.

    The first batch's means are taken off every batch: the states of some LLMs have coordinates whose mean is
    a hundred times their deviation, and differences of large sums would lose them. The result does not depend
    on it.
    """

    def __init__(self, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self.count = 0
        self.squares = torch.zeros(width, width, device=device, dtype=dtype)
        self.products = torch.zeros_like(self.squares)
        self.x = torch.zeros(width, device=device, dtype=torch.float64)
        self.y = torch.zeros_like(self.x)
        self._shift: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add states and what they are to become, both `(n, D)`."""
        dtype = self.squares.dtype
        x, y = x.to(dtype), y.to(dtype)
        if self._shift is None:
            self._shift = x.mean(0), y.mean(0)
        x, y = x - self._shift[0], y - self._shift[1]
        self.squares.addmm_(x.T, x)
        self.products.addmm_(x.T, y)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.count += len(x)

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the means of states and of what they are to become, `(D,)` each in fp64."""
        assert self._shift is not None, "no text was seen"
        return self._shift[0] + self.x / self.count, self._shift[1] + self.y / self.count

    def solve(self, ridge: float) -> torch.Tensor:
        """Return the map, `(D, D)` in fp64, for rows: `(x - mean of x) @ map + mean of y`."""
        squares = self.squares.double().addr_(self.x, self.x, alpha=-1 / self.count)
        products = self.products.double().addr_(self.x, self.y, alpha=-1 / self.count)
        diagonal = squares.diagonal()
        strength = (ridge * diagonal.mean()).clamp_min(torch.finfo(torch.float64).tiny)
        diagonal += strength
        return torch.cholesky_solve(products, torch.linalg.cholesky(squares))


def fit_target(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    kind: TargetKind = "translated",
    layers: int | None = None,
    *,
    tokens: int | None = None,
    ridge: float = RIDGE,
    progress: Callable[[str], None] = lambda line: None,
) -> TargetSpace:
    """Fit what `BasicSupervision(model, target=...)` takes.

    Args:
        model: a LLaVA; its decoder runs on text, nothing of it is changed.
        tokenizer: of its decoder.
        texts: such as the captions that will be trained on.
        kind: `"centred"` or `"translated"`; `"raw"` and `"individual"` need no fit and read no text.
        layers: k; `None` for half of the decoder's.
        tokens: how many to read; `None` for `tokens_for(D)`.
        ridge: strength, as a share of the mean of the diagonal.
        progress: receives a line on each step.

    Raises ValueError if the kind is unknown, or there is hardly any text.
    """
    check_kind(kind)
    if kind in UNFITTED:
        return TargetSpace(kind)
    decoder = parts_of(model).decoder
    k, width = supervised_layers(decoder.config, layers), decoder.config.hidden_size
    rows = token_rows(tokenizer, texts, tokens_for(width) if tokens is None else tokens)
    return fit_rows(decoder, rows, kind, k, ridge=ridge, progress=progress)


@torch.no_grad()
def fit_rows(
    decoder: PreTrainedModel,
    rows: torch.Tensor,
    kind: TargetKind,
    k: int,
    *,
    ridge: float = RIDGE,
    sum_bytes: int = SUM_BYTES,
    progress: Callable[[str], None] = lambda line: None,
) -> TargetSpace:
    """Fit on rows `(R, S)` of ids, of which every tenth is held out; arguments as of `fit_target`.

    `kind` is `"centred"` or `"translated"`. The sums of the layers that are fitted at once take at most
    `sum_bytes` (or what one layer's take).
    """
    fitted, held_out = divided(rows)
    table = embedding_of(decoder)
    exact = torch.float32 if table.is_cuda else torch.float64  # fp64 takes a consumer card 64 times longer
    if kind == "translated" and fitted.numel() < ENOUGH * table.shape[1]:
        progress(f"{fitted.numel():,} tokens are little text for maps of width {table.shape[1]:,}")
    at_once = k
    if kind == "translated":
        at_once = max(sum_bytes // (2 * table.shape[1] ** 2 * exact.itemsize), 1)
    centres: list[torch.Tensor] = []
    maps: list[torch.Tensor] = []
    offset = None
    for first in range(1, k + 1, at_once):
        group = range(first, min(first + at_once, k + 1))
        progress(f"fitting layers {group[0]} to {group[-1]} on {fitted.numel():,} tokens")
        if kind == "centred":
            centres += _means(decoder, fitted, group)
            continue
        sums = {layer: Sums(table.shape[1], table.device, exact) for layer in group}
        for batch in states_of(decoder, fitted, group):
            for layer, states in batch.states.items():
                sums[layer].add(states, batch.received)
        for layer in group:
            own = sums.pop(layer)  # its sums make room for the next layer's solution
            mean, offset = own.means()
            centres.append(mean.float())
            maps.append(own.solve(ridge).to(table.dtype))
    offset = None if offset is None else offset.float()
    space = TargetSpace(kind, torch.stack(centres), tuple(maps), offset)
    report = {
        "kind": kind,
        "tokens": int(fitted[:, 1:].numel()),
        "held_out_tokens": int(held_out[:, 1:].numel()),
        **({"ridge": ridge} if maps else {}),
        "layers": _quality(decoder, space, held_out, fitted.unique()),
    }
    return replace(space, report=report)


def divided(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide rows of text into those that a fit reads and those that are held out, at least one."""
    kept = torch.arange(len(rows)) % HELD_OUT != min(HELD_OUT, len(rows)) - 1
    return rows[kept], rows[~kept]


def _means(decoder: PreTrainedModel, rows: torch.Tensor, layers: range) -> list[torch.Tensor]:
    """Return the mean state after each layer, `(D,)` fp32."""
    total: dict[int, torch.Tensor] = {}
    count = 0
    for batch in states_of(decoder, rows, layers):
        count += len(batch.ids)
        for layer, states in batch.states.items():
            share = states.sum(0, dtype=torch.float64)
            total[layer] = total[layer] + share if layer in total else share
    return [(total[layer] / count).float() for layer in layers]


def _quality(
    decoder: PreTrainedModel, space: TargetSpace, rows: torch.Tensor, seen: torch.Tensor, most: int = 2048
) -> list[dict[str, float | None]]:
    """Measure layer by layer how well the space brings back held-out tokens.

    `own` is the share of tokens whose nearest vocabulary row is their own, `cosine` the mean to what the
    first layer received; `own_unseen` and `cosine_unseen` are of tokens that are not among `seen`, `None`
    without any.
    """
    assert space.centre is not None, "it was fitted"
    table, k = embedding_of(decoder), len(space.centre)
    lengths = row_lengths(table)
    rows = rows[: max(most // rows.shape[1], 1)]
    readings: list[list[torch.Tensor]] = [[] for _ in range(k)]
    ids = []
    for batch in states_of(decoder, rows, range(1, k + 1)):
        ids.append(batch.ids)
        for layer, states in batch.states.items():
            brought = space.bring(layer - 1, states.float().clone())
            reading = read(brought, batch.received, batch.ids, table, lengths)
            readings[layer - 1].append(torch.stack([reading.own.float(), reading.cosine]))
    unseen = ~torch.isin(torch.cat(ids), seen.to(ids[0].device))
    result: list[dict[str, float | None]] = []
    for layer in readings:
        figures = torch.cat(layer, 1)
        rare = figures[:, unseen].mean(1).tolist() if unseen.any() else [None, None]
        names = ("own", "cosine", "own_unseen", "cosine_unseen")
        result.append(dict(zip(names, [*figures.mean(1).tolist(), *rare], strict=True)))
    return result


ROWS: int = 1024
"""Vectors per matrix product."""

VOCABULARY_ROWS: int = 16_384
"""Rows of the table per matrix product: 67 MB of cosines with `ROWS` vectors, 268 MB of table at D = 4096."""


@torch.no_grad()
def match_tokens(
    vectors: torch.Tensor, table: torch.Tensor, rows: int = ROWS, vocabulary_rows: int = VOCABULARY_ROWS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token whose embedding has the largest cosine with each vector (section 4.4 of the paper).

        normalize(vectors) @ normalize(table).T -> max over the vocabulary

    Neither the cosines with the whole vocabulary nor an fp32 copy of the table is ever held: only
    `rows * vocabulary_rows` cosines at a time.

    Args:
        vectors: `(N, D)`, visual embeddings or hidden states.
        table: `(V, D)` raw token embeddings, on the same device.
        rows: vectors per matrix product.
        vocabulary_rows: rows of the table per matrix product.

    Returns:
        `(N,)` int64 token ids and `(N,)` fp32 cosines.
    """
    count = len(vectors)
    ids = torch.zeros(count, dtype=torch.long, device=vectors.device)
    best = torch.full((count,), -torch.inf, device=vectors.device)
    for start in range(0, len(table), vocabulary_rows):
        tokens = F.normalize(table[start : start + vocabulary_rows].float(), dim=1)
        for first in range(0, count, rows):
            part = slice(first, first + rows)
            nearest = (F.normalize(vectors[part].float(), dim=1, eps=1e-6) @ tokens.T).max(dim=1)
            better = nearest.values > best[part]
            best[part] = torch.where(better, nearest.values, best[part])
            ids[part] = torch.where(better, nearest.indices + start, ids[part])
    return ids, best
