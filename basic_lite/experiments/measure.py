"""What every run is measured by: always the paper's target (k half, quadratic, raw), never the run's own.

A variant that is trained on an easy target would look good on it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from basic_lite.data.conversation import IGNORE_INDEX, encode
from basic_lite.data.pictures import ImageTransform
from basic_lite.data.readers import Rows, open_rows
from basic_lite.data.templates import TEMPLATES
from basic_lite.data.world.dataset import world_in
from basic_lite.data.world.grammar import caption
from basic_lite.data.world.lexicon import LANGUAGES, Language
from basic_lite.data.world.questions import KINDS
from basic_lite.data.world.render import Picture, render
from basic_lite.data.world.scenes import Scene
from basic_lite.data.world.signs import HELD_OUT, WORDS
from basic_lite.data.world.world import held_out_scenes, meaningful
from basic_lite.evaluation import answer
from basic_lite.evaluation.choices import extract_option
from basic_lite.evaluation.predictions import read
from basic_lite.evaluation.question import BY_WORDS, AnswerBy, Question
from basic_lite.evaluation.run import Candidate, Evaluation
from basic_lite.evaluation.statistics import load_score
from basic_lite.evaluation.tasks.mmbench import CIRCULAR, ROTATION
from basic_lite.files import write_json
from basic_lite.method.fit import match_tokens
from basic_lite.method.supervision import BasicSupervision
from basic_lite.method.types import Refinement
from basic_lite.models.checkpoint import load_run
from basic_lite.models.devices import choose_device
from basic_lite.models.generate import forward_inputs
from basic_lite.models.llava import Assembled, Sources, assemble, for_inference
from basic_lite.models.parts import parts_of

LANGUAGE_NAMES: dict[Language, str] = {"en": "English", "zh": "Chinese"}
_BENCHMARKS: dict[Language, str] = {"en": "mmbench", "zh": "mmbench-cn"}
"""The benchmarks whose format the embedded world's questions have."""

BEFORE, QUESTIONS = "before", "questions"
"""Steps that train nothing: the model with a fresh projector, and the embedded world's questions."""


@dataclass(frozen=True)
class Measure:
    """One figure of one run, with the units that it is a mean over."""

    name: str  # key
    label: str  # for people
    unit: str  # empty for a pure number
    better: Literal["higher", "lower"] | None  # which way; `None` where neither is
    over: str  # what a unit is, in the plural; empty for what is measured once
    values: list[float]  # one per unit
    of: list[float] | None = None  # what the values are counts out of; `None` where each unit counts once
    digits: int = 3  # decimals that are shown
    group: str = ""  # when or on what it was measured, for instance `after stage 1`
    detail: bool = False  # part of another figure; left out of an ablation's table

    @property
    def mean(self) -> float:
        return sum(self.values) / (len(self.values) if self.of is None else sum(self.of))

    @property
    def heading(self) -> str:
        """Label, group and unit, for a table's column."""
        label = ", ".join(filter(None, (self.label, self.group)))
        return f"{label} ({self.unit})" if self.unit else label


def path_of(run: Path, step: str) -> Path:
    """Return the file of a step's measures; it is there when the step is done."""
    return run / f"measured-{step}.json"


def write_measures(run: Path, step: str, measures: Sequence[Measure]) -> None:
    """Write a step's measures, which marks it as done."""
    write_json(path_of(run, step), [asdict(measure) for measure in measures])


def caption_measures(loss: list[float], cosine: list[float], over: str) -> list[Measure]:
    """Return captions' losses and their pictures' cosines to the target; `over` says what they are."""
    return [
        Measure("caption_loss", "caption loss", "nats per token", "lower", over, loss),
        Measure("cosine", "cosine to the target", "", "higher", over, cosine),
    ]


def read_measures(run: Path, step: str) -> list[Measure]:
    return [Measure(**content) for content in json.loads(path_of(run, step).read_text(encoding="utf-8"))]


def of_run(run: Path, steps: Sequence[str], details: bool = False) -> list[Measure]:
    """Read all measures of a run; where both stages were measured alike the stage is part of the name."""
    measures: dict[str, Measure] = {}
    for step in steps:
        for measure in read_measures(run, step):
            if "stage2" in steps and step.startswith("stage") and not measure.name.startswith("answers"):
                group = f"after stage {step.removeprefix('stage')}"
                measure = replace(measure, name=f"{measure.name}_{step}", group=group)
            if details or not measure.detail:
                measures[measure.name] = measure
    return list(measures.values())


