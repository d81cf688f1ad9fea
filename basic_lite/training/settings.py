"""Every setting of a training stage, once: a field is an option with its help, and what training reads.

`command` turns a function of these dataclasses into the flat command that Typer reads. What an option that
is left out comes to is decided in `plan`; the result is `Settings`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import typer
from rich.table import Table

from basic_lite.data.rows import MAX_LENGTH, Exif, colour
from basic_lite.memory.peak import Optimizer
from basic_lite.method import types
from basic_lite.models import zoo

if TYPE_CHECKING:
    from basic_lite.data.mix import Source
    from basic_lite.data.pictures import Aspect
    from basic_lite.method.objective import Objective

MODEL = "Model"
DATA = "Data"
METHOD = "Method"
RUN = "Run"
MEMORY = "Memory and speed"
VALIDATION = "Validation"


def option(help: str, *names: str, panel: str = RUN, default: str | bool = True, **more: Any) -> Any:
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

    The range is open at `above` and `below`; `off` says that the option does not count. Typer's own `min` and
    `max` have no open ends, let `nan` pass, and do not say what was given.
    """
    bounds = ((least, "at least"), (above, "above"), (most, "at most"), (below, "below"))
    named = [f"{words} {bound}" for bound, words in bounds if bound is not None and bound != math.inf]

    def check(option: typer.CallbackParam, given: float | None) -> float | None:
        if given is None or given == off:
            return given
        over = given >= least if least is not None else above is None or given > above
        if over and given <= most and given < below:
            return given
        allowed = " and ".join(named if given != math.inf else [*named, "finite"])
        raise ValueError(f"{option.opts[0]} must be {allowed}, got {given}")

    return check


