"""Benchmarks beside the paper's eight, Hugging Face folders, and kills: through the command line."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from command import COMMAND, run
from forked import Forked

EVAL = Path(__file__).parents[1] / "fixtures" / "eval"


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def evaluated(folder: Path, name: str) -> tuple[dict, list[dict]]:
    """Return results and predictions of a benchmark."""
    out = folder / "runs/stage1/eval" / name
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return json.loads((out / "results.json").read_text()), rows


SEED_ROW = {"question": "What?", "choice_a": "red", "choice_b": "blue", "choice_c": "1", "choice_d": "2"}


@pytest.mark.usefixtures("short_answers")
def test_pope_mme_and_seed_from_their_own_files(trained, tmp_path, png):
    write(tmp_path / "pope/llava_pope_test.jsonl", (EVAL / "pope_questions.jsonl").read_bytes())
    write(tmp_path / "pope/coco_pope_random.json", (EVAL / "coco_pope_random.json").read_bytes())
    write(tmp_path / "pope/val2014/COCO_val2014_000000000101.jpg", png())
    for category in ("count", "code_reasoning"):
        write(tmp_path / f"mme/{category}/a.png", png())
        asked = "Are there 2? Please answer yes or no.\tYes\nAre there 3? Please answer yes or no.\tNo\n"
        write(tmp_path / f"mme/{category}/a.txt", asked)
    rows = [
        {**SEED_ROW, "question_id": n, "answer": "B", "data_type": "image", "data_id": f"{n}.jpg"}
        | {"question_type_id": n}
        for n in (1, 2)
    ]
    write(tmp_path / "seed/SEED-Bench.json", json.dumps({"questions": rows, "question_type": {}}))
    for number in (1, 2):
        write(tmp_path / f"seed/SEED-Bench-image/{number}.jpg", png())
    base = ("eval", "pope,mme,seed", "--run", "runs/stage1", "--data", tmp_path)
    refused = run(*base, cwd=trained, expect=2)
    assert "pope test has 2 rows and not 9,000 or 8,910" in refused.stderr
    done = run(*base, "--any-size", cwd=trained)
    assert "Not the published 2,374 rows: this is no mme number." in done.stdout
    asked = {}
    for name, count, metric in (
        ("pope", 2, "mean F1 of the categories"),
        ("mme", 4, "perception points"),
        ("seed", 2, "accuracy"),
    ):
        content, rows = evaluated(trained, name)
        assert (content["n"], content["metric"], len(rows)) == (count, metric, count)
        assert content["run"]["published_size"] is False
        assert content["missing_predictions"] == 0
        asked[name] = rows[0]["prompt"]
    short = "\nAnswer the question using a single word or phrase."
    assert asked["pope"] in (
        f"Is there a dog in the image?{short}",
        f"Is there a kettle in the image?{short}",
    )
    assert asked["mme"] in (f"Are there 2?{short}", f"Are there 3?{short}")
    assert asked["seed"].startswith("What?\nA. red\nB. blue\nC. 1\nD. 2\nAnswer with the option's letter")
    for name in ("mme", "seed"):
        single = ("eval", name, "--run", "runs/stage1", "--data", tmp_path / name, "--any-size")
        run(*single, "--step", "export", cwd=trained)
        assert list((trained / "runs/stage1/eval" / name).glob("submission*"))
    refused = run("eval", "pope", "--run", "runs/stage1", "--data", tmp_path / "pope", "--any-size",
                  "--step", "export", cwd=trained, expect=2)  # fmt: skip
    assert "pope has no submission server" in refused.stderr


@pytest.mark.usefixtures("short_answers")
def test_folders_of_parquet_files(trained, tmp_path, parquet, png):
    picture = {"bytes": png(), "path": None}
    read = lambda name: json.loads((EVAL / name).read_text())  # noqa: E731
    labels = {row["question_id"]: row for row in read("vqav2_annotations.json")["annotations"]}
    vqa = [{**labels[row["question_id"]], **row, "image": picture} for row in read("vqav2_questions.json")["questions"]]  # fmt: skip # noqa: E501
    parquet(vqa, "vqav2/data/validation-00000-of-00001.parquet")
    turned = []
    for turn, order in enumerate(("cube cone ball", "cone ball cube", "ball cube cone")):
        options = dict(zip("ABC", order.split(), strict=True))
        answer = next(letter for letter, text in options.items() if text == "cube")
        turned.append(read("mmbench_hf_row.json") | options | {"index": 7 + turn * 10**6, "answer": answer})
    parquet([row | {"image": picture} for row in turned], "mmbench/en/dev-00000-of-00001.parquet")
    pope = [
        {"id": str(n), "question_id": "1", "question": "Is there a dog in the image?", "answer": answer}
        | {"image_source": "x", "image": picture, "category": category}
        for n, (category, answer) in enumerate((("random", "yes"), ("popular", "no")))
    ]
    parquet(pope, "pope/data/test-00000-of-00001.parquet")
    parquet([read("gqa_hf_row.json")], "gqa/testdev_balanced_instructions/testdev-00000-of-00001.parquet")
    pictures = [{"id": read("gqa_hf_row.json")["imageId"], "image": picture}]
    parquet(pictures, "gqa/testdev_balanced_images/testdev-00000-of-00001.parquet")
    science = [
        row | {"image": picture if row["image"] else None} for row in read("sqa_problems.json").values()
    ]
    parquet([row for row in science if row["image"]], "scienceqa/ScienceQA-IMG/test-00000-of-00001.parquet")
    ocr = {row["image_id"]: row["ocr_tokens"] for row in read("textvqa_ocr.json")["data"]}
    text = [row | {"image": picture, "ocr_tokens": ocr[row["image_id"]]} for row in read("textvqa_val.json")["data"]]  # fmt: skip # noqa: E501
    parquet(text, "textvqa/data/validation-00000-of-00001.parquet")
    blind = [
        {"question_id": Path(row["image"]).stem, "image": picture, "question": row["question"]}
        | {"answers": [answer["answer"] for answer in row["answers"]], "category": row["answer_type"]}
        for row in read("vizwiz_val.json")
    ]
    parquet(blind, "vizwiz/data/val-00000-of-00001.parquet")
    vet = [
        {"question_id": name, "image": picture, "question": row["question"], "answer": row["answer"]}
        | {"image_source": row["imagesource"], "capability": ",".join(row["capability"])}
        for name, row in read("mm-vet.json").items()
    ]
    parquet(vet, "mmvet/data/test-00000-of-00001.parquet")
    counts = {
        "vqav2": 3,
        "mmbench": 3,
        "pope": 2,
        "gqa": 1,
        "scienceqa": 2,
        "textvqa": 2,
        "vizwiz": 3,
        "mmvet": 3,
    }
    base = ("eval", ",".join(counts), "--run", "runs/stage1", "--data", tmp_path, "--any-size")
    run(*base, "--out", "parquet", cwd=trained)
    for name, count in counts.items():
        content = json.loads((trained / "parquet" / name / "results.json").read_text())
        assert (content["n"], content["missing_predictions"]) == (count, 0), name
        assert (content["value"] is None) == (name == "mmvet")


def test_a_kill_while_generating_loses_and_doubles_nothing(trained, tmp_path, png):
    """A process of its own and SIGKILL; the next one ends as one that was never killed."""
    rows = [
        {"image": f"{n}.png", "question": f"What is {n}?", "answerable": 1, "answer_type": "other"}
        | {"answers": [{"answer": "a can", "answer_confidence": "yes"}] * 10}
        for n in range(40)
    ]
    write(tmp_path / "val.json", json.dumps(rows))
    for n in range(40):
        write(tmp_path / f"val/{n}.png", png())
    base = ("eval", "vizwiz", "--run", "runs/stage1", "--data", tmp_path, "--any-size", "--batch-size", 2)
    answers = trained / "killed/predictions.jsonl"
    process = Forked([*COMMAND, *base, "--out", "killed"], trained)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (answers.is_file() and answers.read_text().count("\n") >= 4):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 4 <= answers.read_text().count("\n") < 40, "the kill came too late to say anything"
    with answers.open("a") as file:
        file.write('{"question_id": "VizW')  # what a kill in the middle of a write would leave
    run(*base, "--out", "killed", cwd=trained)
    run(*base, "--out", "whole", cwd=trained)
    killed, whole = (
        sorted((trained / name / "predictions.jsonl").read_text().splitlines())
        for name in ("killed", "whole")
    )
    assert killed == whole
    assert len({json.loads(line)["question_id"] for line in killed}) == len(killed) == 40
    values = [
        json.loads((trained / name / "results.json").read_text())["value"] for name in ("killed", "whole")
    ]
    assert values[0] == values[1]
