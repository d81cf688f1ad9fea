"""`--to hf`: a standard LLaVA folder (with tiles LLaVA-NeXT), named only after it agrees with the run."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basic_lite import files
from basic_lite.export import card, configs
from basic_lite.export import parity as export_parity
from basic_lite.export.chat_template import chat_template
from basic_lite.export.readers import check_gguf, refusals, uncapped
from basic_lite.export.vocabulary import write_tokenizer
from basic_lite.export.weights import (
    Adapters,
    Base,
    Entry,
    base_decoder,
    dequantised,
    entries_of,
    write_shards,
)
from basic_lite.models import checkpoint, zoo
from basic_lite.models.decoder import head_factor
from basic_lite.models.llava import Assembled, read_config
from basic_lite.models.parts import parts_of
from basic_lite.models.tower import vision_config


@dataclass(frozen=True)
class Plan:
    run: Path
    out: Path  # the folder to make; must not exist
    manifest: dict  # the run's
    base: Base | None  # for a run on a 4- or 8-bit base, which base the folder holds
    dtype: torch.dtype  # of the weights
    device: str  # where run and folder are compared
    shard_bytes: int  # most bytes of one file
    old_gemma: bool  # divide the projector by Gemma's embedding scale, for readers that multiply everything
    quantise: str | None  # format of the matrices in GGUF files; `None` for other layouts
    # Where a GGUF file's reader puts a CLIP tower's class token: `"first"` or `"last"`; `None` for other
    # layouts and towers
    class_token: str | None

    @cached_property
    def llm(self) -> Any:
        return read_config(self.manifest["sources"]["llm"], "language model")

    @cached_property
    def tower(self) -> Any:
        return vision_config(read_config(self.manifest["sources"]["tower"], "vision tower"))

    @property
    def adapted(self) -> bool:
        return (self.run / files.ADAPTER).is_file()

    @property
    def image_scale(self) -> float:
        """Factor by which transformers before 5.4 multiplies image features that enter a Gemma decoder."""
        return self.llm.hidden_size**0.5 if self.old_gemma else 1.0

    def origin(self, to: str) -> dict[str, str]:
        return {
            "to": to,
            "run": str(self.run),
            "manifest": files.file_hash(self.run / files.MANIFEST),
        }


def plan(
    run: Path,
    out: Path,
    base: Base | None,
    dtype: str | None,
    device: str,
    shard_bytes: int,
    old_gemma: bool = False,
    to: str = "hf",
    quantise: str | None = None,
    class_token: str | None = None,
) -> Plan:
    """Check an export's options against the run; raises ValueError before any weight is read."""
    manifest = files.read_manifest(run)
    sources, training = manifest["sources"], manifest["training"]
    bits = sources["bits"]
    if bits == 16 and to != "peft" and base == "bf16":  # its base is the original weights already
        base, dtype = None, dtype or ("bf16" if to == "hf" else None)
    if (bits == 16 or to == "peft") and base is not None:
        raise ValueError(f"{run} --to {to} holds no quantised base to choose for; leave --base out")
    if bits != 16 and to != "peft" and base is None:
        raise ValueError(
            f"{run} was trained on a {bits}-bit base; say which base the export holds: --base bf16 (the "
            "original weights: what most people expect, but not quite what was trained on) or --base "
            "dequantised (what was trained on, rounded as it was)"
        )
    known = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    chosen = known[dtype] if dtype else getattr(torch, sources["dtype"])
    plan = Plan(run, out, manifest, base, chosen, device, shard_bytes, old_gemma, quantise, class_token)
    gemma = plan.llm.model_type in ("gemma", "gemma2")
    if old_gemma and not gemma:
        raise ValueError(f"--old-gemma is for Gemma decoders; {sources['llm']} is none")
    if to != "peft" and (registers := zoo.registers_of(plan.tower)):
        raise ValueError(
            f"the tower has {registers} registers, which transformers' LLaVA would take for patches: no "
            "standard folder can hold it; chat and eval read the run itself, and --to peft takes the adapters"
        )
    if sources.get("pool", 1) > 1:
        raise ValueError(
            f"{run} joins patches in front of its projector (--pool), for which transformers has no standard "
            "LLaVA class: nothing can be exported; chat and eval read the run itself"
        )
    if sources.get("tiles", 1) > 1 and to != "hf":
        raise ValueError(
            f"{run} was trained with tiles, which --to {to} cannot hold; --to hf writes a standard LLaVA-NeXT"
        )
    if to == "gguf":
        tower, quantise = plan.tower, (quantise or "f16").lower()
        check_gguf(plan.llm.model_type, tower.model_type, tower.hidden_act, quantise, dtype)
        has_class = tower.model_type == "clip_vision_model"
        if class_token and not has_class:
            raise ValueError(f"--class-token is for CLIP towers; {sources['tower']} is none")
        class_token = (class_token or "last") if has_class else None
        # llama.cpp multiplies whatever enters a Gemma decoder.
        plan = replace(plan, old_gemma=gemma, quantise=quantise, class_token=class_token)
    elif quantise is not None or class_token is not None:
        option = "--quantise" if quantise else "--class-token"
        raise ValueError(f"{option} is for --to gguf, not --to {to}")
    if to == "peft" and any(training.get(name) for name in ("train_tower", "tower_lora")):
        raise ValueError(
            f"{run} trained its vision tower, too, which a folder of the LLM's adapters cannot hold; --to hf "
            "writes it"
        )
    if to == "peft" and not plan.adapted:
        raise ValueError(f"{run} holds no adapters; --to hf takes it elsewhere")
    if out.exists():
        raise ValueError(f"{out} exists already; choose another folder, or remove it")
    return plan


