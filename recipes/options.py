"""Options that several commands share, written once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

MODEL = "Model"
METHOD = "Method"
RUN = "Run"
MEMORY = "Memory and speed"


def option(*names: str, help: str, panel: str = RUN, default: str | bool = True, **more: object) -> object:
    """Return a Typer option in a named panel of `--help`; `default` says in words what `None` means."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=default, **more)


def within(
    least: float | None = None,
    most: float = math.inf,
    *,
    above: float | None = None,
    below: float = math.inf,
    off: float | None = None,
) -> Callable[[typer.CallbackParam, float | None], float | None]:
    """Return the callback of a numeric option that refuses what is outside a range, in one line.

    Typer's own `min` and `max` have no open ends, let `nan` pass, and do not say what was given.

    Args:
        least: the smallest number that may be given.
        most: the largest.
        above: must be exceeded; instead of `least`.
        below: must not be reached; instead of `most`.
        off: may be given too, and says that the option does not count.
    """
    bounds = ((least, "at least"), (above, "above"), (most, "at most"), (below, "below"))
    named = [f"{words} {bound}" for bound, words in bounds if bound is not None and bound != math.inf]

    def check(option: typer.CallbackParam, given: float | None) -> float | None:
        if given is None or given == off:
            return given
        if (given > above if least is None else given >= least) and given <= most and given < below:
            return given
        allowed = " and ".join(named if given != math.inf else [*named, "finite"])
        raise ValueError(f"{option.opts[0]} must be {allowed}, got {given}")

    return check


def a_width(option: typer.CallbackParam, given: int | None) -> int | None:
    """Refuse bits of a weight that there is no format for."""
    if given not in (None, 4, 8, 16):
        raise ValueError(f"{option.opts[0]} must be 4, 8 or 16, got {given}")
    return given


a_seed = within(0, 2**32 - 1)  # numpy takes no others

Data = Annotated[
    Path | None,
    option(
        help="LLaVA JSON or JSONL; folder of Arrow or Parquet; hub id.",
        default="the published set, from the hub",
        panel="Data",
    ),
]
Images = Annotated[
    Path | None,
    option(help="Folder, zip or tar that image paths start from.", default="the data's own", panel="Data"),
]
FollowLinks = Annotated[
    bool,
    option("--follow-links", help="Allow links in the image folder that lead out of it.", panel="Data"),
]
MinRating = Annotated[
    int | None,
    option(
        help="Leave out rows that FineVision rates lower in anything.",
        default="none",
        panel="Data",
        callback=within(1, 5),
    ),
]
Workers = Annotated[
    int | None,
    option(
        help="Processes that prepare batches.", default="2; 1 on one core", panel="Data", callback=within(0)
    ),
]
BadBudget = Annotated[
    float,
    option(
        help="Share of rows that may be bad: replaced, logged. Above it the run stops.",
        panel="Data",
        callback=within(0, below=1),
    ),
]
MaxLength = Annotated[
    int, option(help="Most tokens of a row; longer answers are cut.", panel="Data", callback=within(1))
]

Llm = Annotated[
    str | None,
    option(
        help="Any Llama-, Gemma-, Phi-3- or Mistral-like LLM: hub id or folder.",
        default="that of --model",
        panel=MODEL,
    ),
]
Tower = Annotated[
    str | None,
    option(
        help="clip-l-336, siglip-so400m-384, or a CLIP, SigLIP or DINOv2: hub id or folder.",
        default="clip-l-336",
        panel=MODEL,
    ),
]
Template = Annotated[str | None, option(help="Conversation template.", default="the LLM's own", panel=MODEL)]
ImageToken = Annotated[
    str | None, option(help="Token that marks a patch.", default="an unused one", panel=MODEL)
]
Bits = Annotated[
    int | None,
    option(
        help="Bits of the decoder's weights: 4 (nf4), 8 or 16.", default="4", panel=MODEL, callback=a_width
    ),
]
Precision = Annotated[
    str, option(help="auto, bf16 or fp32. auto: bf16 on a GPU, fp32 on a CPU.", panel=MODEL)
]
ImageSize = Annotated[
    int | None,
    option(
        help="Side of the tower's input in pixels.",
        default="the tower's own",
        panel=MODEL,
        callback=within(1),
    ),
]
TowerLayer = Annotated[int, option(help="Which hidden states of the tower are its features.", panel=MODEL)]

