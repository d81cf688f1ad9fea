"""Original scorers, run from their checkouts, and answers for them to judge.

`BASIC_LITE_ORACLES` names a folder of checkouts: `LLaVA`, `lmms-eval`, `VLMEvalKit`, `VQA` (GT-Vision-Lab's),
`MMMU`, `MMStar`, `MME` (its `calculation.py`), `GQA` (its `eval.py`, as SHI-Labs/VCoder keeps it), `VizWiz`
(its `eval.py`, as TRI-ML/vlm-evaluation keeps it), `HallusionBench`, `MultimodalOCR`, `POPE` (at commit
e3e39262) and `eval` (LLaVA's `eval.zip`). `python tests/evaluation/original_scorers.py FILE` writes the
verdicts, which everyone else's tests read.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import random
import re
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

ROOT = Path(os.environ.get("BASIC_LITE_ORACLES", "."))
OPTIONS = {"A": "red", "B": "dark blue", "C": "green", "D": "no"}
Verdict = Callable[[str, Any], Any]


def _drawn(seed: int, pieces: str, glue: str, most: int, count: int = 120) -> list[str]:
    """Return the pieces, which `|` parts, and texts that chance makes of them."""
    chance, parts = random.Random(seed), pieces.split("|")
    texts = {glue.join(chance.choices(parts, k=chance.randint(1, most))): None for _ in range(3 * count)}
    return [*dict.fromkeys(["", *parts, *texts])][:count]


LETTERS = _drawn(
    0,
    "A|B|C|D|a|b|(A)|(b)|B.|C:|D)|option|Option B|the answer is|The answer is C.|is"
    "|The correct answer is **B**"
    "|red|dark blue|green|no|answer|I|dog|E|\n|Answer: B|A car|B. dark blue|Cannot determine the answer|Z|,"
    "|nothing|NASA|CB",
    " ",
    5,
)
WORDS = _drawn(
    1,
    "red|Red.|the|a|two|2|none|1,234|1234|5%|0.05|0|3.14|-2|1e3|so|is|=|answer|therefore|yes|Yes|no|woman's|dont"
    "|t-shirt|T-shirt.|x + 1|X + 1|５％|left/right|\n|.|,|!|'|twenty one|dark blue|5.|unanswerable",
    " ",
    4,
)
YES_NO = _drawn(
    2,
    "yes|Yes|no|No.|not|NO|y|n|Yes, it is|There is.|none|I know|noon|,|.|yes/no|eyes| no|(no)|yes!|No,",
    " ",
    4,
)
REVIEWS = _drawn(3, "8|7.5|10|,| |\n|8 7|9,10|Assistant 1:|8/10", "", 5)
ANSWERS = {"letters": LETTERS, "words": WORDS, "yes_no": YES_NO, "reviews": REVIEWS}
HUMANS = [
    ["yes"] * 10,
    ["two"] * 4 + ["2"] * 3 + ["3", "a red", "red"],
    ["woman's"] * 5 + ["the t-shirt"] * 3 + ["t shirt", "dark blue"],
    ["unanswerable"] * 2 + ["Red"] * 2 + ["red."] * 2 + ["left right", "none", "0", "1,234"],
]
TRUTHS = ["5%", "0", "1234", "1,234", "dark blue", "red", "x + 1", "yes"]


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for what a checkout imports and nobody needs to have."""

    NAMES = (
        "lmms_eval",
        "vlmeval",
        "loguru",
        "openai",
        "sty",
        "sklearn",
        "requests",
        "Levenshtein",
        "sacrebleu",
        "prettytable",
    )

    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if self.is_absent(name) else None

    def is_absent(self, name: str) -> bool:
        return name.split(".")[0] in self.NAMES

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        module = MagicMock(name=spec.name)
        module.__spec__, module.__path__ = spec, []
        return module

    def exec_module(self, module: Any) -> None:
        pass