def among(allowed: tuple[Any, ...]) -> Callable[[typer.CallbackParam, Any], Any]:
    """Return the callback of an option that refuses everything but the values of a `Literal`, in one line."""
    *first, last = map(str, allowed)
    words = f"one of {', '.join([*first, last])}" if isinstance(allowed[0], str) else ""
    words = words or f"{', '.join(first)} or {last}"

    def check(option: typer.CallbackParam, given: Any) -> Any:
        if given is None or given in allowed:
            return given
        raise ValueError(f"{option.opts[0]} must be {words}, got {given!r}")

    return check


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a function of dataclasses the flat signature that Typer reads: each field becomes an option.

    It stands in its class's `PANEL`, if there is one, unless it names another panel. A `Literal` is checked
    by `among`: Typer's own refusal is a box of several lines.
    """
    hints = get_type_hints(function, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in groups:
            of_group = get_type_hints(groups[name], include_extras=True)
            options = [(field.name, of_group[field.name], field.default) for field in fields(groups[name])]
        else:
            options = [(name, hints[name], parameter.default)]
        panel = getattr(groups.get(name), "PANEL", RUN)
        for option_name, hint, default in options:
            plain = {"default": default, "annotation": _plain(hint, panel)}
            flat.append(inspect.Parameter(option_name, inspect.Parameter.KEYWORD_ONLY, **plain))
    signature = inspect.Signature(flat)

    @functools.wraps(function)
    def run(**given: Any) -> None:
        bound = signature.bind(**given)
        bound.apply_defaults()
        options = bound.arguments
        made = {
            name: group(**{field.name: options.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        function(**options, **made)  # apart: an option may be called as another group is

    run.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue] (inspect reads it of any function)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run


def _plain(hint: Any, panel: str) -> Any:
    """Return an option's type with the values' own type in place of a `Literal`, the check and the panel."""
    if get_origin(hint) is not Annotated:
        return hint
    kind, info = get_args(hint)
    info = copy.copy(info)
    if info.rich_help_panel == RUN:
        info.rich_help_panel = panel
    parts = get_args(kind) if get_origin(kind) is not Literal else (kind,)
    choices = next((get_args(part) for part in parts if get_origin(part) is Literal), None)
    if choices is not None:
        info.callback, plain = among(choices), type(choices[0])
        kind = plain | None if type(None) in parts else plain
    return Annotated[kind, info]


Precision = Literal["auto", "bf16", "fp32"]

# Options that other commands have too.

LlmOption = Annotated[
    str | None,
    option(
        "Any LLM of a family that basic-lite models lists: hub id or folder.",
        default="that of --model",
        panel=MODEL,
    ),
]
TemplateOption = Annotated[str | None, option("Conversation template.", default="the LLM's own", panel=MODEL)]
BitsOption = Annotated[
    zoo.Bits | None, option("Bits of the decoder's weights: 4 (nf4), 8 or 16.", default="4", panel=MODEL)
]
PrecisionOption = Annotated[
    Precision, option("auto, bf16 or fp32. auto: bf16 on a GPU, fp32 on a CPU.", panel=MODEL)
]
ImageSizeOption = Annotated[
    int | None,
    option(
        "Side of the tower's input in pixels.", default="the tower's own", panel=MODEL, callback=within(1)
    ),
]
TilesOption = Annotated[
    int,
    option(
        "Most tiles of a picture beside its whole, as in LLaVA-NeXT; 4 for text and detail, 1 is off.",
        panel=MODEL,
        callback=within(1, 64),
    ),
]
PoolOption = Annotated[
    int,
    option(
        "2 joins 2 x 2 patches into one visual embedding: a quarter of the tokens. No export.",
        panel=MODEL,
        callback=among((1, 2)),
    ),
]
ImagesOption = Annotated[
    Path | None,
    option("Folder, zip or tar that image paths start from.", default="the data's own", panel=DATA),
]
FollowLinksOption = Annotated[
    bool, option("Allow links in the image folder that lead out of it.", "--follow-links", panel=DATA)
]
MinRatingOption = Annotated[
    int | None,
    option(
        "Leave out rows that FineVision rates lower in anything.",
        default="none",
        panel=DATA,
        callback=within(1, 5),
    ),
]
BasicOption = Annotated[
    bool,
    option(
        "With BASIC's two terms, or (--no-basic) the plain LLaVA baseline.",
        "--basic/--no-basic",
        panel=METHOD,
    ),
]
LayersOption = Annotated[
    int | None,
    option(
        "k: the target is made of decoder layers 1 to k.",
        default="half of the decoder's",
        panel=METHOD,
        callback=within(1),
    ),
]
WeightingOption = Annotated[
    types.Weighting,
    option("Weights of layers 1 to k: quadratic, linear, constant, decreasing.", panel=METHOD),
]
RecomputeOption = Annotated[
    bool | None,
    option(
        "Recompute all decoder layers in backward (gradient checkpointing).",
        "--recompute/--no-recompute",
        default="on a GPU",
        panel=MEMORY,
    ),
]
RecomputeLayersOption = Annotated[
    int | None,
    option(
        "Recompute only that many layers, the first ones.",
        default="all or none",
        panel=MEMORY,
        callback=within(0),
        metavar="N",
    ),
]
RankOption = Annotated[int, option("Rank of stage 2's adapters.", panel=MODEL, callback=within(1))]
DryRunOption = Annotated[bool, option("Print the resolved settings, load nothing.", "--dry-run")]
QuantisedCopyOption = Annotated[
    bool,
    option(
        "Keep the decoder's 4-bit weights on disk (see doctor), for the next start.",
        "--quantised-copy/--no-quantised-copy",
        panel=MODEL,
    ),
]
a_seed = within(0, 2**32 - 1)  # numpy takes no others


def a_colour(option: typer.CallbackParam, given: str | None) -> str | None:
    """Return a colour as `#rrggbb`."""
    try:
        return None if given is None else colour(given)
    except ValueError as error:
        raise ValueError(f"{option.opts[0]}: {error}") from None


def a_share(option: typer.CallbackParam, given: str | None) -> str | None:
    """Refuse what is no share of rows to hold out; a number without a percent sign could mean either."""
    if given is not None and not 0 < _percent(given) <= 50:
        raise ValueError(
            f"{option.opts[0]} must be a share above 0% and at most 50%, such as 0.5%, got {given!r}"
        )
    return given


def _percent(text: str) -> float:
    try:
        return float(text.removesuffix("%")) if text.endswith("%") else math.nan
    except ValueError:
        return math.nan


def a_keep(option: typer.CallbackParam, given: str) -> str:
    """Refuse what is neither a number of checkpoints nor `best`."""
    if given == "best":
        return given
    try:
        number = int(given)
    except ValueError:
        raise ValueError(f"{option.opts[0]} must be a number of at least 1, or best, got {given!r}") from None
    return str(within(1)(option, number))


@dataclass(frozen=True)
class Model:
    """Stage 1's parts, and how they are held."""

    model: Annotated[
        str,
        option(
            "vicuna-7b, gemma-2b, qwen3-4b, ... (basic-lite models lists them), or tiny (embedded).",
            panel=MODEL,
        ),
    ] = "vicuna-7b"
    llm: LlmOption = None
    tower: Annotated[
        str | None,
        option(
            "clip-l-336, siglip-so400m-384, or a CLIP, SigLIP or DINOv2: hub id or folder.",
            default="clip-l-336",
            panel=MODEL,
        ),
    ] = None
    template: TemplateOption = None
    image_token: Annotated[
        str | None, option("Token that marks a patch.", default="an unused one", panel=MODEL)
    ] = None
    bits: BitsOption = None
    precision: PrecisionOption = "auto"
    image_size: ImageSizeOption = None
    tiles: TilesOption = 1
    pool: PoolOption = 1
    exif: Annotated[
        Exif,
        option(
            "A photo's EXIF rotation: ignore, as LLaVA's data and weights were made, or rotate.", panel=DATA
        ),
    ] = "ignore"
    background: Annotated[
        str, option("What transparent pictures are put on.", panel=DATA, callback=a_colour, metavar="COLOUR")
    ] = "white"
    tower_layer: Annotated[
        int, option("Which hidden states of the tower are its features.", panel=MODEL)
    ] = -2
    quantised_copy: QuantisedCopyOption = True


