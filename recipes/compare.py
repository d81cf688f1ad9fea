"""Compare two runs on the same questions: is the difference more than noise, and which questions flipped?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.training import settings as o


def main(
    run_a: Annotated[Path, typer.Argument(help="Run to compare with, such as the baseline.")],
    run_b: Annotated[Path, typer.Argument(help="Run of interest.")],
    benchmark: Annotated[
        str | None, o.option("Only this one.", default="every benchmark that both have")
    ] = None,
    page: Annotated[bool, o.option("Write an HTML page of flipped questions.", "--page/--no-page")] = True,
    out: Annotated[Path | None, o.option("Folder of the pages.", default="RUN_B/compare")] = None,
) -> None:
    """Pair the answers of two runs by question: difference, 95 % interval, p value, categories, flips.

    Examples:

      basic-lite compare runs/plain runs/basic

      basic-lite compare runs/plain runs/basic --benchmark mmbench --no-page
    """
    from basic_lite.console import command_console
    from basic_lite.evaluation import predictions, show, table
    from basic_lite.evaluation.compare import compare
    from basic_lite.evaluation.run import SWAPPED, Candidate, Evaluation
    from basic_lite.evaluation.statistics import load_score

    console = command_console()
    have = [{path.parent.name for path in (run / "eval").glob("*/score.json")} for run in (run_a, run_b)]
    chosen = [table.name_of(benchmark)] if benchmark else sorted(have[0] & have[1])
    if not chosen:
        raise ValueError(f"{run_a} and {run_b} have no benchmark in common; run `basic-lite eval` on both")
    for name in chosen:
        folders = [run / "eval" / name for run in (run_a, run_b)]
        a, b = (load_score(folder / "score.json") for folder in folders)
        result = compare(a, b)
        console.print(show.comparison_table(name, result, run_a, run_b))
        if not page:
            continue
        content = show.read_results(folders[1] / "results.json")
        if "data" not in content["run"]:
            raise ValueError(
                f"{folders[1]}/results.json is of an older version: eval --step score makes it anew"
            )
        evaluation = Evaluation(
            candidate=Candidate(run_b),
            name=content["benchmark"],
            out=folders[1],
            data=content["run"]["data"],
            images=Path(content["run"]["images"]) if content["run"]["images"] else None,
            split=content["split"],
            prompt_style=content["prompt_style"],
            limit=content["limit"],
            any_size=content["run"].get("any_size", not content["run"]["published_size"]),
            swap_pictures=content["run"].get("decoding", "").endswith(SWAPPED),
        )
        questions = evaluation.questions(with_images=True)
        answers = {
            str(run): predictions.read(folder / "predictions.jsonl", questions)
            for run, folder in zip((run_a, run_b), folders, strict=True)
        }
        path = show.write_page(result, name, questions, answers, (out or run_b / "compare") / f"{name}.html")
        console.print(f"{len(result.flipped)} flipped questions in {path}")
