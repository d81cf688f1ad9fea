"""Pretraining of the demo decoder: a small Llama that reads text about scenes.

Two things make BASIC's premise hold in so small a model, and both are stated in its model card. Many of the
contexts are blurred words (see `corpus`), so the decoder learns to read superposed embeddings. And at
blurred positions an auxiliary loss asks the states after the first half of the layers to match the
embeddings of the words that stand there: the shallow layers clean the context up, as those of large LLMs
were seen to do. A third makes an hour or two of training enough: where an answer begins, auxiliary losses
show the way to what it depends on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import distributed
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from parts.corpus import ANSWER, CAPTION, READING, Corpus, Mixture, Row

LOOKED_UP = ("colour", "shape", "place")
"""Kinds whose answer stands in the context."""

CURRICULUM = (
    (0.015, Mixture(most=2, blurred=0.0, plain=1.0, repeated=1.0)),
    (0.08, Mixture(most=3, blurred=0.25, plain=0.7, shuffled=0.8, kinds=LOOKED_UP, choice=0.0)),
    (0.18, Mixture(blurred=0.3, plain=0.4, choice=0.15)),
    (1.00, Mixture()),
)
"""What is read until which share of the steps.

Looking back is learned in minutes from plain repetition and hardly at all from questions; which colour goes
with which shape is learned from captions in another order, where nearly every word must be looked up.
"""

LAST = Mixture(choice=0.7, plain=0.1)
"""What the second course reads. After the first, open questions are answered better than multiple choice (97
against 83 %): to find a letter one must first have found the answer, and that is learned last."""

WEIGHTS = {
    **{"answers": 1.0, "captions": 1.0, "reading": 0.1, "shallow": 0.3},
    **{"gathered": 0.3, "asked": 0.2, "referred": 0.3, "looks": 0.3},
}
"""Loss weights. Which caption is written is largely chance; which question comes, more so."""

SHARPNESS = 16.0
"""What cosines are multiplied by in the auxiliary loss: five words at a cosine of 0.45 then stand out."""

_WIDTHS = 32
"""Rows are padded to a multiple of this."""

_PARTS = (("answers", ANSWER), ("captions", CAPTION), ("reading", READING))


def decoder_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the decoder's architecture: 8 layers of width 128, about 1.4 M parameters."""
    return LlamaConfig(
        **{"num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 4},
        **{"hidden_size": 128, "intermediate_size": 256, "vocab_size": len(tokenizer)},
        **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )


@dataclass(frozen=True)
class Lesson:
    """How a decoder is trained.

    Attributes:
        tokenizer: The world's.
        seed: Seed of the weights, the text and the noise.
        steps: Optimizer steps.
        rows: Rows per step, of all processes together.
        device: `"cpu"` or `"cuda"`; the weights start the same on both, rounding differs.
        progress: Called after every step with its number and its losses.
    """

    tokenizer: PreTrainedTokenizerFast
    seed: int
    steps: int
    rows: int = 16
    device: str = "cpu"
    progress: Callable[[int, dict[str, float]], None] = lambda step, values: None


def train_decoder(lesson: Lesson) -> LlamaForCausalLM:
    """Train the decoder from nothing.

    In every process of `torch.distributed`, where that was begun: each takes its share of the rows of a
    step, and all end with the same weights. Two processes take half the time on two cores; two threads, on
    tensors as small as these, three quarters.

    Returns:
        The trained decoder in fp32, on the CPU.
    """
    torch.manual_seed(lesson.seed)
    model = LlamaForCausalLM(decoder_config(lesson.tokenizer))
    model.set_attn_implementation("eager")  # in bf16 on a CPU twice as fast as the fused kernel's backward
    # Embeddings of norm 1 are as large as what a layer adds, so shallow states stay near the token space.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=model.config.hidden_size**-0.5)
    _start_by_matching(model)
    return _course(model, CURRICULUM, 1.0, lesson)


def finish_decoder(model: LlamaForCausalLM, lesson: Lesson) -> LlamaForCausalLM:
    """Let a trained decoder practise multiple choice; it is trained and returned as by `train_decoder`."""
    model.train().set_attn_implementation("eager")
    return _course(model, ((1.0, LAST),), 0.5, lesson)


def _course(
    model: LlamaForCausalLM, curriculum: tuple[tuple[float, Mixture], ...], pace: float, lesson: Lesson
) -> LlamaForCausalLM:
    """Train through a curriculum with learning rates of `pace` times the usual, down to zero."""
    model.to(lesson.device)
    rank, processes = 0, 1
    if distributed.is_initialized():
        rank, processes = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(lesson.seed + rank)  # the weights are alike in all processes, the noise is not
    steps = lesson.steps
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed_tokens" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=pace * 2.5e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=pace * 2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    shape = lambda step: min(1, (step + 1) / 100) * min(1, (steps - step) / (0.6 * steps))  # noqa: E731
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, shape) for optimizer in optimizers]
    corpus = Corpus(lesson.tokenizer, lesson.seed)
    batches = _batches(corpus, lesson.rows, random.Random(lesson.seed))
    for step in range(steps):
        corpus.mixture = next(mixture for end, mixture in curriculum if step < end * steps)
        rows = next(batches)[rank::processes]  # sorted by length, so that no process waits for a longer half
        with torch.autocast(lesson.device, dtype=torch.bfloat16):
            losses = _losses(model, rows, lesson.tokenizer.pad_token_id)
        sum(WEIGHTS[name] * loss for name, loss in losses.items()).backward()
        if processes > 1:
            _average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        lesson.progress(step, {name: loss.item() for name, loss in losses.items()})
    return model.cpu().eval()


