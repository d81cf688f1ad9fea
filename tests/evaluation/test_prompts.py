"""What every benchmark asks, word for word; each prompt was compared with the original that is named.

LLaVA's question files are those of its `eval.zip` (in the history of LLaVA's repository: commit 32cebc38,
`playground/data/eval`). Where `BASIC_LITE_ORACLES` names the checkouts, the originals are asked again.
"""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from evaluation.original_scorers import LMMS, ROOT, absent, load

from basic_lite.evaluation.table import BENCHMARKS

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
ABCD = {"A": "red", "B": "blue", "C": "green", "D": "no"}
FOUR = "A. red\nB. blue\nC. green\nD. no"
OPTIONS = "(A) red (B) blue"
NOTE = "Note: You only need to respond with A, B without providing any additional information."
STEPS = (
    "First please perform reasoning, and think step by step "
    "to provide best answer to the following question: "
)
OCR = {"question": "what does the USA sign say?", "image_id": "i", "ocr_tokens": ["STOP", "Ahead"]}
MME = {"question": "Is it red?  Please answer yes or no.", "answer": "Yes", "category": "color"}
SQA = {
    "question": "Which?",
    "choices": ["iron", "wood"],
    "answer": 0,
    "hint": "Look at it.",
    "has_image": True,
}
SEED = {"question": "Which?", "answer": "A", "question_type_id": 1, "data_type": "image", "question_id": 1}
SEED |= {f"choice_{letter.lower()}": text for letter, text in ABCD.items()}
CV = {
    "prompt": f"Which?\n{OPTIONS}",
    "choices": ["red", "blue"],
    "answer": "(A)",
    "source": "COCO",
    "task": "t",
}
MMMU = {"question": "<image 1> Which?", "options": "['red', 'blue']", "answer": "A", "id": "validation_Art_1"}
CHOICE = {**MMMU, "question_type": "multiple-choice"}
OPEN = {**MMMU, "question_type": "short-answer", "options": "[]"}
MMVP = {"Index": 1, "Question": "Open?", "Options": "(a) Open (b) Closed", "Correct Answer": "(a)"}
BLIND = {"question": "Is it so?", "category": "VS", "subcategory": "map", "gt_answer": "1"}
BLIND |= {"set_id": "0", "figure_id": "1", "question_id": "0"}
STAR = {"question": "Which?\nOptions: A: red, B: blue ", "answer": "A", "category": "c", "l2_category": "d"}

VIZWIZ = {"question": "What is THIS? I see", "answers": []}
VET = {"question": "What is x?", "answer": "1", "capability": "ocr"}
BENCH = {"question": "What is it?", "gpt_answer": "A", "caption": "c"}
AI2D = {"question": "Which?", "options": list(ABCD.values()), "answer": "1"}
WORLD = {"question": "Which?", "answer": "A", **ABCD}
CV_TSV = {**CV, "choices": None, "question": "Which?", "A": "red", "B": "blue"}
CHART = {"question": "How many?", "answer": ["3"], "half": "human_test"}
TEXT = {"question": "what is it?", "answer": "x", "kind": "k"}
PAGE = {"question": "Who?", "answers": ["me"]}
CUP = {"question": "Is there a cup?", "label": "no"}
RED = {"question": "Is it red?", "image_id": 1}
DVD = {"question": "Is the DVD red?"}
SAID = f"What does the usa sign say?\nReference OCR token: STOP, Ahead\n{SHORT}"
BARE = f"What does the usa sign say?\nReference OCR token: \n{SHORT}"
SEEN = f"What is this? i see\n{UNANSWERABLE}\n{SHORT}"
IRON = f"Which?\nA. iron\nB. wood\n{LETTER}"
ONE_WORD = "How many?\nAnswer the question with a single word."

