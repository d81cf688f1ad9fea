"""Whatever strangers write: a finding or a sample, never another exception.

`DATA_FUZZ=20000 pytest tests/data/test_fuzz.py` tries more than the few hundred examples of a normal run;
`--hypothesis-show-statistics` shows how many of them end in which fault.
"""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.made_rows import known_fault
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from basic_lite.data.archives import path_fault
from basic_lite.data.checks import check_data, check_pictures
from basic_lite.data.conversation import IMAGE
from basic_lite.data.formats import EXCHANGES, read_row
from basic_lite.data.pictures import MAX_PIXELS, ImageTransform, check_picture, load_image
from basic_lite.data.readers import open_rows
from basic_lite.data.rows import CODES, ImageRef, RowFault, Sample, normal_form

EXAMPLES = int(os.environ.get("DATA_FUZZ", "200"))
few = settings(max_examples=max(EXAMPLES // 4, 1), deadline=None, suppress_health_check=list(HealthCheck))
many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [IMAGE, f"{IMAGE}\nWhat?", "", " \n", "x" * 9000, "\ud800", "\x00", "../" * 5, "NaN", "[", '"']
    ),
)
paths = st.one_of(
    texts, st.sampled_from(["a.png", "b/../a.png", "/etc/passwd", "../../etc/passwd", "cut.jpg", "."])
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
turns = st.fixed_dictionaries(
    {},
    optional={"from": st.sampled_from(["human", "gpt", "system", ""]) | anything, "value": texts | anything},
)
pairs = st.fixed_dictionaries({}, optional={"user": texts | anything, "assistant": texts | anything})
wild = anything | st.fixed_dictionaries(
    {},
    optional={
        "id": texts | anything,
        "image": paths | st.lists(paths, max_size=3) | anything,
        "images": st.lists(paths, max_size=3) | anything,
        "conversations": st.lists(turns, max_size=5) | anything,
        "texts": st.lists(pairs, max_size=3) | anything,
        "source": anything,
    },
)
said = texts | st.lists(turns, max_size=3) | anything
exchanges = st.sampled_from([(ask, name) for ask, names in EXCHANGES.items() for name in names]).flatmap(
    lambda columns: st.fixed_dictionaries(
        dict.fromkeys(columns, said),
        optional={
            "input": texts | anything,
            "history": st.lists(st.lists(texts, min_size=2, max_size=2), max_size=2) | anything,
            "images": st.lists(paths, max_size=3),
            "label": anything,
        },
    )
)
# Most wild rows fail at the first look; these are rows but for what strangers get wrong.
questions = (
    st.sampled_from(["Hi", "What?", IMAGE, f"{IMAGE}\nWhat?", f"What?\n{IMAGE}", IMAGE * 2, ""]) | texts
)
likely_turns = st.lists(
    st.tuples(questions, st.sampled_from(["That.", "Yes", "", " ", IMAGE]) | texts), min_size=1, max_size=3
).map(lambda told: [part for question, answer in told for part in (("human", question), ("gpt", answer))])
likely = st.builds(
    lambda name, told, image, start, end: {
        "id": name,
        "conversations": [{"from": role, "value": text} for role, text in told][start : len(told) - end],
        **({} if image is None else {"image": image}),
    },
    texts,
    likely_turns,
    st.none() | st.just("a.png") | paths | st.lists(paths, max_size=3),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([0, 0, 0, 1]),
)
rows = likely | wild | exchanges


def attempt(call: Callable, *arguments: object) -> tuple[object, RowFault | None]:
    """Return what a call returns, or the fault that it raises; whatever else it raises fails the test."""
    try:
        result, fault = call(*arguments), None
    except RowFault as raised:
        result, fault = None, raised
    event("good" if fault is None else fault.code)
    return result, fault


def assert_fault(fault: RowFault, *codes: str) -> None:
    assert fault.code in codes
    assert "\n" not in str(fault)
    assert len(str(fault)) < 1000


def assert_normal(sample: Sample) -> None:
    """The invariants of a row in normal form."""
    roles = [role for role, _ in sample.turns]
    assert roles == ["user", "assistant"] * (len(roles) // 2) != []
    assert sum(text.count(IMAGE) for _, text in sample.turns[::2]) == len(sample.images)
    assert not set(range(1, len(roles), 2)) <= sample.silent
    assert all(text.strip() for _, text in sample.turns[1::2])


@many
@given(row=rows)
def test_any_row_is_a_sample_or_a_fault(row: object) -> None:
    for stored in (False, True):
        raw, fault = attempt(lambda: read_row(row, stored=stored))  # noqa: B023
        if fault is None:
            shaped, fault = attempt(normal_form, raw)
        if fault is not None:
            assert_fault(fault, *CODES)
        else:
            images = tuple(ImageRef(str(image)) for image in shaped.images)
            assert_normal(Sample(raw.id, images, shaped.turns, silent=shaped.silent))


@few
@given(
    data=st.lists(rows, min_size=1, max_size=6),
    as_lines=st.booleans(),
    ascii_only=st.booleans(),
    noise=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3),
)
def test_any_file_is_checked_to_its_end(
    data: list,
    as_lines: bool,
    ascii_only: bool,
    noise: list,
    folder: Path,
) -> None:
    text = (
        "\n".join(json.dumps(r, ensure_ascii=ascii_only) for r in data)
        if as_lines
        else json.dumps(data, ensure_ascii=ascii_only)
    )
    raw = bytearray(text.encode("utf-8", "surrogatepass"))
    for place, value in noise:
        raw[place % len(raw)] = value
    path = folder / f"rows.json{'l' * as_lines}"
    path.with_name(f"{path.name}.index").unlink(missing_ok=True)
    path.write_bytes(raw)
    try:
        opened = open_rows(path, folder)
    except ValueError as error:
        message = str(error)
        assert "\n" not in message
        return
    findings = check_data(opened)
    assert all(0 <= finding.row < len(opened) and "\n" not in finding.detail for finding in findings)
    assert all(finding.code in CODES for finding in findings)
    json.dumps([finding.as_dict() for finding in findings])
    for number in range(len(opened)):
        sample, fault = attempt(opened.__getitem__, number)
        known = known_fault(opened, number)
        if fault is not None:
            assert (fault.code, f"row {number}" in str(fault)) == (known, True)
        else:
            assert_normal(sample)
            assert known in (None, "path_outside_root")  # which the sample's picture will tell


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (8, 6)).save(made / "a.png")
    (made / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    return made


def samples() -> list[bytes]:
    """Small pictures of every format that is read, in several modes."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (14, 18, 3), dtype=np.uint8))
    made = []
    for mode, format, options in (
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("P", "PNG", {"transparency": 0}),
        ("I;16", "PNG", {}),
        ("P", "GIF", {"save_all": True, "append_images": [image.convert("P")]}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "BMP", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("F", "TIFF", {}),
        ("L", "PPM", {}),
    ):
        whole = io.BytesIO()
        source = image.convert("L").convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
        source.save(whole, format, **options)
        made.append(whole.getvalue())
    return made


SAMPLES = samples()
TRANSFORMS = [
    ImageTransform(14, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), aspect) for aspect in ("pad", "crop", "squash")
]


@many
@given(
    sample=st.sampled_from(SAMPLES),
    edits=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 5000) | st.none(),
    more=st.binary(max_size=20),
)
def test_any_bytes_are_a_picture_or_a_fault(sample: bytes, edits: list, cut: int | None, more: bytes) -> None:
    raw = bytearray(sample)
    for place, value in edits:
        raw[place % len(raw)] = value
    raw = bytes(raw[: len(raw) if cut is None else cut % (len(raw) + 1)]) + more
    ref = ImageRef("a\nb.png", data=raw)
    image, fault = attempt(load_image, ref)
    if fault is not None:
        assert_fault(fault, "undecodable_image", "oversized_image")
        with pytest.raises(RowFault):  # the check sees what training would meet
            check_picture(ref)
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= MAX_PIXELS
    assume(image.width * image.height < 10**6)
    for transform in TRANSFORMS:
        assert transform(image).shape == (3, 14, 14)


@few
@given(raw=st.binary(max_size=200))
def test_any_bytes_at_all(raw: bytes) -> None:
    for head in (
        b"",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"BM",
        b"II*\0",
        b"P6",
    ):
        _, fault = attempt(load_image, ImageRef("x", data=head + raw))
        if fault is not None:
            assert_fault(fault, "undecodable_image", "oversized_image")


@many
@given(
    name=st.lists(
        st.sampled_from(["..", ".", "a", "b.png", "", "/", "\\", "~", "C:", "\x00", "é", "link"]), max_size=8
    )
)
def test_no_path_reads_outside_the_root(name: list[str], tree: Path) -> None:
    path = "/".join(name)
    image, fault = attempt(load_image, ImageRef(path, str(tree / "root")))
    if fault is not None:
        assert_fault(fault, "missing_image", "path_outside_root")
        return
    assert path_fault(path) is None
    assert image.size == (3, 2)  # those outside are larger


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tree")
    for folder in (made, made / "root", made / "root" / "a", made / "a"):
        folder.mkdir(exist_ok=True)
        inside = "root" in folder.parts
        Image.new("RGB", (3, 2) if inside else (9, 9)).save(folder / "b.png")
    (made / "root" / "link").symlink_to(made)
    return made


def test_ten_megabyte_strings(tmp_path: Path) -> None:
    giant = "x" * 10_000_000
    human, gpt = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}
    data = [
        {"id": giant, "conversations": [human, gpt]},
        {"id": "b", "conversations": [human, {"from": "gpt", "value": giant}]},
        {"id": "c", "image": giant, "conversations": [{"from": "human", "value": IMAGE}, gpt]},
        {"id": "d", "conversations": [{"from": giant, "value": "Hi"}]},
        {"id": "e", giant: 1},
        {"id": "f", "image": "a.png", "conversations": [{"from": "human", "value": IMAGE + giant}, gpt]},
        {"id": "g", "conversations": [{"from": "human", "value": "\n" * len(giant) + "<"}, gpt]},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(data))
    opened = open_rows(path)
    findings = check_data(opened)
    assert [(f.row, f.code) for f in findings] == [
        (1, "too_long"),
        (2, "missing_image"),
        (3, "bad_roles"),
        (4, "malformed_row"),
        *((5, code) for code in ("missing_image", "no_supervision", "too_long")),
        *((6, code) for code in ("no_supervision", "too_long")),
    ]
    assert all(len(finding.detail) < 1000 for finding in findings)
    opened.faults = findings
    assert opened.usable.tolist() == [True, True, False, False, False, False, False]


def test_the_disk_is_left_as_it_was(tmp_path: Path, write_rows: Callable) -> None:
    path = write_rows([{"id": "a", "image": "x/y.png", "conversations": []}])
    before = sorted(p.name for p in tmp_path.rglob("*"))
    check_pictures(open_rows(path))
    after = sorted(p.name for p in tmp_path.rglob("*"))
    assert set(after) - set(before) == {"rows.json.index", "rows.json.pictures"}