def _average_gradients(model: LlamaForCausalLM) -> None:
    """Give every process the mean of all processes' gradients."""
    gradients = [p.grad for p in model.parameters()]
    flat = torch.nn.utils.parameters_to_vector(gradients)
    distributed.all_reduce(flat)
    torch.nn.utils.vector_to_parameters(flat / distributed.get_world_size(), gradients)


def _start_by_matching(model: LlamaForCausalLM) -> None:
    """Let queries and keys start equal, so that a token first attends to what is like it.

    Looking a word up in the context is the skill that everything here needs, found sooner from there.
    The idea is that of mimetic initialisation (Trockman and Kolter, 2023, arXiv 2305.09828).
    """
    for layer in model.model.layers:
        attention = layer.self_attn
        torch.nn.init.normal_(attention.q_proj.weight, std=0.06)
        attention.k_proj.weight.data.copy_(attention.q_proj.weight.data)


def _batches(corpus: Corpus, rows: int, rng: random.Random) -> Iterator[list[Row]]:
    """Yield batches of rows of similar length, in random order."""
    while True:
        pool = sorted((corpus.row() for _ in range(16 * rows)), key=lambda row: len(row.ids))
        batches = [pool[i : i + rows] for i in range(0, len(pool), rows)]
        rng.shuffle(batches)
        yield from batches


