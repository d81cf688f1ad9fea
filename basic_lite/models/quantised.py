"""Pre-quantised copies of decoders: a second start reads 4 bits per weight and quantises nothing.

A copy is a folder that transformers reads as a 4-bit checkpoint. It is known by a hash of everything that its
bits depend on, so a base that has changed, another dtype, device or library never meets an old copy; the copy
is written beside its place under a lock that dies with its process, and renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from basic_lite.data.world import parts
from basic_lite.files import complete, locked, one_line
from basic_lite.models import repository

Copies = Literal["keep", "read", "off"]
"""What a start does with copies: read or else write one, read one that is there, or neither."""

Say = Callable[[str], object]
"""Where one line about a copy goes."""

VARIABLE: str = "BASIC_LITE_CACHE"
"""Environment variable: the folder of the copies, or `off`."""

STAMP: str = "copy.json"
"""What a copy was made of, and the sizes of its files; written last."""

FORMAT: int = 1
"""Version of a copy; another one is another copy."""

SPARE_BYTES: int = 1_000_000_000
"""Disk that stays free beside a new copy."""


def silent(line: str) -> None:
    """Drop a line."""


def root() -> Path | None:
    """Return the folder of all copies, or `None` where they are switched off.

    It is `$BASIC_LITE_CACHE`, else `$HF_HOME/basic-lite` where that is set, else `basic-lite` under
    `$XDG_CACHE_HOME` or `~/.cache`.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted is not None:
        return None if wanted.lower() in ("", "0", "off", "no", "false") else Path(wanted).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "basic-lite"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "basic-lite"


def root_for(what: str, needed: int) -> Path:
    """Return `root()` for what cannot be done without it; raises ValueError if copies are switched off."""
    folder = root()
    if folder is None:
        raise ValueError(
            f"{what}, in a cache that ${VARIABLE} switches off: set it to a folder with "
            f"{needed / 1e9:.1f} GB free, or unset it"
        )
    return folder


