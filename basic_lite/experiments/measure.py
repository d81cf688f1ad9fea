"""What every run is measured by, with the same yardstick whatever it was trained with.

The yardstick's target is the paper's (k half, quadratic, raw), never the arm's own: an arm that is trained
on an easy target would look good on it.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from basic_lite.data.conversation import IGNORE_INDEX, encode
from basic_lite.data.pictures import ImageTransform
from basic_lite.data.readers import open_rows
from basic_lite.data.templates import TEMPLATES
from basic_lite.data.world.dataset import world_in
from basic_lite.data.world.grammar import caption
from basic_lite.data.world.lexicon import LANGUAGES, Language
from basic_lite.data.world.render import Picture, render
from basic_lite.data.world.scenes import Scene
from basic_lite.data.world.signs import HELD_OUT, WORDS
from basic_lite.data.world.world import held_out_scenes, meaningful
from basic_lite.evaluation.choices import extract_option
from basic_lite.evaluation.predictions import read
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.run import Evaluation
from basic_lite.evaluation.statistics import load_score
from basic_lite.evaluation.tasks.mmbench import ROTATION
from basic_lite.files import write_json
from basic_lite.method.fit import match_tokens
from basic_lite.method.supervision import BasicSupervision
from basic_lite.method.types import Refinement
from basic_lite.models.checkpoint import load_run
from basic_lite.models.devices import choose_device
from basic_lite.models.generate import forward_inputs
from basic_lite.models.llava import Assembled, for_inference
from basic_lite.models.parts import parts_of

# Look into a model of the embedded world, where what every patch shows is known exactly.
"""A patch shows a thing that covers at least this share of it."""


@dataclass(frozen=True)
class View:
    """One picture with what its patches mean to the LLM, patch by patch, row by row.

    Attributes:
        tokens: Text of the vocabulary token nearest to each visual embedding by cosine.
        meaningful: Whether that token names something true of the thing there; `None` where no thing is.
        importance: How much the text attends to each patch.
    """

    tokens: list[str]
    meaningful: list[bool | None]
    importance: list[float]


@dataclass(frozen=True)
class Inspection:
    """What a model makes of held-out scenes, one number per scene.

    Attributes:
        caption_loss: Mean loss per token of a caption that says everything, in nats.
        cosine: Mean cosine between initial embeddings and their target from layers 1 to k.
        shown: Patches that show a thing.
        meaningful: Those of them whose nearest token names something true of it.
        views: The first scenes in full.
    """

    caption_loss: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    meaningful: list[int] = field(default_factory=list)
    views: list[View] = field(default_factory=list)

    def as_dict(self) -> dict[str, list]:
        """Return it for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, list]) -> Inspection:
        """Return what `as_dict` gave."""
        return cls(**{**content, "views": [View(**view) for view in content["views"]]})


