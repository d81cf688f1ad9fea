import time
from pathlib import Path

import pytest

from basic_lite.bench.data import measure_data, measure_waiting, pictures_per_second, rows_of, write_photos
from basic_lite.data.formats import read_row
from basic_lite.data.pictures import ImageTransform, load_image
from basic_lite.data.rows import normal_form

TRANSFORM = ImageTransform(336, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), "pad")


def test_waiting_is_what_next_takes() -> None:
    def loader(pause: float) -> object:
        while True:
            time.sleep(pause)
            yield {"rows": [0, 1]}

    slow = measure_waiting(loader(0.02), step_seconds=0.01, steps=10, warm_up=2)
    assert 0.5 < slow.share < 0.9
    assert (slow.steps, slow.rows) == (10, 20)
    assert slow.first_batch_seconds >= 0.02
    assert measure_waiting(loader(0), step_seconds=0.01, steps=10).share < 0.2


def test_measured_pictures(tmp_path: Path) -> None:
    refs = write_photos(tmp_path, count=2)
    assert [load_image(ref).size for ref in refs] == [(500, 375)] * 2
    assert 25_000 < (tmp_path / "0.jpg").stat().st_size < 200_000
    for row in rows_of(refs, 3):
        assert normal_form(read_row(row)).images[0] in ("0.jpg", "1.jpg")


def test_measured_data(tmp_path: Path) -> None:
    small = {"image_size": 28, "tokens_per_image": 4, "batch_size": 2, "workers": 1, "picture_seconds": 0.3}
    facts = measure_data(step_seconds=0.01, steps=3, **small)
    assert (facts.steps, facts.rows) == (3, 6)
    assert facts.pictures_per_second[0] > 50
    (tmp_path / "rows.json").write_text('[{"id": "1", "conversations": []}]')
    with pytest.raises(ValueError, match="at least 2 are needed"):
        measure_data(tmp_path / "rows.json")


@pytest.mark.slow
def test_pictures_a_second_are_counted_by_a_core_s_own_time(tmp_path: Path) -> None:
    own_time, wall = pictures_per_second(write_photos(tmp_path), TRANSFORM, seconds=1)
    assert own_time >= 0.9 * wall > 0  # never less by its own time than by the clock, but for rounding
