"""Jobs for worker processes, which import what they do by its module's name: a test module has none there."""

import os
import signal
import time

from basic_lite.data import checks


def double(job: int) -> int:
    """Twice `job`; -1 kills the process, -2 raises."""
    if job == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == -2:
        raise TimeoutError("from the work itself")
    time.sleep(0.01)
    return 2 * job


class DeadlyLooker(checks._Looker):
    """Looks at pictures with a decoder that takes its process down at picture 70."""

    def look(self, picture: int, row: int, place: int, status: int, stamp: int) -> tuple:
        if picture == 70:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().look(picture, row, place, status, stamp)