# Benchmark, style, row as a reader yields it, the user turn, where the words were compared.
PROMPTS: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("vqav2", "llava", RED, f"Is it red?\n{SHORT}", "LLaVA docs/Evaluation.md"),
    ("vqav2", "lmms", RED, f"Is it red?\n{SHORT}", "lmms-eval vqav2"),
    ("gqa", "llava", DVD, f"Is the DVD red?\n{SHORT}", "llava_gqa_testdev_balanced.jsonl"),
    ("gqa", "lmms", DVD, f"Is the DVD red?\n{SHORT}", "lmms-eval gqa"),
    ("scienceqa", "llava", SQA, f"Context: Look at it.\n{IRON}", "llava_test_CQM-A.json"),
    ("scienceqa", "llava", {**SQA, "hint": ""}, IRON, "llava_test_CQM-A.json"),
    ("scienceqa", "lmms", SQA, f"Context: Look at it.\n{IRON}", "lmms-eval scienceqa"),
    ("textvqa", "llava", OCR, SAID, "llava_textvqa_val_v051_ocr.jsonl"),
    ("textvqa", "llava", {**OCR, "ocr_tokens": []}, BARE, "llava_textvqa_val_v051_ocr.jsonl"),
    ("textvqa", "lmms", OCR, f"What does the usa sign say?\n{SHORT}", "lmms-eval textvqa"),
    ("vizwiz", "llava", VIZWIZ, SEEN, "vizwiz/llava_test.jsonl"),
    ("vizwiz", "lmms", VIZWIZ, SEEN, "lmms-eval vizwiz_vqa"),
    ("pope", "llava", CUP, f"Is there a cup?\n{SHORT}", "llava_pope_test.jsonl"),
    ("pope", "lmms", CUP, f"Is there a cup?\n{SHORT}", "lmms-eval pope"),
    ("mme", "llava", MME, f"Is it red?\n{SHORT}", "llava_mme.jsonl"),
    ("mme", "lmms", MME, f"Is it red? \n{SHORT}", "lmms-eval mme"),
    ("seed", "llava", SEED, f"Which?\n{FOUR}\n{LETTER}", "LLaVA docs/Evaluation.md"),
    ("seed", "lmms", SEED, f"Which?\n{FOUR}\n{LETTER}", "lmms-eval seedbench"),
    ("mmvet", "llava", {**VET, "question": "What is x? "}, "What is x? ", "llava-mm-vet.jsonl"),
    ("mmvet", "lmms", VET, f"{STEPS}\n\nWhat is x?", "lmms-eval mmvet"),
    ("llava-bench", "llava", BENCH, "What is it?", "LLaVA docs/Evaluation.md"),
    ("ai2d", "llava", AI2D, f"Which?\n{FOUR}\n{LETTER}", "lmms-eval ai2d"),
    ("mmstar", "llava", STAR, f"Which?\nOptions: A: red, B: blue\n{LETTER}", "LLaVA's request"),
    ("mmstar", "lmms", STAR, f"Which?\nOptions: A: red, B: blue\n{LETTER[:-1]}", "lmms-eval mmstar"),
    ("mmmu", "llava", CHOICE, f"<image 1> Which?\n(A) red\n(B) blue\n\n{LETTER}", "MMMU llava1.5.yaml"),
    ("mmmu", "llava", OPEN, f"<image 1> Which?\n{SHORT}", "MMMU llava1.5.yaml"),
    ("mmmu", "lmms", CHOICE, f"<image 1> Which?\nA. red\nB. blue\n\n{LETTER}", "lmms-eval mmmu"),
    ("mmmu", "lmms", OPEN, f"<image 1> Which?\n\n{SHORT}", "lmms-eval mmmu"),
    ("realworldqa", "llava", {"question": "Which? ", "answer": "A"}, "Which?", "lmms-eval realworldqa"),
    ("realworldqa", "llava", WORLD, f"Which?\n{FOUR}\n{LETTER}", "VLMEvalKit vlm/llava"),
    ("hallusionbench", "llava", BLIND, f"Is it so?\n{SHORT}", "LLaVA's request"),
    ("hallusionbench", "lmms", BLIND, "Is it so?", "lmms-eval hallusion_bench"),
    ("cv-bench", "llava", CV, f"Which?\n{OPTIONS}\n{LETTER}", "Cambrian eval/eval/ade, coco, omni"),
    ("cv-bench", "lmms", CV, f"{NOTE}\n\nWhich?\n{OPTIONS}", "lmms-eval cv_bench"),
    ("cv-bench", "llava", CV_TSV, f"Which?\n{OPTIONS}\n{LETTER}", "VLMEvalKit's table, with a prompt"),
    ("mmvp", "llava", MMVP, f"Open?\nA. Open\nB. Closed\n{LETTER}", "lmms-eval mmvp"),
    ("chartqa", "llava", CHART, f"How many?\n{SHORT}", "LLaVA's request"),
    ("chartqa", "lmms", CHART, ONE_WORD, "lmms-eval chartqa"),
    ("ocrbench", "llava", TEXT, f"what is it?\n{SHORT}", "MultimodalOCR OCRBench/scripts/LLaVA1_5.py"),
    ("ocrbench", "lmms", TEXT, "what is it?", "lmms-eval ocrbench"),
    ("docvqa", "lmms", PAGE, f"Who?\n{SHORT}", "lmms-eval docvqa"),
    ("infovqa", "llava", PAGE, f"Who?\n{SHORT}", "lmms-eval infovqa"),
]


def asked(name: str, style: str, row: dict[str, Any]) -> str:
    question = BENCHMARKS[name].question({"id": 1, "image": None, **row}, style)
    assert question is not None
    return question.text


@pytest.mark.parametrize(("name", "style", "row", "text", "source"), PROMPTS)
def test_prompts(name, style, row, text, source):
    assert asked(name, style, row) == text


