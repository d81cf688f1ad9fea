"""Training processes started together, as `accelerate launch` does it."""

from __future__ import annotations

import socket

from command import COMMAND
from forked import Forked


def start(command: list, cwd, processes: int = 2, **more: str) -> list[Forked]:
    """Start processes as `accelerate launch --cpu` does: it hands them these variables, and `more`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {k: str(v) for k, v in names.items()} | {"ACCELERATE_USE_CPU": "true"} | more
        started.append(Forked(command, cwd, environment))
    return started


def launch(arguments: list, cwd) -> list[Forked]:
    """Start the command line in two processes."""
    return start([*COMMAND, *arguments], cwd)


def finish(started: list[Forked]) -> list[str]:
    output = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(output)[-4000:]
    return output
