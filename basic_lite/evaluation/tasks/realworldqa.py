"""RealWorldQA: the Hugging Face rows, whose questions end in their own request, and VLMEvalKit's TSV.

Source: lmms-eval `tasks/realworldqa/utils.py` (`realworldqa_process_results`).
"""

from __future__ import annotations

from basic_lite.evaluation.benchmark import Benchmark, Row, scored_by
from basic_lite.evaluation.choices import lmms_mcq
from basic_lite.evaluation.files import table_reader
from basic_lite.evaluation.question import Question, options_prompt, question_of
from basic_lite.evaluation.tsv import choices_in, tsv_reader


def equal(text: str, question: Question) -> float:
    """Compare without case, outer space and final dots."""
    return float(text.lower().strip().rstrip(".") == str(question.answer).lower().strip())


def letter_or_equal(text: str, question: Question) -> float:
    """Return lmms-eval's verdict of today, which reads a letter where the answer is one."""
    answer = str(question.answer).strip().upper()
    return float(lmms_mcq(text, "ABCD") == answer) if answer in tuple("ABCD") else equal(text, question)


RULES = {"realworldqa": equal, "realworldqa_lmms": letter_or_equal}


def _question(row: Row, style: str) -> Question:
    choices, asked = choices_in(row), str(row["question"]).strip()
    kind = "choice" if str(row["answer"]).strip().upper() in "ABCD" else "short answer"
    text = options_prompt(asked, choices) if choices else asked
    answer = str(row["answer"])
    return question_of(
        {**row, "kind": kind}, text, stem=asked, answer=answer, choices=choices, category="kind"
    )


BENCHMARK = Benchmark(
    name="realworldqa",
    hub="lmms-lab/RealWorldQA",
    sizes={"test": (765,)},
    rows=(
        table_reader("question", "answer"),
        tsv_reader("RealWorldQA", "RealWorldQA.tsv"),
    ),
    question=_question,
    scorers=tuple(RULES),
    score=scored_by(RULES),
)
