"""BASIC on one graphics card: the language model's own shallow layers supervise the visual embeddings."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from basic_lite.method.fit import fit_target
    from basic_lite.method.supervision import BasicSupervision
    from basic_lite.training.trainer import BasicTrainer

__all__ = ["BasicSupervision", "BasicTrainer", "fit_target"]
__version__ = "0.1.0"


_MODULES = {
    "BasicSupervision": "basic_lite.method.supervision",
    "BasicTrainer": "basic_lite.training.trainer",
    "fit_target": "basic_lite.method.fit",
}


def __getattr__(name: str) -> object:
    """Import the heavy names when they are asked for, so that `basic-lite --help` stays quick."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
