"""The paper's eight benchmarks, from fixture files to scores and submissions, through the command line."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import run
from PIL import Image

from basic_lite.models import checkpoint

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
SHORT = "Answer the question using a single word or phrase."
pytestmark = pytest.mark.usefixtures("short_answers")
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


def test_all_eight_run_and_end_in_one_table(benchmarks, trained, monkeypatch):
    loaded = []
    load_run = checkpoint.load_run
    monkeypatch.setattr(checkpoint, "load_run", lambda *a, **k: loaded.append(a) or load_run(*a, **k))
    base = ("eval", "all", "--run", "runs/stage1", "--data", benchmarks)
    done = run(*base, "--limit", 3, "--batch-size", 4, cwd=trained)
    assert len(loaded) == 1  # one model for all
    names = ("vqav2", "gqa", "scienceqa", "textvqa", "mmbench", "mmbench-cn", "mmvet", "vizwiz")
    total = sum(len(predictions(trained / "runs/stage1", name)) for name in names)
    assert done.stdout.count(f"{total}/{total}") == 1  # and one bar
    assert f"{total} answers, " in done.stdout
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


def predictions(home, name):
    lines = (home / "eval" / name / "predictions.jsonl").read_text().splitlines()
    return {row["question_id"]: row["text"] for row in map(json.loads, lines)}


def test_all_eight_of_an_exported_folder_equal_those_of_its_run(benchmarks, trained):
    """Both in fp32 on the CPU, the folder with other batches: the same answers, values and intervals."""
    run("export", "runs/stage1", "of-stage1", "--device", "cpu", cwd=trained)
    base = ("eval", "all", "--data", benchmarks, "--limit", 3)
    run(*base, "--run", "runs/stage1", "--batch-size", 4, cwd=trained)
    run(*base, "--model", "of-stage1", "--batch-size", 3, cwd=trained)
    homes = trained / "runs/stage1", trained / "runs/of-stage1"
    said = set()
    for name in ("vqav2", "gqa", "scienceqa", "textvqa", "mmbench", "mmbench-cn", "mmvet", "vizwiz"):
        of_run, of_folder = (predictions(home, name) for home in homes)
        assert of_run == of_folder, name
        said |= set(of_run.values())
        results = [json.loads((home / "eval" / name / "results.json").read_text()) for home in homes]
        for key in ("value", "interval_95", "clusters", "figures", "breakdown", "parse_failures"):
            assert results[0][key] == results[1][key], (name, key)
    assert len(said) > 8  # not one answer to everything


def test_submissions_are_written(benchmarks, trained):
    run("eval", "all", "--run", "runs/stage1", "--data", benchmarks, "--limit", 3, cwd=trained)
    for name in EXPORTED:
        arguments = ("--data", benchmarks / name, "--limit", 3, "--step", "export")
        run("eval", name, "--run", "runs/stage1", *arguments, cwd=trained)
        assert list((trained / "runs/stage1/eval" / name).glob("submission*"))


def test_scoring_and_export_load_no_framework(benchmarks, trained):
    """They run where only the answers were copied to, and in half a second each."""
    run("eval", "all", "--run", "runs/stage1", "--data", benchmarks, "--limit", 3, cwd=trained)
    base = ["eval", "{}", "--run", "runs/stage1", "--data", f"{benchmarks}/{{}}", "--limit", "3", "--step"]
    steps = [(name, "score") for name in FILES_OF] + [(name, "export") for name in EXPORTED]
    commands = [[word.format(name) for word in base] + [step] for name, step in steps]
    code = (
        "import sys; from basic_lite.cli import main\n"
        f"for arguments in {commands!r}:\n"
        "    sys.argv = ['basic-lite', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code, arguments\n"
        "sys.exit(' '.join(m for m in ('torch', 'transformers', 'datasets') if m in sys.modules) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=trained, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


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
    assert "a judge is for llava-bench, mmvet, mmvet-v2; gqa is scored" in refused.stderr


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


def test_a_list_goes_on_without_the_benchmark_whose_data_is_missing(benchmarks, trained, monkeypatch):
    """All data is read first, nothing is asked of the hub, and the exit code tells."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    base = ("eval", "mme,gqa,vizwiz", "--run", "runs/stage1", "--limit", 3, "--out", "list")
    done = run(*base, "--data", benchmarks, cwd=trained, expect=2)
    assert done.stdout.index("mme is left out") < done.stdout.index("gqa testdev")
    assert "1 of 3 benchmarks were left out: mme: " in done.stderr
    assert "mme does not exist" in done.stderr
    for name in ("gqa", "vizwiz"):
        assert json.loads((trained / "list" / name / "results.json").read_text())["missing_predictions"] == 0
    assert "vizwiz val" in done.stdout.split("benchmark, split")[1]  # the table of all comes nevertheless
    for data in ("no/folder", "nobody/gqa", "./gqa"):
        alone = run("eval", "gqa", "--run", "runs/stage1", "--data", data, cwd=trained, expect=2)
        assert "does not exist: give a folder or a file" in alone.stderr
    refused = run(*base, "--data", "nowhere", cwd=trained, expect=2)
    assert "several benchmarks need one with a folder for each" in refused.stderr


