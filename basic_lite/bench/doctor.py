"""Check a machine before a run is paid for: what works, what does not, and the line that fixes it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants

from basic_lite.data import hub as data_hub
from basic_lite.data.world import parts
from basic_lite.files import one_line
from basic_lite.models import quantised, repository, zoo

TIMEOUT_SECONDS: float = 4.0
"""Longest wait for the hub."""

FREE_BYTES: float = 30e9
"""Free disk below which there is a note: a 7B model is 14 GB, its run and export as much again."""


@dataclass(frozen=True)
class Finding:
    name: str
    state: Literal["good", "note", "bad"]  # a note leaves a run possible, `"bad"` does not
    text: str  # the result, in a few words
    remedy: str = ""  # the line that fixes what is not good


def _state(works: bool) -> Literal["good", "bad"]:
    return "good" if works else "bad"


def examine(folder: Path, model: str | None = None) -> Iterator[Finding]:
    """Look at everything; with `model`, at its download, room on disk and memory too.

    `folder` is where runs are to be written. A check that fails in an unknown way is a finding too. Raises
    ValueError if the zoo has no such model.
    """
    of_model = () if model is None else _checks_of(model)
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("versions", versions),
        ("device", device),
        ("bf16", bf16),
        ("bitsandbytes", bitsandbytes),
        ("liger-kernel", liger),
        ("disk", lambda: disk(folder)),
        ("copies", copies),
        ("hub", hub),
        *of_model,
    )
    for name, check in checks:
        try:
            yield check()
        except Exception as error:
            remedy = "pip install --force-reinstall basic-lite, and report this if it stays"
            yield Finding(name, "bad", f"{type(error).__name__}: {one_line(error, 200)}", remedy)


def _checks_of(model: str) -> tuple[tuple[str, Callable[[], Finding]], ...]:
    from basic_lite.memory.sizes import published_decoder
    from basic_lite.models.llava import Sources

    sources = Sources.named(model)
    tower = zoo.TOWERS[zoo.LLMS[model].tower]
    decoder = published_decoder(model)
    loads: list[Load] = []
    return (
        ("llm", lambda: download("llm", sources.llm, 2 * decoder.parameters, loads)),
        ("tower", lambda: download("tower", sources.tower, tower.published_bytes, loads)),
        ("room", lambda: room(loads, decoder.parameters if zoo.LLMS[model].bits == 4 else 0)),
        ("card", lambda: card(model)),
    )


@dataclass(frozen=True)
class Load:
    """What a part takes on disk, in bytes."""

    missing: float  # to download into the hub's cache
    converted: float  # safetensors that its pickles are converted to


def download(name: str, source: str, known: float, loads: list[Load]) -> Finding:
    """Ask the hub what a part would download and whether it takes a login.

    `source` is a hub id or the name of an embedded part; `known` are the bytes of its weights, for a machine
    without a hub. What it needs on disk is appended to `loads`.
    """
    from huggingface_hub import auth_check
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if source in parts.EMBEDDED:
        loads.append(Load(0, 0))
        return Finding(name, "good", f"{source} ships with the package")
    try:
        needed = repository.download_of(source, TIMEOUT_SECONDS)
        if needed.gated:
            auth_check(source)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        loads.append(Load(known, known))
        remedy = f"look at https://huggingface.co/{source}, then `hf auth login`"
        text = f"{source}, about {known / 1e9:.1f} GB: {repository.why(source, error)}"
        return Finding(name, "bad", text, remedy)
    except Exception as error:  # no network ends in many types
        loads.append(Load(known, known))
        text = (
            f"{source}: about {known / 1e9:.1f} GB; whether it is here already or needs a token could not be "
            f"asked ({one_line(error, 80)})"
        )
        return Finding(name, "note", text, "connect to the hub, or give folders: --llm, --tower")
    loads.append(Load(needed.missing, needed.size if needed.pickled else 0))
    token = "gated, and your login may read it" if needed.gated else "no token needed"
    form = "pickled, converted to safetensors once" if needed.pickled else "safetensors"
    text = f"{source}: {needed.size / 1e9:.1f} GB ({form}), {needed.missing / 1e9:.1f} GB of it to download"
    return Finding(name, "good", f"{text}; {token}")


def room(loads: list[Load], packed: int) -> Finding:
    """Check that the disks of the hub's cache and of this package's can hold a model's parts.

    `packed` counts the weights that a pre-quantised copy holds; 0 for no copy.
    """
    root = quantised.root()
    places = [(Path(constants.HF_HUB_CACHE), sum(load.missing for load in loads))]
    if root is not None:  # the copy has 4 bits, and tables in 16
        places.append((root, sum(load.converted for load in loads) + 0.6 * packed))
    needs: dict[int, tuple[Path, float]] = {}
    for path, size in places:
        existing = _existing(path)
        disk = existing.stat().st_dev
        needs[disk] = (existing, needs.get(disk, (existing, 0.0))[1] + size)
    shares, full = [], False
    for existing, size in needs.values():
        free = shutil.disk_usage(existing).free
        full = full or free < size + (quantised.SPARE_BYTES if size else 0)
        shares.append(f"{size / 1e9:.1f} GB of {free / 1e9:.0f} GB free at {existing}")
    remedy = f"free some, or set HF_HOME and {quantised.VARIABLE} to a larger disk"
    text = f"downloads and copies take {', '.join(shares)}"
    return Finding("room", _state(not full), text, remedy)


def _existing(path: Path) -> Path:
    """Return a path, or the nearest folder above it that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def card(model: str) -> Finding:
    """List the stages of a model that fit this card, by the memory plan; without a GPU, a card of 24 GiB."""
    from basic_lite.memory import sizes, tables

    (decoder,) = sizes.decoders_named(model, None)
    (tower,) = sizes.towers_named(zoo.LLMS[model].tower, None, every=False)
    there = torch.cuda.is_available()
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30 if there else 24.0
    stages, fits = [], 0
    for kind in tables.kinds_of(None):
        row, _ = tables.plan_row(kind, decoder, tower, gib)
        fits += row.micro_batch is not None
        how = "does not fit" if row.micro_batch is None else f"micro-batch {row.micro_batch}"
        stages.append(f"{kind} {how} ({row.peak_gb:.1f} GB)")
    where = f"this card ({gib:.1f} GiB)" if there else "no GPU here; a card of 24 GiB"
    text = f"{where}: {', '.join(stages)}"
    remedy = f"basic-lite plan --model {model} shows which card is needed"
    return Finding("card", "good" if there and fits else "bad" if there else "note", text, remedy)