@torch.no_grad()
def inspect_model(
    assembled: Assembled,
    scenes: list[Scene],
    *,
    layers: int | None = None,
    views: int = 6,
    seed: int = 0,
    rows: int = 32,
) -> Inspection:
    """Show the model scenes with captions in either language, as stage 1 does.

    Args:
        assembled: The model, of the embedded world.
        scenes: What it is shown.
        layers: k; `None` for half.
        views: How many scenes to keep in full.
        seed: Of the captions' wording.
        rows: Scenes per forward pass.
    """
    model, found = assembled.model, Inspection()
    for_inference(model)
    transform = assembled.transform("pad")
    collate = assembled.collator()
    table = parts_of(model).embedding
    words = [assembled.tokenizer.decode([token]) for token in range(len(table))]
    rng = random.Random(f"captions {seed}")
    supervision = BasicSupervision(model, layers)
    for start in range(0, len(scenes), rows):
        shown = scenes[start : start + rows]
        pictures = [render(scene) for scene in shown]
        items = [_item(assembled, transform, scene, p, rng) for scene, p in zip(shown, pictures, strict=True)]
        batch = collate(items)
        with supervision:
            out = model(**forward_inputs(model, batch, transform), use_cache=False)
        labels = batch["labels"][:, 1:].to(out.logits.device)
        each = F.cross_entropy(
            out.logits[:, :-1].transpose(1, 2).float(), labels, ignore_index=IGNORE_INDEX, reduction="none"
        )
        found.caption_loss.extend((each.sum(1) / labels.ne(IGNORE_INDEX).sum(1)).tolist())
        seen = supervision.refinement
        patches = (len(shown), -1)
        cosine = F.cosine_similarity(seen.initial.float(), seen.target, dim=-1).view(patches)
        found.cosine.extend(cosine.mean(1).tolist())
        nearest = match_tokens(seen.initial, table)[0].view(patches).tolist()
        importance = seen.importance.view(patches).tolist()
        for scene, picture, ids, weights in zip(shown, pictures, nearest, importance, strict=True):
            tokens = [words[token] for token in ids]
            right = meaningful(scene, picture, tokens)
            found.shown.append(sum(value is not None for value in right))
            found.meaningful.append(sum(value is True for value in right))
            if len(found.views) < views:
                found.views.append(View(tokens, right, weights))
    return found


def _item(
    assembled: Assembled, transform: object, scene: Scene, picture: Picture, rng: random.Random
) -> dict[str, object]:
    said = caption(scene, rng.choice(LANGUAGES), rng)
    turns = [("user", "<image>"), ("assistant", said)]
    encoded = encode(
        TEMPLATES["plain"],
        assembled.tokenizer,
        turns,
        image_token_id=assembled.image_token_id,
        tokens_per_image=assembled.tokens_per_image,
    )
    return {
        "input_ids": encoded.input_ids,
        "labels": encoded.labels,
        "pixels": [transform(picture.image)],
        "row": 0,
    }


@dataclass(frozen=True)
class Measure:
    """One figure of one run, with the units that it is a mean over.

    Attributes:
        name: key.
        label: for people.
        unit: empty for a pure number.
        better: which way; `None` where neither is.
        over: what a unit is, in the plural.
        values: one per unit.
        of: what the values are counts out of; `None` where each unit counts once.
        digits: behind the point.
    """

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower"] | None
    over: str
    values: list[float]
    of: list[float] | None = None
    digits: int = 3

    @property
    def mean(self) -> float:
        """The figure."""
        return sum(self.values) / (len(self.values) if self.of is None else sum(self.of))


def of_inspection(found: Inspection) -> list[Measure]:
    """Return what a look into a model of the embedded world shows."""
    where = "held-out scenes"
    return [
        Measure("caption_loss", "caption loss", "nats per token", "lower", where, found.caption_loss),
        Measure("cosine", "cosine to the target", "", "higher", where, found.cosine),
        Measure(
            "meaningful",
            "patches named truly",
            "%",
            "higher",
            where,
            [100.0 * count for count in found.meaningful],
            [float(count) for count in found.shown],
            digits=1,
        ),
    ]


def of_answers(name: str, label: str, shares: Mapping[object, float]) -> Measure:
    """Return the share of right answers; `shares` says how right each question was, 0 to 1."""
    values = [100.0 * shares[question] for question in sorted(shares, key=str)]
    return Measure(name, label, "%", "higher", "questions", values, digits=1)


def path_of(run: Path, step: str) -> Path:
    """Return the file of what a step of a run was measured by; it is there when the step is done."""
    return run / f"measured-{step}.json"


def write_measures(run: Path, step: str, measures: Sequence[Measure]) -> None:
    """Write a step's measures, which marks it as done."""
    write_json(path_of(run, step), [asdict(measure) for measure in measures])


def read_measures(run: Path, step: str) -> list[Measure]:
    """Read what `write` wrote."""
    return [Measure(**one) for one in json.loads(path_of(run, step).read_text(encoding="utf-8"))]


