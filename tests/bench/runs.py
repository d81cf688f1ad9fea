"""Measure every goal for speed and memory in one go, model by model, in one process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from bench.goals import LIGER_SPEED, STAGE1_GB, STAGE2_GB, STEP_RATIO, Row, Size

from basic_lite.bench.sds import LIGER, measure_sds
from basic_lite.bench.step import (
    Step,
    at_its_best,
    compare_steps,
    emulate_card,
    measure_steps,
    release_memory,
    run_if_it_fits,
)
from basic_lite.bench.synthetic import random_model
from basic_lite.files import one_line
from basic_lite.memory.choice import GLOBAL_BATCH, Kind, budget_bytes, candidates, fit, step_of
from basic_lite.memory.sizes import TOWERS, TowerSize, published_decoder
from basic_lite.models.llava import Assembled


def every_goal(size: Size, models: tuple[str, ...], say: Callable[[str], object]) -> Iterator[Row]:
    """Measure goal by goal.

    Args:
        size: of everything.
        models: of `DECODERS`, in order.
        say: where it is said what is being measured.

    Yields:
        Rows as they are measured; what fails takes no other row with it.
    """
    for model in models:
        say(f"{model}: L_sds")
        yield from or_why(f"L_sds, {model}", partial(_sds, model, size))
        yield from or_why(f"steps, {model}", partial(_steps, model, size, say))
        release_memory()


def or_why(what: str, rows: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Yield rows; where they fail, one that says why instead of those that are left."""
    try:
        yield from rows()
    except Exception as error:  # whatever a driver, a kernel or another library raises
        traceback.print_exc()
        yield Row(f"{what}: failed", None, note=f"{type(error).__name__}: {one_line(error)}")


def _steps(model: str, size: Size, say: Callable[[str], object]) -> Iterator[Row]:
    say(f"{model}: building it")
    assembled = random_model(model, bits=size.bits, dtype=size.dtype, device=size.device, layers=size.layers)
    release_memory()
    emulate_card(size.cap_gib, size.device)
    for name, stage in (("stage 1", _stage1), ("stage 2", _stage2)):
        say(f"{model}: {name}")
        yield from or_why(f"{name}, {model}", partial(stage, model, assembled, size))


def cpu_rows() -> Iterator[Row]:
    """Measure the one goal that is about a CPU: `L_sds` at D = 1024 in fp32."""
    found = {row["name"]: row for row in measure_sds(128, 1024, 32_000, "cpu", torch.float32, 3)}
    yield Row("L_sds / three products, CPU, fp32, D = 1024", 1.5, measured=found["L_sds"]["ratio"])


def _sds(model: str, size: Size) -> Iterator[Row]:
    """`L_sds` against its products, its inputs and Liger's divergence."""
    decoder = published_decoder(model)
    width, vocabulary = decoder.width, decoder.vocabulary
    gemma = decoder.family == "gemma"

    def measured(patches: int) -> tuple[dict, dict | None]:
        release_memory()
        found = measure_sds(patches, width, vocabulary, size.device, size.dtype, size.rounds)
        named = {row["name"]: row for row in found}
        return named["L_sds"], named.get(LIGER)

    ours, liger = measured(size.patches)
    shape = f"{model}, N = {size.patches}"
    yield Row(
        f"L_sds / three products, {shape}",
        1.45 if gemma else 1.25,
        measured=ours.get("ratio"),
        note=str(ours.get("why not", "")),
        judged=size.judged,
    )
    if model in LIGER_SPEED:
        speed = liger["ms"] / ours["ms"] if "ms" in liger and "ms" in ours else None
        yield Row(
            f"liger's time / L_sds, {shape}",
            LIGER_SPEED[model],
            most=False,
            measured=speed,
            note=str(liger.get("why not", "")),
            judged=size.judged,
        )
    for patches in (size.patches, 2 * size.patches):
        extra = (ours if patches == size.patches else measured(patches)[0]).get("extra MiB")
        bytes_each = torch.finfo(size.dtype).bits // 8
        inputs = (patches * width * (bytes_each + 4) + vocabulary * width * bytes_each) / 2**20
        yield Row(
            f"L_sds extra memory / inputs, {model}, N = {patches}",
            1.0,
            measured=None if extra is None else extra / inputs,
            note="" if extra is not None else "needs a GPU",
            judged=size.judged,
        )


