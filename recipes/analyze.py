"""Look inside a language model or a run: `basic-lite analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.training import settings as o

app = typer.Typer(help="Look inside a language model or a run.", no_args_is_help=True)


@app.command()
@o.command
def premise(
    model: Annotated[
        str, o.option("vicuna-7b, gemma-2b, qwen3-4b, ... (see basic-lite models), or tiny.", panel=o.MODEL)
    ] = "vicuna-7b",
    llm: Annotated[
        list[str] | None,
        o.option(
            "Any LLM of a family that basic-lite models lists: hub id or folder. Several: a line each.",
            default="that of --model",
            panel=o.MODEL,
        ),
    ] = None,
    bits: o.BitsOption = None,
    precision: o.PrecisionOption = "auto",
    random_weights: Annotated[
        bool, o.option("The same configuration with random weights.", "--random-weights", panel=o.MODEL)
    ] = False,
    text: Annotated[
        Path | None,
        o.option("Training data or plain text to read.", default="shipped captions", panel=o.DATA),
    ] = None,
    tokens: Annotated[int, o.option("Held-out tokens to read.", panel=o.DATA, callback=o.within(64))] = 512,
    layers: o.LayersOption = None,
    weighting: o.WeightingOption = "quadratic",
    out: Annotated[
        Path | None,
        o.option("JSON file for one LLM's figures; a page with a plot beside it.", default="none"),
    ] = None,
    json: Annotated[Path | None, o.option("JSON Lines to append figures to.", default="none")] = None,
) -> None:
    """Test on text whether the states of layers 1..k still name their tokens, and which --target to use.

    No picture, no vision tower and no training are involved. Best with the captions to train on as --text.

    Maps for --target translated are tried only with at least four tokens for each of their rows.

    Examples:

      basic-lite analyze premise --model gemma-2b --text blip_laion_cc_sbu_558k.json

      basic-lite analyze premise --llm ./my-llm --bits 16 --text captions.json --out premise.json

      basic-lite analyze premise --llm ./one --llm ./other --json premises.jsonl

      basic-lite analyze premise --model tiny --random-weights
    """
    from functools import partial

    from basic_lite.analysis import premise as premise_page
    from basic_lite.console import quiet_console
    from basic_lite.files import write_json
    from basic_lite.models import devices, llava, zoo

    console = quiet_console()
    device = devices.choose_device()
    dtype = devices.choose_dtype(precision, device)
    if out is not None and len(llm or []) > 1:
        raise ValueError("--out is the page of one LLM; --json FILE takes the figures of several")
    held = [(name, zoo.bits_of(model, name) if bits is None else bits) for name in llm or [None]]
    chosen = [llava.Sources.named(model, llm=name, bits=number, dtype=dtype) for name, number in held]
    asked = premise_page.Asked(text, tokens, layers, weighting, random_weights)
    premise_page.check([sources.llm for sources in chosen], json)
    results, failed = {}, []
    for sources, name in zip(chosen, llm or [model], strict=True):
        try:
            result = premise_page.run(sources, device, asked, partial(console.print, style="dim"))
        except ValueError as error:
            if len(chosen) == 1:
                raise
            failed.append(f"{name}: {error}")
            continue
        results[name] = result
        if json is not None:
            premise_page.append(json, premise_page.record(name, sources, asked, result))
    if len(chosen) > 1:
        console.print(premise_page.overview(results))
        if failed:
            count = f"{len(failed)} of {len(chosen)}"
            raise ValueError(f"{count} LLMs could not be examined, first {failed[0]}")
        return
    console.print(premise_page.table(result))
    console.print(premise_page.summary(result))
    console.print(result.verdict.words, style="bold")
    if result.verdict.target is not None:
        # Naming words is not yet teaching: in the embedded world the raw target trains better.
        advice = f"Worth a try: --target {result.verdict.target} --layers {result.verdict.layers}"
        console.print(f"{advice}; basic-lite ablate target compares it with others")
    if out is not None:
        content = premise_page.record(name, sources, asked, result)
        write_json(out, content)
        premise_page.write_page(out.with_suffix(".html"), result, content["model"])
        console.print(f"{out} and {out.with_suffix('.html')}")


@app.command()
def tokens(
    run: Annotated[Path, typer.Argument(help="Run folder, of stage 1 or 2.")],
    images: Annotated[
        Path | None,
        o.option(
            "Folder of pictures. A drawn world's folder stands for its held-out scenes.",
            default="the embedded world, for a run of the tiny model",
            panel=o.DATA,
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        o.option("LLaVA JSON or JSONL with captions of these pictures.", default="none", panel=o.DATA),
    ] = None,
    words: Annotated[
        Path | None,
        o.option("File of words that mean something, one per line.", default="none", panel=o.DATA),
    ] = None,
    limit: Annotated[
        int, o.option("Number of pictures, spread evenly.", panel=o.DATA, callback=o.within(1))
    ] = 64,
    against: Annotated[
        Path | None, o.option("Another run of the same models, such as the plain baseline.", default="none")
    ] = None,
    before: Annotated[
        bool, o.option("Also the run's beginning: fresh projector, LLM as it came.", "--before/--no-before")
    ] = True,
    max_new_tokens: Annotated[
        int, o.option("Longest text of the replacement test; 0 generates none.", callback=o.within(0))
    ] = 48,
    views: Annotated[int, o.option("Pictures in the report.", callback=o.within(0))] = 6,
    seed: Annotated[
        int, o.option("Seed of the embedded world's scenes, without --images.", callback=o.a_seed)
    ] = 0,
    out: Annotated[
        Path | None, o.option("Folder of `tokens.html` and `tokens.json`.", default="RUN/analysis")
    ] = None,
) -> None:
    """Read visual embeddings as words: the nearest vocabulary token of every patch, at every layer.

    Shows how many matches mean something, how far states move, and how deep layers drift to end tokens.

    Shows how much of a caption is left when matched tokens replace the picture.

    Examples:

      basic-lite analyze tokens runs/stage2 --images pictures --captions captions.json

      basic-lite analyze tokens runs/basic/stage2 --against runs/plain/stage2 --images pictures

      basic-lite analyze tokens runs/stage2     (a run of the tiny model, in its own world)
    """
    from basic_lite import files
    from basic_lite.analysis import report
    from basic_lite.analysis.samples import choose_samples, subjects
    from basic_lite.analysis.tokens import analyse
    from basic_lite.console import progress_bar, quiet_console
    from basic_lite.data.world.world import is_embedded
    from basic_lite.models import devices

    console = quiet_console()
    chosen = subjects(run, against, before)
    if images is None and not is_embedded(chosen[0].manifest["sources"]["llm"]):
        raise ValueError("give the pictures to show: --images DIR (only a run of the tiny model has its own)")
    with files.held(out or run):
        samples = choose_samples(images, captions, limit, seed)
        with progress_bar(console) as progress:
            total = len(chosen) * len(samples.chosen)
            task = progress.add_task("pictures", total=total, note="")

            def advance(label: str) -> None:
                progress.update(task, advance=1, note=label)

            results = analyse(
                chosen,
                samples,
                devices.choose_device(),
                words=words,
                views=views,
                max_new_tokens=max_new_tokens,
                advance=advance,
            )
        console.print(report.depth_table(results))
        console.print(report.common_table(results))
        if any(result.tried for result in results.results):
            console.print(report.replacement_table(results))
        folder = out or run / "analysis"
        files.write_json(folder / "tokens.json", results.as_dict())
        page = report.write(folder / "tokens.html", results)
        console.print(f"Report: {page}   figures: {folder / 'tokens.json'}")