@dataclass(frozen=True)
class CaptionBatch:
    """What a model makes of some captions with a picture each, B rows of S tokens."""

    loss: list[float]  # mean loss per caption token of each row, nats
    cosine: list[float]  # mean cosine of initial embeddings and target of each picture
    refinement: Refinement  # initial embeddings, target and importance of all patches
    logits: torch.Tensor  # `(B, S - 1, V)` fp32
    labels: torch.Tensor  # `(B, S - 1)` int64, on the device of the logits


@torch.no_grad()
def run_captions(
    assembled: Assembled, supervision: BasicSupervision, batch: dict, transform: ImageTransform
) -> CaptionBatch:
    """Run a collated batch, whose pictures are not normalised yet, under `supervision`."""
    inputs = forward_inputs(assembled.model, batch, transform)
    device, half = inputs["input_ids"].device, assembled.sources.dtype == torch.bfloat16
    with supervision, torch.autocast(device.type, torch.bfloat16, enabled=half):
        logits = assembled.model(**inputs, use_cache=False).logits[:, :-1].float()
    labels = batch["labels"][:, 1:].to(device)
    said = labels.ne(IGNORE_INDEX)  # a fraction of the tokens: most of a row are its picture's patches
    each = torch.zeros(labels.shape, device=device)
    each[said] = F.cross_entropy(logits[said], labels[said], reduction="none")
    loss = each.sum(1) / said.sum(1).clamp(min=1)
    seen = supervision.refinement
    assert seen is not None, "the rows have pictures"
    cosine = F.cosine_similarity(seen.initial.float(), seen.target.float(), dim=-1)
    cosines = [float(cosine[seen.image == image].mean()) for image in range(seen.images)]
    return CaptionBatch(loss.tolist(), cosines, seen, logits, labels)


@dataclass(frozen=True)
class View:
    """One picture with what its patches mean to the LLM, patch by patch, row by row."""

    tokens: list[str]  # text of the vocabulary token nearest to each visual embedding by cosine
    # Whether that token names something true of the thing there; `None` where no thing is
    meaningful: list[bool | None]
    importance: list[float]  # how much the text attends to each patch


@dataclass(frozen=True)
class Inspection:
    """What a model makes of held-out scenes, one number per scene."""

    # Mean loss per token of a caption that says everything, in nats
    caption_loss: list[float] = field(default_factory=list)
    # Mean cosine between initial embeddings and their target from layers 1 to k
    cosine: list[float] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)  # patches that show a thing
    # Those of them whose nearest token names something true of it
    meaningful: list[int] = field(default_factory=list)
    views: list[View] = field(default_factory=list)  # the first scenes in full

    def measures(self) -> list[Measure]:
        """Return its figures, each over the scenes; without patches that can be judged, no true tokens."""
        over = "held-out scenes"
        measures = caption_measures(self.caption_loss, self.cosine, over)
        if any(self.shown):
            counts = [100.0 * count for count in self.meaningful]
            shown = [float(count) for count in self.shown]
            name = "true nearest tokens"
            measures.append(Measure("meaningful", name, "%", "higher", over, counts, shown, digits=1))
        return measures


def inspection_path(run: Path, step: str) -> Path:
    return run / step / "inspection.json"


def read_inspection(run: Path, step: str) -> Inspection:
    content = json.loads(inspection_path(run, step).read_text(encoding="utf-8"))
    return Inspection(**{**content, "views": [View(**view) for view in content["views"]]})


@dataclass(frozen=True)
class SceneBatch:
    """Scenes, drawn and with captions, as one forward pass takes them; of no model's weights."""

    shown: list[tuple[Scene, Picture]]  # the scenes and their pictures
    inputs: dict[str, Any]  # the `batch` of `run_captions`


def scene_batches(
    assembled: Assembled, scenes: Sequence[Scene], seed: int = 0, rows: int = 32
) -> list[SceneBatch]:
    """Draw scenes of the embedded world and write a caption of each, in either language, as stage 1 does.

    `seed` is of the captions' wording; `rows` are scenes per forward pass.
    """
    transform, collate = assembled.transform("pad"), assembled.collator()
    rng, batches = random.Random(f"captions {seed}"), []
    for start in range(0, len(scenes), rows):
        shown = [(scene, render(scene)) for scene in scenes[start : start + rows]]
        inputs = collate([_scene_row(assembled, transform, *pair, rng) for pair in shown])
        batches.append(SceneBatch(shown, inputs))
    return batches


