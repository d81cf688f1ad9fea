"""Benchmark scorers; nothing here imports torch."""