@dataclass(frozen=True)
class Adapters:
    """Stage 2's adapters, as LLaVA-1.5 has them; without `--lora` there are none."""

    PANEL: ClassVar[str] = MODEL

    rank: Annotated[
        int | None, option("Rank of the adapters.", default=str(zoo.RANK), callback=within(1))
    ] = None
    alpha: Annotated[
        int | None, option("Scale times rank of the adapters.", default="2 * rank", callback=within(1))
    ] = None
    dropout: Annotated[float, option("Dropout in front of the adapters.", callback=within(0, below=1))] = (
        zoo.DROPOUT
    )


@dataclass(frozen=True)
class PartsOfStage1:
    """What stage 2 may change of stage 1's parts."""

    bits: Annotated[
        zoo.Bits | None, option("Bits of the decoder's weights.", default="stage 1's", panel=MODEL)
    ] = None
    image_size: Annotated[
        int | None,
        option("Side of the tower's input in pixels.", default="stage 1's", panel=MODEL, callback=within(1)),
    ] = None
    exif: Annotated[
        Exif | None, option("A photo's EXIF rotation: ignore or rotate.", default="stage 1's", panel=DATA)
    ] = None
    background: Annotated[
        str | None,
        option(
            "What transparent pictures are put on.",
            default="stage 1's",
            panel=DATA,
            callback=a_colour,
            metavar="COLOUR",
        ),
    ] = None
    tower_layer: Annotated[
        int | None,
        option("Which hidden states of the tower are its features.", default="stage 1's", panel=MODEL),
    ] = None
    quantised_copy: QuantisedCopyOption = True


@dataclass(frozen=True)
class Data:
    """The rows, and what is done with those that are long or bad."""

    PANEL: ClassVar[str] = DATA

    data: Annotated[
        list[str] | None,
        option(
            "JSON, JSONL, WebDataset, Arrow or Parquet, or a folder of them; hub id. Several are mixed: "
            "an epoch draws half of b.json:0.5's rows, the next one the others, and c.json:3 three times.",
            default="the published set, from the hub",
            metavar="DATA[:WEIGHT]",
        ),
    ] = None
    images: Annotated[
        list[str] | None,
        option(
            "Folder, zip or tar that image paths start from; one for all --data, or one for each.",
            default="the data's own",
            metavar="IMAGES",
        ),
    ] = None
    stream: Annotated[
        bool,
        option(
            "Read a hub id, Parquet or WebDataset as it comes, without a copy on this disk; takes "
            "--max-steps. Rows are shuffled within a thousand, and grouped within a step.",
            "--stream",
        ),
    ] = False
    follow_links: FollowLinksOption = False
    min_rating: MinRatingOption = None
    max_length: Annotated[
        int,
        option("Most tokens of a row, those of --tiles apart; longer answers are cut.", callback=within(1)),
    ] = MAX_LENGTH
    bad_budget: Annotated[
        float,
        option(
            "Share of rows that may be bad: replaced, logged. Above it the run stops.",
            callback=within(0, below=1),
        ),
    ] = 0.005
    workers: Annotated[
        int | None, option("Processes that prepare batches.", default="2; 1 on one core", callback=within(0))
    ] = None

    @property
    def sources(self) -> tuple[Source, ...]:
        """The data sets, once `checks.training_files` has found them; raises as `parse_sources`."""
        from basic_lite.data.mix import parse_sources

        assert self.data, "no data are known yet"
        return parse_sources(self.data, self.images)

    @property
    def processes(self) -> int:
        from basic_lite.data.workers import cores

        return min(2, cores()) if self.workers is None else self.workers


