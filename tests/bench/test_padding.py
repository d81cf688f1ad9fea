import numpy as np
import pytest

from basic_lite.bench.padding import measure_padding, padding_share
from basic_lite.data.batches import batch_order


def test_padding_is_what_the_longest_row_adds() -> None:
    lengths = np.array([10, 8, 4, 4])
    pictured = np.ones(4, bool)
    assert padding_share(lengths, lengths, pictured, 2) == pytest.approx(1 - 26 / (2 * 10 + 2 * 4))
    assert padding_share(lengths, -lengths, pictured, 4) == pytest.approx(1 - 26 / 40)


def test_at_most_three_percent_of_the_published_mix_is_padding() -> None:
    measured = measure_padding()
    assert measured.rows > 4000
    assert list(measured.grouped) == [2, 4, 16]
    assert max(measured.grouped.values()) < 0.03
    assert min(measured.mixed.values()) > 0.1
    assert "rows of the shape of LLaVA-665k" in measured.lines()[0]
    assert "put together by length" in measured.lines()[1]


@pytest.mark.parametrize(("rows", "accumulation"), [(2, 64), (4, 32), (16, 8)])
def test_a_step_has_the_lengths_of_the_data(rows: int, accumulation: int) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(600, 1400, 40_000)
    settings = {"batch_size": rows, "seed": 1, "epoch": 0, "group": True, "accumulation": accumulation}
    order = batch_order(lengths, np.ones(len(lengths), bool), **settings)
    starts = range(0, len(order) - accumulation, accumulation)
    steps = np.array([lengths[np.concatenate(order[at : at + accumulation])].mean() for at in starts])
    # Of 128 rows at random the mean varies by the rows' deviation over sqrt(128).
    assert steps.std() < 1.1 * lengths.std() / np.sqrt(128)
