"""What more pixels of a picture cost: tokens, memory and arithmetic with tiles and with joined patches."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.table import Table

from basic_lite.memory.choice import Kind, needed
from basic_lite.memory.peak import Step
from basic_lite.memory.sizes import DecoderSize, TowerSize
from basic_lite.memory.speed import flops_per_sample
from basic_lite.memory.tables import Options, too_many_tokens

PICTURES: dict[str, tuple[int, int] | None] = {"photo": (480, 640), "page": (1754, 1240), "most": None}
"""Height and width of the pictures that are compared: COCO's usual size, an A4 page at 150 dots per inch,
and the picture that takes most, for which memory is planned."""

LEGEND: str = (
    "photo: 640 x 480 pixels; page: 1240 x 1754; most: the picture that takes most, whose GB these are. "
    "Operations are relative to a sample of one square, by the plan's count of matrix products."
)

TILES: tuple[int, ...] = (1, 4, 9)
POOLS: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Resolution:
    """A stage with one resolution; `--json` gives exactly these."""

    stage: str  # as it is typed
    model: str
    tower: str
    tiles: int  # most tiles of a picture beside its whole
    pool: int  # side of the squares of patches that become one visual embedding each
    tokens: dict[str, int]  # of each of `PICTURES`, newlines included
    # 1e9 bytes for one row per pass with the picture that takes most, no layer recomputed
    peak_gb: float
    # Operations of a sample with each of `PICTURES`, relative to one square without pooling: the plan's count
    # of matrix products (`speed.flops_per_sample`), and so its seconds but for weights that are read
    times: dict[str, float]
    fits: bool  # the decoder reads that many tokens


def resolutions(
    kind: Kind, model: tuple[str, DecoderSize], tower: tuple[str, TowerSize], options: Options
) -> list[Resolution]:
    """Return the resolutions of `TILES` and `POOLS` that the tower's patches allow, and the tower's own."""
    (llm, decoder), (name, size) = model, tower
    one = _operations(options.step(kind, decoder, replace(size, tiles=1, pool=1)))
    rows = []
    for pool in sorted({*POOLS, size.pool}):
        if size.across % pool:
            continue
        for tiles in sorted({*TILES, size.tiles}):
            shown = {key: replace(size, tiles=tiles, pool=pool, picture=of) for key, of in PICTURES.items()}
            steps = {key: options.step(kind, decoder, each) for key, each in shown.items()}
            largest = replace(steps["most"], micro_batch=1)
            rows.append(
                Resolution(
                    kind,
                    llm,
                    name,
                    tiles,
                    pool,
                    {key: each.tokens for key, each in shown.items()},
                    round(needed(largest) / 1e9, 2),
                    {key: round(_operations(step) / one, 2) for key, step in steps.items()},
                    not too_many_tokens(model, largest.tower),
                )
            )
    return rows


def _operations(step: Step) -> float:
    return sum(flops_per_sample(step).values())


def resolution_table(rows: list[Resolution]) -> Table:
    title = f"{rows[0].stage}: tokens of a picture, GB of a pass of one row, operations per sample"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for head in ("--tiles", "--pool", *(f"{name}\ntokens" for name in PICTURES), "\nGB"):
        table.add_column(head, justify="right")
    for name in PICTURES:
        table.add_column(f"{name}\ntimes", justify="right")
    for row in rows:
        cells = [str(row.tiles), str(row.pool), *(f"{count:,}" for count in row.tokens.values())]
        cells += [f"{row.peak_gb:.1f}" if row.fits else "too many"]
        table.add_row(*cells, *(f"{times:.2f}" for times in row.times.values()))
    return table