Basic = Annotated[
    bool,
    option(
        "--basic/--no-basic",
        help="With BASIC's two terms, or (--no-basic) the plain LLaVA twin.",
        panel=METHOD,
    ),
]
Layers = Annotated[
    int | None,
    option(
        help="k: the target is made of decoder layers 1 to k.",
        default="half of the decoder's",
        panel=METHOD,
        callback=within(1),
    ),
]
Weighting = Annotated[
    str, option(help="Weights of layers 1 to k: quadratic, linear, constant, decreasing.", panel=METHOD)
]
Importance = Annotated[
    str, option(help="Weights of patches: attention (of the text to them) or uniform.", panel=METHOD)
]
Target = Annotated[
    str | None,
    option(
        help="Space of the target: raw, centred, translated (fitted on the data's text).",
        default="raw; stage 2: stage 1's",
        panel=METHOD,
    ),
]
Intervention = Annotated[str, option(help="What an experiment does to the teacher.", hidden=True)]
DasWeight = Annotated[
    float,
    option(help="Weight of L_das, the directional alignment; 0 is off.", panel=METHOD, callback=within(0)),
]
SdsWeight = Annotated[
    float,
    option(help="Weight of L_sds, the semantic distribution; 0 is off.", panel=METHOD, callback=within(0)),
]
RowsPerChunk = Annotated[
    int | None,
    option(
        help="Patches per pass of L_sds over the vocabulary.",
        default="by size",
        panel=MEMORY,
        callback=within(1),
    ),
]

GlobalBatch = Annotated[
    int | None,
    option(
        help="Rows per optimizer step.",
        default="LLaVA-1.5's; fewer where the data are few",
        callback=within(1),
    ),
]
MicroBatch = Annotated[
    int | None,
    option(
        help="Rows per forward pass; must divide the global batch.",
        default="8; stage 2: 4",
        panel=MEMORY,
        callback=within(1),
    ),
]
Epochs = Annotated[float | None, option(help="Passes over the data.", default="1", callback=within(above=0))]
MaxSteps = Annotated[
    int, option(help="Optimizer steps, instead of epochs.", default="-1, off", callback=within(1, off=-1))
]
Recompute = Annotated[
    bool | None,
    option(
        "--recompute/--no-recompute",
        help="Recompute all decoder layers in backward (gradient checkpointing).",
        default="on a GPU",
        panel=MEMORY,
    ),
]
RecomputeLayers = Annotated[
    int | None,
    option(
        help="Recompute so many layers alone, the first ones.",
        default="all or none",
        panel=MEMORY,
        callback=within(0),
        metavar="N",
    ),
]
Fit = Annotated[
    str | None,
    option(
        help="Choose micro-batch, recomputed layers, rows per chunk and optimizer for a card of so many "
        "GiB, or auto for this one.",
        default="off",
        panel=MEMORY,
        metavar="GIB|auto",
    ),
]
Optimizer = Annotated[
    str | None,
    option(
        help="adamw, or paged-adamw-8bit for adapters.", default="adamw, or what --fit needs", panel=MEMORY
    ),
]
FusedKernels = Annotated[
    bool,
    option(
        "--fused-kernels/--no-fused-kernels",
        help="On a GPU, Liger's norms, MLPs and rotary embedding.",
        panel=MEMORY,
    ),
]
QuantisedCopy = Annotated[
    bool,
    option(
        "--quantised-copy/--no-quantised-copy",
        help="Keep the decoder's 4-bit weights on disk (see doctor), for the next start.",
        panel=MODEL,
    ),
]
SaveSteps = Annotated[int, option(help="Steps between checkpoints.", callback=within(1))]
Keep = Annotated[int, option(help="How many checkpoints stay, the newest ones.", callback=within(1))]
LoggingSteps = Annotated[int, option(help="Steps between lines of log.jsonl.", callback=within(1))]
Seed = Annotated[
    int,
    option(help="Seed of the projector, the order of rows, and dropout.", callback=a_seed),
]
ReportTo = Annotated[str, option(help="Tracker, such as tensorboard.")]
Resume = Annotated[bool, option("--resume", help="Go on from the last checkpoint in --out.")]
Overwrite = Annotated[bool, option("--overwrite", help="Replace the run in --out.")]
DryRun = Annotated[bool, option("--dry-run", help="Print the resolved settings, load nothing.")]
