"""A data set that is read row after row as training goes on, and never lies on this disk as a whole."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

from basic_lite.data.batches import permuted
from basic_lite.data.dataset import RowEncoder, append_line
from basic_lite.data.findings import NOTED
from basic_lite.data.formats import read_row
from basic_lite.data.hub import RATINGS, open_dataset, plain_row
from basic_lite.data.index import estimated_length, files_hash
from basic_lite.data.readers import image_root, sample_of
from basic_lite.data.rows import Finding, RowFault, Sample, caption_fault, shown
from basic_lite.files import one_line, read_log

BLOCK: int = 1000
"""Rows that are read, and shuffled, together."""

LEAST: int = 1000
"""Fewest rows that the share of bad ones is taken of: one of the first ten would be a tenth."""

POSITION: str = "stream.json"
"""File in a checkpoint that says where to read on."""


@dataclass(frozen=True)
class Position:
    """Where to read on: the start of a block, and how many of its shuffled rows are used up."""

    step: int = 0  # optimizer steps before it
    turn: int = 0  # passes over the whole data before it
    shard: int = 0  # shards of this pass before it, in the pass's own order
    row: int = 0  # rows of that shard before the block
    number: int = 0  # rows of all passes before the block
    given: int = 0  # rows of the block that are used up, in their shuffled order


@dataclass(frozen=True)
class Streamed:
    """A row of a stream."""

    number: int  # how many rows were read before it
    sample: Sample  # in normal form, its pictures not yet decoded


class Stream:
    """A data set of the hub, or shards on a disk, that is read from its start to its end again and again.

    Raises ValueError, in one line, if it cannot be opened.
    """

    def __init__(
        self,
        source: Path,  # hub id, or file or folder of Parquet, Arrow or WebDataset
        images: Path | None = None,  # folder or archive that image paths are relative to
        *,
        follow_links: bool = False,  # whether links under it may lead out of it
        min_rating: int | None = None,  # leave out rows that FineVision rates lower in anything
    ) -> None:
        self.path, self.follow_links, self.min_rating = source, follow_links, min_rating
        self.images = None if images is None else image_root(images)
        self.dataset: Any = open_dataset(source, streaming=True)

    @property
    def sha256(self) -> str:
        """Return a hash of the data's name and `revision`."""
        return hashlib.sha256(repr((str(self.path), self.revision)).encode()).hexdigest()

    @property
    def revision(self) -> str | None:
        """Return the hub's commit, or a hash of the files' names, sizes and times; `None` without a hub."""
        if self.path.exists():
            return files_hash([self.path] if self.path.is_file() else sorted(self.path.rglob("*")))
        from huggingface_hub import HfApi

        try:
            return HfApi().dataset_info(str(self.path).partition(":")[0].partition("@")[0]).sha
        except Exception:  # the hub's client raises many kinds; rows may come from its cache
            return None

    def blocks(self, seed: int, begin: Position) -> Iterator[tuple[Position, list[Any]]]:
        """Yield blocks of rows as stored, with where each starts; pass after pass, without end.

        Every pass goes through the shards in another order. `begin` is a `Position` that was yielded before;
        its `given` does not matter. Raises ValueError, in one line, if a whole pass has no row, or reading
        fails.
        """
        shards, start = self.dataset.num_shards, replace(begin, given=0)
        while True:
            order, block = permuted(shards, seed, start.turn).tolist(), []
            before = start.number
            for place in range(start.shard, shards):
                first = start.row if place == start.shard else 0
                rows = self.dataset.shard(shards, order[place])
                for row, stored in enumerate(_read(rows.skip(first) if first else rows, self.path), first):
                    block.append(stored)
                    if len(block) == BLOCK:
                        yield start, block
                        number = start.number + BLOCK
                        start, block = replace(start, shard=place, row=row + 1, number=number), []
            if block:
                yield start, block
            number = start.number + len(block)
            if number == before and not (start.shard or start.row):
                raise ValueError(f"{self.path} holds no rows")
            start = Position(start.step, start.turn + 1, number=number)

    def parse(self, stored: Any) -> Sample | None:
        """Return a row in normal form; `None` for one that is rated too low.

        Raises RowFault if it cannot be trained on, and ValueError if it should have ratings and has none.
        """
        if self.min_rating is not None:
            ratings = [stored[name] for name in RATINGS if stored.get(name) is not None]
            if not ratings:
                columns = ", ".join(RATINGS)
                raise ValueError(f"{self.path} has no ratings; one of the columns {columns} is needed")
            if min(ratings) < self.min_rating:
                return None
        raw = read_row(plain_row(stored), stored=True)
        return sample_of(raw, self.images, self.follow_links)

    def beginning(self, count: int) -> list[Sample | RowFault | None]:
        """Return the first rows, unshuffled, parsed, or what is wrong with them."""
        parsed: list[Sample | RowFault | None] = []
        for stored in islice(_read(self.dataset, self.path), count):
            try:
                parsed.append(self.parse(stored))
            except RowFault as fault:
                parsed.append(fault)
        return parsed

    def answers(self) -> Iterator[str]:
        """Yield the assistant's texts in the first rows."""
        for sample in self.beginning(BLOCK):
            if isinstance(sample, Sample):
                yield from (text for role, text in sample.turns if role == "assistant")


