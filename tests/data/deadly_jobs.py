"""A job for worker processes, which import what they do by its module's name: light, as each does it anew."""

import os
import signal
import time


def double(job: int) -> int:
    """Twice `job`; -1 kills the process, -2 raises."""
    if job == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == -2:
        raise TimeoutError("from the work itself")
    time.sleep(0.01)
    return 2 * job
