"""A list of benchmarks for one candidate: all data is read first, then each is asked and scored in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from basic_lite.console import progress_bar, silence_libraries, write_into
from basic_lite.evaluation.distributed import ALONE, Processes, ProcessLost
from basic_lite.evaluation.question import Question
from basic_lite.evaluation.run import Evaluation
from basic_lite.evaluation.show import overview, results_table
from basic_lite.files import held, one_line

Asked = tuple[Evaluation, list[Question]]


@dataclass
class Suite:
    names: Sequence[str]  # of the benchmarks
    evaluation: Callable[[str], Evaluation]  # makes the evaluation of a name
    step: str  # `"all"`, `"generate"`, `"score"` or `"export"`
    console: Console  # where it prints
    team: Processes = ALONE  # the processes of the command
    overwrite: bool = False  # ask again what is answered
    batch_size: int | None = None  # of `answer.generate`, as is `max_batches`
    max_batches: int | None = None
    failures: dict[str, str] = field(default_factory=dict)  # name -> why the benchmark was left out
    results: list[dict] = field(default_factory=list)  # contents of `results.json`

    def __post_init__(self) -> None:
        self.bar = progress_bar(self.console)

    @property
    def asks(self) -> bool:
        return self.step in ("all", "generate")

    def run(self, folder: Path, *, dry_run: bool = False) -> None:
        """Do the step for every benchmark while no other command may write the folder.

        A dry run reads the data and stops. Of several benchmarks, one that fails is left out and named at the
        end: ValueError.
        """
        if self.team.rank > 0 and (dry_run or not self.asks):
            return  # of several processes the first is enough
        with ExitStack() as until_done:
            ready = self._read()
            if not dry_run:
                self.team.first(lambda: until_done.enter_context(held(folder)))
                self._answer_and_score(ready)
            if len(self.names) > 1 and self.results:
                self.console.print(overview(self.results))
            if self.failures:
                reasons = "; ".join(f"{name}: {reason}" for name, reason in self.failures.items())
                raise ValueError(
                    f"{len(self.failures)} of {len(self.names)} benchmarks were left out: {reasons}"
                )

    def _read(self) -> list[Asked]:
        """Read all data before the first question: what is missing is said at once, not hours later."""
        ready: list[Asked] = []
        for name in self.names:
            with self._or_left_out(name):
                evaluation, questions = self.team.in_turn(lambda name=name: self._read_one(name))
                split = evaluation.split_name
                where = f"{len(questions):,} prompts, answers in {evaluation.answers}"
                self.console.print(f"{name} {split}: {where}")
                if not evaluation.is_published(questions):
                    sizes = " or ".join(f"{size:,}" for size in evaluation.benchmark.sizes[split])
                    self.console.print(f"Not the published {sizes} rows: this is no {name} number.")
                ready.append((evaluation, questions))
        return ready

    def _read_one(self, name: str) -> Asked:
        evaluation = self.evaluation(name)
        evaluation.check_options()
        questions = evaluation.questions(with_images=self.asks)
        if self.step == "export" or (self.step == "all" and not evaluation.has_labels(questions)):
            evaluation.submitted_ids()
        return evaluation, questions

    def _answer_and_score(self, ready: list[Asked]) -> None:
        done: dict[str, int] = {}
        if self.asks and ready:
            ready[0][0].candidate.settle(self.team, self.console.print)
        for evaluation, questions in ready if self.asks else ():
            with self._or_left_out(evaluation.name):
                done[evaluation.name] = self.team.first(
                    lambda evaluation=evaluation, questions=questions: evaluation.claim(
                        questions, self.overwrite
                    )
                )
        ready = [pair for pair in ready if pair[0].name not in self.failures]
        total, before = sum(len(questions) for _, questions in ready), sum(done.values())
        asking = self.asks and before < total
        if asking:  # one model for all: without it none can go on
            from basic_lite.evaluation import answer

            silence_libraries()
            self.team.gather(ready[0][0].candidate.load)
        elif self.asks and ready:
            self.console.print(f"{before}/{total} are answered; --overwrite asks again")
        begun, answered = time.monotonic(), 0
        task = self.bar.add_task("", total=total, completed=before, note="", visible=asking)

        def speed() -> str:
            return f"{answered / (time.monotonic() - begun):.1f} answers/s"

        def advance(count: int) -> None:
            nonlocal answered
            answered += count
            self.bar.update(task, advance=count, note=speed())

        judged = any(evaluation.judge_url for evaluation, _ in ready)
        with self.bar if asking or judged else nullcontext():
            for evaluation, questions in ready:
                left = 0
                with self._or_left_out(evaluation.name):
                    if asking and done[evaluation.name] < len(questions):
                        write_into(evaluation.out)
                        self.bar.update(task, description=evaluation.name)
                        left = answer.generate(
                            evaluation.candidate.loaded,
                            questions,
                            evaluation.answers,
                            batch_size=self.batch_size,
                            model_id=str(evaluation.candidate),
                            max_batches=self.max_batches,
                            answer_by=evaluation.answer_by,
                            advance=advance,
                            say=self.console.print,
                            processes=self.team,
                        )
                    if self.team.rank == 0:
                        self._finish(evaluation, questions, left)
        if answered:
            self.console.print(f"{answered:,} answers, {speed()}")

    def _finish(self, evaluation: Evaluation, questions: list[Question], left: int) -> None:
        if evaluation.candidate.given is not None:
            evaluation.take_given(questions)
        if left:
            self.console.print(f"{left:,} questions are left; the same command goes on.")
        labelled = evaluation.has_labels(questions)
        if self.step == "score" or (self.step == "all" and labelled):
            name, total = f"grades of {evaluation.judge}", len(questions)
            grades = self.bar.add_task(name, total=total, note="", visible=evaluation.judge_url is not None)
            self.results.append(evaluation.score(questions, partial(self.bar.advance, grades)))
            self.console.print(results_table(self.results[-1]))
            self.console.print(f"Results in {evaluation.out / 'results.json'}")
        if self.step == "all" and not labelled:
            self.console.print(f"{evaluation.split_name} has no public labels: the server scores it.")
        if self.step == "export" or (self.step == "all" and not labelled and not left):
            for path in evaluation.export(questions):
                self.console.print(f"Written: {path}")

    @contextmanager
    def _or_left_out(self, name: str) -> Iterator[None]:
        """Leave a benchmark of several out if it fails in the block."""
        try:
            yield
        except ProcessLost:
            raise
        except (ValueError, OSError) as error:
            if len(self.names) == 1:
                raise
            self.failures[name] = one_line(error, 1000)
            self.console.print(f"{name} is left out: {self.failures[name]}", style="red")