def test_a_benchmark_that_breaks_while_it_is_asked_leaves_the_others(benchmarks, trained):
    data = shutil.copytree(benchmarks, trained / "broken")
    next((data / "gqa/images").iterdir()).write_bytes(b"no picture")
    base = ("eval", "gqa,vizwiz", "--run", "runs/stage1", "--data", data, "--limit", 3, "--out", "asked")
    done = run(*base, cwd=trained, expect=2)
    assert "1 of 2 benchmarks were left out: gqa: Picture of question" in done.stderr
    assert (trained / "asked/vizwiz/results.json").is_file()
    assert not (trained / "asked/gqa/results.json").exists()


def test_a_split_without_labels_ends_in_its_submission(trained, fixtures, png):
    """VQAv2's server wants all of test2015, whatever part was asked."""
    data = trained / "unlabelled"
    (data / "test2015").mkdir(parents=True)
    rows = []
    for number in range(4):
        name = f"COCO_test2015_{number:012d}.jpg"
        (data / "test2015" / name).write_bytes(png())
        rows.append({"question_id": number * 1000, "image": name, "text": f"What is {number}?\n{SHORT}"})
    part, whole = (data / f"llava_vqav2_mscoco_{name}2015.jsonl" for name in ("test-dev", "test"))
    part.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    base = ("eval", "vqav2", "--split", "test-dev", "--run", "runs/stage1", "--data", data, "--any-size")
    refused = run(*base, "--out", "dev", cwd=trained, expect=2)
    assert "The server takes answers for all of test2015 only" in refused.stderr
    assert not (trained / "dev").exists()  # it was said before the first question
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(*base, "--out", "dev", cwd=trained)
    assert "has no public labels" in done.stdout
    answers = {
        row["question_id"]: row["answer"] for row in json.loads((trained / "dev/submission.json").read_text())
    }
    assert list(answers) == [0, 1000, 2000, 3000]
    assert answers[2000] == answers[3000] == ""
    asked = [
        json.loads(line)["question_id"]
        for line in (trained / "dev/predictions.jsonl").read_text().splitlines()
    ]
    assert sorted(asked) == [0, 1000]
    assert not (trained / "dev/results.json").exists()


def test_vizwiz_test_ends_in_its_submission_too(trained, fixtures, png):
    data = trained / "vizwiz-test"
    (data / "test").mkdir(parents=True)
    shutil.copy(fixtures / "vizwiz_test.json", data / "test.json")
    for row in json.loads((data / "test.json").read_text()):
        (data / "test" / row["image"]).write_bytes(png())
    run(
        "eval",
        "vizwiz",
        "--split",
        "test",
        "--run",
        "runs/stage1",
        "--data",
        data,
        "--any-size",
        "--out",
        "v",
        cwd=trained,
    )
    assert len(json.loads((trained / "v/submission.json").read_text())) == 1
