"""Seconds from the command to the first optimizer step, part by part."""

from __future__ import annotations

import os
import time


def process_age() -> float:
    """Return how many seconds ago this process was started; 0 where the system does not say."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # field 22; a name may hold spaces
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0


class Clock:
    """What a start spends its time on.

    Attributes:
        parts: seconds by part, in order.
    """

    def __init__(self) -> None:
        """Begin where the process began."""
        self.parts: dict[str, float] = {}
        self._last = time.monotonic() - process_age()

    def mark(self, part: str) -> None:
        """Count everything since the last mark as `part`."""
        now = time.monotonic()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    def line(self) -> str:
        """Say it in one line."""
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.parts.items())
        return f"first step {sum(self.parts.values()):.1f} s after the command ({parts})"