@dataclass(frozen=True)
class Method:
    """BASIC's two terms and their target."""

    PANEL: ClassVar[str] = METHOD

    basic: BasicOption = True
    layers: LayersOption = None
    weighting: WeightingOption = "quadratic"
    importance: Annotated[
        types.Importance, option("Weights of patches: attention (of the text to them) or uniform.")
    ] = "attention"
    target: Annotated[
        types.TargetKind | None,
        option(
            "Space of the target: raw; centred or translated (fitted on the data's text); individual "
            "(less its mean over pictures).",
            default="raw; stage 2: stage 1's",
        ),
    ] = None
    das_weight: Annotated[
        float, option("Weight of L_das, the directional alignment; 0 is off.", callback=within(0))
    ] = types.DAS_WEIGHT
    sds_weight: Annotated[
        float, option("Weight of L_sds, the semantic distribution; 0 is off.", callback=within(0))
    ] = types.SDS_WEIGHT
    sds_text: Annotated[
        types.SdsText, option("L_sds on patches that hold text: keep, or skip for the sake of reading.")
    ] = "keep"
    intervention: Annotated[str, option("What an experiment does to the teacher.", hidden=True)] = "none"

    @property
    def kind(self) -> types.TargetKind:
        """The target's space: the paper's where nothing else is said (stage 2 fills in stage 1's)."""
        return self.target or "raw"

    def objective(self, rows_per_chunk: int | None = None) -> Objective:
        """Return the terms; both are off without BASIC."""
        from basic_lite.method.objective import Objective

        if not self.basic:
            return Objective(0, 0)
        return Objective(self.das_weight, self.sds_weight, rows_per_chunk)


@dataclass(frozen=True)
class Memory:
    """How a step is cut to fit the card; `plan.fit_memory` decides what is left open."""

    PANEL: ClassVar[str] = MEMORY

    rows_per_chunk: Annotated[
        int | None,
        option("Patches per pass of L_sds over the vocabulary.", default="by size", callback=within(1)),
    ] = None
    micro_batch: Annotated[
        int | None,
        option(
            "Rows per forward pass; must divide the global batch.",
            default="8; stage 2: 4",
            callback=within(1),
        ),
    ] = None
    recompute: RecomputeOption = None
    recompute_layers: RecomputeLayersOption = None
    keep_dequantised: Annotated[
        str,
        option(
            "Decoder layers whose 4-bit weights are also held dequantised, where the family is known: "
            "the same numbers, sooner. auto fills the memory that a step leaves on a GPU.",
            metavar="N|auto",
        ),
    ] = "auto"
    fit: Annotated[
        str | None,
        option(
            "Choose micro-batch, recomputed layers, rows per chunk and optimizer for a card with GIB, "
            "or auto for this one.",
            default="off",
            metavar="GIB|auto",
        ),
    ] = None
    fused_kernels: Annotated[
        bool,
        option(
            "On a GPU, Liger's norms, MLPs and rotary embedding, and the projector's fp32 products "
            "made of bf16 ones.",
            "--fused-kernels/--no-fused-kernels",
        ),
    ] = True


@dataclass(frozen=True)
class Schedule:
    """How fast and how long; what is left open is the stage's in `zoo.Pace`, or follows from the data."""

    learning_rate: Annotated[
        float | None,
        option(
            "Peak of the cosine schedule.",
            default="1e-3; stage 2: 2e-4 with --lora, else 2e-5",
            callback=within(above=0),
        ),
    ] = None
    global_batch: Annotated[
        int | None,
        option(
            "Rows per optimizer step.",
            default="LLaVA-1.5's; fewer where the data are few",
            callback=within(1),
        ),
    ] = None
    epochs: Annotated[
        float | None, option("Passes over the data.", default="1", callback=within(above=0))
    ] = None
    max_steps: Annotated[
        int, option("Optimizer steps, instead of epochs.", default="-1, off", callback=within(1, off=-1))
    ] = -1


