"""The benchmarks: readers of their files, prompts, scorers by name, and submission files; no torch."""