def inspect_model(
    assembled: Assembled, scenes: Sequence[Scene], *, seed: int = 0, rows: int = 32, views: int = 6
) -> Inspection:
    """Show a model scenes; the arguments are those of `scene_batches` and `inspect_batches`."""
    return inspect_batches(assembled, scene_batches(assembled, scenes, seed, rows), views)


def vocabulary(assembled: Assembled) -> list[str]:
    """Return the text of every token that has an embedding."""
    tokenizer: Any = assembled.tokenizer  # whose types promise a text or several
    return [tokenizer.decode([token]) for token in range(len(parts_of(assembled.model).embedding))]


def inspect_batches(
    assembled: Assembled,
    batches: Sequence[SceneBatch],
    views: int = 6,
    words: list[str] | None = None,
) -> Inspection:
    """Show a model of the embedded world scenes that are drawn already; `views` of them are kept in full.

    `words` is its `vocabulary`, for who has it already.
    """
    for_inference(assembled.model)
    inspection, transform = Inspection(), assembled.transform("pad")
    table = parts_of(assembled.model).embedding
    words = words or vocabulary(assembled)
    # Attention is read for the views alone: what is weighted by it is not among the figures.
    supervision = BasicSupervision(assembled.model, importance="attention" if views else "uniform")
    for batch in batches:
        shown = batch.shown
        result = run_captions(assembled, supervision, batch.inputs, transform)
        inspection.caption_loss.extend(result.loss)
        inspection.cosine.extend(result.cosine)
        shape = (len(shown), -1)
        nearest = match_tokens(result.refinement.initial, table)[0].view(shape).tolist()
        importance = result.refinement.importance.view(shape).tolist()
        for (scene, picture), ids, weights in zip(shown, nearest, importance, strict=True):
            tokens = [words[token] for token in ids]
            # A drawing says what its own 8 x 8 patches show; another --image-size has others.
            judged = len(tokens) == len(picture.thing)
            verdicts: list[bool | None] = [None] * len(tokens)
            if judged:
                verdicts = meaningful(scene, picture, tokens)
            inspection.shown.append(sum(verdict is not None for verdict in verdicts))
            inspection.meaningful.append(sum(verdict is True for verdict in verdicts))
            if len(inspection.views) < views:
                inspection.views.append(View(tokens, verdicts, weights))
    return inspection


def _scene_row(
    assembled: Assembled, transform: ImageTransform, scene: Scene, picture: Picture, rng: random.Random
) -> dict[str, object]:
    encoded = encode(
        TEMPLATES["plain"],
        assembled.tokenizer,
        [("user", "<image>"), ("assistant", caption(scene, rng.choice(LANGUAGES), rng))],
        image_token_id=assembled.image_token_id,
        tokens_per_image=assembled.tokens_per_image,
    )
    ids = {"input_ids": encoded.input_ids, "labels": encoded.labels}
    return {**ids, "pixels": [transform(picture.image)], "row": 0}


@dataclass(frozen=True)
class FileRows:
    """Rows of a file as forward passes take them; of no model's weights."""

    batches: list[dict[str, Any]]  # each a `batch` of `run_captions`
    label: str  # what these rows are, in the plural
    # Where every answer begins with one of these words, a token each: how often the right one is likelier
    # than the others is measured too
    words: Sequence[str] = ()
    # Measure both terms as well, picture by picture: with a large vocabulary half of the time
    terms: bool = True


def open_measured(data: str, images: str | None, follow_links: bool = False) -> Rows:
    """Open an annotation file to measure on; the arguments are those of `rows_of_file`.

    Raises ValueError if it cannot be read, or no row has a picture.
    """
    opened = open_rows(data, images, follow_links=follow_links)
    if not opened.has_image.any():
        raise ValueError(f"{data} has no row with a picture; measure on one that has some (--measure-data)")
    return opened


