"""The model card of an exported folder: what it was made of, how, and what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

from basic_lite.data.rows import WHITE, Exif
from basic_lite.files import read_log, versions

_LICENCES: dict[str, str] = {
    "lmsys/vicuna-7b-v1.5": "llama2",
    "lmsys/vicuna-13b-v1.5": "llama2",
    "google/gemma-2b-it": "gemma",
    "google/gemma-2-2b-it": "gemma",
    "microsoft/Phi-3-mini-4k-instruct": "mit",
    "mistralai/Mistral-7B-Instruct-v0.2": "apache-2.0",
    "google/siglip-so400m-patch14-384": "apache-2.0",
}
"""As the hub's pages of these models name them; whoever publishes a model looks there again."""


def licence_of(source: str) -> str | None:
    """Return the licence that a folder's own card names, or the one known of a hub id; `None` if neither."""
    readme = Path(source) / "README.md"
    if readme.is_file():
        head = readme.read_text(encoding="utf-8", errors="replace")[:4000]
        licence = re.search(r"^license:\s*(\S+)\s*$", head, re.MULTILINE)
        if licence and head.startswith("---"):
            return licence.group(1)
    return _LICENCES.get(source)


def orientation_note(exif: Exif) -> str:
    """Describe how the EXIF rotation of a picture is treated before an exported model sees it."""
    if exif == "rotate":
        return (
            "Trained on pictures turned as their EXIF says (`--exif rotate`). transformers' `load_image` "
            "turns them, too; a picture that PIL has opened goes through `PIL.ImageOps.exif_transpose` first."
        )
    return (
        "Trained on pictures as they are stored, without the rotation that EXIF asks for (`--exif ignore`, "
        "as LLaVA). transformers' `load_image` and pipeline turn them; its processor takes a picture that "
        "PIL has opened as it is, which is how training saw it."
    )


def background_note(background: str) -> str:
    """Describe how a transparent picture is treated before an exported model sees it."""
    name = "white" if background == WHITE else background
    return (
        f"Transparent pictures were put on {name} (`--background`). transformers' own loaders drop the "
        "transparency and show what is hidden there, black for most logos: put such pictures on "
        f'`PIL.Image.new("RGBA", picture.size, "{name}")` with `alpha_composite` first.'
    )


def model_card(run: Path, manifest: dict, export: dict) -> str:
    """Write the card from the run's log, evaluations and manifest, and the content of `export.json`."""
    sources = manifest["sources"]
    licence = licence_of(sources["llm"])
    library = "gguf" if export["to"] == "gguf" else "transformers"
    head = ["---", f"license: {licence or 'unknown'}", f"library_name: {library}"]
    head += ["pipeline_tag: image-text-to-text", "tags: [llava, basic-lite]", "---", ""]
    method = manifest["method"]
    what = "BASIC (arXiv 2508.06895)" if method["basic"] else "plain LLaVA training, without BASIC's terms"
    lines = [
        "# Model card",
        "",
        f"A LLaVA of `{sources['llm']}` and `{sources['tower']}`, stage {manifest['stage']}, trained with "
        f"[basic_lite](https://arxiv.org/abs/2508.06895): {what}.",
        "",
        "## Parts and licences",
        "",
        "| part | source | revision or fingerprint | licence |",
        "|---|---|---|---|",
    ]
    for part in ("llm", "tower"):
        known = manifest[part]
        mark = known.get("revision") or known.get("fingerprint") or "not known"
        terms = licence_of(sources[part]) or "not known: look it up"
        lines.append(f"| {part} | `{sources[part]}` | {mark} | {terms} |")
    lines += ["", "The licences of the training data come on top; they are not known here.", ""]
    lines += _table("Data", manifest["data"] | {"rows used": _rows(manifest)})
    lines += _table("Method", method)
    lines += _table("Training", manifest["training"] | {"steps": manifest["steps"], "bits": sources["bits"]})
    lines += ["## Pictures", "", orientation_note(sources.get("exif", "ignore")), ""]
    lines += [background_note(sources.get("background", WHITE)), ""]
    lines += _losses(run)
    lines += _results(run)
    lines += _export(export)
    lines += _table("Versions of the training", manifest["versions"])
    lines += _table("Versions of the export", versions())
    return "\n".join([*head, *lines])


