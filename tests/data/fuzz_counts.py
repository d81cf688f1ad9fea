"""Run the fuzz tests and count what their examples ended in.

    DATA_FUZZ=2000 python tests/data/fuzz_counts.py

An example that ended in anything but a sample, a picture or a fault with a code would have ended the script.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import test_fuzz

from basic_lite.data.rows import RowFault


def counted(test: Callable, **fixtures: object) -> tuple[int, Counter[str]]:
    """Return how many examples a test tried, and how often each outcome was met."""
    examples, outcomes = [0], Counter()
    inner, attempt = test.hypothesis.inner_test, test_fuzz.attempt

    def once(*arguments: object, **more: object) -> None:
        examples[0] += 1
        inner(*arguments, **more)

    def noted(call: Callable, *arguments: object) -> tuple[object, RowFault | None]:
        result, fault = attempt(call, *arguments)
        outcomes["good" if fault is None else fault.code] += 1
        return result, fault

    test.hypothesis.inner_test, test_fuzz.attempt = once, noted
    try:
        test(**fixtures)
    finally:
        test.hypothesis.inner_test, test_fuzz.attempt = inner, attempt
    return examples[0], outcomes


class Folders:
    """What a fixture asks for its folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def mktemp(self, name: str) -> Path:
        made = self.root / name
        made.mkdir()
        return made


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        folders = Folders(Path(scratch))
        folder, tree = (fixture.__wrapped__(folders) for fixture in (test_fuzz.folder, test_fuzz.tree))
        for test, fixtures in (
            (test_fuzz.test_any_row_is_a_sample_or_a_fault, {}),
            (test_fuzz.test_any_file_is_checked_to_its_end, {"folder": folder}),
            (test_fuzz.test_any_bytes_are_a_picture_or_a_fault, {}),
            (test_fuzz.test_any_bytes_at_all, {}),
            (test_fuzz.test_no_path_reads_outside_the_root, {"tree": tree}),
        ):
            examples, outcomes = counted(test, **fixtures)
            found = ", ".join(f"{code} {count:,}" for code, count in outcomes.most_common())
            print(f"{test.__name__}: {examples:,} examples; read so often, ending in: {found}", flush=True)
