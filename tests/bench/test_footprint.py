import mmap
import multiprocessing
import sys

import pytest

from basic_lite.bench.data import footprint

MIB = 1 << 20


def _take(pipe: object, mebibytes: int) -> None:
    taken = b"x" * (mebibytes * MIB)
    pipe.send(len(taken))
    pipe.recv()


def _measured(mebibytes: int) -> tuple[float, float]:
    """Own and resident memory of a fork that takes so much."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_take, args=(theirs, mebibytes))
    child.start()
    assert ours.recv() == mebibytes * MIB
    found = footprint(child.pid)
    ours.send(None)
    child.join()
    return found.own, found.resident


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_fork_owns_what_it_writes_and_shares_the_rest() -> None:
    # Of its own, not from the heap: that may have so much left over from other tests, and takes it back.
    held = mmap.mmap(-1, 100 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(100):
        held.write(b"y" * MIB)
    before = footprint()
    assert before.memory == before.resident - before.files > 100
    little, much = _measured(1), _measured(65)
    assert 60 < much[0] - little[0] < 70
    assert little[1] > 100 > little[0]  # what the parent holds is resident in the child, and not its own
    held.close()
    assert footprint().memory < before.memory - 90


def test_a_process_that_is_gone_has_none() -> None:
    assert footprint(2**30) is None