@contextlib.contextmanager
def absent(**real: str):
    """Import what is missing as nothing at all, except modules that stand in a checkout: name -> file."""
    finder = _Absent()
    before = {name: module for name, module in sys.modules.items() if finder.is_absent(name)}
    for name in before:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        for name, file in real.items():
            sys.modules[name.replace("__", ".")] = load(file)
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if finder.is_absent(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def load(file: str) -> Any:
    """Load one file of a checkout.

    Raises:
        FileNotFoundError: If it is not there.
    """
    if not (ROOT / file).is_file():
        raise FileNotFoundError(file)
    spec = importlib.util.spec_from_file_location(f"original_{abs(hash(file))}", ROOT / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LMMS, KIT = "lmms-eval/lmms_eval", "VLMEvalKit/vlmeval"
M4C = {"lmms_eval__tasks___task_utils__vqa_eval_metric": f"{LMMS}/tasks/_task_utils/vqa_eval_metric.py"}
MCQ = {"lmms_eval__tasks___task_utils__mcq_extract": f"{LMMS}/tasks/_task_utils/mcq_extract.py"}
SMP = {"vlmeval__smp": f"{KIT}/smp/misc.py"}


def run_script(file: str, arguments: dict[str, str]) -> str:
    """Run a script of a checkout and return what it prints."""
    if not (ROOT / file).is_file():
        raise FileNotFoundError(file)
    old, out = sys.argv, io.StringIO()
    sys.argv = [file, *(word for name, value in arguments.items() for word in (f"--{name}", value))]
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(str(ROOT / file), run_name="__main__")
    finally:
        sys.argv = old
    return out.getvalue()


def vqa_official() -> Verdict:
    path = ROOT / "VQA/PythonEvaluationTools/vqaEvaluation/vqaEval.py"
    source = re.sub(r"^(\s*)print .*$", r"\1pass", path.read_text(), flags=re.MULTILINE)  # of Python 2
    names: dict[str, Any] = {}
    exec(compile(source, str(path), "exec"), names)
    evaluation = names["VQAEval"]

    def verdict(text: str, humans: list[str]) -> float:
        answers = [{"answer": answer, "answer_id": n} for n, answer in enumerate(humans)]
        row = {"answers": answers, "question_type": "q", "answer_type": "a"}
        truth, given = SimpleNamespace(qa={1: row}, getQuesIds=lambda: [1]), {1: {"answer": text}}
        scorer = evaluation(truth, SimpleNamespace(qa=given), n=10)
        scorer.updateProgress = lambda *_: None
        with contextlib.redirect_stdout(io.StringIO()):
            scorer.evaluate([1])
        return scorer.evalQA[1] / 100

    return verdict


def vqa_lmms() -> Verdict:
    with absent(**M4C):
        score = load(f"{LMMS}/tasks/vqav2/utils.py").vqav2_process_results

    def verdict(text: str, humans: list[str]) -> float:
        answers = [{"answer": answer, "answer_id": n} for n, answer in enumerate(humans)]
        return float(score({"answers": answers, "question_id": 1}, [text])["exact_match"])

    return verdict


def vizwiz_lmms() -> Verdict:
    with absent(**M4C):
        score = load(f"{LMMS}/tasks/vizwiz_vqa/utils.py").vizwiz_vqa_process_results
    return lambda text, humans: float(
        score({"answers": list(humans), "question_id": 1}, [text])["exact_match"]
    )


def vqa_m4c() -> Verdict:
    evaluator = load("LLaVA/llava/eval/m4c_evaluator.py").TextVQAAccuracyEvaluator()
    return lambda text, humans: evaluator.eval_pred_list([{"pred_answer": text, "gt_answers": list(humans)}])


def gqa_llava() -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "a.jsonl", Path(folder) / "b.json"
        rows = [{"question_id": str(n), "text": text} for n, text in enumerate(WORDS)]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run_script("LLaVA/scripts/convert_gqa_for_eval.py", {"src": str(source), "dst": str(made)})
        said = {
            text: row["prediction"] for text, row in zip(WORDS, json.loads(made.read_text()), strict=True)
        }
    return lambda text, truth: float(said[text] == truth)


def gqa_rows(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return GQA's questions of rows with an answer, in its kinds, lengths and steps."""
    kinds = [("query", "attr"), ("verify", "obj"), ("choose", "rel")]
    program = [{"operation": "select", "argument": "a"}, {"operation": "query", "argument": "name"}]
    return {
        str(row["number"]): {
            **{
                "question": "Is it" + " so" * (row["number"] % 4),
                "answer": row["answer"],
                "isBalanced": True,
            },
            **{"imageId": "n1", "semantic": program[: 1 + row["number"] % 2], "groups": {"global": "g"}},
            "types": dict(zip(("structural", "semantic"), kinds[row["group"]], strict=True)),
        }
        for row in rows
    }


def gqa_printed(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Run LLaVA's conversion and GQA's evaluation; return what it prints in per cent, by section and name."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        answers = [{"question_id": str(row["number"]), "text": row["given"]} for row in rows]
        (base / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
        made = {name: str(base / f"{name}.json") for name in ("questions", "predictions")}
        run_script(
            "LLaVA/scripts/convert_gqa_for_eval.py",
            {"src": str(base / "a.jsonl"), "dst": made["predictions"]},
        )
        Path(made["questions"]).write_text(json.dumps(gqa_rows(rows)))
        with contextlib.redirect_stderr(io.StringIO()):
            printed = run_script("GQA/eval.py", made)
    values, section = {}, ""
    for line in printed.splitlines():
        name, _, value = line.partition(":")
        section = "" if not line else name if not value else section
        if "%" in value:
            values[f"{section}/{name.strip()}".lower()] = float(value.split("%")[0])
    return values


def gqa_official() -> Verdict:
    def verdict(text: str, truth: str) -> float:
        row = {"number": 1, "answer": truth, "given": text, "group": 0}
        return gqa_printed([row])["/accuracy"] / 100

    return verdict


def gqa_value(rows: list[dict[str, Any]]) -> list[float]:
    printed = gqa_printed(rows)
    return [printed[name] for name in GQA_PRINTED]


GQA_PRINTED = (
    *("/accuracy", "/binary", "/open", "accuracy / structural type/query"),
    *("accuracy / semantic type/rel", "accuracy / steps number/1", "accuracy / words number/4"),
)


def vizwiz_official() -> Verdict:
    with absent():
        evaluation = load("VizWiz/eval.py").VQAEval

    def verdict(text: str, humans: list[str]) -> float:
        truth = {"i": {"answers": [{"answer": answer} for answer in humans]}}
        scorer = evaluation(truth, {"i": {"answer": text}}, n=10)
        scorer.evaluate()
        return scorer.evalQA["i"] / 100

    return verdict


def ocrbench_official(dataset: str) -> Callable[[], Verdict]:
    """Return the part of OCRBench's script that compares; what is before it runs a model."""

    def original() -> Verdict:
        source = (ROOT / "MultimodalOCR/OCRBench/example.py").read_text("utf-8")
        start = source.index("    for i in range(len(data)):\n        data_type")
        code = compile(
            "if True:\n" + source[start : source.index("    save_json(", start)], "example.py", "exec"
        )

        def verdict(text: str, truth: str) -> float:
            row = {"type": "t", "dataset_name": dataset, "answers": [truth, "green"], "predict": text}
            exec(code, {"data": [row]})
            return float(row.get("result", 0))

        return verdict

    return original


def gqa_lmms() -> Verdict:
    with absent():
        score = load(f"{LMMS}/api/metrics.py").exact_match_hf_evaluate
    both = {"ignore_case": True, "ignore_punctuation": True}
    return lambda text, truth: float(score([text], [truth], **both)["exact_match"])


def anls() -> Verdict:
    with absent():
        registry = importlib.import_module("lmms_eval.api.registry")
        registry.register_metric = lambda **names: lambda function: function
        score = load(f"{LMMS}/api/metrics.py").anls
    return lambda text, truth: float(score([truth, "green"], [text])["anls"])


def kit(method: str, pick: Callable[[list[float]], float] = max) -> Callable[[], Verdict]:
    def original() -> Verdict:
        with absent(**SMP):
            module = load(f"{KIT}/dataset/utils/vqa_eval.py")
        module.istype = lambda value, kind: False
        return lambda text, truth: float(
            pick(module.process_line({"answer": truth, "prediction": text}, method)["match"])
        )

    return original


def llava_sqa() -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        ids = [str(n) for n in range(len(LETTERS))]
        problem = {"choices": list(OPTIONS.values()), "answer": 0}
        (base / "problems.json").write_text(json.dumps(dict.fromkeys(ids, problem)))
        (base / "pid_splits.json").write_text(json.dumps({"test": ids}))
        rows = [
            {"question_id": n, "text": text, "prompt": "<image>"}
            for n, text in zip(ids, LETTERS, strict=True)
        ]
        (base / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"result-file": "a.jsonl", "output-file": "o.json", "output-result": "r.json"}
        arguments = {name: str(base / file) for name, file in files.items()}
        run_script("LLaVA/llava/eval/eval_science_qa.py", {"base-dir": folder, **arguments})
        chosen = json.loads((base / "r.json").read_text())["results"]
    said = {text: chosen[n] for n, text in zip(ids, LETTERS, strict=True)}
    return lambda text, truth: float(said[text] == list(OPTIONS).index(truth))


def lmms_sqa() -> Verdict:
    score = load(f"{LMMS}/tasks/scienceqa/utils.py").sqa_process_results
    row = {"choices": list(OPTIONS.values())}
    return lambda text, truth: score({**row, "answer": list(OPTIONS).index(truth)}, [text])["exact_match"]


def exact_matching() -> Verdict:
    os.environ.pop("VERBOSE", None)
    with absent():
        infer = load(f"{KIT}/utils/matching_util.py").can_infer
    return lambda text, truth: float(infer(text, dict(OPTIONS)) == truth)


def lmms_static() -> Verdict:
    """Circular evaluation of a question with one rotation."""
    with absent(**MCQ):
        module = load(f"{LMMS}/tasks/mmbench/mmbench_evals.py")
        extract = sys.modules["lmms_eval.tasks._task_utils.mcq_extract"].extract_mcq_answer
    evaluator = module.MMBench_Evaluator()

    def verdict(text: str, truth: str) -> float:
        said = evaluator.can_infer(text, dict(OPTIONS))
        return float((said or extract(text, choices=list(OPTIONS))) == truth)

    return verdict


def pope_llava() -> Verdict:
    judge = load("LLaVA/llava/eval/eval_pope.py").eval_pope

    def verdict(text: str, truth: str) -> float:
        # Two rows beside it, so that the original does not divide by zero.
        answers = [{"text": text}, {"text": "yes"}, {"text": "no"}]
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            labels = Path(folder) / "labels.json"
            labels.write_text("".join(json.dumps({"label": label}) + "\n" for label in (truth, "yes", "no")))
            judge(answers, str(labels))
        return float(answers[0]["text"] == truth)

    return verdict


def pope_lmms() -> Verdict:
    score = load(f"{LMMS}/tasks/pope/utils.py").pope_process_results
    return lambda text, truth: score({"answer": truth, "question_id": 1}, [text])["pope_accuracy"]["score"]


def mme_lmms() -> Verdict:
    with absent():
        read = load(f"{LMMS}/tasks/mme/utils.py").parse_pred_ans
    return lambda text, truth: float(read(text) == truth)


def mme_official() -> Verdict:
    with absent():
        read = load("MME/calculation.py").calculate_metrics().parse_pred_ans
    return lambda text, truth: float(read(text.lower()) == truth)


def seed_exact() -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        said = {}
        for truth in OPTIONS:
            for text in LETTERS:
                question = {"question_id": "v1", "question_type_id": 1, "data_type": "image", "answer": truth}
                data = {
                    "questions": [question, {**question, "data_type": "video"}],
                    "question_type": {"x": 1},
                }
                (base / "q.json").write_text(json.dumps(data))
                (base / "a.jsonl").write_text(json.dumps({"question_id": "v1", "text": text}) + "\n")
                files = {
                    "annotation-file": "q.json",
                    "result-file": "a.jsonl",
                    "result-upload-file": "u.jsonl",
                }
                try:
                    printed = run_script(
                        "LLaVA/scripts/convert_seed_for_submission.py",
                        {name: str(base / file) for name, file in files.items()},
                    )
                    said[text, truth] = float("Total accuracy: 100.00%" in printed)
                except KeyError:  # of a type with no right answer at all
                    said[text, truth] = 0.0
    return lambda text, truth: said[text, truth]


def seed_lmms() -> Verdict:
    module = load(f"{LMMS}/tasks/seedbench/utils.py")
    row = {"data_type": "image", "question_id": 1}
    return lambda text, truth: module.seed_aggregation_result(
        [module.seed_process_result({**row, "answer": truth}, [text])["seed_all"]]
    )


def mmmu_choice() -> Verdict:
    module = load("MMMU/mmmu/utils/eval_utils.py")
    module.random = SimpleNamespace(choice=lambda letters: None)  # where it guesses, ours is wrong
    return lambda text, truth: float(
        module.parse_multi_choice_response(text, list(OPTIONS), dict(OPTIONS)) == truth
    )


def mmmu_choice_lmms() -> Verdict:
    module = load(f"{LMMS}/tasks/_task_utils/mmmu_mcq_utils.py")
    module.random = SimpleNamespace(choice=lambda letters: None)
    return lambda text, truth: float(
        module.parse_mmmu_multi_choice_response(text, list(OPTIONS), dict(OPTIONS)) == truth
    )


def mmmu_open() -> Verdict:
    module = load("MMMU/mmmu/utils/eval_utils.py")
    return lambda text, truth: float(module.eval_open(truth, module.parse_open_response(text)))


def mmstar() -> Verdict:
    """Run MMStar's evaluation of a table: the row asked about, and one of each other category."""
    import pandas

    with absent():
        module = load("MMStar/eval/vlmeval/evaluate/mmstar.py")
    categories = {
        "coarse perception": ("image scene and topic", "image style & quality", "image emotion"),
        "fine-grained perception": ("object counting", "recognition", "localization"),
        "instance reasoning": (
            *("single-instance reasoning", "cross-instance attribute reasoning"),
            "cross-instance relation reasoning",
        ),
        "logical reasoning": ("code & sequence reasoning", "diagram reasoning", "common reasoning"),
        "science & technology": (
            *("biology & chemistry & physics", "electronics & energy & mechanical eng."),
            "geography & earth science & agriculture",
        ),
        "math": ("geometry", "numeric commonsense and calculation", "statistical reasoning"),
    }
    table = [
        {"prediction": "-", "answer": "A", "bench": "b", "category": category, "l2_category": name}
        for category, names in categories.items()
        for name in names
    ]
    made: dict[str, Any] = {}
    module.get_logger, module.tqdm = MagicMock(), iter
    module.dump = lambda value, file: made.update(value)

    def verdict(text: str, truth: str) -> float:
        rows = [{**table[0], "prediction": text, "answer": truth}, *table[1:]]
        module.load = lambda file: pandas.DataFrame(rows)
        module.MMStar_eval("x.xlsx")
        return float(made["coarse perception(image scene and topic)"])

    return verdict


def task(
    file: str, name: str, row: Callable[[Any], dict[str, Any]], key: str, **real: str
) -> Callable[[], Verdict]:
    """Return an original of lmms-eval: its `process_results` on one row."""

    def original() -> Verdict:
        with absent(**real):
            score = getattr(load(f"{LMMS}/tasks/{file}"), name)

        def verdict(text: str, truth: Any) -> float:
            with absent(**real):  # some import only when they are called
                made = score(row(truth), [text])[key]
            return float(made.get("is_correct", made.get("score")) if isinstance(made, dict) else made)

        return verdict

    return original


def yes_no_kit() -> Verdict:
    with absent(**SMP):
        sys.modules["vlmeval.smp"].load = sys.modules["vlmeval.smp"].d2df = None
        read = load(f"{KIT}/dataset/utils/yorn.py").YOrN_Extraction
    return lambda text, truth: float(read(text).lower() == truth)


def llava_bench() -> Verdict:
    with absent():
        read = load("LLaVA/llava/eval/eval_gpt_review_bench.py").parse_score
    return lambda text, truth: read(text)


CV = {"idx": 1, "type": "2D", "task": "t", "source": "COCO"}

# Name -> the original, the answers and references that it judges, and where it stands.
ORIGINALS: dict[str, tuple[Callable[[], Verdict], list[str], list[Any], str]] = {
    "vqa_official": (vqa_official, WORDS, HUMANS, "GT-Vision-Lab/VQA vqaEval.py"),
    "vqa_lmms": (vqa_lmms, WORDS, HUMANS, "lmms-eval tasks/vqav2/utils.py"),
    "vqa_m4c": (vqa_m4c, WORDS, HUMANS, "LLaVA llava/eval/m4c_evaluator.py"),
    "vizwiz_lmms": (vizwiz_lmms, WORDS, HUMANS, "lmms-eval tasks/vizwiz_vqa/utils.py"),
    "gqa_llava": (gqa_llava, WORDS, TRUTHS, "LLaVA scripts/convert_gqa_for_eval.py"),
    "vizwiz_official": (vizwiz_official, WORDS, HUMANS, "VizWiz vqaEval.py, in TRI-ML/vlm-evaluation"),
    "gqa_official": (gqa_official, WORDS, TRUTHS, "GQA eval.py, in SHI-Labs/VCoder"),
    "gqa_lmms": (gqa_lmms, WORDS, TRUTHS, "lmms-eval api/metrics.py"),
    "gqa_vlmevalkit": (kit("accuracy"), WORDS, TRUTHS, "VLMEvalKit dataset/utils/vqa_eval.py"),
    "llava_sqa": (llava_sqa, LETTERS, list(OPTIONS), "LLaVA llava/eval/eval_science_qa.py"),
    "lmms_sqa": (lmms_sqa, LETTERS, list(OPTIONS), "lmms-eval tasks/scienceqa/utils.py"),
    "exact_matching": (exact_matching, LETTERS, list(OPTIONS), "VLMEvalKit utils/matching_util.py"),
    "lmms_static": (lmms_static, LETTERS, list(OPTIONS), "lmms-eval tasks/mmbench/mmbench_evals.py"),
    "pope_llava": (pope_llava, YES_NO, ["yes", "no"], "LLaVA llava/eval/eval_pope.py"),
    "pope_lmms": (pope_lmms, YES_NO, ["yes", "no"], "lmms-eval tasks/pope/utils.py"),
    "mme_official": (mme_official, YES_NO, ["yes", "no"], "MME calculation.py, in zjunlp/Deco eval_tool"),
    "mme_lmms": (mme_lmms, YES_NO, ["yes", "no"], "lmms-eval tasks/mme/utils.py"),
    "seed_exact": (seed_exact, LETTERS, list(OPTIONS), "LLaVA scripts/convert_seed_for_submission.py"),
    "seed_lmms": (seed_lmms, LETTERS, list(OPTIONS), "lmms-eval tasks/seedbench/utils.py"),
    "mmstar": (mmstar, LETTERS, list(OPTIONS), "MMStar eval/vlmeval/evaluate/mmstar.py"),
    "mmmu_choice": (mmmu_choice, LETTERS, list(OPTIONS), "MMMU mmmu/utils/eval_utils.py"),
    "mmmu_choice_lmms": (
        *(mmmu_choice_lmms, LETTERS, list(OPTIONS)),
        "lmms-eval tasks/_task_utils/mmmu_mcq_utils.py",
    ),
    "mmmu_open": (mmmu_open, WORDS, TRUTHS, "MMMU mmmu/utils/eval_utils.py"),
    "realworldqa_letter": (
        task(
            "realworldqa/utils.py",
            "realworldqa_process_results",
            lambda t: {"answer": t},
            "exact_match",
            **MCQ,
        ),
        *(LETTERS, list(OPTIONS), "lmms-eval tasks/realworldqa/utils.py"),
    ),
    "realworldqa_word": (
        task(
            "realworldqa/utils.py",
            "realworldqa_process_results",
            lambda t: {"answer": t},
            "exact_match",
            **MCQ,
        ),
        *(WORDS, TRUTHS, "lmms-eval tasks/realworldqa/utils.py"),
    ),
    "hallusionbench": (yes_no_kit, YES_NO, ["yes", "no"], "VLMEvalKit dataset/utils/yorn.py"),
    "cv_bench": (
        task(
            "cv_bench/utils.py",
            "cv_bench_process_results",
            lambda t: {**CV, "answer": f"({t})"},
            "cv_bench_acc",
        ),
        *(LETTERS, list(OPTIONS), "lmms-eval tasks/cv_bench/utils.py"),
    ),
    "mmvp": (
        task("mmvp/utils.py", "mmvp_process_results", lambda t: {"Index": 1, "answer": t}, "mmvp_accuracy"),
        *(LETTERS, ["A", "B"], "lmms-eval tasks/mmvp/utils.py"),
    ),
    "chartqa": (
        task(
            "chartqa/utils.py",
            "chartqa_process_results",
            lambda t: {"answer": t, "type": "human_test"},
            "relaxed_overall",
        ),
        *(WORDS, TRUTHS, "lmms-eval tasks/chartqa/utils.py"),
    ),
    "ocrbench": (
        task(
            "ocrbench/utils.py",
            "ocrbench_process_results",
            lambda t: {"answer": [t, "green"], "dataset": "svt", "question_type": "q"},
            "ocrbench_accuracy",
        ),
        *(WORDS, TRUTHS, "lmms-eval tasks/ocrbench/utils.py"),
    ),
    "ocrbench_formula": (
        task(
            "ocrbench/utils.py",
            "ocrbench_process_results",
            lambda t: {"answer": t, "dataset": "HME100k", "question_type": "q"},
            "ocrbench_accuracy",
        ),
        *(WORDS, TRUTHS, "lmms-eval tasks/ocrbench/utils.py"),
    ),
    "ocrbench_official": (ocrbench_official("svt"), WORDS, TRUTHS, "MultimodalOCR OCRBench/example.py"),
    "ocrbench_official_formula": (
        *(ocrbench_official("HME100k"), WORDS, TRUTHS),
        "MultimodalOCR OCRBench/example.py",
    ),
    "anls": (anls, WORDS, TRUTHS, "lmms-eval api/metrics.py"),
    "llava_bench": (llava_bench, REVIEWS, [None], "LLaVA llava/eval/eval_gpt_review_bench.py"),
}


def table(name: str) -> list[dict[str, Any]]:
    """Return 120 answered questions, in the groups that a benchmark's value is made of."""
    chance, rows = random.Random(name), []
    for number in range(120):
        truth = chance.choice(list(OPTIONS) if name in ("mmbench", "cv_bench") else ["yes", "no"])
        answers = LETTERS if name in ("mmbench", "cv_bench") else YES_NO
        given = truth if chance.random() < 0.7 else chance.choice(answers)
        rows.append({"number": number, "answer": truth, "given": given, "group": number % 3})
    return rows


def pope_value(rows: list[dict[str, Any]]) -> list[float]:
    judge, values = load("LLaVA/llava/eval/eval_pope.py").eval_pope, []
    with tempfile.TemporaryDirectory() as folder:
        for group in range(3):
            here = [row for row in rows if row["group"] == group]
            labels, out = Path(folder) / "l.json", io.StringIO()
            labels.write_text("".join(json.dumps({"label": row["answer"]}) + "\n" for row in here))
            with contextlib.redirect_stdout(out):
                judge([{"text": row["given"]} for row in here], str(labels))
            values.append(100 * float(out.getvalue().split("F1 score: ")[1].split()[0]))
    return [sum(values) / 3]


def mme_value(rows: list[dict[str, Any]]) -> list[float]:
    with absent():
        module = load(f"{LMMS}/tasks/mme/utils.py")
    results = []
    for row in rows:
        asked = {"category": ("existence", "color", "OCR")[row["number"] // 40], "answer": row["answer"]}
        made = module.mme_process_results({**asked, "question_id": row["number"] // 2}, [row["given"]])
        results.append(made["mme_perception_score"])
    return [module.mme_aggregate_results(results)]


def hallusion_index(row: dict[str, Any]) -> str:
    number = row["number"]
    return f"hallusion_{('VD', 'VS')[number % 2]}_map_{number // 12}_{number // 4 % 3}_{number % 4}"


def hallusionbench_value(rows: list[dict[str, Any]]) -> list[float]:
    import pandas

    with absent(**SMP):
        sys.modules["vlmeval.smp"].load = sys.modules["vlmeval.smp"].d2df = None
        module = load(f"{KIT}/dataset/utils/yorn.py")
    scores = [module.YOrN_Extraction(row["given"]).lower() == row["answer"] for row in rows]
    data = {"index": [hallusion_index(row) for row in rows], "score": scores, "l2-category": "map"}
    module.load = lambda file: pandas.DataFrame(data)
    overall = module.Hallusion_rating("x").iloc[0]
    return [float(overall[name]) for name in ("aAcc", "fAcc", "qAcc")]


def hallusionbench_original_value(rows: list[dict[str, Any]]) -> list[float]:
    """Return the original's three shares, where its GPT is replaced by VLMEvalKit's reading of yes or no."""
    said = yes_no_kit()
    with absent():
        module = load("HallusionBench/utils.py")
    data = []
    for row in rows:
        names = ("", "category", "subcategory", "set_id", "figure_id", "question_id")
        asked = dict(zip(names, hallusion_index(row).split("_"), strict=True))
        read = {answer for answer in ("yes", "no") if said(row["given"], answer)}
        verdict = "2" if not read else "1" if row["answer"] in read else "0"
        data.append({**asked, "visual_input": "1", "same": "1", "check": verdict})
    data = module.assign_correctness(data, correctness_entry="check")
    every = module.get_eval_all(data, "check")
    figures, pairs = module.get_eval_fig(data), module.get_eval_pair_all(data, "check")
    return [100 * share["correct"] / share["total"] for share in (every, figures, pairs)]


def mmbench_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {"category": "c", "l2-category": "l"}
    return [
        {**OPTIONS, **names, "index": row["number"] // 2 + 1_000_000 * (row["number"] % 2)}
        | {"answer": row["answer"], "prediction": row["given"]}
        for row in rows
    ]


def mmbench_value(rows: list[dict[str, Any]]) -> list[float]:
    with absent(**MCQ):
        module = load(f"{LMMS}/tasks/mmbench/mmbench_evals.py")
        return [100 * float(module.MMBench_Evaluator().eval_result(mmbench_rows(rows), "static")[0])]


def cv_bench_value(rows: list[dict[str, Any]]) -> list[float]:
    module = load(f"{LMMS}/tasks/cv_bench/utils.py")
    sources = ("ADE20K", "COCO", "Omni3D")
    made = [
        module.cv_bench_process_results(
            {**CV, "answer": f"({row['answer']})", "source": sources[row["group"]]}, [row["given"]]
        )["cv_bench_acc"]
        for row in rows
    ]
    return [100 * module.cv_bench_default_aggregate_results(made)]


def llava_bench_value(rows: list[dict[str, Any]]) -> list[float]:
    """Return LLaVA's summary of reviews, which it rounds to a tenth."""
    with tempfile.TemporaryDirectory() as folder:
        reviews = Path(folder) / "r.jsonl"
        lines = [{"question_id": row["number"], "tuple": grades(row)} for row in rows]
        reviews.write_text("".join(json.dumps(line) + "\n" for line in lines))
        printed = run_script("LLaVA/llava/eval/summarize_gpt_review.py", {"files": str(reviews)})
    return [float(word) for word in printed.split("all ")[1].split()[:3]]


def grades(row: dict[str, Any]) -> list[float]:
    """Return a pair of grades for a row, GPT-4's and the model's."""
    return [6 + row["number"] % 5, 1 + row["number"] % 8]


# Benchmark -> its value, and other numbers, over `table(name)`.
VALUES: dict[str, Callable[[list[dict[str, Any]]], list[float]]] = {
    "pope": pope_value,
    "mme": mme_value,
    "gqa": gqa_value,
    "hallusionbench": hallusionbench_value,
    "hallusionbench_original": hallusionbench_original_value,
    "mmbench": mmbench_value,
    "cv_bench": cv_bench_value,
    "llava_bench": llava_bench_value,
}


def value(name: str) -> list[float]:
    """Return the original's value over the table of that name.

    Raises:
        FileNotFoundError: If its checkout is not there.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return VALUES[name](table(name))


def verdicts(name: str) -> list[list[Any]]:
    """Return the original's verdict on every answer (row) for every reference (column).

    Raises:
        FileNotFoundError: If its checkout is not there.
    """
    original, texts, truths, _ = ORIGINALS[name]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        verdict = original()
        return [[verdict(text, truth) for truth in truths] for text in texts]


if __name__ == "__main__":
    content = {
        name: {
            "source": source,
            "answers": next(pool for pool, of in ANSWERS.items() if of is texts),
            "references": references,
            "verdicts": verdicts(name),
        }
        for name, (_, texts, references, source) in ORIGINALS.items()
    }

    def dumped(value: Any) -> str:
        return (
            json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            .replace(".0,", ",")
            .replace(".0]", "]")
        )

    lines = (f"{dumped(name)}:{dumped(row)}" for name, row in content.items())
    values = dumped({name: value(name) for name in VALUES})
    Path(sys.argv[1]).write_text(
        f'{{"values":{values},\n"answers":{dumped(ANSWERS)},\n"originals":{{\n'
        + ",\n".join(lines)
        + "\n}}\n",
        encoding="utf-8",
    )