def _rows(manifest: dict) -> str:
    return ", ".join(f"{name} {count}" for name, count in manifest.get("rows", {}).items()) or "not counted"


def _table(title: str, content: dict) -> list[str]:
    rows = [f"| {key.replace('_', ' ')} | {value} |" for key, value in content.items() if value is not None]
    return [f"## {title}", "", "| | |", "|---|---|", *rows, ""]


def _losses(run: Path) -> list[str]:
    """Show the training's losses, and what was measured of held-out rows, with the last sample answers."""
    rows = read_log(run / "log.jsonl")
    measured = [row for row in rows if "val_lm" in row]
    lines = _curve("Losses", [row for row in rows if "lm" in row], "")
    lines += _curve("Validation: rows that were not trained on", measured, "val_")
    samples = measured[-1]["samples"] if measured else []
    if samples:
        lines += ["| row | answer after training | true answer |", "|---|---|---|"]
        lines += [f"| {' | '.join(map(_cell, (s['id'], s['answer'], s['true'])))} |" for s in samples]
        lines.append("")
    return lines


def _curve(title: str, rows: list[dict], prefix: str) -> list[str]:
    if not rows:
        return []
    names = [
        n for n in ("loss", "lm", "das", "sds", "cosine", "named") if rows[-1].get(prefix + n) is not None
    ]
    shown = rows if len(rows) <= 5 else [rows[i * (len(rows) - 1) // 4] for i in range(5)]
    lines = [f"## {title}", "", f"| step | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in shown:
        known = (row.get(prefix + name) for name in names)
        values = ("" if value is None else f"{value:.4f}" for value in known)
        lines.append(f"| {row['step']} | {' | '.join(values)} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    """Return a text that breaks no table, whatever a model wrote."""
    return "".join(c if c.isprintable() else " " for c in text).replace("|", "\\|")


def _results(run: Path) -> list[str]:
    lines = ["## Evaluation", ""]
    rows = []
    for path in sorted((run / "eval").glob("*/results.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        published = (result.get("run") or {}).get("published_size")
        note = "" if published else "not the published set: no number of this benchmark"
        value = result.get("value")
        shown = f"{value:.2f}" if isinstance(value, (int, float)) else "not scored"
        rows.append(
            f"| {result['benchmark']} | {result.get('split')} | {result.get('metric')} | {shown} | "
            f"{result['n']} | {result.get('scorer')} | {note} |"
        )
    if not rows:
        return [*lines, "None was found in the run.", ""]
    return [*lines, "| benchmark | split | metric | value | n | scorer | |", "|---" * 7 + "|", *rows, ""]


def _export(export: dict) -> list[str]:
    parity = export.get("parity")
    content: dict[str, str] = {"base": export["base"], "dtype": export["dtype"]}
    if parity:
        content |= {
            "gap to the run (rms of logits)": f"{parity['gap']:.2g}, limit {parity['limit']:g}",
            "equal greedy answers": f"{parity['equal_texts']} of {parity['texts']}",
            "largest difference of prepared pixels": f"{parity['pixel_gap']:.2g}",
        }
    else:
        content["tensors compared with the run"] = (
            f"{export['tensors']}, largest difference {export['tensor_gap']:.2g} of a row's largest number"
        )
    if export["parity_to_quantised_run"]:
        quantised = export["parity_to_quantised_run"]
        content["gap to the quantised run"] = (
            f"{quantised['gap']:.2g}, {quantised['equal_texts']} of {quantised['texts']} answers equal"
        )
    if export["old_gemma"] and export["to"] == "hf":
        content["readers"] = "only those that multiply image features by sqrt(D): transformers before 5.4"
    return _table("Export", content)
