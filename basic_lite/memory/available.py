"""How much memory there is, and whether a stage that trains the whole decoder can fit it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

Row = TypeVar("Row")
Result = TypeVar("Result")

_BYTES_PER_TUNED = 16
"""fp32 weight, gradient and two Adam moments per trained parameter."""

_UNIT_OF_RUSAGE = 1 if sys.platform == "darwin" else 1024
"""Bytes that the system counts a process's peak in."""


def available_bytes(device: torch.device | str) -> int:
    """Return the memory of a GPU that is free or that the allocator holds unused, or the machine's memory."""
    if torch.device(device).type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return psutil.virtual_memory().total


def unraised_bytes(device: torch.device | str) -> int:
    """Return how many bytes can be taken on a GPU now without raising the peak of the run so far.

    What the decoder's activations took is free again when BASIC's terms are computed. At most half of the
    free memory, because what the allocator holds may be in pieces.
    """
    free = available_bytes(device)
    below_peak = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    return max(min(free // 2, below_peak), 0)


def peak_mib(device: torch.device | str) -> float:
    """Return the highest memory use of this process so far, in MiB."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT_OF_RUSAGE / 2**20


class Halves:
    """Does work on rows in as many pieces as the memory takes; the results are those of one piece.

    A size at which memory ran out is not tried again.
    """

    def __init__(self) -> None:
        self.most: int | None = None

    def __call__(self, work: Callable[[list[Row]], list[Result]], rows: list[Row]) -> list[Result]:
        """Return one result per row, in order; raises ValueError if a single row does not fit.

        `work` takes some of the rows, at least one, and may raise `torch.OutOfMemoryError`.
        """
        results: list[Result] = []
        while len(results) < len(rows):
            size = min(self.most or len(rows), len(rows) - len(results))
            try:
                results += work(rows[len(results) : len(results) + size])
                continue
            except torch.OutOfMemoryError:
                pass  # and with it everything that its frames held
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if size == 1:
                raise ValueError(
                    "out of memory with a single prompt; hold the decoder in 4 bits, or take a larger card "
                    "(`basic-lite plan --model NAME` shows which)"
                )
            self.most = (size + 1) // 2
            logging.getLogger(__name__).warning(
                f"out of memory with {size} prompts at a time; from here on {self.most} (same answers)"
            )
        return results


def parameters_of(config: PretrainedConfig) -> int:
    """Count a decoder's parameters from its configuration, without its weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())


def check_whole_decoder_fits(config: PretrainedConfig, device: torch.device | str) -> None:
    """Raise ValueError where weights, gradients and optimizer of a whole decoder exceed the memory.

    It names both figures and what to do, before anything is loaded.
    """
    needed, free = _BYTES_PER_TUNED * parameters_of(config), available_bytes(device)
    if needed > free:
        raise ValueError(
            f"tuning the whole decoder needs {needed / 1e9:.0f} GB for fp32 weights, gradients and Adam "
            f"alone, and {free / 1e9:.0f} GB are there; add --lora (QLoRA adapters), or take a smaller model"
        )