def _read(rows: Any, path: Path) -> Iterator[Any]:
    try:
        yield from rows
    except Exception as error:  # the hub, Arrow and tars fail in their own ways
        raise ValueError(f"reading {path} failed: {one_line(error, 300)}") from None


def check_beginning(stream: Stream, stage: int) -> list[str]:
    """Check the first rows of a stream, so that a run with an unknown layout ends before a model loads.

    Returns a line for each note about them, with its count. Raises ValueError, in one line, if most of them
    cannot be trained on, or there are none.
    """
    first = stream.beginning(100)
    faults = [row for row in first if isinstance(row, RowFault)]
    samples = [row for row in first if isinstance(row, Sample)]
    if stage == 1:
        faults += filter(None, (caption_fault(len(s.images), len(s.turns)) for s in samples))
    if not first:
        raise ValueError(f"{stream.path} holds no rows")
    if 2 * len(faults) > len(first):
        raise ValueError(
            f"{len(faults)} of the first {len(first)} rows of {stream.path} cannot be trained on: "
            f"{faults[0].code}, {faults[0].detail}"
        )
    counts = Counter(note for sample in samples for note in sample.notes)
    return [f"{count} of the first {len(first)} rows: {NOTED[code]}." for code, count in counts.items()]


COUNTS: tuple[str, ...] = ("seen", "truncated", "replaced", "left_out")
"""What is counted of the rows of a stream."""


class StreamedRows(Dataset):
    """Rows of a stream as token ids, labels and pixels.

    A row that turns out bad when its picture is decoded is replaced by another one of its batch. `budget` is
    the share of the rows that may be bad; the next one raises. Each of them is a line of `bad_log`.
    """

    def __init__(self, encoder: RowEncoder, budget: float, bad_log: Path, workers: int) -> None:
        self.encoder, self.budget, self.bad_log = encoder, budget, bad_log
        # A row of counts for each process, the only one that writes it; all read all.
        self.state = torch.zeros(workers + 1, len(COUNTS), dtype=torch.int64).share_memory_()
        self.known = {line["row"] for line in read_log(bad_log)}

    def __getitems__(self, items: Sequence[Streamed]) -> list[dict[str, Any]]:
        """Return a batch's rows, encoded; see `SupervisedRows`.

        Raises RowFault if a row is bad and the budget is spent, or all of a batch are.
        """
        rows: dict[int, dict[str, Any]] = {}
        faults: dict[int, RowFault] = {}
        for place, item in enumerate(items):
            try:
                rows[place], truncated = self.encoder(item.sample, item.number)
                self._count("truncated", int(truncated > 0))
            except RowFault as fault:
                faults[place] = fault
        good = list(rows.values())
        self._count("seen", len(good))
        if not good:
            raise faults[0]
        for place, fault in faults.items():
            rows[place], item = good[place % len(good)], items[place]
            self._count("replaced", 1)
            finding = Finding(item.number, item.sample.id, fault.code, fault.detail)
            self._log(finding, {"replaced_by": rows[place]["row"]})
        return [rows[place] for place in range(len(items))]

    def leave_out(self, number: int, fault: RowFault) -> None:
        """Count and log a row that is in no batch; raises RowFault if the budget is spent."""
        self._count("left_out", 1)
        self._log(Finding(number, "", fault.code, fault.detail), {})

    def _log(self, finding: Finding, more: dict[str, Any]) -> None:
        if finding.row not in self.known:
            append_line(self.bad_log, finding.as_dict() | more)
        seen, _, replaced, left_out = self.state.sum(0).tolist()
        bad, read = replaced + left_out, seen + replaced + left_out
        if bad > self.budget * max(read, LEAST):
            allowed = f"more than the allowed {self.budget:.1%}"
            last = f"row {finding.row} (id {shown(finding.id)}): {finding.detail}"
            detail = f"{bad} of {read} rows of the stream turned out bad, {allowed}; the last: {last}"
            raise RowFault(finding.code, detail)

    def tally(self) -> dict[str, int]:
        """Return the `COUNTS` of all workers, since the run began or was resumed."""
        return dict(zip(COUNTS, self.state.sum(0).tolist(), strict=True))

    def _count(self, what: str, count: int) -> None:
        worker = get_worker_info()
        self.state[0 if worker is None else worker.id + 1, COUNTS.index(what)] += count


