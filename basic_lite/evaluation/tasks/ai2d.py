"""AI2D's test questions about diagrams: the Hugging Face rows and VLMEvalKit's TSV.

AI2D has no generative scorer of its own; the rules are those that harnesses use. Sources: lmms-eval
`tasks/ai2d/utils.py` (prompt), VLMEvalKit `utils/matching_util.py` (rule).
"""

from __future__ import annotations

from basic_lite.evaluation.benchmark import Benchmark, Row, by_letter, scored_by
from basic_lite.evaluation.files import table_reader
from basic_lite.evaluation.question import Question, options_prompt, question_of
from basic_lite.evaluation.tsv import OPTIONS, choices_in, tsv_reader

RULES = {name: by_letter(name) for name in ("exact_matching", "lmms_static")}


def _question(row: Row, style: str) -> Question:
    choices, asked = choices_in(row), str(row["question"])
    return question_of(
        row,
        options_prompt(asked, choices),
        stem=asked,
        # The answer of the hub's rows is a position.
        answer=OPTIONS[int(row["answer"])] if "options" in row else row["answer"],
        choices=choices,
        category="category",
        fields=("category",),
    )


BENCHMARK = Benchmark(
    name="ai2d",
    hub="lmms-lab/ai2d",
    sizes={"test": (3_088,)},
    rows=(
        table_reader("question", "options", "answer"),
        tsv_reader("AI2D", "AI2D_TEST.tsv", "AI2D*.tsv", needs=("question", "A", "B", "answer")),
    ),
    question=_question,
    scorers=tuple(RULES),
    score=scored_by(RULES, "category"),
)