@dataclass(frozen=True)
class Copy:
    """One decoder's pre-quantised copy, there or not."""

    path: Path  # its folder
    made_of: dict[str, Any]  # everything that its bits depend on

    @property
    def whole(self) -> bool:
        """Whether it is there with every file as long as it was."""
        try:
            stamp = json.loads((self.path / STAMP).read_text(encoding="utf-8"))
            return stamp["made_of"] == self.made_of and all(
                (self.path / name).stat().st_size == size for name, size in stamp["files"].items()
            )
        except (OSError, ValueError, KeyError):
            return False

    @property
    def size(self) -> int:
        return size_of(self.path)

    def remove(self) -> None:
        """Take it away; what cannot be removed stays."""
        shutil.rmtree(self.path, ignore_errors=True)

    def write(self, model: PreTrainedModel) -> str:
        """Write a freshly quantised decoder with its head, unless there is no room or another process does.

        Returns what happened, in one line. A copy that cannot be written stops nothing.
        """
        needed = sum({t.data_ptr(): t.nbytes for t in model.state_dict().values()}.values())  # tied ones once
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path) as first:
                if not first:
                    return f"no pre-quantised copy written: another process is writing {self.path}"
                if self.whole:
                    return f"pre-quantised copy is there already: {self.path}"
                if full := self._lacks(needed):
                    return f"no pre-quantised copy written: it {full}"
                self._write(model)
        except Exception as error:  # a copy is a convenience: no fault of its disk may end a training
            return f"no pre-quantised copy written in {self.path.parent} ({one_line(error)})"
        return f"pre-quantised copy written: {self.path} ({self.size / 1e9:.2f} GB); the next start reads it"

    def _write(self, model: PreTrainedModel) -> None:
        answers, dtype = model.generation_config, model.config.dtype
        # Vicuna's asks for a temperature without sampling: transformers reads that, but refuses to write it.
        model.generation_config = GenerationConfig()

        def save(draft: Path) -> None:
            model.save_pretrained(draft, max_shard_size="2GB")
            (draft / GENERATION_CONFIG_NAME).write_text(answers.to_json_string(), encoding="utf-8")

        try:
            self._fill(save)
        finally:
            model.generation_config, model.config.dtype = answers, dtype

    def make(self, what: str, needed: int, write: Callable[[Path], object], say: Say) -> None:
        """Write what a start cannot do without, unless it is there; other processes wait for it.

        `what` is done, for a line to `say` and for errors; `needed` are bytes on disk; `write` fills the new
        folder. Raises ValueError if there is no room, or it cannot be written.
        """
        try:
            with locked(self.path, wait=True):
                if self.whole:
                    return
                if full := self._lacks(needed):
                    raise ValueError(f"{what}: that {full}")
                say(f"{what} ({needed / 1e9:.1f} GB in {self.path})")
                self._fill(write)
        except OSError as error:
            raise ValueError(f"{what}, and that failed ({one_line(error)})") from error

    def _lacks(self, needed: int) -> str | None:
        free = shutil.disk_usage(self.path.parent).free
        if free >= needed + SPARE_BYTES:
            return None
        return (
            f"needs {needed / 1e9:.1f} GB and 1 GB to spare, {free / 1e9:.1f} GB are free in "
            f"{self.path.parent} (${VARIABLE} moves it)"
        )

    def _fill(self, write: Callable[[Path], object]) -> None:
        """Let `write` fill the folder, and add what it was made of and the sizes of its files."""
        with complete(self.path) as draft:
            write(draft)
            whole = sorted(path for path in draft.rglob("*") if path.is_file())
            files = {path.relative_to(draft).as_posix(): path.stat().st_size for path in whole}
            stamp = {"made_of": self.made_of, "files": files}
            (draft / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
        self._tidy()

    def _tidy(self) -> None:
        """Remove copies of what stood in the same place before the base changed, and unfinished ones."""
        base = self.made_of["base"]
        for path in self.path.parent.glob(f"[!.]*/{STAMP}"):
            try:
                other = json.loads(path.read_text(encoding="utf-8"))["made_of"]["base"]
                outdated = other["place"] == base["place"] and other != base
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if outdated:
                shutil.rmtree(path.parent, ignore_errors=True)
        for left in self.path.parent.glob(".*.part"):
            with locked(left.with_name(left.name[1:-5])) as nobody:
                if nobody:  # its process was killed
                    shutil.rmtree(left, ignore_errors=True)


def copy_of(
    llm: str, config: PretrainedConfig, dtype: torch.dtype, device: torch.device | str
) -> Copy | None:
    """Return where the copy of a decoder in 4 bits belongs, or `None` where none can be kept.

    `config` is the decoder's own, as its files say; `dtype` is of what is not quantised; `device` is where it
    is quantised: the kernels of a GPU need not round as a CPU's do.
    """
    folder, parent = Path(parts.located(llm)), root()
    if parent is None or getattr(config, "quantization_config", None):  # the base itself is packed
        return None
    revision = getattr(config, "_commit_hash", None)
    if not folder.is_dir() and not revision:
        return None
    files = {*folder.glob("*.safetensors"), *folder.glob("*.json"), *repository.weight_files(folder)}
    made_of = {
        "format": FORMAT,
        "base": base_of(llm, files, revision),
        "quantised": "nf4, double quantisation",
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.device(device).type,
        "versions": {name: version(name) for name in ("torch", "transformers", "bitsandbytes")},
    }
    return copy_in(parent / "quantised", llm, made_of)


def copy_in(folder: Path, source: str, made_of: dict[str, object]) -> Copy:
    """Return the copy of a model in a folder of copies, named by its source and what it is made of."""
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    name = "".join(letter if letter.isalnum() else "-" for letter in Path(source).name)[:40]
    return Copy(folder / f"{name}-{digest}", made_of)


def base_of(source: str, files: Iterable[Path], revision: str | None) -> dict[str, object]:
    """Return what tells a copy's base: of a repository its commit, of a folder its files' sizes and times.

    The time of an inode's last change cannot be set back: it tells apart a file that was overwritten by one
    of the same length and date.
    """
    folder = Path(parts.located(source))
    if not folder.is_dir():
        return {"place": source, "revision": revision}
    states = ((path.name, path.stat()) for path in sorted(files))
    listed = [[name, state.st_size, state.st_mtime_ns, state.st_ctime_ns] for name, state in states]
    return {"place": str(folder.resolve()), "files": listed}


Kind = Literal["quantised", "converted", "unpacked"]
"""Of copies: decoders in 4 bits, weights that were pickles, models taken apart."""


def copies(kind: Kind = "quantised") -> list[Path]:
    """Return the folders of all complete copies of a kind."""
    parent = root()
    return [] if parent is None else sorted(path.parent for path in parent.glob(f"{kind}/[!.]*/{STAMP}"))


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files, whatever else happens to it."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total
