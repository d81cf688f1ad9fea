"""The paper's eight benchmarks, from fixture files to scores and submissions, through the command line."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_cli import run, stage1, world  # noqa: F401 (world is a fixture)

EVAL = Path(__file__).parents[1] / "fixtures" / "eval"
FILES = {
    "vqav2/v2_OpenEnded_mscoco_val2014_questions.json": "vqav2_questions.json",
    "vqav2/v2_mscoco_val2014_annotations.json": "vqav2_annotations.json",
    "gqa/testdev_balanced_questions.json": "gqa_testdev_balanced_questions.json",
    "scienceqa/problems.json": "sqa_problems.json",
    "scienceqa/pid_splits.json": "sqa_pid_splits.json",
    "textvqa/TextVQA_0.5.1_val.json": "textvqa_val.json",
    "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json": "textvqa_ocr.json",
    "mmbench/mmbench_dev_20230712.tsv": "mmbench_dev.tsv",
    "mmbench-cn/mmbench_dev_cn_20231003.tsv": "mmbench_dev_cn.tsv",
    "mmvet/mm-vet.json": "mm-vet.json",
    "vizwiz/val.json": "vizwiz_val.json",
}
EXPORTED = ("vqav2", "textvqa", "vizwiz", "gqa", "mmbench")
FILES_OF = sorted({name.split("/")[0] for name in FILES})


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> Path:
    """A folder for each benchmark with its original file names, and a picture under every name they use."""
    root = tmp_path_factory.mktemp("benchmarks")
    for target, source in FILES.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EVAL / source, root / target)

    def read(name: str) -> object:
        return json.loads((EVAL / name).read_text())

    pictures = [f"vqav2/val2014/COCO_val2014_{n:012d}.jpg" for n in (101, 202)]
    pictures += [
        f"gqa/images/{row['imageId']}.jpg"
        for row in read(FILES["gqa/testdev_balanced_questions.json"]).values()
    ]
    pictures += [f"scienceqa/images/test/{n}/image.png" for n in (1, 3)]
    pictures += [f"textvqa/train_images/{row['image_id']}.jpg" for row in read("textvqa_val.json")["data"]]
    pictures += [f"mmvet/images/{row['imagename']}" for row in read("mm-vet.json").values()]
    pictures += [f"vizwiz/val/{row['image']}" for row in read("vizwiz_val.json")]
    buffer = io.BytesIO()
    Image.new("RGB", (12, 9), "teal").save(buffer, "PNG")
    for name in pictures:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(buffer.getvalue())
    return root


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("trained")
    run(*stage1(world, "--max-steps", 1, "--bits", 16), cwd=folder)
    return folder


def test_all_eight_run_and_end_in_one_table(benchmarks, trained):
    base = ("eval", "all", "--run", "runs/stage1", "--data", benchmarks)
    done = run(*base, "--limit", 3, "--batch-size", 4, cwd=trained)
    fields = "benchmark split n metric scorer prompt_style parse_failures breakdown interval_95"
    fields += " manifest_hash versions"
    for name in ("vqav2", "gqa", "scienceqa", "textvqa", "mmbench", "mmbench-cn", "mmvet", "vizwiz"):
        content = json.loads((trained / "runs/stage1/eval" / name / "results.json").read_text())
        assert content["benchmark"] == name
        assert set(fields.split()) <= set(content)
        assert content["limit"] == 3
        assert (content["value"] is None) == (name == "mmvet")  # no judge, no MM-Vet score
    assert "68.8" in done.stdout  # of BASIC-7B, as published
    assert "not comparable" in done.stdout


def test_submissions_are_written(benchmarks, trained):
    run("eval", "all", "--run", "runs/stage1", "--data", benchmarks, "--limit", 3, cwd=trained)
    for name in EXPORTED:
        arguments = ("--data", benchmarks / name, "--limit", 3, "--step", "export")
        run("eval", name, "--run", "runs/stage1", *arguments, cwd=trained)
        assert list((trained / "runs/stage1/eval" / name).glob("submission*"))


def test_scoring_and_export_load_no_framework(benchmarks, trained):
    """They run where only the answers were copied to, and in half a second."""
    run("eval", "all", "--run", "runs/stage1", "--data", benchmarks, "--limit", 3, cwd=trained)
    code = (
        "import sys; from basic_lite.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "sys.exit(' '.join(m for m in ('torch', 'transformers', 'datasets') if m in sys.modules) or 0)"
    )
    for name in FILES_OF:
        base = ("eval", name, "--run", "runs/stage1", "--data", str(benchmarks / name), "--limit", "3")
        for step in ("score", "export") if name in EXPORTED else ("score",):
            command = [sys.executable, "-c", code, *base, "--step", step]
            done = subprocess.run(command, cwd=trained, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{name} {step}: {done.stderr}"


def test_mmvet_takes_a_named_judges_grades_and_no_others(benchmarks, trained):
    base = ("eval", "mmvet", "--run", "runs/stage1", "--data", benchmarks / "mmvet", "--limit", 3)
    run(*base, cwd=trained)
    run(*base, "--step", "export", cwd=trained)
    out = trained / "runs/stage1/eval/mmvet"
    prompts = [json.loads(line) for line in (out / "mmvet_judge_prompts.jsonl").read_text().splitlines()]
    assert [row["id"] for row in prompts] == ["v1_0", "v1_1", "v1_2"]
    grades = trained / "grades.json"
    grades.write_text(json.dumps({"v1_0": 0.5, "v1_1": 1.0, "v1_2": 0.0}))
    refused = run(*base, "--step", "score", "--judge-scores", grades, cwd=trained, expect=2)
    assert "name the judge with --judge" in refused.stderr
    run(*base, "--step", "score", "--judge-scores", grades, "--judge", "somebody", cwd=trained)
    content = json.loads((out / "results.json").read_text())
    assert content["value"] == 50.0
    assert "somebody" in content["metric"]
    refused = run(
        *("eval", "gqa", "--run", "runs/stage1", "--data", benchmarks / "gqa", "--limit", 3),
        *("--judge-scores", grades, "--judge", "x"),
        cwd=trained,
        expect=2,
    )
    assert "--judge-scores are for mmvet" in refused.stderr


def test_batched_and_single_answers_are_measured_and_equal(trained):
    base = ("bench", "generate", "--run", "runs/stage1", "--data", EVAL / "mmbench_dev.tsv")
    done = run(*base, "--limit", 3, "--batch-size", 4, cwd=trained)
    assert "equal answers 9 of 9" in done.stdout
    assert done.stdout.count("answers/s") == 2


def test_a_tsv_that_is_cut_off_between_rows_is_noticed(benchmarks, trained):
    """MMBench rows come in rotations: a question that lacks some shows that the file has lost its end."""
    lines = (EVAL / "mmbench_dev.tsv").read_text().splitlines()
    cut = trained / "cut.tsv"
    cut.write_text("\n".join(lines[:-1]) + "\n")
    refused = run(
        "eval", "mmbench", "--run", "runs/stage1", "--data", cut, "--any-size", cwd=trained, expect=2
    )
    assert "question 20 has 3 of 4 rotations" in refused.stderr
    assert not (trained / "runs/stage1/eval/cut").exists()


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("mmbench", lambda text: text.replace("question\t", "quest\t", 1), "column question is missing"),
        ("mmbench", lambda text: text.replace("iVBOR", "!!!!", 1), "does not"),
        ("mmbench", lambda text: text + text.splitlines()[-1] + "\n", "twice"),
    ],
)
def test_bad_benchmark_files_end_in_one_line(benchmarks, trained, name, spoil, message):
    text = (EVAL / "mmbench_dev.tsv").read_text()
    bad = trained / "bad.tsv"
    bad.write_text(spoil(text))
    refused = run("eval", name, "--run", "runs/stage1", "--data", bad, "--any-size", cwd=trained, expect=2)
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1
