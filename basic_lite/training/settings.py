"""Every setting of a training stage, once: a field is an option with its help, and what training reads.

`command` turns a function of these dataclasses into a flat Typer command. `plan` resolves the options that
are left out; the result is `Settings`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import typer
from rich.table import Table

from basic_lite.console import rank_and_count
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


def setting(default: Any, help: str, *names: str, shown: str | bool = True, **more: Any) -> Any:
    """Return a dataclass field that is an option; `shown` says in words what a default of `None` means."""
    return field(default=default, metadata={"option": option(help, *names, default=shown, **more)})


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

    Options without a panel of their own stand in their class's `PANEL`. A `Literal` is checked by `among`:
    Typer's own refusal is a box of several lines.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        options = _options(groups[name]) if name in groups else [(name, hints[name], parameter.default)]
        for option_name, hint, default in options:
            plain = {"default": default, "annotation": _plain(hint)}
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


def _options(group: Any) -> list[tuple[str, Any, Any]]:
    """Return name, annotated type and default of every field of a dataclass."""
    hints = get_type_hints(group, include_extras=True)
    options = []
    for each in fields(group):
        hint = hints[each.name]
        kind, info = get_args(hint) if get_origin(hint) is Annotated else (hint, each.metadata["option"])
        if info.rich_help_panel == RUN:
            info = copy(info)
            info.rich_help_panel = getattr(group, "PANEL", RUN)
        options.append((each.name, Annotated[kind, info], each.default))
    return options


def _plain(hint: Any) -> Any:
    """Return an option's type with the values' own type in place of a `Literal`, and its check."""
    if get_origin(hint) is not Annotated:
        return hint
    kind, info = get_args(hint)
    parts = get_args(kind) if get_origin(kind) is not Literal else (kind,)
    choices = next((get_args(part) for part in parts if get_origin(part) is Literal), None)
    if choices is not None:
        info, plain = copy(info), type(choices[0])
        info.callback = among(choices)
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
        "Maximum tiles per picture, besides the whole, as in LLaVA-NeXT; 4 for text and detail, 1 is off.",
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
DryRunOption = Annotated[bool, option("Print the resolved settings and load nothing.", "--dry-run")]
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
    """Stage 1's parts, and how they are stored."""

    PANEL: ClassVar[str] = MODEL

    model: str = setting(
        "vicuna-7b",
        "vicuna-7b, gemma-2b, qwen3-4b, ... (basic-lite models lists them), or tiny (embedded).",
    )
    llm: LlmOption = None
    tower: str | None = setting(
        None,
        "clip-l-336, siglip-so400m-384, or a CLIP, SigLIP or DINOv2: hub id or folder.",
        shown="clip-l-336",
    )
    template: TemplateOption = None
    image_token: str | None = setting(None, "Token that marks a patch.", shown="an unused one")
    bits: BitsOption = None
    precision: PrecisionOption = "auto"
    image_size: ImageSizeOption = None
    tiles: TilesOption = 1
    pool: PoolOption = 1
    exif: Exif = setting(
        "ignore",
        "A photo's EXIF rotation: ignore, as LLaVA's data and weights were made, or rotate.",
        panel=DATA,
    )
    background: str = setting(
        "white", "Colour behind transparent pictures.", panel=DATA, callback=a_colour, metavar="COLOUR"
    )
    tower_layer: int = setting(-2, "Which hidden states of the tower are its features.")
    quantised_copy: QuantisedCopyOption = True


@dataclass(frozen=True)
class Adapters:
    """Stage 2's adapters, as LLaVA-1.5 has them; without `--lora` there are none."""

    PANEL: ClassVar[str] = MODEL

    rank: int | None = setting(None, "Rank of the adapters.", shown=str(zoo.RANK), callback=within(1))
    alpha: int | None = setting(
        None, "Scale times rank of the adapters.", shown="2 * rank", callback=within(1)
    )
    dropout: float = setting(zoo.DROPOUT, "Dropout in front of the adapters.", callback=within(0, below=1))


def of_stage_1(name: str) -> Any:
    """Return a field of `Model` as stage 2 has it: what is left out stays stage 1's."""
    info = next(copy(get_args(hint)[1]) for field_name, hint, _ in _options(Model) if field_name == name)
    info.show_default = "stage 1's"
    return field(default=None, metadata={"option": info})


@dataclass(frozen=True)
class PartsOfStage1:
    """What stage 2 may change of stage 1's parts."""

    bits: zoo.Bits | None = of_stage_1("bits")
    image_size: int | None = of_stage_1("image_size")
    exif: Exif | None = of_stage_1("exif")
    background: str | None = of_stage_1("background")
    tower_layer: int | None = of_stage_1("tower_layer")
    quantised_copy: QuantisedCopyOption = True


