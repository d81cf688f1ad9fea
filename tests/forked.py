"""Python in processes of its own, forked from one that has imported the libraries.

To start Python and import torch, transformers and bitsandbytes anew takes five seconds of a core each time.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["basic_lite.training.run", "basic_lite.evaluation.run", "basic_lite.cli"])


class Forked:
    """What `subprocess.Popen` is, for `sys.executable` with `-c` and code, `-m` and a module, or a script.

    Variables that libraries read when they are imported are those of the first such process.

    Args:
        command: As `Popen` takes it.
        cwd: Where it runs.
        environment: Variables beside this process's own.
        apart: Output and errors are two texts; else all of it is output.
    """

    def __init__(
        self,
        command: Sequence[object],
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        apart: bool = False,
    ) -> None:
        self.args = [*map(str, command)]
        assert self.args[0] == sys.executable
        self._said = [tempfile.NamedTemporaryFile("r", encoding="utf-8") for _ in range(1 + apart)]
        names = [file.name for file in self._said]
        given = (self.args[1:], str(cwd), {**os.environ, **(environment or {})}, names[0], names[-1])
        self._process = _CONTEXT.Process(target=_run, args=given)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ends just now
                os.kill(self._process.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        output, *errors = (file.read() for file in self._said)
        return output, "".join(errors)


def _run(words: list[str], folder: str, environment: dict[str, str], output: str, errors: str) -> None:
    """Do in a forked process what Python does with these arguments."""
    import torch

    for stream, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


@atexit.register
def _end() -> None:
    """Leave nobody waiting for a process that a failed test left."""
    for process in multiprocessing.active_children():
        process.kill()
