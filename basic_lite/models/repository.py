"""A model as it is published: a folder, or a repository of the hub with the same files.

Weights are taken as safetensors where a model has them, else as `pytorch_model.bin`; never in both forms, and
nothing else of a repository (`original/`, `consolidated.*`, TensorFlow's and Flax's files, GGUF) is fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basic_lite.data import hub
from basic_lite.data.world import parts

SAFETENSORS: str = "model.safetensors"
PICKLED: str = "pytorch_model.bin"
FORMS: tuple[str, ...] = (SAFETENSORS, PICKLED)
"""Names of whole weight files, the preferred form first; shards are listed in the name with `INDEX`."""

INDEX: str = ".index.json"
CONFIGS: tuple[str, ...] = ("config.json", "generation_config.json")
"""What else is read together with the weights."""

_SMALL = re.compile(r"[^/]+\.(json|jinja)|tokenizer\.model|merges\.txt")
"""The small files at the top of a repository that configurations, tokenizers and image settings come from."""


def shards(index: Path) -> list[str]:
    """Return the names of the files that an index lists.

    Raises ValueError if it is no index, or lists what is no file beside it.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of weight files ({type(error).__name__})") from error
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"{index} lists {name!r}, which is no file beside it")
    return names


def weight_files(folder: Path) -> list[Path]:
    """Return a folder's weight files in the preferred form that it has, if any.

    Raises ValueError if an index cannot be read.
    """
    for form in FORMS:
        if (folder / form).is_file():
            return [folder / form]
        if (folder / f"{form}{INDEX}").is_file():
            return [folder / name for name in shards(folder / f"{form}{INDEX}")]
    return []


def fetch(source: str, revision: str | None = None) -> Path:
    """Return the folder with a model's configuration and weights, fetched from the hub where it is none.

    Raises ValueError if the hub does not give it, or it has no weights that are read here.
    """
    folder = Path(parts.located(source))
    if folder.is_dir():
        return folder
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    hub.silence()
    missing: Exception | None = None

    def find(name: str) -> Path | None:
        nonlocal missing
        try:
            return Path(hf_hub_download(source, name, revision=revision))
        except EntryNotFoundError as error:
            missing = missing or error
        return None

    try:
        for form in FORMS:
            for name in (form, f"{form}{INDEX}"):
                path = find(name)
                if path is None:
                    continue
                # File by file, so that no other form or file comes along.
                for shard in [] if name == form else shards(path):
                    hf_hub_download(source, shard, revision=revision)
                for config in CONFIGS:
                    find(config)
                return path.parent
    except ValueError:  # of an index, in one line
        raise
    except Exception as error:  # the hub's client and its transport raise many types, none of them common
        raise ValueError(f"no weights can be loaded from {source!r}: {why(source, error)}") from error
    assert missing is not None
    raise ValueError(
        f"no weights can be loaded from {source!r}: it has neither {SAFETENSORS} nor {PICKLED}, or the hub "
        f"cannot be reached ({why(source, missing)})"
    ) from missing


def read_json(source: str, name: str) -> Any:
    """Return a JSON file of a folder or of the hub as it is written.

    Raises OSError or ValueError where it is missing or damaged, and what the hub's client raises.
    """
    from huggingface_hub import hf_hub_download

    path = Path(parts.located(source)) / name
    if not path.parent.is_dir():
        hub.silence()
        path = Path(hf_hub_download(source, name))
    return json.loads(path.read_text(encoding="utf-8"))


def commit_of(source: str) -> str | None:
    """Return the commit of a repository's configuration in the hub's cache; `None` for a folder.

    transformers 5.17 says so in `config._commit_hash`, 5.24 does not.
    """
    from huggingface_hub import try_to_load_from_cache

    if Path(parts.located(source)).is_dir():
        return None
    path = try_to_load_from_cache(source, CONFIGS[0])
    return Path(path).parent.name if isinstance(path, str) else None


def why(source: str, error: BaseException) -> str:
    """Describe in one line why a library could not read a model, with what to do where the hub refused.

    `error` is as the hub's client raised it, or as transformers wrapped it.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    page = f"https://huggingface.co/{source}"
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, GatedRepoError):
            return f"it is gated: accept its terms on {page}, then log in with `hf auth login`"
        if isinstance(link, RepositoryNotFoundError):
            return (
                f"there is no such folder, and the hub has no {source} that you may read: look at {page}; "
                "for a private one log in with `hf auth login`"
            )
        if isinstance(link, LocalEntryNotFoundError | OfflineModeIsEnabled) and (quiet := hub.silence()):
            return f"there is no such folder, the hub's cache has no such model, and {quiet}"
        link = link.__cause__ or link.__context__
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]


def read_tokenizer(source: str) -> Any:
    """Load a tokenizer from `tokenizer.json` or a sentencepiece model; raises ValueError if it cannot be."""
    from tokenizers import Regex, normalizers
    from transformers import AutoTokenizer, LlamaTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(parts.located(source))
    except Exception as error:  # the hub's client and the parsers raise many types, none of them common
        raise ValueError(
            f"no tokenizer can be loaded from {source!r}: give a folder with tokenizer.json or "
            f"tokenizer.model, or a hub id while a hub can be reached ({why(source, error)})"
        ) from error
    if isinstance(tokenizer, LlamaTokenizer) and tokenizer.legacy:
        # sentencepiece puts "▁" before every text after a special token, one that starts with a space too;
        # `Metaspace` leaves that one out.
        backend = tokenizer.backend_tokenizer
        if backend.normalizer is None:
            backend.normalizer = normalizers.Replace(Regex(r"\A[ ▁]"), "▁▁")
    return tokenizer


@dataclass(frozen=True)
class Download:
    """What a repository would send."""

    weights: list[str]  # names of its weight files
    size: int  # bytes of weights and small files together
    missing: int  # bytes of those that are not in the hub's cache
    gated: bool  # whether its terms must be accepted, which takes a login

    @property
    def pickled(self) -> bool:
        """Whether the weights are converted to safetensors once they are here."""
        return any(name.endswith(".bin") for name in self.weights)


def download_of(source: str, timeout: float) -> Download:
    """Ask the hub what loading a model would download, within `timeout` seconds; downloads nothing.

    Raises OSError of the hub's client, where it does not answer or refuses, and ValueError if the repository
    has no weights that are read here.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    info = HfApi().model_info(source, files_metadata=True, timeout=timeout)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    weights = next((names for form in FORMS if (names := _of_form(form, sizes))), [])
    if not weights:
        raise ValueError(f"{source} has neither {SAFETENSORS} nor {PICKLED}")
    form = next(form for form in FORMS if weights[0].endswith(form[form.index(".") :]))
    small = [
        name for name in sizes if _SMALL.fullmatch(name) and (INDEX not in name or name == f"{form}{INDEX}")
    ]
    here = {n for n in (*weights, *small) if isinstance(try_to_load_from_cache(source, n), str)}
    return Download(
        weights=weights,
        size=sum(sizes[name] for name in (*weights, *small)),
        missing=sum(sizes[name] for name in (*weights, *small) if name not in here),
        gated=bool(info.gated),
    )


def _of_form(form: str, names: Iterable[str]) -> list[str]:
    """Return a form's files among a repository's: the whole file, else the shards."""
    stem, suffix = form.split(".")
    pieces = re.compile(rf"{stem}-\d+-of-\d+\.{suffix}")
    return [form] if form in names else [name for name in names if pieces.fullmatch(name)]