def rows_of_file(
    assembled: Assembled,
    data: str,
    images: str | None,
    count: int,
    label: str,
    follow_links: bool = False,
    words: Sequence[str] = (),
    terms: bool = True,
    size: int = 4,
) -> FileRows:
    """Return `count` rows with a picture, or as many as there are, evenly spread over an annotation file.

    `images` is the folder or archive of its pictures, out of which links may lead with `follow_links`;
    `label`, `words` and `terms` are as in `FileRows`, `size` is rows per forward pass. Raises ValueError
    if the file cannot be read, no row has a picture, or one is bad.
    """
    opened = open_measured(data, images, follow_links)
    usable = np.flatnonzero(opened.has_image)
    chosen = usable[np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int)]
    transform, collate = assembled.transform("crop"), assembled.collator()
    dataset = assembled.supervised(opened, TEMPLATES["plain"], transform)
    parts = (chosen[start : start + size] for start in range(0, len(chosen), size))
    return FileRows([collate([dataset[int(row)] for row in part]) for part in parts], label, words, terms)


def measure_rows(assembled: Assembled, rows: FileRows) -> list[Measure]:
    """Return caption loss and cosine to the target of rows, both terms, and how often a word is read."""
    for_inference(assembled.model)
    transform, label, words = assembled.transform("crop"), rows.label, rows.words
    supervision = BasicSupervision(assembled.model, importance="attention" if rows.terms else "uniform")
    ids = torch.tensor(
        [assembled.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
    )
    values: dict[str, list[float]] = {name: [] for name in ("loss", "cosine", "das", "sds", "read")}
    for batch in rows.batches:
        result = run_captions(assembled, supervision, batch, transform)
        values["loss"] += result.loss
        values["cosine"] += result.cosine
        if words:
            first = result.labels.ne(IGNORE_INDEX).int().argmax(1)  # the answer's first token
            at = (torch.arange(len(first), device=first.device), first)
            likeliest = ids.to(first.device)[result.logits[at][:, ids].argmax(1)]
            values["read"] += likeliest.eq(result.labels[at]).float().mul(100).tolist()
        for image in range(result.refinement.images if rows.terms else 0):
            for term in supervision.objective.terms(
                _one_image(result.refinement, image), parts_of(assembled.model).embedding
            ):
                values[term.name].append(float(term.total))
    measures = caption_measures(values["loss"], values["cosine"], label)
    if rows.terms:
        for term, name in (("das", "L_das"), ("sds", "L_sds")):
            measures.append(Measure(term, name, "", None, label, values[term]))
    if words:
        name = f"words read, of {len(words)}"
        measures.append(Measure("read", name, "%", "higher", label, values["read"], digits=1))
    return measures


def _one_image(refinement: Refinement, image: int) -> Refinement:
    of_it = refinement.image == image
    parts = {name: getattr(refinement, name)[of_it] for name in ("initial", "target", "importance", "image")}
    return replace(refinement, **parts, images=1)


def measure(
    folder: Path, step: str, seed: int, *, benchmarks: Mapping[str, dict] | None = None, **where: Any
) -> list[Measure]:
    """Measure what a run's step has left: `BEFORE`, `stage1`, `stage2`, `QUESTIONS`, or a benchmark's name.

    `seed` is of the run, and of the scenes that are shown; `benchmarks` is name -> `data`, `images` and
    `answer_by` of a benchmark; `where` is as in `measuring`.
    """
    if step == QUESTIONS:
        last, files = max(folder.glob("stage?")), world_in(Path(where["world"])).mmbench
        return [m for language in LANGUAGE_NAMES for m in _answers(last, language, files[language])]
    if benchmarks and step in benchmarks:
        evaluation = _evaluated(max(folder.glob("stage?")), step, **benchmarks[step])
        score = load_score(evaluation.out / "score.json")
        by_words = evaluation.answer_by in BY_WORDS
        title = f"{step} by {evaluation.answer_by}" if by_words else step
        if score.metric != CIRCULAR:
            return [_right(step, f"{title}, right answers", score.items)]
        # A small model has no question right in every order: what it knows shows in single answers.
        each = shares_right(evaluation.questions(with_images=False), evaluation.answers)
        if by_words:  # asked without the list of options: every order has the same answer
            return [_right(step, f"{title}, right answers", each)]
        return [
            _right(step, f"{title}, right answers", each),
            _right(f"{step}_circular", f"{step}, right in every order", score.items),
        ]
    device = choose_device()
    if step == BEFORE:
        assembled = assemble(Sources.named("tiny", bits=16, dtype=torch.float32), device, seed)
    else:
        assembled = load_run(folder / step, device)[0]
    if where.get("world") is None:
        return measuring(assembled, seed, **where)()
    inspection = inspect_model(assembled, held_out_scenes(where["scenes"], seed))
    write_json(inspection_path(folder, step), asdict(inspection))
    return inspection.measures()


def measuring(
    assembled: Assembled,
    seed: int,
    *,
    world: str | None = None,
    scenes: int = 0,
    signs: str | None = None,
    rows: dict | None = None,
    terms: bool = True,
    most: int | None = None,
) -> Callable[[], list[Measure]]:
    """Return what measures a model as it is when called; pictures and text are prepared once.

    Args:
        assembled: the model.
        seed: of the scenes.
        world: folder of the embedded world that it was trained in.
        scenes: how many held-out scenes to show it there.
        signs: folder of a world of scenes with signs that it was trained in.
        rows: without a world, the arguments of `rows_of_file`.
        terms: of rows and signs, measure both terms as well.
        most: measure at most this many: the first scenes, or rows as evenly spread as more would be.
    """
    words: Sequence[str] = ()
    if signs is not None:
        label, words = "held-out scenes with signs", WORDS
        rows = {"data": f"{signs}/{HELD_OUT}", "images": signs, "count": scenes, "label": label}
    if rows is not None:
        rows = rows | {"count": min(rows["count"], most or rows["count"])}
        return partial(measure_rows, assembled, rows_of_file(assembled, **rows, words=words, terms=terms))
    assert world is not None, "there is something to measure on"
    batches = scene_batches(assembled, held_out_scenes(scenes, seed)[:most])
    texts = vocabulary(assembled)
    return lambda: inspect_batches(assembled, batches, views=0, words=texts).measures()


def _answers(run: Path, language: Language, tsv: Path) -> list[Measure]:
    evaluation = _evaluated(run, _BENCHMARKS[language], str(tsv), None)
    questions = evaluation.questions(with_images=False)
    return of_questions(language, questions, shares_right(questions, evaluation.answers))


def of_questions(
    language: Language, questions: Sequence[Question], shares: Mapping[int, float]
) -> list[Measure]:
    """Return the share of right answers of all questions, of those right in every order, and by kind."""
    kinds = {int(question.fields["index"]) % ROTATION: question.category for question in questions}
    circular = {question: float(share == 1) for question, share in shares.items()}
    measures = [
        _right("answers", "right answers", shares),
        replace(_right("circular", "right in every order of the options", circular), detail=True),
    ]
    for kind in KINDS:
        if own := {question: share for question, share in shares.items() if kinds[question] == kind}:
            measures.append(replace(_right(kind, f"  {kind}", own), detail=True))
    group = f"in {LANGUAGE_NAMES[language]}"
    return [replace(measure, name=f"{measure.name}_{language}", group=group) for measure in measures]


def _right(name: str, label: str, shares: Mapping) -> Measure:
    values = [100.0 * shares[question] for question in sorted(shares, key=str)]
    return Measure(name, label, "%", "higher", "questions", values, digits=1)


def shares_right(questions: Sequence[Question], answers: Path) -> dict[int, float]:
    """Return for each question the share of its rotations that are answered with the right letter."""
    given, right = read(answers, questions), {}
    for question in questions:
        option = extract_option(given.get(question.id, ""), question.choices, "exact_matching")
        right.setdefault(int(question.fields["index"]) % ROTATION, []).append(option == question.answer)
    return {base: sum(hits) / len(hits) for base, hits in right.items()}


def _evaluated(
    run: Path, name: str, data: str | None, images: str | None, answer_by: AnswerBy = "text"
) -> Evaluation:
    """Have a run answer a benchmark's questions, as far as it has not answered them, and score it."""
    evaluation = Evaluation(
        Candidate(run),
        name,
        run / "eval" / name,
        data=data,
        images=None if images is None else Path(images),
        any_size=True,
        answer_by=answer_by,
    )
    questions = evaluation.questions(with_images=True)
    if evaluation.claim(questions) < len(questions):
        answer.generate(
            evaluation.candidate.loaded,
            questions,
            evaluation.answers,
            batch_size=64,
            model_id=str(evaluation.candidate),
            answer_by=answer_by,
        )
    evaluation.score(questions)
    return evaluation