def export_hf(plan: Plan, progress: Callable[[str], None] = lambda line: None) -> dict:
    """Write the folder, read it back, compare it with the run; it gets its name only if they agree.

    `progress` is called with a line for each step. Returns the content of `export.json`.
    """
    progress("asking the run")
    reference = ask(plan)
    with files.complete(plan.out) as draft:
        draft.mkdir()
        progress(f"writing {plan.dtype} weights".replace("torch.", ""))
        write_folder(reference.assembled, plan, reference.tower, draft)
        progress("reading the folder back")
        content = _compare(plan, reference, draft)
        files.write_json(draft / "export.json", content)
        (draft / "README.md").write_text(card.model_card(plan.run, plan.manifest, content), encoding="utf-8")
    return content


@dataclass
class Reference:
    """What an exported folder is compared with."""

    assembled: Assembled  # the run without weights: configuration, tokenizer, ids
    answers: list[export_parity.Answer]  # the run's, on the base that the export will hold
    # How far that base is from the quantised one that was trained on; `None` if it is the same
    to_run: dict | None
    tower: list[Entry]  # the vision tower's tensors


def ask(plan: Plan) -> Reference:
    """Ask the run the fixed prompts, and free its weights; raises ValueError if the bases differ too much."""
    assembled, _ = checkpoint.load_run(plan.run, plan.device)
    answers, to_run = export_parity.ask_run(assembled), None
    if plan.base == "bf16":  # the same adapters on the base that the export holds: only rounding differs
        release(assembled)
        assembled, _ = checkpoint.load_run(plan.run, plan.device, bits=16)
        quantised, answers = answers, export_parity.ask_run(assembled, along=answers)
        to_run = export_parity.compare_logits(answers, quantised)
        if to_run["gap"] > export_parity.BASE_LIMIT:
            raise ValueError(
                f"the base in full precision is too far from the quantised one that was trained on (gap "
                f"{to_run['gap']:.3g}, at most {export_parity.BASE_LIMIT:g}); export with --base dequantised"
            )
    tower = _tower(assembled)
    release(assembled)
    return Reference(assembled, answers, to_run, tower)


def summary(content: dict) -> list[str]:
    """Describe in a few lines what `export.json` holds."""
    parity, lines = content.get("parity"), []
    if parity and "decoder_gap" in parity:
        lines.append(
            f"gap to the run's decoder: {parity['decoder_gap']:.2g} (limit {parity['limit']:g}; rms of the "
            "logits)"
        )
    elif parity:
        lines.append(
            f"gap to the run: {parity['gap']:.2g} (limit {parity['limit']:g}; rms of the logits), "
            f"{parity['equal_texts']} of {parity['texts']} answers equal, pixels differ by at most "
            f"{parity['pixel_gap']:.2g}"
        )
    if "tensor_gap" in content:
        lines.append(
            f"{content['tensors']} tensors read back, all the run's: the largest difference is "
            f"{content['tensor_gap']:.2g} of a row's largest number (rounding to {content['dtype']})"
        )
    quantised = content.get("parity_to_quantised_run")
    if quantised:
        lines.append(
            f"gap of the bf16 base to the quantised one that was trained on: {quantised['gap']:.2g}, "
            f"{quantised['equal_texts']} of {quantised['texts']} answers equal; --base dequantised holds "
            "what was trained on"
        )
    return lines + content.get("notes", [])


def write_folder(assembled: Assembled, plan: Plan, tower: list[Entry], folder: Path) -> None:
    template = chat_template(assembled.template)
    files.write_json(folder / "config.json", configs.model_config(assembled, plan.dtype))
    files.write_json(folder / "generation_config.json", configs.generation_config(assembled))
    files.write_json(folder / "preprocessor_config.json", configs.preprocessor_config(assembled))
    files.write_json(folder / "processor_config.json", configs.processor_config(assembled))
    files.write_json(folder / "chat_template.json", {"chat_template": template})
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_tokenizer(assembled, folder, template)
    config: Any = assembled.model.config
    decoder = decoder_entries(plan, config.tie_word_embeddings)
    entries = chain(decoder, projector_entries(plan), tower)
    write_shards(entries, folder, plan.dtype, plan.shard_bytes)


