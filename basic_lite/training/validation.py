"""Rows that are measured along the way and never trained on: which ones, and what the model makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from basic_lite.data.batches import Collator, permuted
from basic_lite.data.checks import check_rows, unfit_findings
from basic_lite.data.conversation import IGNORE_INDEX, stop_ids
from basic_lite.data.dataset import RowEncoder, TextEncoder
from basic_lite.data.pictures import ImageTransform
from basic_lite.data.readers import Rows, open_rows
from basic_lite.data.rows import RowFault
from basic_lite.data.stream import Stream
from basic_lite.data.templates import Template
from basic_lite.method.fit import match_tokens
from basic_lite.method.objective import Objective
from basic_lite.method.supervision import BasicSupervision
from basic_lite.method.targets import INDIVIDUAL, TargetSpace
from basic_lite.method.types import Refinement, Window
from basic_lite.method.words import WordTokens, token_texts, words_of
from basic_lite.models.generate import forward_inputs, greedily, until_stop
from basic_lite.models.llava import Assembled, for_inference
from basic_lite.models.parts import parts_of
from basic_lite.training.callbacks import Metrics
from basic_lite.training.forward import Forward
from basic_lite.training.settings import Settings

ANSWERED: int = 5  # most measurements of a run that have sample answers

STEPS_PER_ANSWERS: int = 50  # fewest optimizer steps of a run for each of them

LONGEST: int = 48  # most tokens of a sample answer

SHORTEST: int = 16  # most tokens of one in the shortest runs

NAMES: tuple[str, ...] = ("loss", "lm", "das", "sds", "cosine", "named")
"""The figures of a measurement, in the order of a line of `log.jsonl`, each with `val_` in front."""


def usual_steps(rows: int, steps: int, global_batch: int) -> int:
    """Return the optimizer steps between two measurements of `rows` rows, in a run of `steps`.

    A tenth of the run, or up to a quarter where many rows are measured: a row without gradients takes about
    half of the time of one that is trained on, so that what is measured stays at 2 % of the run's time.
    """
    times = min(max(steps * global_batch // (25 * rows), 4), 10)
    return math.ceil(steps / times)


def answer_tokens(steps: int) -> int:
    """Return the most tokens of a sample answer in a run of `steps`: one for every three steps, in bounds.

    Each takes a pass of its own, which would be much of a short run's time.
    """
    return min(max(steps // 3, SHORTEST), LONGEST)


@dataclass(frozen=True)
class HeldOut:
    rows: Rows  # the training data, of which they are kept away, or those of `--val-data`
    numbers: np.ndarray  # `(n,)` int64, which of them, in an order that depends on the data alone
    # Estimated text tokens of the longest row that is trained on; `None` where a stream has not shown it
    longest: int | None = None

    def identity(self) -> dict[str, object]:
        return {"path": str(self.rows.path), "sha256": self.rows.sha256, "rows": len(self.numbers)}


def hold_out(rows: Rows | Stream | None, settings: Settings) -> HeldOut | None:
    """Choose the rows to measure, and keep them from training; `None` without either option.

    They depend on the annotations' hash alone: neither on the run's seed, nor on what a tokenizer or a check
    thinks of a row, so every variant is measured on the same ones. Rows are held out, not pictures: where
    several share a picture, the others are trained on. Raises ValueError if none is left to measure or to
    train on, none has a picture, or it is the training data.
    """
    validation = settings.validation
    if validation.val_data is not None:
        data = settings.data
        folders = {source.images for source in data.sources}
        if validation.val_images is None and len(folders) > 1:
            raise ValueError(
                f"each --data has an image folder of its own: add --val-images for {validation.val_data}"
            )
        images = validation.val_images or folders.pop()
        others = open_rows(validation.val_data, images, follow_links=data.follow_links)
        if isinstance(rows, Rows) and others.sha256 in {part.sha256 for part in rows.parts}:
            raise ValueError(
                f"--val-data {validation.val_data} is what is trained on: take --val-share, or another file"
            )
        if not others.has_image.any():
            raise ValueError(
                f"--val-data {validation.val_data} has no row with a picture: give one that has some"
            )
        longest = int(rows.lengths.max(initial=0)) if isinstance(rows, Rows) else None
        return HeldOut(others, _mixed(others), longest)
    if validation.val_share is None:
        return None
    assert isinstance(rows, Rows), "a stream holds none out"
    count = round(validation.share * len(rows))
    if not count or count == len(rows):
        least = math.ceil(1000 / len(rows)) / 10 if len(rows) > 1 else math.inf
        enough = f"give {least:g}% or more" if least <= 50 else "take --val-data FILE"
        raise ValueError(
            f"--val-share {validation.val_share} of {len(rows):,} row{'s' * (len(rows) != 1)} leaves "
            f"{'none to measure' if not count else 'none to train on'}: {enough}"
        )
    chosen = _mixed(rows)[:count]
    if not rows.has_image[chosen].any():
        raise ValueError(
            f"--val-share {validation.val_share} holds out {count:,} rows without a picture: take more, or "
            "--val-data FILE"
        )
    rows.held_out[chosen] = True
    return HeldOut(rows, chosen)


def _mixed(rows: Rows) -> np.ndarray:
    return permuted(len(rows), *(int(rows.sha256[i : i + 8], 16) for i in range(0, 64, 8)))


def check_held_out(
    held_out: HeldOut | None, rows: Rows | Stream, settings: Settings, steps: int, text: TextEncoder
) -> str:
    """Look through the rows to measure as through those to train on; what is bad is not measured.

    Returns a line for the user, with how much is measured in `steps` optimizer steps; empty where nothing is.
    Raises ValueError if no row is good.
    """
    if held_out is None:
        return ""
    if held_out.rows is not rows:
        held_out.rows.faults = check_rows(held_out.rows, settings.stage)
        if text.tiling is None:  # with tiles it goes by sizes, which are not read for a measurement
            held_out.rows.faults += unfit_findings(held_out.rows, text)
    good = int(held_out.rows.usable[held_out.numbers].sum())
    if not good:
        first = next(iter(held_out.rows.faults), None)
        raise ValueError(
            f"none of the {len(held_out.numbers):,} rows of {held_out.rows.path} that are to be measured is "
            f"good{f': {first.where}, {first.detail}' if first else ''}"
        )
    bad, known = len(held_out.numbers) - good, _with_known_pictures(held_out, rows)
    of_them = " of the rows" if held_out.rows is rows else f" rows of {held_out.rows.path}"
    apart = f"{known:,} of them with a picture that is trained on, too" if known else "not trained on"
    times = 1 + math.ceil(steps / (settings.validation.val_steps or 1))
    return (
        f"validation: {good:,}{of_them}, {apart}{f'; {bad:,} bad ones left out' if bad else ''}; "
        f"measured {times} times, {times * good:,} rows beside {steps * settings.global_batch:,} of training"
    )


def _with_known_pictures(held_out: HeldOut, rows: Rows | Stream) -> int:
    """Count the good rows to measure of which a picture is trained on, too, by folder and path.

    Pictures inside rows, and those of a stream, have no name by which they could be compared.
    """
    if not isinstance(rows, Rows):
        return 0
    own, chosen = held_out.rows, np.zeros(len(held_out.rows), bool)
    chosen[held_out.numbers] = True
    row_of = np.repeat(np.arange(len(own)), own.index.images)
    if own is rows:
        trained = own.index.image_hash[rows.trained[row_of]]
    else:
        folder = Path(own.images or "").resolve()
        parts = () if own.stored else rows.parts
        alike = [p for p in parts if not p.stored and Path(p.images or "").resolve() == folder]
        trained = np.concatenate([own.index.image_hash[:0], *(part.index.image_hash for part in alike)])
    known = np.isin(own.index.image_hash, trained) & (chosen & own.usable)[row_of]
    return len(np.unique(row_of[known]))


@dataclass(frozen=True)
class _Batch:
    inputs: dict[str, Any]
    words: list[frozenset[int]]
    """Tokens that stand for a word of a row's answers, row by row."""