def versions() -> Finding:
    """Compare what is installed with what the package asks for."""
    from packaging.requirements import Requirement

    wrong, shown = [], []
    for line in requires("basic-lite") or []:
        wanted = Requirement(line)
        if wanted.marker is not None:
            continue  # an extra
        try:
            installed = version(wanted.name)
        except PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(installed, prereleases=True):
            wrong.append(f"{wanted.name} {installed} is not {wanted.specifier}")
        if wanted.name in ("torch", "transformers", "peft"):
            shown.append(f"{wanted.name} {installed}")
    text = "; ".join(wrong) or ", ".join(shown)
    return Finding("versions", _state(not wrong), text, "pip install --upgrade basic-lite")


def device() -> Finding:
    """Name the GPU and the driver, or the reason why there is none."""
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        more = f", {count} of them" if count > 1 else ""
        free, total = torch.cuda.mem_get_info()
        memory = f"{total / 2**30:.1f} GiB of which {free / 2**30:.1f} free"
        text = f"{gpu.name}{more}, {memory}, driver {_driver()}"
        if free < 0.8 * total:
            return Finding("device", "note", text, "nvidia-smi shows what else uses the GPU")
        return Finding("device", "good", f"{text}, CUDA {torch.version.cuda}")
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        text = f"nvidia-smi is here (driver {_driver()}), but torch {torch.__version__} has no CUDA"
        remedy = "pip install --force-reinstall torch (from pytorch.org, for your CUDA)"
        return Finding("device", "bad", text, remedy)
    if torch.version.cuda is not None:
        text = f"torch is built for CUDA {torch.version.cuda}, but sees no GPU (driver {_driver()})"
        return Finding("device", "bad", text, "update the NVIDIA driver, and look at CUDA_VISIBLE_DEVICES")
    text = f"no GPU; {os.cpu_count()} CPU cores"
    return Finding("device", "note", text, "a CPU is for trials; basic-lite plan shows what fits which GPU")


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.split("\n")[0].strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def bf16() -> Finding:
    """Multiply in bf16 and compare with fp32."""
    where = "cuda" if torch.cuda.is_available() else "cpu"
    if where == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        text = "this GPU has none (before Ampere)"
        return Finding("bf16", "note", text, "add --precision fp32 to every command")
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator).to(where) for _ in range(2))
    error = float(((a.bfloat16() @ b.bfloat16()).float() - a @ b).abs().max() / (a @ b).abs().max())
    text = f"a product differs from fp32 by {error:.1g}"
    return Finding("bf16", _state(error < 0.02), text, "add --precision fp32, update the driver")


