"""The three steps of an evaluation and the files between them: predictions, results, submission."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basic_lite.data.templates import TEMPLATES
from basic_lite.evaluation import judge as judges
from basic_lite.evaluation import predictions, table
from basic_lite.evaluation.benchmark import Benchmark
from basic_lite.evaluation.distributed import Processes
from basic_lite.evaluation.files import json_lines
from basic_lite.evaluation.question import BY_WORDS, AnswerBy, Id, Question, with_pictures_swapped
from basic_lite.evaluation.statistics import Score, save_score
from basic_lite.files import (
    MANIFEST,
    check_files,
    file_hash,
    read_manifest,
    versions,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from basic_lite.evaluation.answer import Model

DECODING: Mapping[AnswerBy, str] = {
    "text": "greedy",
    "likelihood": "likelihood of letters",
    "option": "likelihood of options per character (acc_norm)",
    "mutual-information": "likelihood of options against no picture (acc_mutual_info)",
}
"""What results say of how choices were answered."""

SWAPPED: str = ", pictures swapped"
"""What they add where each question was asked about another one's picture."""


@dataclass(frozen=True)
class Candidate:
    """What is evaluated, on one benchmark or several: a run, or in its place a model or a file of answers."""

    run: Path | None = None
    model: str | None = None  # folder or hub id of a LLaVA of transformers
    given: Path | None = None  # file of answers
    image_size: int | None = None  # side of the tower's input in pixels; `None` takes the run's
    # Which hidden states of the tower are its features; `None` takes the run's
    tower_layer: int | None = None
    # Words around a model's questions, of `templates.TEMPLATES`; `None` takes its own
    template: str | None = None

    def __str__(self) -> str:
        return str(self.model or self.run or self.given)

    def check(self) -> None:
        """Raise ValueError if there is no such run or model, or it cannot be asked in this way."""
        if self.run is not None and self.template is not None:
            raise ValueError("--template is for a --model; a run is asked in the words it was trained with")
        if self.run is None and (self.image_size is not None or self.tower_layer is not None):
            raise ValueError("--image-size and --tower-layer are for a run; a --model has its own")
        if self.template not in (None, *TEMPLATES):
            raise ValueError(f"no template is named {self.template!r}; known: {', '.join(TEMPLATES)}")
        _ = self.identity

    @cached_property
    def identity(self) -> str | None:
        """What distinguishes the run or model from others; `None` for answers whose maker is not known."""
        if self.model is not None:
            from basic_lite.evaluation.hf_llava import identity

            return identity(self.model)
        if self.run is None:
            return None
        read_manifest(self.run)
        return file_hash(self.run / MANIFEST)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What decides the answers besides the files of the run or model."""
        if self.run is None:
            settings = {} if self.template is None else {"template": self.template}
            if self.model is not None:
                from basic_lite.evaluation.hf_llava import EXIF

                settings |= {"exif": EXIF}
            return settings
        manifest = read_manifest(self.run)
        layer, bits = manifest["sources"]["tower_layer"], self._bits[0]
        settings = {
            "image_size": manifest["image_size"] if self.image_size is None else self.image_size,
            "tower_layer": layer if self.tower_layer is None else self.tower_layer,
        }
        # Other bits are another model: its answers are kept apart.
        return settings | ({} if bits == manifest["sources"]["bits"] else {"bits": bits})

    @cached_property
    def _bits(self) -> tuple[int, str]:
        from basic_lite.memory.inference import bits_for
        from basic_lite.models.devices import choose_device

        assert self.run is not None
        return bits_for(self.run, "evaluate", choose_device())

    def settle(self, processes: Processes, say: Callable[[str], None]) -> None:
        """Let the first process decide for all what depends on a card's memory, and say what it decided."""
        self.__dict__["settings"] = processes.first(lambda: self.settings)
        if "bits" in self.settings:
            say(self._bits[1])

    @cached_property
    def loaded(self) -> Model:
        """The model on this process's device, loaded once for all benchmarks; raises as `load`."""
        from basic_lite.evaluation import hf_llava
        from basic_lite.models.checkpoint import load_run
        from basic_lite.models.devices import choose_device

        if self.run is not None:
            return load_run(self.run, choose_device(), **self.settings)[0]
        assert self.model is not None
        return hf_llava.load(self.model, choose_device(), self.template)

    def load(self) -> None:
        _ = self.loaded


