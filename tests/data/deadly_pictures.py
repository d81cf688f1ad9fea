"""A look at pictures that takes its process down; in a module that worker processes can import."""

import os
import signal

from basic_lite.data import checks
from basic_lite.data.pictures import Depth
from basic_lite.data.readers import Rows

_examine = checks._examine


def examine_until_70(rows: Rows, depth: Depth, jobs: list[checks.Job]) -> list[checks.Result]:
    """Examine pictures with a decoder that takes its process down at picture 70."""
    if any(picture == 70 for picture, *_ in jobs):
        os.kill(os.getpid(), signal.SIGKILL)
    return _examine(rows, depth, jobs)