def bitsandbytes() -> Finding:
    """Run a 4-bit layer forward and backward and compare with its own dequantised weight."""
    from bitsandbytes import functional
    from bitsandbytes.nn.modules import Linear4bit

    where = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    layer = Linear4bit(
        128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=True
    ).to(where)
    rows = torch.randn(8, 128, device=where, requires_grad=True)
    packed: Any = layer.weight
    weight = functional.dequantize_4bit(packed.data, packed.quant_state).float()
    output = layer(rows)
    output.sum().backward()
    gap = float((output - rows @ weight.T).detach().abs().max())
    assert rows.grad is not None
    gradient = float((rows.grad - weight.sum(0)).abs().max())
    text = f"{version('bitsandbytes')}: a 4-bit layer differs by {gap:.1g} forward, {gradient:.1g} backward"
    remedy = "pip install --upgrade bitsandbytes, or add --bits 16"
    return Finding("bitsandbytes", _state(max(gap, gradient) < 1e-2), text, remedy)


def liger() -> Finding:
    """Run one fused kernel, where there is a GPU for it."""
    installed = version("liger-kernel")
    if not torch.cuda.is_available():
        return Finding("liger-kernel", "good", f"{installed}, not needed on a CPU")
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    rows, weight = torch.randn(16, 128, device="cuda"), torch.ones(128, device="cuda")
    output = LigerRMSNormFunction.apply(rows, weight, 1e-6, 0.0, "llama", False)
    expected = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-6)
    gap = float((output - expected).abs().max())
    text = f"{installed}: a fused norm differs by {gap:.1g}"
    return Finding("liger-kernel", _state(gap < 1e-4), text, "pip install --upgrade liger-kernel triton")


def disk(folder: Path) -> Finding:
    """Look at the free disk of the run folder and of the hub's cache, and try to write."""
    places, small, closed = [], False, []
    for path in (folder.absolute(), Path(constants.HF_HUB_CACHE)):
        existing = _existing(path)
        free = shutil.disk_usage(existing).free
        small = small or free < FREE_BYTES
        places.append(f"{free / 1e9:.0f} GB free for {path}")
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            closed.append(str(existing))
    if closed:
        text = f"{', '.join(closed)} cannot be written to"
        return Finding("disk", "bad", text, "choose another --out, or set HF_HOME")
    text = ", ".join(places)
    if small:
        remedy = "a 7B model needs 14 GB, its export as much again: free some, or set HF_HOME"
        return Finding("disk", "note", text, remedy)
    return Finding("disk", "good", text)


_COPIES: dict[quantised.Kind, str] = {
    "quantised": "pre-quantised decoders",
    "converted": "converted from pickles",
    "unpacked": "models in parts",
}


def copies() -> Finding:
    """Show where copies of models are kept, how many, and what removes them."""
    root = quantised.root()
    if root is None:
        return Finding("copies", "good", f"none are kept: {quantised.VARIABLE} is off")
    shown = []
    for kind, what in _COPIES.items():
        folders = quantised.copies(kind)
        if folders or kind == "quantised":
            size = sum(quantised.size_of(folder) for folder in folders) / 1e9
            clears = " (rm -r that folder clears them)" if folders else ""
            shown.append(f"{what}: {len(folders)}, {size:.1f} GB, in {root / kind}{clears}")
    return Finding("copies", "good", "; ".join(shown))


def hub() -> Finding:
    """Ask whether the hub answers."""
    quiet = data_hub.silence()
    if quiet is None:
        return Finding("hub", "good", f"{constants.ENDPOINT} answers")
    remedy = (
        "unset HF_HUB_OFFLINE, set HF_ENDPOINT to a mirror or https_proxy, or give folders: --llm, --tower"
    )
    return Finding("hub", "note", f"{quiet}; only folders and the hub's cache are read", remedy)