def _stage1(model: str, assembled: Assembled, size: Size) -> Iterator[Row]:
    """Our step with and without BASIC, its peak, and the best speed beside the documented plain step's."""
    step, judged = _step(size, 1), {"judged": size.judged}
    basic, plain = compare_steps(assembled, step, rounds=size.rounds, naive=False, baseline=False)
    yield Row(
        f"BASIC step / our plain step, stage 1 recomputing, {model}",
        STEP_RATIO[model],
        measured=basic.get("time / our plain"),
        note=str(basic.get("why not", "")),
        **judged,
    )
    peaks = basic.get("peak MiB"), plain.get("peak MiB")
    lacking = "" if None not in peaks else "out of memory" if size.device == "cuda" else "needs a GPU"
    yield Row(
        f"peak in GB, stage 1, micro-batch {size.micro_batch}, recomputing, {model}",
        STAGE1_GB[model],
        measured=_gigabytes(peaks[0]),
        note=lacking,
        **judged,
    )
    allowed = max(128.0, 0.02 * (peaks[1] or 0.0))
    yield Row(
        f"rise of the peak from BASIC's terms in MiB, {model}",
        round(allowed, 1),
        measured=None if lacking else peaks[0] - peaks[1],
        note=lacking,
        **judged,
    )
    ours, how = _best_of_ours(model, assembled, size, 1)
    other, run = at_its_best(assembled, step, (4, 8, 16, 32) if size.judged else ())
    theirs = run_if_it_fits(run)
    yield Row(
        f"samples/s, BASIC / transformers' plain step, best micro-batches, {model}",
        1.10 if model == "gemma-2b" else 1.3,
        most=False,
        measured=ours / theirs["samples/s"] if ours and theirs else None,
        note=f"{how}; theirs at {other}" + ("" if theirs else ": out of memory"),
        **judged,
    )
    yield Row(
        f"stage 1 runs under the cap, {model}", 1, most=False, measured=float(bool(ours)), note=how, **judged
    )


def _stage2(model: str, assembled: Assembled, size: Size) -> Iterator[Row]:
    """Our step beside the plain ones, peaks with both optimizers, and whether the planner's choice runs."""
    step, judged = _step(size, 2), {"judged": size.judged}
    sizes = [step.micro_batch * factor for factor in (2, 4)] if size.judged else []
    for optimizer, goal in STAGE2_GB.get(model, {}).items():
        facts = run_if_it_fits(partial(measure_steps, assembled, step, optimizer=optimizer))
        yield Row(
            f"peak in GB, stage 2, micro-batch {step.micro_batch}, {optimizer}, {model}",
            goal,
            measured=_gigabytes(facts["peak MiB"]) if facts and size.device == "cuda" else None,
            note="out of memory" if facts is None else "" if size.device == "cuda" else "needs a GPU",
            **judged,
        )
    ours, how = _best_of_ours(model, assembled, size, 2)
    yield Row(
        f"stage 2 runs under the cap, {model}", 1, most=False, measured=float(bool(ours)), note=how, **judged
    )
    # Last, as Unsloth's import changes the libraries.
    compared = compare_steps(assembled, step, rounds=size.rounds, naive=False, micro_batches=sizes)
    basic, _, theirs, other = compared
    for what, goal, most, column in (
        ("BASIC step / our plain step", 1.05, True, "time / our plain"),
        ("samples/s, BASIC / transformers' plain step at its best", 1.8, False, "time / documented plain"),
    ):
        time = basic.get(column)
        yield Row(
            f"{what}, stage 2, micro-batch {step.micro_batch}, {model}",
            goal,
            most=most,
            measured=time if time is None or most else 1 / time,
            note=str(basic.get("why not", f"step times {basic.get(f'{column}, 95 %')}; {theirs['name']}")),
            **judged,
        )
    both = "samples/s" in other and "samples/s" in basic
    yield Row(
        f"samples/s, BASIC / {other['name']}, {model}",
        1.0,  # nothing was promised of Unsloth's
        most=False,
        measured=basic["samples/s"] / other["samples/s"] if both else None,
        note=str(other.get("why not", "")),
        **judged,
    )


def _step(size: Size, stage: Literal[1, 2]) -> Step:
    rows = size.micro_batch if stage == 1 else max(size.micro_batch // 2, 1)
    text = size.text[stage - 1]
    return Step(stage, rows, text, rank=size.rank, steps=size.steps, cap_gib=size.cap_gib)


def _best_of_ours(
    model: str, assembled: Assembled, size: Size, stage: Literal[1, 2]
) -> tuple[float | None, str]:
    """Run what the planner chooses for the card; half the rows where that does not fit after all."""
    kind: Kind = "stage1" if stage == 1 else "stage2 --lora"
    decoder = published_decoder(model)
    decoder = replace(decoder, depth=decoder.depth if size.layers is None else size.layers)
    tower = TowerSize.of(TOWERS["clip-l-336"])
    planned = replace(step_of(kind, decoder, tower), text=size.text[stage - 1])
    planned = replace(planned, setup=replace(planned.setup, rank=size.rank))
    gib = 24.0 if size.cap_gib is None else size.cap_gib
    optimizers = ("adamw", "paged-adamw-8bit")[:stage]
    chosen = fit(planned, budget_bytes(gib), candidates(GLOBAL_BATCH[kind]), gib, optimizers)
    if chosen is None:
        return None, "nothing fits by the plan"
    rows = chosen.micro_batch if size.judged else size.micro_batch
    while rows:
        step = replace(_step(size, stage), micro_batch=rows, recompute=chosen.recompute)
        facts = run_if_it_fits(partial(measure_steps, assembled, step, optimizer=chosen.optimizer))
        if facts:
            speed = facts["samples/s (median)"]
            how = f"micro-batch {rows}, {chosen.recompute} layers recompute, {chosen.optimizer}"
            return speed, f"{speed:.2f}/s at {how}"
        rows //= 2
    return None, "out of memory"


def _gigabytes(peak_mib: float | None) -> float | None:
    """Return what the card holds at a peak of tensors: they, and what CUDA took beside them."""
    if peak_mib is None or not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    return (peak_mib * 2**20 + context) / 1e9