class Validator:
    """Measures a model on held-out rows; nothing of the training, be it a random number, depends on it.

    Every row counts as in training: `lm` over supervised tokens, `das` and `sds` over pictures, all of a
    measurement together. Both terms are measured in every run, a baseline's too, with the layers, weights of
    patches and target of its settings, and without an experiment's intervention. No more rows go through at a
    time than in training, fewer of those that are longer than any that is trained on, and without gradients,
    so the peak of memory stays training's.
    """

    def __init__(
        self,
        held_out: HeldOut,
        assembled: Assembled,
        settings: Settings,
        template: Template,
        transform: ImageTransform,
        space: TargetSpace,
    ) -> None:
        self.held_out, self.assembled, self.settings = held_out, assembled, settings
        usable = held_out.numbers[held_out.rows.usable[held_out.numbers]]
        lengths = held_out.rows.lengths[usable]
        self.numbers: list[int] = usable[np.argsort(-lengths, kind="stable")].tolist()  # the longest first
        pictured = usable[held_out.rows.has_image[usable]]
        self.samples: list[int] = pictured[: settings.validation.val_samples].tolist()
        text = assembled.text_encoder(template, assembled.longest(settings.data.max_length))
        self._encode, self._collate = RowEncoder(text, transform), assembled.collator()
        self._collate_prompts = Collator(
            pad_token_id=assembled.pad_token_id,
            image_token_id=assembled.image_token_id,
            padding_side="left",
            tiling=assembled.tiling,
        )
        self._stops = stop_ids(template, assembled.tokenizer)
        parts = parts_of(assembled.model)
        self._words = WordTokens(assembled.tokenizer, token_texts(assembled.tokenizer, len(parts.embedding)))
        self._objective, method = Objective(rows_per_chunk=settings.rows_per_chunk), settings.method
        self._supervision = BasicSupervision(
            assembled.model,
            method.layers,
            method.weighting,
            method.importance,
            rows_per_chunk=settings.rows_per_chunk,
            target=space,
        )

    @torch.no_grad()
    def measure(
        self,
        model: nn.Module,
        wrapped: nn.Module,
        accelerator: Accelerator,
        *,
        on_device: Callable[[dict], dict],
        rows_at_once: int,
        sharded: bool = False,
    ) -> dict[str, float]:
        """Return the figures, the same in every process; the model can train on.

        All processes have to come here. The figures are of `NAMES`, as far as there are any, and `rows`.
        `on_device` completes a batch as for a training step, `rows_at_once` is of one process, and `sharded`
        says that the decoder's layers are cut over the processes.
        """
        passed = Forward(model, self._supervision, self._objective, Metrics(), prune_last_layer=False)

        def forward(inputs: dict) -> Sequence[Any]:
            return passed(wrapped, on_device(inputs), Window(1, 1))[1]

        for_inference(model)
        try:
            sums = self._sums(forward, accelerator, rows_at_once, sharded)
        finally:
            model.train()
        figures = {name: sums[name] / sums[of] for name, of in _OVER.items() if sums[of]}
        loss = sum(
            weight * figures.get(name, 0.0) for name, weight in self.settings.objective.weights.items()
        )
        return {"loss": loss} | figures | {"rows": int(sums["rows"])}

    def is_answered(self, step: int, steps: int) -> bool:
        """Whether the measurement after `step` of a run of `steps` has sample answers.

        The last one has, and others evenly from the start on: one for every 50 steps, five in all. To write
        them takes about as long as an optimizer step, as an answer has a pass of its own for every token.
        """
        parts = min(steps // STEPS_PER_ANSWERS, ANSWERED) - 1  # of the run, each with answers at both ends
        if step >= steps or parts < 1:
            return step >= steps
        before = step - (self.settings.validation.val_steps or 1)
        return not step or step * parts // steps > before * parts // steps

    @torch.no_grad()
    def answers(
        self,
        model: nn.Module,
        accelerator: Accelerator,
        *,
        tokens: int,
        rows_at_once: int,
        sharded: bool = False,
    ) -> list[dict[str, str]]:
        """Return the sample rows' ids, true answers and the model's, of `tokens` at most; it can train on.

        Empty but in the first process, unless the decoder's layers are cut over the processes: then all have
        to come here.
        """
        if not (sharded or accelerator.is_main_process):
            return []
        # A cache holds two vectors of a token and layer, where recomputation keeps one.
        size = max(self._at_once(self.samples, rows_at_once) // 2, 1)
        parts = [self.samples[i : i + size] for i in range(0, len(self.samples), size)]
        for_inference(model)
        try:
            inner = accelerator.unwrap_model(model)
            return [sample for part in parts for sample in self._answers(inner, part, tokens)]
        finally:
            model.train()

    def _at_once(self, numbers: Sequence[int], rows_at_once: int) -> int:
        """Return how many of some rows go through together, so that no pass has more text than in training.

        Rows of `--val-data` may be longer than any that is trained on, for which memory is planned. It goes
        by text, which has logits and patches have none; a row that is longer than a whole pass goes alone.
        """
        if self.held_out.longest is None:
            return rows_at_once
        most = self.settings.data.max_length
        longest = min(int(self.held_out.rows.lengths[list(numbers)].max(initial=1)), most)
        return max(min(rows_at_once, rows_at_once * min(self.held_out.longest, most) // longest), 1)

    def _sums(
        self,
        forward: Callable[[dict], Sequence[Any]],
        accelerator: Accelerator,
        rows_at_once: int,
        sharded: bool,
    ) -> dict[str, float]:
        """Return sums over all rows and processes, in fp64, and what they are divided by."""
        rank, ranks = accelerator.process_index, accelerator.num_processes
        sums = dict.fromkeys(_SUMS, 0.0)
        mine, waiting = [], self.numbers
        while waiting:
            size = self._at_once(waiting, rows_at_once)
            part = waiting[rank * size : (rank + 1) * size]
            if part or sharded:  # of layers that are cut, every process runs as often as the others
                mine.append((part, part or waiting[:1]))
            waiting = waiting[ranks * size :]
        for (counted, _), batch in zip(mine, self._batches([rows for _, rows in mine]), strict=True):
            if batch is None:
                assert not sharded, "all rows of a pass turned bad in mid-run, and others wait for it"
                continue
            terms = forward(batch.inputs)
            seen = self._supervision.release()
            if counted:
                self._add(sums, batch, terms, seen)
        if ranks > 1:
            own = torch.tensor(list(sums.values()), dtype=torch.float64, device=accelerator.device)
            total: Any = accelerator.reduce(own, "sum")
            sums = dict(zip(sums, total.tolist(), strict=True))
        return sums

    def _add(
        self, sums: dict[str, float], batch: _Batch, terms: Sequence[Any], seen: Refinement | None
    ) -> None:
        layout = batch.inputs["layout"]
        sums["rows"] += layout.rows
        sums["tokens"] += len(layout.targets)
        for term in terms:
            sums[term.name] += float(term.total)
        if seen is None:
            return
        if self.settings.method.kind != INDIVIDUAL or seen.images > 1:
            sums["images"] += seen.images
            cosine = F.cosine_similarity(seen.initial.float(), seen.target.float(), dim=-1)
            sums["cosine"] += float(seen.sum_of_means(cosine.double()))
        # A small piece of the table at a time: 67 MB at D = 4096, less than a layer's activations.
        table = parts_of(self.assembled.model).embedding
        nearest = match_tokens(seen.initial, table, rows=256, vocabulary_rows=4096)[0]
        in_row = [row for row, count in enumerate(layout.images_in_row) for _ in range(count)]
        for row, ids in zip(in_row, nearest.split([block.patches for block in layout.blocks]), strict=True):
            if batch.words[row]:
                sums["named"] += sum(token in batch.words[row] for token in ids.tolist())
                sums["patches"] += len(ids)

    def _batches(self, parts: Sequence[list[int]]) -> Iterator[_Batch | None]:
        """Yield the rows of each part; the next one's pictures are decoded meanwhile."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            ahead = [pool.submit(self._batch, part) for part in parts[:1]]
            for number in range(len(parts)):
                batch = ahead.pop().result()
                ahead += [pool.submit(self._batch, part) for part in parts[number + 1 : number + 2]]
                yield batch

    def _batch(self, numbers: list[int]) -> _Batch | None:
        """Return rows together, without those that turn out bad; `None` if none is left."""
        items, words = [], []
        for number in numbers:
            try:
                sample = self.held_out.rows[number]
                items.append(self._encode(sample, number)[0])
            except RowFault:
                continue
            said = " ".join(text for role, text in sample.turns if role == "assistant")
            words.append(self._words.of(words_of(said)))
        return _Batch(self._collate(items), words) if items else None

    def _answers(self, model: Any, numbers: Sequence[int], tokens: int) -> list[dict[str, str]]:
        """Let the model answer the first turn of some rows, greedily."""
        items, truths, names = [], [], []
        for number in numbers:
            try:
                sample = self.held_out.rows[number]
                item, _ = self._encode(sample, number)
            except RowFault:
                continue
            begin = next(i for i, label in enumerate(item["labels"]) if label != IGNORE_INDEX)
            names.append(str(sample.id))
            truths.append(next(text for role, text in sample.turns if role == "assistant"))
            items.append(item | {"input_ids": item["input_ids"][:begin], "labels": item["labels"][:begin]})
        if not items:
            return []
        assembled = self.assembled
        inputs = forward_inputs(model, self._collate_prompts(items), self._encode.transform)
        prompt, device = inputs["input_ids"].shape[1], inputs["input_ids"].device
        with torch.autocast(device.type, torch.bfloat16, enabled=assembled.sources.dtype == torch.bfloat16):
            produced = model.generate(
                **inputs, **greedily(self._stops, assembled.pad_token_id, tokens, [assembled.image_token_id])
            )
        decode: Any = assembled.tokenizer.decode
        ids = (until_stop(row, self._stops) for row in produced[:, prompt:].tolist())
        said = [decode(row, skip_special_tokens=True).strip() for row in ids]
        return [
            {"id": name, "answer": answer, "true": true}
            for name, answer, true in zip(names, said, truths, strict=True)
        ]


_OVER = {"lm": "tokens", "das": "images", "sds": "images", "cosine": "images", "named": "patches"}
"""What each figure is a mean over."""

_SUMS = ("rows", *dict.fromkeys(_OVER.values()), *_OVER)


@dataclass(frozen=True)
class History:
    """The measurements of a run so far, from the log in its checkpoints: a resumed run knows them all."""

    losses: dict[int, float]  # optimizer step -> lm loss; the first one is of step 0

    @classmethod
    def of(cls, log_history: Sequence[dict]) -> History:
        """Read it from a `TrainerState`'s `log_history`."""
        return cls({row["step"]: row["eval_lm"] for row in log_history if "eval_lm" in row})

    @property
    def best(self) -> int | None:
        """The step of the lowest loss, the first of several; never the beginning, which is not kept."""
        finite = [step for step, loss in self.losses.items() if step and math.isfinite(loss)]
        return min(finite, key=self.losses.__getitem__, default=None)

    @property
    def is_below_the_beginning(self) -> bool:
        """Whether training has lowered the loss: `best` may be the least bad of those after the beginning."""
        first = self.losses.get(0, math.inf)
        return self.best is not None and not first <= self.losses[self.best]

    def is_over(self, patience: int | None) -> bool:
        """Whether the last `patience` measurements are no better than the best of those before them."""
        losses = [loss if math.isfinite(loss) else math.inf for loss in self.losses.values()]
        if patience is None or len(losses) <= patience:
            return False
        return min(losses[-patience:]) >= min(losses[:-patience])