def of_run(run: Path, steps: Sequence[str]) -> list[Measure]:
    """Read all measures of a run; what both stages were measured by is told apart by the stage."""
    found = []
    for step in steps:
        for one in read_measures(run, step):
            twice = "stage2" in steps and step.startswith("stage") and not one.name.startswith("answers")
            stage = step.removeprefix("stage")
            told = (
                replace(one, name=f"{one.name}_{step}", label=f"{one.label}, stage {stage}") if twice else one
            )
            found.append(told)
    return found


# Measure a model on rows of an annotation file, all arms with the paper's target as the yardstick.


@torch.no_grad()
def rows_of_file(
    assembled: Assembled,
    data: str,
    images: str | None,
    count: int,
    label: str,
    max_length: int = 2048,
    follow_links: bool = False,
    words: Sequence[str] = (),
) -> list[Measure]:
    """Return caption loss, cosine to the target and both terms, for rows evenly spread over a file.

    Args:
        assembled: the model.
        data: annotation file.
        images: folder or archive of its pictures.
        count: how many rows with a picture, at most.
        label: what these rows are, in the plural.
        max_length: most tokens of a row.
        follow_links: links in the image folder may lead out of it.
        words: where every answer begins with one of these words, a token each: how often the right one is
            likelier than the others is measured too.

    Raises:
        ValueError: If no row has a picture, or one is bad.
    """
    model = assembled.model
    for_inference(model)
    parts, supervision = parts_of(model), BasicSupervision(model)
    ids = torch.tensor(
        [assembled.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
    )
    found: dict[str, list[float]] = {name: [] for name in ("lm", "cosine", "das", "sds", "read")}
    transform = assembled.transform("crop")
    for batch in _batches(assembled, transform, data, images, count, max_length, follow_links):
        inputs = forward_inputs(model, batch, transform)
        device = inputs["input_ids"].device
        half = assembled.sources.dtype == torch.bfloat16
        with supervision, torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(**inputs, use_cache=False).logits[:, :-1].float()
        labels = batch["labels"][:, 1:].to(device)
        each = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none")
        supervised = labels.ne(IGNORE_INDEX)
        found["lm"] += (each.sum(1) / supervised.sum(1).clamp(min=1)).tolist()
        if len(ids):
            rows, first = torch.arange(len(labels)), supervised.int().argmax(1)
            said = ids.to(device)[logits[rows, first][:, ids].argmax(1)]
            found["read"] += said.eq(labels[rows, first]).float().mul(100).tolist()
        for image in range(supervision.refinement.images):
            alone = _only(supervision.refinement, image)
            cosine = F.cosine_similarity(alone.initial.float(), alone.target.float(), dim=-1)
            found["cosine"].append(float(cosine.mean()))
            for term in supervision.objective.terms(alone, parts.embedding):
                found[term.name].append(float(term.total))
    measures = [
        Measure("caption_loss", "caption loss", "nats per token", "lower", label, found["lm"]),
        Measure("cosine", "cosine to the target", "", "higher", label, found["cosine"]),
        Measure("das", "L_das", "", None, label, found["das"]),
        Measure("sds", "L_sds", "", None, label, found["sds"]),
    ]
    read = Measure("read", f"words read, of {len(words)}", "%", "higher", label, found["read"], digits=1)
    return [*measures, read] if words else measures


def _batches(
    assembled: Assembled,
    transform: ImageTransform,
    data: str,
    images: str | None,
    count: int,
    max_length: int,
    follow_links: bool,
    size: int = 4,
) -> Iterator[dict]:
    """Yield batches of rows, evenly spread, as stage 1 is shown them."""
    opened = open_rows(data, images, follow_links=follow_links)
    usable = np.flatnonzero(opened.has_image)
    if not len(usable):
        raise ValueError(f"{data} has no row with a picture; measure on one that has some (--measure-data)")
    evenly = np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int)
    chosen = usable[evenly]
    dataset = assembled.supervised(opened, TEMPLATES["plain"], transform, max_length=max_length)
    collate = assembled.collator()
    for start in range(0, len(chosen), size):
        yield collate([dataset[int(row)] for row in chosen[start : start + size]])


