"""BASIC on one graphics card: the language model's own shallow layers supervise the visual embeddings."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from basic_lite.supervision import BasicSupervision
    from basic_lite.trainer import BasicTrainer

__all__ = ["BasicSupervision", "BasicTrainer"]
__version__ = "0.1.0"


def __getattr__(name: str) -> type:
    """Import the heavy names when they are asked for, so that `basic-lite --help` stays quick."""
    if name == "BasicSupervision":
        from basic_lite.supervision import BasicSupervision

        return BasicSupervision
    if name == "BasicTrainer":
        from basic_lite.trainer import BasicTrainer

        return BasicTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
