"""LLaVA-Bench (in the wild): 60 questions about 24 pictures, graded by a judge beside GPT-4's answers.

There is no score without a judge. Sources: LLaVA `llava/eval/table/rule.json` (rule, the same for all
categories), `eval_gpt_review_bench.py` (message, decoding), `summarize_gpt_review.py` (value), lmms-eval
`tasks/llava-in-the-wild` (columns of the hub's rows).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import Any

from basic_lite.evaluation import files
from basic_lite.evaluation.benchmark import Benchmark, Predictions, Row, published
from basic_lite.evaluation.files import Source
from basic_lite.evaluation.judge import Grades, Grading, number_in, unjudged
from basic_lite.evaluation.predictions import record
from basic_lite.evaluation.question import Question, question_of
from basic_lite.evaluation.statistics import Score, score_of, value_of
from basic_lite.evaluation.tsv import tsv_reader

_NEEDS = ("question_id", "question", "gpt_answer", "caption", "category")
RULE = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user "
    "question displayed above. The user asks the question on observing an image. For your reference, the "
    "visual content in the image is represented with a few sentences describing the image. \n"
    "Please rate the helpfulness, relevance, accuracy, level of details of their responses. Each assistant "
    "receives an overall score on a scale of 1 to 10, where a higher score indicates better overall "
    "performance.\n"
    "Please first output a single line containing only two values indicating the scores for Assistant 1 and "
    "2, respectively. The two scores are separated by a space.\n"
    "In the subsequent line, please provide a comprehensive explanation of your evaluation, avoiding any "
    "potential bias and ensuring that the order in which the responses were presented does not affect your "
    "judgment."
)


def judge_prompt(question: Question, prediction: str, rule: str) -> str:
    """Return the message to the judge: context, question, GPT-4's answer, the model's answer, the rule."""
    answers = (str(question.answer), prediction)
    shown = (f"[Assistant {n}]\n{text}\n\n[End of Assistant {n}]\n\n" for n, text in enumerate(answers, 1))
    context = f"[Context]\n{question.fields['caption']}\n\n[Question]\n{question.text}\n\n"
    return f"{context}{''.join(shown)}[System]\n{rule}\n\n"


def read_pair(reply: str) -> tuple[float, ...]:
    return tuple(map(float, reply.split("\n")[0].replace(",", " ").split(" ")))


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(number_in(v, 1, 10) for v in value)


def _question(row: Row, style: str) -> Question:
    caption = row["caption"]
    return question_of(
        {**row, "caption": "\n".join(caption) if isinstance(caption, list) else caption},
        row["question"],
        max_new_tokens=1024,
        answer=row["gpt_answer"],
        category="category",
        fields=("caption", "category"),
    )


def _json_rows(source: Source) -> list[dict[str, Any]]:
    needs = ("question_id", "image", "text", "category")
    questions = files.read_json_lines(
        files.main_file(source, "LLaVA-Bench questions", "questions.jsonl"), needs
    )
    context = files.find(source, "descriptions of the pictures", "context.jsonl")
    captions = {row["image"]: row["caption"] for row in files.read_json_lines(context, ("image", "caption"))}
    answers = files.find(source, "answers of GPT-4", "answers_gpt4.jsonl")
    references = {
        row["question_id"]: row["text"] for row in files.read_json_lines(answers, ("question_id", "text"))
    }
    rows = []
    for row in questions:
        if row["image"] not in captions or row["question_id"] not in references:
            raise ValueError(
                f"{source.data}: question {row['question_id']} has no description or no answer of GPT-4."
            )
        asked = {"question": row["text"], "gpt_answer": references[row["question_id"]]}
        asked |= {"caption": captions[row["image"]], "file": row["image"]}
        rows.append({**row, **asked, "id": row["question_id"]})
    return files.with_pictures(source, rows, ("images",))


def graded(questions: Sequence[Question], predictions: Predictions, grades: Grades, judge: str) -> Score:
    """Return 100 x the model's mean grade / GPT-4's, also by category; several runs are averaged."""
    pairs: dict[Any, tuple[float, float]] = {}
    for question in questions:
        reference, model = zip(*grades[str(question.id)], strict=True)  # type: ignore[arg-type]
        pairs[question.id] = (mean(reference), mean(model))
    cells = {identity: ("", *pair) for identity, pair in pairs.items()}
    groups: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for question in questions:
        groups[question.category].append(cells[question.id])
    return score_of(
        questions,
        predictions,
        {identity: model / 10 for identity, (_, model) in pairs.items()},
        metric=f"grade relative to GPT-4's, judged by {judge}",
        scorer=f"judge:{judge}",
        value=value_of(cells.values(), "ratio_of_means"),
        cells=cells,
        statistic="ratio_of_means",
        breakdown={"category": {k: value_of(groups[k], "ratio_of_means") for k in sorted(groups)}},
        figures={
            "reference": 10 * mean(reference for reference, _ in pairs.values()),
            "model": 10 * mean(model for _, model in pairs.values()),
        },
    )


BENCHMARK = Benchmark(
    name="llava-bench",
    hub="lmms-lab/llava-bench-in-the-wild",
    sizes={"test": (60,)},
    rows=(
        files.table_reader(*_NEEDS, key="question_id", splits={"test": "train"}, picture="image_id"),
        tsv_reader(
            "LLaVA-Bench",
            "LLaVABench.tsv",
            needs=("question", "caption", "gpt4_ans", "category"),
            otherwise=_json_rows,
            gpt_answer="gpt4_ans",
        ),
    ),
    question=_question,
    scorers=("unjudged",),
    score=partial(unjudged, metric="LLaVA-Bench score"),
    published=published(65.4, 72.5, 67.9, 69.5, on="judged by gpt-4-0314, beside GPT-4's answers"),
    export=files.submission(lambda q, answer: record(q, answer, "basic-lite"), lines=True),
    submission="answers.jsonl",
    grading=Grading(
        prompt=judge_prompt,
        read=read_pair,
        valid=_is_pair,
        what="two numbers from 1 to 10",
        score=graded,
        rule=RULE,
        system="You are a helpful and precise assistant for checking the quality of the answer.",
        max_tokens=1024,
        temperature=0.2,
        warmer=0.0,
    ),
    aliases=("llava-bench-in-the-wild", "llavabench", "llava-in-the-wild"),
)