@dataclass(frozen=True)
class Run:
    """What is kept, said and repeated."""

    save_steps: Annotated[int, option("Steps between checkpoints.", callback=within(1))] = 500
    keep: Annotated[
        str,
        option(
            "How many checkpoints stay, the newest ones. best: the newest, and the one of the lowest "
            "validation loss, whose weights are the run's.",
            callback=a_keep,
            metavar="N|best",
        ),
    ] = "2"
    logging_steps: Annotated[int, option("Steps between lines of log.jsonl.", callback=within(1))] = 10
    seed: Annotated[
        int, option("Seed of the projector, the order of rows, and dropout.", callback=a_seed)
    ] = 0
    report_to: Annotated[str, option("Tracker, such as tensorboard.")] = "none"
    along: Annotated[str, option("What an experiment measures on the way, as JSON.", hidden=True)] = ""
    resume: Annotated[bool, option("Go on from the last checkpoint in --out.", "--resume")] = False
    overwrite: Annotated[bool, option("Replace the run in --out.", "--overwrite")] = False
    dry_run: DryRunOption = False

    @property
    def keeps_best(self) -> bool:
        """Whether the checkpoint of the lowest validation loss stays, and gives the run its weights."""
        return self.keep == "best"

    @property
    def newest(self) -> int:
        """How many of the newest checkpoints stay."""
        return 1 if self.keeps_best else int(self.keep)