def contents(folder: Path) -> tuple[dict, list[str]]:
    """Return a folder's `config.json` and the names of its tensors."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config, [entry.name for path in sorted(folder.glob("*.safetensors")) for entry in entries_of(path)]


def decoder_entries(plan: Plan, tied: bool) -> Iterator[Entry]:
    """List the decoder and its head: the base with adapters merged, or the one that was tuned as a whole."""
    whole = plan.run / files.DECODER
    if whole.is_file():
        for entry in entries_of(whole):
            name = entry.name.replace("language_model.", "model.", 1)
            yield Entry(f"language_model.{name}", entry.shape, entry.read)
        return
    sources = checkpoint.sources_of(plan.manifest)
    adapters = Adapters(plan.run) if plan.adapted else None
    factor = head_factor(plan.llm.to_dict(), plan.llm.model_type)
    for entry in base_decoder(sources.llm, plan.manifest["llm"]["revision"], tied):
        if plan.base == "dequantised":
            entry = dequantised(entry, sources.bits, sources.dtype, plan.device)
        entry = adapters.merge(entry) if adapters else entry
        if entry.name == "model.norm.weight" and factor != 1.0:
            entry = _times(entry, factor)
        yield Entry(f"language_model.{entry.name}", entry.shape, entry.read)
    if adapters:
        adapters.check_all_used()


def projector_entries(plan: Plan) -> Iterator[Entry]:
    """List the projector's tensors; the newline of tiles stands beside it, as in a standard LLaVA-NeXT."""
    entries = Adapters(plan.run).projector() if plan.adapted else entries_of(plan.run / files.PROJECTOR)
    # Whatever enters Granite's decoder is multiplied inside it, visual embeddings included.
    scale = plan.image_scale if plan.old_gemma else getattr(plan.llm, "embedding_multiplier", 1.0)
    for entry in entries:
        if entry.name.endswith(".image_newline"):
            entry = Entry("image_newline", entry.shape, entry.read)
        enters = ".linear_2." in entry.name or entry.name == "image_newline"
        yield _times(entry, 1 / scale) if scale != 1.0 and enters else entry


def _times(entry: Entry, factor: float) -> Entry:
    return Entry(entry.name, entry.shape, lambda: entry.read().float() * factor)


def _tower(assembled: Assembled) -> list[Entry]:
    """Return the tower's tensors under the names of transformers 4.x, held on the CPU (at most 1.7 GB)."""
    tower: Any = parts_of(assembled.model).llava.vision_tower
    state = {n.replace(".base_layer.", "."): t for n, t in tower.state_dict().items() if ".lora_" not in n}
    for name, module in tower.named_modules():
        if hasattr(module, "get_delta_weight"):  # adapters of its own, added in fp32 as the decoder's
            delta = module.get_delta_weight("default").detach().float()
            state[f"{name}.weight"] = delta.add_(state[f"{name}.weight"])
    older = tower.config.model_type in ("clip_vision_model", "siglip_vision_model")
    prefix = "vision_tower.vision_model." if older else "vision_tower."
    return [
        Entry(prefix + name.removeprefix("vision_model."), tuple(tensor.shape), lambda tensor=tensor: tensor)
        for name, tensor in ((n, t.detach().cpu()) for n, t in state.items())
    ]


def release(assembled: Assembled) -> None:
    """Free a model's weights; its configuration stays."""
    config, assembled.model = assembled.model.config, nn.Module()
    assembled.model.config = config  # pyright: ignore[reportArgumentType] (a plain attribute)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _compare(plan: Plan, reference: Reference, folder: Path) -> dict:
    """Compare folder and run; return the content of `export.json`. Raises ValueError if they differ."""
    answers = export_parity.ask_folder(folder, reference.answers, plan.device, plan.image_scale)
    result = export_parity.compare_logits(answers, reference.answers)
    result["pixel_gap"] = export_parity.pixel_gap(answers, reference.answers)
    run_dtype = getattr(torch, plan.manifest["sources"]["dtype"])
    result["limit"] = max(export_parity.LIMITS[plan.dtype], export_parity.LIMITS[run_dtype])
    exact = plan.dtype == run_dtype == torch.float32
    if result["gap"] > result["limit"] or (exact and result["equal_texts"] < result["texts"]):
        raise ValueError(
            f"the exported folder is not the run: gap {result['gap']:.3g} (at most {result['limit']:g}), "
            f"{result['equal_texts']} of {result['texts']} answers equal; nothing was kept, please report "
            "this"
        )
    config, names = contents(folder)
    return plan.origin("hf") | {
        "base": plan.base or "as trained",
        "dtype": str(plan.dtype).removeprefix("torch."),
        "old_gemma": plan.old_gemma,
        "parity": result,
        "parity_to_quantised_run": reference.to_run,
        "answers": [answer.text for answer in answers],
        "notes": refusals(config, names) + uncapped(config),
        "weights": files.hashes(folder, ("*.safetensors", "*.gguf")),
        "versions": files.versions(),
        "sources": {k: str(v) for k, v in asdict(checkpoint.sources_of(plan.manifest)).items()},
    }
