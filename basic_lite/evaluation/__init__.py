"""Benchmarks: questions, answers, scores, intervals and comparisons."""
