"""Benchmark scorers; nothing here imports torch."""

from basic_lite.scoring.answers import normalize, vqa_accuracy
from basic_lite.scoring.circular import CircularAccuracy, circular_accuracy
from basic_lite.scoring.options import extract_option

__all__ = ["CircularAccuracy", "circular_accuracy", "extract_option", "normalize", "vqa_accuracy"]