class StreamBatches(Sampler[list[Streamed]]):
    """Which rows of a stream go together: a step's rows follow one another, a batch's are of similar length.

    It yields the rows themselves instead of their numbers: one process reads the stream, and the workers
    encode what they receive.
    """

    def __init__(
        self,
        stream: Stream,
        dataset: StreamedRows,  # counts what is left out
        *,
        step_rows: int,  # rows per optimizer step; the same ones whatever the batches' size
        batch_size: int,  # rows per batch
        steps: int,  # of the whole run
        seed: int,
        # Where a resumed run goes on; the batches before it are empty: the Trainer skips them unread
        begin: Position | None = None,
    ) -> None:
        assert step_rows % batch_size == 0, (step_rows, batch_size)
        self.stream, self.dataset, self.seed = stream, dataset, seed
        self.step_rows, self.batch_size, self.steps = step_rows, batch_size, steps
        self.begin = begin or Position()
        self.positions: dict[int, Position] = {self.begin.step: self.begin}
        self.drop_last = False  # accelerate asks for it

    def __len__(self) -> int:
        """Return the batches of the whole run, which is one epoch to the Trainer."""
        return self.steps * (self.step_rows // self.batch_size)

    def __iter__(self) -> Iterator[list[Streamed]]:
        yield from ([] for _ in range(self.begin.step * (self.step_rows // self.batch_size)))
        rows = self._rows()
        for step in range(self.begin.step, self.steps):
            pairs = list(islice(rows, self.step_rows))
            chosen = [row for row, _ in pairs]
            self.positions[step + 1] = replace(pairs[-1][1], step=step + 1)
            self.positions.pop(step - 1000, None)  # workers fetch far fewer steps ahead
            lengths = [estimated_length(row.sample.turns) for row in chosen]
            kinds = [not row.sample.images for row in chosen]
            order = np.lexsort((-np.array(lengths), np.array(kinds))).tolist()
            for at in range(0, self.step_rows, self.batch_size):
                yield [chosen[place] for place in order[at : at + self.batch_size]]

    def save(self, folder: Path, step: int) -> None:
        line = json.dumps(asdict(self.positions[step])) + "\n"
        (folder / POSITION).write_text(line, encoding="utf-8")

    def _rows(self) -> Iterator[tuple[Streamed, Position]]:
        """Yield good rows without end, each with where the next one is."""
        blocks, given = self.stream.blocks(self.seed, self.begin), self.begin.given
        with ThreadPoolExecutor(1) as pool:  # reads the next block while this one is trained on
            ahead, turn, good = pool.submit(next, blocks), self.begin.turn, bool(self.begin.step)
            while True:
                start, block = ahead.result()
                if not good and start.turn > turn:
                    raise ValueError(f"no row of {self.stream.path} can be trained on")
                ahead = pool.submit(next, blocks)
                order = permuted(len(block), self.seed, start.turn, start.number).tolist()
                for place in range(given, len(block)):
                    number = start.number + order[place]
                    try:
                        sample = self.stream.parse(block[order[place]])
                    except RowFault as fault:
                        self.dataset.leave_out(number, fault)
                        continue
                    if sample is not None:
                        good = True
                        yield Streamed(number, sample), replace(start, given=place + 1)
                given = 0


def read_position(checkpoint: Path) -> Position:
    """Return where a checkpoint's run reads on; raises ValueError if it does not say."""
    path = checkpoint / POSITION
    if not path.is_file():
        raise ValueError(f"{path} is missing: it says where to read on; start again with --overwrite")
    return Position(**json.loads(path.read_text(encoding="utf-8")))