@dataclass(frozen=True)
class Validation:
    """Rows that are measured along the way and never trained on; off unless one of the first two is given."""

    PANEL: ClassVar[str] = VALIDATION

    val_share: Annotated[
        str | None,
        option(
            "Share of the rows to hold out and measure, such as 0.5%; the same ones in every run.",
            default="off",
            callback=a_share,
            metavar="PERCENT",
        ),
    ] = None
    val_data: Annotated[
        Path | None, option("Rows to measure instead, in a file of their own.", default="off")
    ] = None
    val_images: Annotated[
        Path | None,
        option(
            "Folder, zip or tar that the image paths of --val-data start from.",
            default="--images, else that of the file",
        ),
    ] = None
    val_steps: Annotated[
        int | None,
        option(
            "Optimizer steps between two measurements; the start and the end are measured anyway.",
            default="a tenth of the run",
            callback=within(1),
        ),
    ] = None
    val_samples: Annotated[
        int, option("Rows whose answers are written out each time, greedily.", callback=within(0, 32))
    ] = 4
    stop_after: Annotated[
        int | None,
        option(
            "End the run after that many measurements in a row without a lower loss.",
            default="off",
            callback=within(1),
            metavar="N",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.val_share is not None and self.val_data is not None:
            raise ValueError(
                "--val-share holds out rows of --data, --val-data brings its own: give one of the two"
            )
        if self.val_images is not None and self.val_data is None:
            raise ValueError("--val-images belongs to --val-data, which is not given")
        for name, value in (("--val-steps", self.val_steps), ("--stop-after", self.stop_after)):
            if value is not None and not self.on:
                raise ValueError(f"{name} needs rows to measure: add --val-share 0.5%, or --val-data FILE")

    @property
    def on(self) -> bool:
        return self.val_share is not None or self.val_data is not None

    @property
    def share(self) -> float:
        return 0.0 if self.val_share is None else _percent(self.val_share) / 100


OutOption = Annotated[Path, option("Run folder.")]
LoraOption = Annotated[
    bool, option("Train adapters on a 4-bit decoder. Without: the whole decoder.", "--lora")
]
StartOption = Annotated[
    Path, option("Run of stage 1 or 2, or folder or hub id of a LLaVA(-NeXT) of transformers.")
]
OptimizerOption = Annotated[
    Optimizer | None,
    option("adamw, or paged-adamw-8bit for adapters.", default="adamw, or what --fit needs", panel=MEMORY),
]
ProjectorRateOption = Annotated[
    float | None, option("The projector's own peak; 0 freezes it.", default="2e-5", callback=within(0))
]


TrainTowerOption = Annotated[
    bool,
    option("Train the vision tower, too: all that its features depend on.", "--train-tower", panel=MODEL),
]
TowerLoraOption = Annotated[
    int | None,
    option(
        "Train adapters of this rank in the vision tower, too (with --lora).",
        default="off",
        panel=MODEL,
        callback=within(1),
        metavar="RANK",
    ),
]


def of_stage_2(option: typer.CallbackParam, given: Any) -> Any:
    """Refuse an option in stage 1, which knows it for that alone."""
    if given:
        raise ValueError(
            f"{option.opts[0]} is for stage 2: stage 1 trains the projector alone, as LLaVA and the paper do"
        )
    return given


@dataclass(frozen=True)
class OfStage2:
    """What people try in stage 1."""

    train_tower: Annotated[bool, typer.Option("--train-tower", hidden=True, callback=of_stage_2)] = False
    tower_lora: Annotated[str | None, typer.Option(hidden=True, callback=of_stage_2)] = None
    tower_learning_rate: Annotated[str | None, typer.Option(hidden=True, callback=of_stage_2)] = None


def of_stage_1(option: typer.CallbackParam, given: Any) -> Any:
    """Refuse an option in stage 2, which takes what it says from its start."""
    if given is not None:
        raise ValueError(f"{option.opts[0]} is for stage 1: stage 2 has what it --starts from, unchanged")
    return given


OfStage1Option = Annotated[str | None, typer.Option(hidden=True, callback=of_stage_1)]


@dataclass(frozen=True)
class OfStage1:
    """What people try in stage 2."""

    model: OfStage1Option = None
    llm: OfStage1Option = None
    tower: OfStage1Option = None
    template: OfStage1Option = None
    tiles: OfStage1Option = None
    pool: OfStage1Option = None


@dataclass(frozen=True)
class Tower:
    """Whether stage 2 trains the vision tower, which LLaVA-1.5 and the paper do not, and how."""

    train_tower: TrainTowerOption = False
    tower_lora: TowerLoraOption = None
    tower_learning_rate: Annotated[
        float | None,
        option(
            "The vision tower's own peak.", default="2e-6; 2e-5 with --tower-lora", callback=within(above=0)
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.train_tower and self.tower_lora is not None:
            raise ValueError(
                "--train-tower trains the tower's own weights, --tower-lora adapters in it: give only one"
            )
        if self.tower_learning_rate is not None and not self.on:
            raise ValueError(
                "--tower-learning-rate is for a tower that is trained: add --train-tower or --tower-lora 16"
            )

    @property
    def on(self) -> bool:
        return self.train_tower or self.tower_lora is not None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a stage is trained with: its options, and a value for each that the stage, data or card decide."""

    stage: Literal[1, 2]
    out: Path
    data: Data = Data()
    method: Method = Method()  # BASIC's terms and their target
    run: Run = Run()  # what is kept, said and repeated
    validation: Validation = Validation()  # what is measured along the way
    learning_rate: float  # peak of the cosine schedule
    projector_learning_rate: float | None = None  # the projector's own, 0 freezes it; `None` for the same
    tower: Tower = Tower()  # whether the vision tower is trained, and at which rate
    global_batch: int  # rows per optimizer step
    micro_batch: int  # rows per forward pass
    epochs: float = 1.0  # passes over the data
    max_steps: int = -1  # optimizer steps instead of epochs, where the schedule ends; -1 is off
    lora: bool = False  # adapters instead of the whole decoder (stage 2)
    optimizer: Optimizer = "adamw"  # 8-bit moments are for adapters
    # How many decoder layers, the first ones, run again in backward; `None` for all
    recompute: int | None = 0
    # Patches per pass over the vocabulary in `L_sds`; `None` chooses by size
    rows_per_chunk: int | None = None
    fused_kernels: bool = True  # Liger's modules on a GPU
    dequantised: int = 0  # decoder layers whose 4-bit weights are also held dequantised
    shards: int = 1  # processes over which the decoder's layers are cut; 1 leaves them whole

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything is loaded."""
        processes = int(os.environ.get("WORLD_SIZE", 1))
        if (
            self.micro_batch < 1
            or self.global_batch < 1
            or self.global_batch % (self.micro_batch * processes)
        ):
            times = f" times {processes} processes" if processes > 1 else ""
            raise ValueError(
                f"the global batch of {self.global_batch} is not a multiple of the micro-batch of "
                f"{self.micro_batch}{times}; choose --micro-batch so that it divides --global-batch"
            )
        for name, rate in (("learning-rate", self.learning_rate), ("epochs", self.epochs)):
            if not rate > 0:
                raise ValueError(f"--{name} must be above 0, got {rate}")
        if self.run.keeps_best and not self.validation.on:
            raise ValueError("--keep best needs rows to measure: add --val-share 0.5%, or --val-data FILE")
        if self.method.kind == "individual" and self.method.basic and self.micro_batch < 2:
            raise ValueError(
                "--target individual is less its mean over the pictures of a forward pass; take a "
                f"--micro-batch of 2 at least, got {self.micro_batch}"
            )
        if self.method.sds_text == "skip" and not self.objective.sds_weight:
            off = "--sds-weight 0" if self.method.basic else "--no-basic"
            raise ValueError(
                f"--sds-text skip leaves text out of L_sds, which {off} switches off: drop one of the two"
            )
        if self.tower.tower_lora is not None and not self.lora:
            raise ValueError(
                "--tower-lora goes with --lora; with the whole decoder take --train-tower, or add --lora"
            )
        if self.optimizer != "adamw" and not self.lora:
            raise ValueError(f"--optimizer {self.optimizer} is for adapters; add --lora, or leave it out")
        if self.optimizer != "adamw" and self.shards > 1:
            raise ValueError(
                f"--optimizer {self.optimizer} works on whole adapters, and --use_fsdp cuts them and Adam's "
                f"moments over {self.shards} processes; leave it out"
            )
        rate = self.projector_learning_rate
        if rate is not None and not rate >= 0:
            raise ValueError(f"--projector-learning-rate must be at least 0, which freezes it, got {rate}")

    @property
    def aspect(self) -> Aspect:
        """Stage 1 of LLaVA-1.5 does not pad; from stage 2 on it does, to a square of the mean colour."""
        return "crop" if self.stage == 1 else "pad"

    @property
    def group(self) -> bool:
        """Whether a batch holds rows of one modality and similar length: stage 1 has captions alone."""
        return self.stage == 2 and not self.data.stream

    @property
    def objective(self) -> Objective:
        return self.method.objective(self.rows_per_chunk)

    def table(self, **more: object) -> Table:
        """Show the settings; `more` comes first."""
        table = Table("setting", "value", show_header=False, box=None)
        shown = more | {
            "out": self.out,
            "data": ", ".join(self.data.data or []),
            "images": ", ".join(self.data.images or []) or None,
            "aspect": self.aspect,
            "learning_rate": self.learning_rate,
            "global_batch": self.global_batch,
            "micro_batch": self.micro_batch,
            "optimizer": self.optimizer,
            "fused_kernels": self.fused_kernels,
            "epochs": None if self.max_steps > 0 else self.epochs,
            "max_steps": self.max_steps if self.max_steps > 0 else None,
            "stream": self.data.stream or None,
            "follow_links": self.data.follow_links,
            "min_rating": self.data.min_rating,
            "max_length": self.data.max_length,
            "group": self.group,
            "shards": self.shards if self.shards > 1 else None,
            "recompute": self.recompute,
            "dequantised_layers": self.dequantised or None,
            "lora": self.lora,
            "save_steps": self.run.save_steps,
            "keep": self.run.keep,
            "bad_budget": self.data.bad_budget,
            "logging_steps": self.run.logging_steps,
            "workers": self.data.processes,
            "seed": self.run.seed,
            "report_to": self.run.report_to,
            "val_share": self.validation.val_share,
            "val_data": self.validation.val_data,
            "val_steps": self.validation.val_steps,
            "stop_after": self.validation.stop_after,
            "layers": self.method.layers,
            "weighting": self.method.weighting,
            "importance": self.method.importance,
            "target": self.method.kind,
            "intervention": None if self.method.intervention == "none" else self.method.intervention,
            "das_weight": self.objective.das_weight,
            "sds_weight": self.objective.sds_weight,
            "sds_text": None if self.method.sds_text == "keep" else self.method.sds_text,
            "projector_learning_rate": self.projector_learning_rate,
            "train_tower": self.tower.train_tower or None,
            "tower_lora": self.tower.tower_lora,
            "tower_learning_rate": self.tower.tower_learning_rate,
        }
        for name, value in shown.items():
            if value is not None or name in more:
                table.add_row(name.replace("_", " "), str(value))
        return table