@dataclass(frozen=True)
class Data:
    """The rows, and what is done with those that are long or bad."""

    PANEL: ClassVar[str] = DATA

    data: list[str] | None = setting(
        None,
        "JSON, JSONL, WebDataset, Arrow or Parquet, or a folder of them; hub id. Several are mixed: "
        "an epoch draws half of b.json:0.5's rows, the next one the others, and c.json:3 three times.",
        shown="the published set, from the hub",
        metavar="DATA[:WEIGHT]",
    )
    images: list[str] | None = setting(
        None,
        "Folder, zip or tar that image paths start from; one for all --data, or one for each.",
        shown="the data's own",
        metavar="IMAGES",
    )
    stream: bool = setting(
        False,
        "Read a hub id, Parquet or WebDataset as it comes, without a copy on this disk; needs "
        "--max-steps. Rows are shuffled within a thousand, and grouped within a step.",
        "--stream",
    )
    follow_links: FollowLinksOption = False
    min_rating: MinRatingOption = None
    max_length: int = setting(
        MAX_LENGTH,
        "Maximum tokens of a row, not counting those of --tiles; longer answers are cut.",
        callback=within(1),
    )
    bad_budget: float = setting(
        0.005,
        "Share of rows that may be bad: replaced, logged. Above it the run stops.",
        callback=within(0, below=1),
    )
    workers: int | None = setting(
        None, "Processes that prepare batches.", shown="2; 1 on one core", callback=within(0)
    )

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
    importance: types.Importance = setting(
        "attention", "Weights of patches: attention (of the text to them) or uniform."
    )
    target: types.TargetKind | None = setting(
        None,
        "Space of the target: raw; centred or translated (fitted on the data's text); individual "
        "(minus its mean over pictures).",
        shown="raw; stage 2: stage 1's",
    )
    das_weight: float = setting(
        types.DAS_WEIGHT, "Weight of L_das, the directional alignment; 0 is off.", callback=within(0)
    )
    sds_weight: float = setting(
        types.SDS_WEIGHT, "Weight of L_sds, the semantic distribution; 0 is off.", callback=within(0)
    )
    sds_text: types.SdsText = setting("keep", "L_sds on patches that show text: keep, or skip for reading.")
    intervention: str = setting("none", "What an experiment does to the teacher.", hidden=True)

    @property
    def kind(self) -> types.TargetKind:
        """The target's space, the paper's by default (stage 2 fills in stage 1's)."""
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

    rows_per_chunk: int | None = setting(
        None, "Patches per pass of L_sds over the vocabulary.", shown="by size", callback=within(1)
    )
    micro_batch: int | None = setting(
        None,
        "Rows per forward pass; must divide the global batch.",
        shown="8; stage 2: 4",
        callback=within(1),
    )
    recompute: RecomputeOption = None
    recompute_layers: RecomputeLayersOption = None
    keep_dequantised: str = setting(
        "auto",
        "Decoder layers whose 4-bit weights are also held dequantised, where the family is known: "
        "the same numbers, faster. auto fills the memory that a step leaves on a GPU.",
        metavar="N|auto",
    )
    fit: str | None = setting(
        None,
        "Choose micro-batch, recomputed layers, rows per chunk and optimizer for a card of GIB, "
        "or auto for this one.",
        shown="off",
        metavar="GIB|auto",
    )
    fused_kernels: bool = setting(
        True,
        "On a GPU, Liger's norms, MLPs and rotary embedding, and the projector's fp32 products "
        "made of bf16 ones.",
        "--fused-kernels/--no-fused-kernels",
    )


@dataclass(frozen=True)
class Schedule:
    """How fast and how long; `zoo.StageDefaults` or the data decide what is left open."""

    learning_rate: float | None = setting(
        None,
        "Peak of the cosine schedule.",
        shown="1e-3; stage 2: 2e-4 with --lora, else 2e-5",
        callback=within(above=0),
    )
    global_batch: int | None = setting(
        None,
        "Rows per optimizer step.",
        shown="LLaVA-1.5's; fewer where the data are few",
        callback=within(1),
    )
    epochs: float | None = setting(None, "Passes over the data.", shown="1", callback=within(above=0))
    max_steps: int = setting(
        -1, "Optimizer steps, instead of epochs.", shown="-1, off", callback=within(1, off=-1)
    )


