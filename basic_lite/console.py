"""Where a command prints, and the bar that shows how far it is; nothing here needs torch."""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def rank_and_count() -> tuple[int, int]:
    """Return this process's number and how many there are, as `accelerate launch` and `torchrun` set them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def command_console(width: int | None = None) -> Console:
    """Return the console of a command, which breaks no line; of several processes only the first prints.

    Brackets are text: names, answers and errors hold some, such as `[/INST]`, or the extra in
    `pip install 'basic-lite[heic]'`.
    """
    quiet = rank_and_count()[0] > 0
    return Console(quiet=quiet, width=width, highlight=False, soft_wrap=True, markup=False)


def quiet_console() -> Console:
    """Return the console of a command that loads models, with the libraries' own progress bars off."""
    silence_libraries()
    return command_console()


def silence_libraries() -> None:
    """Switch off the progress bars of transformers, and of datasets, which is not imported for that."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # heard at import; with pandas it takes 85 MB
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()


def progress_bar(console: Console, *, transient: bool = False) -> Progress:
    """Return a progress display; a transient one is gone when it ends, and not shown where no terminal is."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=transient,
        disable=transient and not console.is_terminal,
    )


OTHER_LOG: str = "other.log"  # what other libraries said, in the folder that a command writes

_OURS = "basic_lite"


class _Aside(logging.Handler):
    """Keeps messages until a folder is named, then appends them to its `OTHER_LOG`."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.lines: deque[str] = deque(maxlen=1000)
        self.folder: Path | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
        self.flush()

    def flush(self) -> None:
        if self.folder is None or not self.lines:
            return
        with suppress(OSError):  # a full disk must not stop a run because of somebody's remark
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / OTHER_LOG).open("a", encoding="utf-8") as handle:
                handle.writelines(f"{line}\n" for line in self.lines)
            self.lines.clear()


class _Logger(logging.Logger):
    """A logger that hands everything to the root: some libraries put a handler on stderr at import."""

    def addHandler(self, hdlr: logging.Handler) -> None:
        if not _prints(hdlr):
            super().addHandler(hdlr)

    @property  # pyright: ignore[reportIncompatibleVariableOverride]
    def propagate(self) -> bool:
        return True

    @propagate.setter
    def propagate(self, value: bool) -> None:
        pass


@contextmanager
def aside() -> Iterator[None]:
    """Keep messages of other libraries off the terminal inside the block; `basic_lite`'s own stay there.

    Their loggers, their own handlers on standard error, and Python's warnings all end in `OTHER_LOG`.
    """
    root, ours = logging.getLogger(), logging.getLogger(_OURS)
    handler, own, made = _Aside(), logging.StreamHandler(), logging.getLoggerClass()
    taken = []
    for logger in list(root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and logger is not ours:
            printing = [own for own in logger.handlers if _prints(own)]
            if printing:
                taken.append((logger, printing, logger.propagate))
                logger.propagate = True
                for printer in printing:
                    logger.removeHandler(printer)
    spoken = ours.propagate
    ours.propagate = False
    ours.addHandler(own)
    root.addHandler(handler)
    logging.setLoggerClass(_Logger)
    logging.captureWarnings(True)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.setLoggerClass(made)
        root.removeHandler(handler)
        ours.removeHandler(own)
        ours.propagate = spoken
        for logger, printing, propagated in taken:
            logger.propagate = propagated
            for printer in printing:
                logger.addHandler(printer)


def write_into(folder: Path) -> None:
    """Let messages of other libraries, earlier ones too, go to `OTHER_LOG` in a folder (inside `aside`)."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Aside):
            handler.folder = folder
            handler.flush()


def _prints(handler: logging.Handler) -> bool:
    """Whether a handler writes to the terminal; pytest's and files' are subclasses."""
    return type(handler) is logging.StreamHandler
