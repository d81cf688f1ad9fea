"""BASIC on one graphics card: the language model's own shallow layers supervise the visual embeddings."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from basic_lite.method.fit import fit_target
    from basic_lite.method.supervision import BasicSupervision
    from basic_lite.training.trainer import BasicTrainer

__all__ = ["BasicSupervision", "BasicTrainer", "fit_target"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the heavy names when they are asked for, so that `basic-lite --help` stays quick."""
    if name == "BasicSupervision":
        from basic_lite.method.supervision import BasicSupervision

        return BasicSupervision
    if name == "BasicTrainer":
        from basic_lite.training.trainer import BasicTrainer

        return BasicTrainer
    if name == "fit_target":
        from basic_lite.method.fit import fit_target

        return fit_target
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