@dataclass(frozen=True)
class Evaluation:
    candidate: Candidate  # what is evaluated
    name: str  # benchmark, in the table of benchmarks
    out: Path  # folder of predictions and results
    data: str | None = None  # original files, Parquet files or hub id; `None` takes the table's hub id
    images: Path | None = None  # folder of the pictures
    split: str | None = None  # `None` takes the table's
    prompt_style: str = "llava"
    scorer: str | None = None  # scoring rule; `None` takes LLaVA's
    limit: int | None = None  # ask this many questions alone
    any_size: bool = False  # take all questions of another number than the published one
    judge: str | None = None  # who grades, or graded `judge_scores`
    judge_scores: Path | None = None
    judge_url: str | None = None  # OpenAI-style address that the judge is asked at; `None` asks nobody
    judge_prompt: Path | None = None  # file of the judge's rule or table, in place of the benchmark's
    answer_by: AnswerBy = "text"  # how a choice is answered
    swap_pictures: bool = False  # ask each question about another one's picture: a control

    @property
    def benchmark(self) -> Benchmark:
        return table.BENCHMARKS[self.name]

    @property
    def split_name(self) -> str:
        return self.split or self.benchmark.split

    @property
    def answers(self) -> Path:
        return self.out / "predictions.jsonl"

    def check_options(self) -> None:
        """Raise ValueError if a scoring rule or a judge does not fit, before any data is read."""
        table.scorer_of(self.name, self.scorer)
        if self.swap_pictures and self.candidate.given is not None:
            raise ValueError("--swap-pictures is for a model that is asked; leave it out with --predictions")
        if self.judge_scores is None and self.judge_url is None:
            if self.judge is not None:
                raise ValueError("--judge names who grades: say where with --judge-url, or give --grades")
            return
        if self.benchmark.grading is None:
            judged = ", ".join(name for name, row in table.BENCHMARKS.items() if row.grading)
            raise ValueError(f"a judge is for {judged}; {self.name} is scored by its own rule")
        if not self.judge or not self.judge.strip():
            raise ValueError("scores of different judges do not compare: name the judge with --judge")
        if self.judge_url is not None:
            judges.Judge(self.judge, self.judge_url).address  # noqa: B018 (refuses what is no address)
        _ = self.judge_rule

    @cached_property
    def judge_rule(self) -> str | None:
        """The rule of `judge_prompt`, `None` for the benchmark's; raises ValueError if the file has none."""
        return None if self.judge_prompt is None else judges.read_rule(self.judge_prompt)

    def has_labels(self, questions: list[Question]) -> bool:
        """Whether there is something to score; without, a benchmark with a server ends in its submission."""
        return self.benchmark.export is None or any(question.has_label for question in questions)

    def questions(self, with_images: bool) -> list[Question]:
        """Read the questions: a published split whole, unless `limit` or `any_size` is given."""
        limit = sys.maxsize if self.any_size and self.limit is None else self.limit
        questions = table.load(
            self.name,
            self.data,
            split=self.split,
            images=self.images,
            prompt_style=self.prompt_style,
            limit=limit,
            with_images=with_images,
        )
        if not self.is_published(questions):
            self.benchmark.check(questions, str(self.data))
        return with_pictures_swapped(questions) if self.swap_pictures and with_images else questions

    def submitted_ids(self) -> Sequence[Id] | None:
        return self.benchmark.all_asked(table.source_of(self.name, self.data, split=self.split))

    def is_published(self, questions: Sequence[Question]) -> bool:
        """Whether these are all rows of a published split."""
        sizes = self.benchmark.sizes[self.split_name]
        return self.limit is None and (not sizes or len(questions) in sizes)

    def claim(self, questions: list[Question], overwrite: bool = False) -> int:
        """Make the prediction file this evaluation's, and return how many questions it answers already.

        Raises ValueError if a file of the run has changed, the answers were made under other conditions, or
        the benchmark has no choices to compare.
        """
        if self.candidate.run is not None:
            check_files(self.candidate.run, "weights")
        conditions: dict[str, object] = {
            "run": self.candidate.identity,
            "benchmark": self.name,
            "split": self.split_name,
            "prompt_style": self.prompt_style,
            **self.candidate.settings,
        }
        if self.answer_by != "text":
            self._check_choices(questions)
            conditions["answer_by"] = self.answer_by
        if self.swap_pictures:
            conditions["pictures"] = "swapped"
        predictions.claim(self.answers, conditions, overwrite)
        return len(predictions.answered(self.answers, questions))

    def _check_choices(self, questions: Sequence[Question]) -> None:
        choices = [question for question in questions if question.choices]
        if not choices:
            raise ValueError(f"{self.name} has no choices to compare: leave --answer-by {self.answer_by} out")
        if self.answer_by not in BY_WORDS:
            return
        wordless = [q.id for q in choices if not q.stem or not all(q.words.values())]
        if wordless:
            raise ValueError(
                f"{self.name}'s rows do not have question and options apart, as --answer-by {self.answer_by} "
                f"asks them (first: question {wordless[0]}): take --answer-by likelihood, or text"
            )
        run = self.candidate.run
        template = None if run is None else TEMPLATES[read_manifest(run)["template"]]
        if self.answer_by == "mutual-information" and template is not None and template.caption:
            raise ValueError(
                f"{run} has the template {template.name}, which says nothing without a picture: take "
                "--answer-by option"
            )

    def take_given(self, questions: list[Question]) -> None:
        """Copy the file of answers to where a run's own are, if it belongs to this benchmark."""
        assert self.candidate.given is not None
        answers = predictions.read(self.candidate.given, questions)
        who = str(self.candidate)
        rows = (predictions.record(q, answers[q.id], who) for q in questions if q.id in answers)
        write_text(self.answers, json_lines(rows))

    def score(self, questions: list[Question], advance: Callable[[int], None] = lambda count: None) -> dict:
        """Score the predictions; write and return `results.json`; `advance` counts a judge's grades."""
        given = self._given(questions)
        grading = self.benchmark.grading
        if grading is not None and (self.judge_scores is not None or self.judge_url is not None):
            score = self._judged(grading, questions, given, advance)
        else:
            score = self.benchmark.score(questions, given, table.scorer_of(self.name, self.scorer))
        content = self.results(questions, score)
        write_json(self.out / "results.json", content)
        save_score(score, self.out / "score.json")
        return content

    def results(self, questions: Sequence[Question], score: Score) -> dict[str, Any]:
        """Return the content of `results.json`: what was measured, on what, how, and how sure it is."""
        interval = score.interval()
        values, measured_on = self.benchmark.figures(len(questions))
        asked = predictions.conditions_of(self.answers)
        swapped = asked.get("pictures") == "swapped"
        return {
            "benchmark": self.name,
            "split": self.split_name,
            "n": len(questions),  # of MMBench rotations
            "limit": self.limit,
            "metric": score.metric,
            "scorer": score.scorer,
            "prompt_style": self.prompt_style,
            "value": score.value,
            "interval_95": None if interval is None else list(interval),
            "clusters": score.n_clusters,
            "parse_failures": score.unparsed,
            "missing_predictions": score.missing,
            "figures": dict(score.figures),
            "breakdown": {name: dict(groups) for name, groups in score.breakdown.items()},
            "notes": list(score.notes),
            "published": {"measured_on": measured_on, "values": dict(values)},
            "manifest_hash": self.candidate.identity,
            "versions": versions(),
            "run": {
                "folder": str(self.candidate),
                "decoding": DECODING[asked.get("answer_by", "text")] + (SWAPPED if swapped else ""),
                "published_size": self.is_published(questions),
                "any_size": self.any_size,
                "data": self.data,
                "images": None if self.images is None else str(self.images),
            },
        }

    def export(self, questions: list[Question]) -> list[Path]:
        """Write what is handed in: the server's file, and where a judge scores the messages to it."""
        row, given = self.benchmark, self._given(questions)
        if row.export is None:
            raise ValueError(f"{self.name} has no submission server; --step score gives its number")
        ids = self.submitted_ids()
        if ids is not None:  # of the other questions only the id counts: their answers stay empty
            asked = {question.id: question for question in questions}
            questions = [asked.get(identity) or Question(identity, "", None, 0) for identity in ids]
        written = [row.export(questions, given, self.out / row.submission)]
        if row.grading is not None:
            prompts = self.out / f"{self.name}_judge_prompts.jsonl"
            written.append(judges.write_prompts(row.grading, questions, given, prompts, self.judge_rule))
        return written

    def _judged(
        self,
        grading: judges.Grading,
        questions: list[Question],
        given: predictions.Predictions,
        advance: Callable[[int], None],
    ) -> Score:
        """Score by the grades of a file, or by those that the judge gives now."""
        assert self.judge is not None  # `check_options`
        if self.judge_scores is not None:
            grades = judges.read_grades(self.judge_scores, questions, grading)
            return grading.score(questions, given, grades, self.judge)
        assert self.judge_url is not None
        judge = judges.Judge(self.judge, self.judge_url, self.judge_rule)
        grades = judges.ask(grading, questions, given, judge, self.out / "grades.jsonl", advance)
        score = grading.score(questions, given, grades, self.judge)
        noted = grading.note and self.judge_rule is None
        return replace(score, notes=(*score.notes, grading.note)) if noted else score

    def _given(self, questions: list[Question]) -> predictions.Predictions:
        if not self.answers.is_file():
            raise ValueError(f"{self.answers} does not exist; run --step generate first")
        return predictions.read(self.answers, questions)
