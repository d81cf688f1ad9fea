"""What a process takes of the machine's memory, told apart by whose it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Footprint:
    """The memory of one process, in MiB, as Linux accounts for it.

    A process that was forked shares what its parent had until one of the two writes to it. So every page of
    memory is counted once if the parent is asked for `memory` and its workers for `own`.

    Attributes:
        resident: all that is in memory and that the process can reach (RSS).
        files: of these, pages of files, above all the code of libraries. Processes share them, and the
            kernel may drop them at any time.
        own: pages that no other process can reach (USS): what would be free again if it ended.
        proportional: every page divided by how many processes share it (PSS).
    """

    resident: float
    files: float
    own: float
    proportional: float

    @property
    def memory(self) -> float:
        """Return what is no page of a file, shared with other processes or not."""
        return self.resident - self.files


def footprint(process: int | str = "self") -> Footprint | None:
    """Measure a process.

    Args:
        process: its number.

    Returns:
        Its memory; `None` where the system does not say, as only Linux does.
    """
    folder = Path("/proc") / str(process)
    try:
        rolled, status = ((folder / name).read_text() for name in ("smaps_rollup", "status"))
    except OSError:
        return None
    lines = [line.split() for line in (rolled + status).splitlines()]
    mib = {line[0]: int(line[1]) / 1024 for line in lines if len(line) == 3 and line[2] == "kB"}
    own = mib["Private_Clean:"] + mib["Private_Dirty:"]
    return Footprint(mib["Rss:"], mib["RssFile:"], own, mib["Pss:"])