def _losses(model: LlamaForCausalLM, batch: list[Row], pad: int) -> dict[str, torch.Tensor]:
    """Return the mean losses of answers, of other text, and of shallow states at blurred positions."""
    device = model.device
    # A CPU's matrix products are compiled for each width anew; few widths cost less than the padding.
    width = -(-max(len(row.ids) for row in batch) // _WIDTHS) * _WIDTHS
    ids = torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in batch], device=device)
    part = torch.tensor([row.part + [-1] * (width - len(row.ids)) for row in batch], device=device)
    blurred = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(batch):
        blurred[i, row.context[0] : row.context[0] + len(row.bags)] = True
    bags = [bag for row in batch for bag in row.bags]

    table = model.get_input_embeddings().weight
    inputs = table[ids]
    words = torch.zeros(len(bags), len(table))
    for i, bag in enumerate(bags):
        words[i, bag] = 1.0
    words = words.to(device)
    if bags:
        inputs = inputs.masked_scatter(blurred[..., None], blur(words, table))
    shallow = model.config.num_hidden_layers // 2
    # Rows are padded on the right, where no token before can see: without a mask attention is much faster.
    seen = model(inputs_embeds=inputs, output_hidden_states=True, output_attentions=True)

    each = F.cross_entropy(seen.logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    # Noise, and which word stands for a blurred position, cannot be read ahead.
    part = part.masked_fill(blurred, -1)[:, 1:]
    losses = {
        name: each[part == number].sum() / (part == number).sum().clamp(min=1) for name, number in _PARTS
    }
    losses["shallow"] = each.new_zeros(())
    named = words.sum(1) > 0
    if named.any():
        states = torch.stack([layer[blurred][named] for layer in seen.hidden_states[1 : shallow + 1]])
        losses["shallow"] = _naming(states, words[named], table)
    # What a thing is called stands at several words; from half-way up it shall stand at the last of them.
    # Where an answer begins, the noun that was asked about shall stand first, and above it what it refers
    # to. Left alone, so small a model finds this way by the hundred thousandth question, if at all.
    for name, layer in (("gathered", shallow), ("asked", shallow + 1), ("referred", shallow + 2)):
        hints = [(i, *hint) for i, row in enumerate(batch) for hint in getattr(row, name)]
        losses[name] = each.new_zeros(())
        if hints:
            named = torch.zeros(len(hints), len(table))
            for i, (_, _, bag) in enumerate(hints):
                named[i, bag] = 1.0
            rows, places, _ = zip(*hints, strict=True)
            losses[name] = _naming(seen.hidden_states[layer][rows, places], named.to(device), table)
    losses["looks"] = _looking(seen.attentions[shallow + 1], batch)
    return losses


def _looking(attention: torch.Tensor, batch: list[Row]) -> torch.Tensor:
    """Return the mean of -log(attention on what was asked about) where an answer begins.

    The first half of the heads looks for the first noun, the second half for the last.

    Args:
        attention: `(B, heads, S, S)` of one layer.
        batch: The rows.
    """
    looks = [(i, here, nouns) for i, row in enumerate(batch) for here, nouns in row.looks]
    if not looks:
        return attention.new_zeros((), dtype=torch.float32)
    half, width = attention.shape[1] // 2, attention.shape[-1]
    wanted = torch.zeros(len(looks), 2, 1, width)
    for i, (_, _, nouns) in enumerate(looks):
        wanted[i, 0, 0, nouns[0]] = 1.0
        wanted[i, 1, 0, nouns[-1]] = 1.0
    rows, places, _ = zip(*looks, strict=True)
    # All rows at once: one by one, each would get a gradient of the whole map's size.
    seen = attention[rows, :, places].float().view(len(looks), 2, half, width)
    return -(seen * wanted.to(seen.device)).sum(-1).clamp(min=1e-6).log().mean()


def _naming(states: torch.Tensor, words: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of words, all alike, under the softmax of cosines with token embeddings.

    By cosine, as matching tokens and BASIC's direction do: by product, long embeddings would win.

    Args:
        states: `(..., n, D)`.
        words: `(n, V)`, 1 for each word.
        table: `(V, D)` token embeddings.
    """
    goal = words / words.sum(1, keepdim=True)
    with torch.autocast(states.device.type, enabled=False):  # in bf16 every new number of rows is compiled
        logits = SHARPNESS * (F.normalize(states.float(), dim=-1) @ F.normalize(table, dim=1).T)
        return -(goal * logits.log_softmax(-1)).sum(-1).mean()


def blur(words: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return superposed embeddings: random positive weights of the words, a random length, and noise.

    Args:
        words: `(n, V)` 1 where a word stands at a position.
        table: `(V, D)` token embeddings.

    Returns:
        `(n, D)`, of about the length of a token embedding.
    """
    length = table.detach().norm(dim=1).mean()
    weights = words * torch.rand_like(words).add(0.3)
    lengths = torch.rand(len(words), 1, device=table.device) * 0.8 + 0.6
    with torch.autocast(table.device.type, enabled=False):
        mixed = F.normalize(weights @ table, dim=1, eps=1e-6) * lengths
    noise = torch.randn(len(words), table.shape[1], device=table.device) / math.sqrt(table.shape[1])
    return length * (mixed + noise * 1.5 * torch.rand(len(words), 1, device=table.device))
