"""The world as files that the normal readers take: LLaVA JSON with PNG, and MMBench TSV.

DIR/stage1.json      captions, one turn, pictures of seen pairs
DIR/stage2.json      conversations in both languages, one row in eight without a picture
DIR/images/*.png     their pictures
DIR/mmbench_en.tsv   questions on held-out pictures, circular
DIR/mmbench_cn.tsv   the same questions in Chinese
"""

from __future__ import annotations

import base64
import csv
import io
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from basic_lite.data.workers import cores, mapped
from basic_lite.data.world.dialogues import dialogue, held_out_queries
from basic_lite.data.world.grammar import DESCRIBE, Ask, caption, choose
from basic_lite.data.world.lexicon import LANGUAGES, Language
from basic_lite.data.world.questions import GROUPS
from basic_lite.data.world.render import render
from basic_lite.data.world.scenes import COLOURS, SHAPES, Scene, sample_scene

TSV_COLUMNS = (
    *("index", "question", "hint", "A", "B", "C", "D", "answer"),
    *("category", "image", "source", "l2-category", "comment", "split"),
)

ROTATION = 1_000_000
"""What MMBench adds to a question's index for each rotation of its options."""


@dataclass(frozen=True)
class World:
    """Where the files of a written world are."""

    stage1: Path  # LLaVA JSON of captions
    stage2: Path  # LLaVA JSON of conversations
    images: Path  # folder that the JSON files' image paths start from
    mmbench: dict[Language, Path]  # the MMBench TSV of each language


def world_in(folder: Path) -> World:
    benchmarks: dict[Language, Path] = {"en": folder / "mmbench_en.tsv", "zh": folder / "mmbench_cn.tsv"}
    return World(folder / "stage1.json", folder / "stage2.json", folder, benchmarks)


def write_world(
    folder: Path,  # created when missing
    seed: int = 0,
    captions: int = 1000,  # rows of stage 1
    conversations: int = 1000,  # rows of stage 2
    questions: int = 280,  # MMBench questions per language, before rotations; kinds take turns
    # How many of the eight colours, and of the eight shapes, captions name. Pictures show all of them; things
    # of another colour or shape are left out of their captions
    named: int = len(COLOURS),
) -> World:
    """Write the data set of both stages and both benchmarks; the same seed writes the same files."""
    world = world_in(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    pictures: dict[str, Scene] = {}
    mentioned = _pairs(named, seed)
    rows = [_caption_row(i, pictures, rng, mentioned) for i in range(captions)]
    world.stage1.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    rows = [_conversation_row(i, pictures, rng) for i in range(conversations)]
    world.stage2.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    _draw(folder, pictures)
    for language, path in world.mmbench.items():
        write_mmbench(path, language, questions, seed)
    return world


def _draw(folder: Path, pictures: dict[str, Scene]) -> None:
    """Write pictures under their names, on all cores if there are many: one takes ten milliseconds."""
    jobs = [(folder / name, scene) for name, scene in pictures.items()]
    for _ in mapped(_draw_one, jobs, max(min(cores(), len(jobs) // 200), 1)):
        pass


def _draw_one(job: tuple[Path, Scene]) -> None:
    path, scene = job
    render(scene).image.save(path)


def _pairs(named: int, seed: int) -> frozenset[tuple[str, str]]:
    """Return all pairs of some colours and some shapes, chosen by the seed."""
    rng = random.Random(f"named {seed}")
    colours, shapes = (rng.sample(words, named) for words in (COLOURS, SHAPES))
    return frozenset((colour, shape) for colour in colours for shape in shapes)


def _caption_row(
    number: int, pictures: dict[str, Scene], rng: random.Random, mentioned: frozenset[tuple[str, str]]
) -> dict[str, object]:
    """Note one picture and return its row: a request with `<image>` before or after it, and a caption."""
    scene = sample_scene(rng)
    while not (things := tuple(thing for thing in scene.things if thing.pair in mentioned)):
        scene = sample_scene(rng)
    name = f"images/caption_{number:05d}.png"
    pictures[name] = scene
    language = rng.choice(LANGUAGES)
    request = rng.choice(DESCRIBE[language])
    request = rng.choice((f"<image>\n{request}", f"{request}\n<image>"))
    said = caption(replace(scene, things=things), language, rng, full=rng.random() < 0.7)
    turns = [(request, said)]
    return {"id": f"caption_{number:05d}", "image": name, "conversations": _conversation(turns)}


def _conversation_row(number: int, pictures: dict[str, Scene], rng: random.Random) -> dict[str, object]:
    """Note one picture and return a conversation about it; one in eight has a description instead."""
    scene = sample_scene(rng)
    turns = dialogue(scene, rng.randint(2, 5), rng)
    row: dict[str, object] = {"id": f"talk_{number:05d}"}
    if number % 8 == 7:
        start = caption(scene, rng.choice(LANGUAGES), rng)
    else:
        start, row["image"] = "<image>", f"images/talk_{number:05d}.png"
        pictures[str(row["image"])] = scene
    turns[0] = (f"{start}\n{turns[0][0]}", turns[0][1])
    return {**row, "conversations": _conversation(turns)}


def _conversation(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    texts = [text for turn in turns for text in turn]
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def benchmark(language: Language, questions: int, seed: int) -> list[tuple[Scene, Ask]]:
    """Return the benchmark's scenes and questions; both languages ask the same with the same options."""
    # One generator per question: a language's wordings draw differently and must not shift what follows.
    return [
        (scene, choose(query, language, random.Random(f"{seed} {number}")))
        for number, (scene, query) in enumerate(held_out_queries(questions, seed))
    ]


def write_mmbench(path: Path, language: Language, questions: int, seed: int) -> None:
    """Write a benchmark as MMBench's TSV, with a row for every rotation of a question's options.

    The first row of a question holds its picture as base64; the others hold that row's index in its place.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, TSV_COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        for number, (scene, question) in enumerate(benchmark(language, questions, seed)):
            writer.writerows(_rotations(number, scene, question))


def _rotations(number: int, scene: Scene, question: Ask) -> list[dict[str, object]]:
    rows = []
    for turn in range(len(question.options)):
        options = question.options[turn:] + question.options[:turn]
        rows.append(
            {
                "index": number + turn * ROTATION,
                "question": question.text,
                **dict(zip("ABCD", options, strict=False)),
                "answer": "ABCD"[options.index(question.answer)],
                "category": question.kind,
                "image": number if turn else _png(render(scene).image),
                "source": "basic-lite demo",
                "l2-category": GROUPS[question.kind],
                "split": "dev",
            }
        )
    return rows


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
