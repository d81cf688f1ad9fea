"""A look at pictures that takes its process down; in a module that worker processes can import."""

import os
import signal

from basic_lite.data import checks


class DeadlyLooker(checks._Looker):
    """Looks at pictures with a decoder that takes its process down at picture 70."""

    def look(self, picture: int, row: int, place: int, status: int, stamp: int) -> tuple:
        if picture == 70:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().look(picture, row, place, status, stamp)