# Benchmark, row as a reader yields it, and the question without its options, asked in every style.
CELLS = {"index": "1", "hint": "Look.", "answer": "A", "category": "c", **ABCD}
STEMS: list[tuple[str, dict[str, Any], str]] = [
    ("mmbench", {**CELLS, "question": "Which?"}, "Look.\nWhich?"),
    ("mmbench-cn", {**CELLS, "question": "哪个？", "hint": None}, "哪个？"),
    ("scienceqa", SQA, "Context: Look at it.\nWhich?"),
    ("seed", SEED, "Which?"),
    ("ai2d", AI2D, "Which?"),
    ("realworldqa", WORLD, "Which?"),
    ("cv-bench", CV_TSV, "Which?"),
    ("cv-bench", {**CV, "question": "Which?"}, "Which?"),
    ("mmvp", MMVP, "Open?"),
    ("mmstar", {**STAR, **ABCD, "question": "Which?"}, "Which?"),
    ("mine", {"question": "Which?", "choices": ["red", "blue"], "answer": "red"}, "Which?"),
    # Options in the question, or pictures among them
    ("cv-bench", CV, ""),
    ("mmstar", STAR, ""),
    ("mmmu", CHOICE, ""),
]


@pytest.mark.parametrize(("name", "row", "stem"), STEMS)
def test_a_choice_has_its_question_alone(name, row, stem):
    for style in BENCHMARKS[name].styles:
        question = BENCHMARKS[name].question({"id": 1, "image": None, **row}, style)
        assert question is not None
        assert question.stem == stem
        assert len(question.choices) >= 2


# Benchmark -> lmms-eval's module, its function, and the file that holds the words around a question.
TASKS = {
    name: (f"{folder}/{module}.py", function, f"{folder}/{settings}")
    for name, folder, module, function, settings in (
        line.split()
        for line in """
            vqav2 vqav2 utils vqav2_doc_to_text _default_template_vqav2_yaml
            gqa gqa utils gqa_doc_to_text gqa.yaml
            scienceqa scienceqa utils sqa_doc_to_text scienceqa_img.yaml
            textvqa textvqa utils textvqa_doc_to_text _default_template_textvqa_yaml
            vizwiz vizwiz_vqa utils vizwiz_vqa_doc_to_text _default_template_vqa_yaml
            pope pope utils pope_doc_to_text pope.yaml
            mme mme utils mme_doc_to_text mme.yaml
            seed seedbench utils seed_doc_to_text seedbench.yaml
            mmvet mmvet utils doc_to_text mmvet.yaml
            mmstar mmstar utils mmstar_doc_to_text _default_template_yaml
            ai2d ai2d utils ai2d_doc_to_text ai2d.yaml
            mmmu mmmu utils mmmu_doc_to_text mmmu_val.yaml
            realworldqa realworldqa utils realworldqa_doc_to_text realworldqa.yaml
            hallusionbench hallusion_bench evaluate_hb hb_doc_to_text hallusion_bench_image.yaml
            cv-bench cv_bench utils cv_bench_doc_to_text _default_template_yaml
            mmvp mmvp utils mmvp_doc_to_text _default_template_yaml
            chartqa chartqa utils chartqa_doc_to_text chartqa.yaml
            ocrbench ocrbench utils ocrbench_doc_to_text ocrbench.yaml
            docvqa docvqa utils docvqa_doc_to_text _default_template_docvqa_yaml
            infovqa infovqa utils infovqa_doc_to_text _default_template_infovqa_yaml
        """.strip().splitlines()
    )
}
with_originals = pytest.mark.skipif("BASIC_LITE_ORACLES" not in os.environ, reason="no checkouts are named")


@with_originals
@pytest.mark.parametrize(
    ("name", "row", "text"), [(name, row, text) for name, _, row, text, source in PROMPTS if "lmms" in source]
)
def test_lmms_eval_still_asks_so(name, row, text):
    yaml = pytest.importorskip("yaml")
    file, function, settings = TASKS[name]
    with absent():
        render = getattr(load(f"{LMMS}/tasks/{file}"), function)
    words = re.sub(r"!function \S+", "x", (ROOT / LMMS / "tasks" / settings).read_text("utf-8"))
    default = yaml.safe_load(words).get("lmms_eval_specific_kwargs", {}).get("default")
    assert (render(row, default) if default else render(row)) == text


@with_originals
def test_mmmu_still_asks_so():
    yaml = pytest.importorskip("yaml")
    render = load("MMMU/mmmu/utils/data_utils.py").construct_prompt
    config = yaml.safe_load((ROOT / "MMMU/mmmu/configs/llava1.5.yaml").read_text())
    config = {name: value[0] for name, value in config.items()}
    for row in (CHOICE, OPEN):
        assert render(row, config)["final_input_prompt"] == asked("mmmu", "llava", row)