@dataclass(frozen=True)
class Run:
    """What is saved, logged and repeated."""

    save_steps: int = setting(500, "Steps between checkpoints.", callback=within(1))
    keep: str = setting(
        "2",
        "How many checkpoints stay, the newest ones. best: the newest, and the one of the lowest "
        "validation loss, whose weights are the run's.",
        callback=a_keep,
        metavar="N|best",
    )
    logging_steps: int = setting(10, "Steps between lines of log.jsonl.", callback=within(1))
    seed: int = setting(0, "Seed of the projector, the order of rows, and dropout.", callback=a_seed)
    report_to: str = setting("none", "Tracker, such as tensorboard.")
    along: str = setting("", "What an experiment measures on the way, as JSON.", hidden=True)
    resume: bool = setting(False, "Go on from the last checkpoint in --out.", "--resume")
    overwrite: bool = setting(False, "Replace the run in --out.", "--overwrite")
    dry_run: DryRunOption = False

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise ValueError(
                "--resume goes on with the run in --out, --overwrite replaces it: give one of the two"
            )

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
    """Held-out rows that are measured and never trained on; off unless one of the first two is given."""

    PANEL: ClassVar[str] = VALIDATION

    val_share: str | None = setting(
        None,
        "Share of the rows to hold out and measure, such as 0.5%; the same rows in every run.",
        shown="off",
        callback=a_share,
        metavar="PERCENT",
    )
    val_data: Path | None = setting(None, "Rows to measure instead, in a file of their own.", shown="off")
    val_images: Path | None = setting(
        None,
        "Folder, zip or tar that the image paths of --val-data start from.",
        shown="--images, else that of the file",
    )
    val_steps: int | None = setting(
        None,
        "Optimizer steps between two measurements; the start and the end are measured anyway.",
        shown="a tenth of the run; up to a quarter where many rows are measured",
        callback=within(1),
    )
    val_samples: int = setting(
        4,
        "Rows whose answers are written out at the end, and evenly from the start on: once for every 50 "
        "steps of the run, at most five times; of up to 48 tokens, in runs of under 144 steps fewer.",
        callback=within(0, 32),
    )
    stop_after: int | None = setting(
        None,
        "End the run after that many measurements in a row without a lower loss.",
        shown="off",
        callback=within(1),
        metavar="N",
    )

    def __post_init__(self) -> None:
        if self.val_share is not None and self.val_data is not None:
            raise ValueError(
                "--val-share holds out rows of --data, --val-data has its own: give one of the two"
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


def for_stage_2(option: typer.CallbackParam, given: Any) -> Any:
    """Refuse an option that stage 1 has for this message alone."""
    if given:
        raise ValueError(
            f"{option.opts[0]} is for stage 2: stage 1 trains the projector alone, as LLaVA and the paper do"
        )
    return given


@dataclass(frozen=True)
class OfStage2:
    """Options of stage 2 that people try in stage 1."""

    train_tower: Annotated[bool, typer.Option("--train-tower", hidden=True, callback=for_stage_2)] = False
    tower_lora: Annotated[str | None, typer.Option(hidden=True, callback=for_stage_2)] = None
    tower_learning_rate: Annotated[str | None, typer.Option(hidden=True, callback=for_stage_2)] = None


def for_stage_1(option: typer.CallbackParam, given: Any) -> Any:
    """Refuse an option in stage 2, which takes what it says from its start."""
    if given is not None:
        raise ValueError(f"{option.opts[0]} is for stage 1: stage 2 takes it over from --start")
    return given


OfStage1Option = Annotated[str | None, typer.Option(hidden=True, callback=for_stage_1)]


@dataclass(frozen=True)
class OfStage1:
    """Options of stage 1 that people try in stage 2."""

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
    tower_learning_rate: float | None = setting(
        None, "The vision tower's own peak.", shown="2e-6; 2e-5 with --tower-lora", callback=within(above=0)
    )

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
    run: Run = Run()  # what is saved, logged and repeated
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
        processes = rank_and_count()[1]
        smallest = min(self.micro_batch, self.global_batch)
        if smallest < 1 or self.global_batch % (self.micro_batch * processes):
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
                "--target individual subtracts the mean over the pictures of a forward pass: it needs a "
                f"--micro-batch of at least 2, got {self.micro_batch}"
            )
        if self.method.sds_text == "skip" and not self.objective.sds_weight:
            off = "--sds-weight 0" if self.method.basic else "--no-basic"
            raise ValueError(
                f"--sds-text skip leaves text out of L_sds, which {off} switches off: leave one of them out"
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
        """Show the settings that are not off; `more` comes first."""
        shown = more | {"aspect": self.aspect, "group": self.group}
        for part in (self, self.data, self.method, self.run, self.validation, self.tower):
            values = {each.name: getattr(part, each.name) for each in fields(part)}
            shown |= {name: value for name, value in values.items() if not is_dataclass(value)}
        shown |= {name: ", ".join(getattr(self.data, name) or []) for name in ("data", "images")}
        shown |= {"workers": self.data.processes, "target": self.method.kind, "along": None}  # long JSON
        shown |= {name: getattr(self.objective, name) for name in ("das_weight", "sds_weight")}
        shown |= {"epochs": None} if self.max_steps > 0 else {}
        table = Table("setting", "value", show_header=False, box=None)
        for name, value in shown.items():
            off = value is None or value is False or value in ("", "none", "keep", -1)
            if name in more or not off:
                table.add_row(name.replace("_", " "), str(value))
        return table