def _only(refinement: Refinement, image: int) -> Refinement:
    """Return one image's part."""
    mine = refinement.image == image
    parts = {name: getattr(refinement, name)[mine] for name in ("initial", "target", "importance", "image")}
    return replace(refinement, **parts, images=1)


# Measure one finished stage of a run: held-out scenes and questions, rows of a file, or a benchmark.


def measure(
    folder: Path,
    step: str,
    seed: int,
    *,
    world: str | None = None,
    scenes: int = 0,
    signs: str | None = None,
    rows: dict | None = None,
    benchmarks: dict | None = None,
) -> list[Measure]:
    """Measure what a step of a run has left.

    Args:
        folder: of the run.
        step: `stage1`, `stage2`, or a benchmark's name.
        seed: of the scenes that are shown.
        world: folder of the embedded world that the run was trained in.
        scenes: how many held-out scenes to show it there.
        signs: folder of a world of scenes with signs that it was trained in.
        rows: without a world, what `rows_of_file` is told.
        benchmarks: name -> `data` and `images` of a benchmark.
    """
    if step in (benchmarks or {}):
        last = max(folder.glob("stage?"))
        return [_score(last, step, **benchmarks[step])]
    run = folder / step
    if signs is not None:
        label = "held-out scenes with signs"
        rows = {"data": f"{signs}/{HELD_OUT}", "images": signs, "count": sys.maxsize, "label": label}
        rows["words"] = WORDS
    if world is None:
        return rows_of_file(load_run(run, choose_device())[0], **rows)
    found = inspect_model(load_run(run, choose_device())[0], held_out_scenes(scenes, seed))
    write_json(run / "inspection.json", found.as_dict())
    answers = (
        [] if step == "stage1" else [_answers(run, Path(world), language) for language in LANGUAGE_NAMES]
    )
    return [*of_inspection(found), *answers]


def _answers(run: Path, world: Path, language: str) -> Measure:
    """Ask the embedded world's questions in a language."""
    name = {"en": "mmbench", "zh": "mmbench-cn"}[language]
    evaluation = _evaluated(run, name, str(world_in(world).mmbench[language]), None)
    shares = shares_right(evaluation.questions(with_images=False), evaluation.answers)
    return of_answers(f"answers_{language}", f"right answers, {LANGUAGE_NAMES[language]}", shares)


def _score(run: Path, name: str, data: str | None, images: str | None) -> Measure:
    evaluation = _evaluated(run, name, data, images)
    questions = evaluation.questions(with_images=False)
    evaluation.score(questions)
    return of_answers(name, f"{name}, right answers", load_score(evaluation.out / "score.json").items)


def _evaluated(run: Path, name: str, data: str | None, images: str | None) -> Evaluation:
    """Have a run answer a benchmark's questions, as far as it has not answered them."""
    root = None if images is None else Path(images)
    evaluation = Evaluation(run, name, run / "eval" / name, data=data, images=root, any_size=True)
    evaluation.generate(
        evaluation.questions(with_images=True),
        device=choose_device(),
        batch_size=64,
        max_batches=None,
        overwrite=False,
        image_size=None,
        tower_layer=None,
        advance=lambda count: None,
    )
    return evaluation


LANGUAGE_NAMES: dict[Language, str] = {"en": "English", "zh": "Chinese"}


def shares_right(questions: Sequence[Question], answers: Path) -> dict[int, float]:
    """Return for each question the share of its rotations that are answered with the right letter."""
    given, right = read(answers, questions), {}
    for question in questions:
        said = extract_option(given.get(question.id, ""), question.choices, "exact_matching")
        base = int(question.fields["index"]) % ROTATION
        right.setdefault(base, []).append(said == question.answer)
    return {base: sum(hits) / len(hits) for base, hits in right.items()}
