"""Where the two parts that ship with the package are. Both are ordinary Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

PARTS = Path(__file__).parent / "parts"

DECODER = PARTS / "decoder"
"""A Llama decoder with its tokenizer, for `AutoModelForCausalLM` and `AutoTokenizer`."""

TOWER = PARTS / "tower"
"""A CLIP vision tower with its image processor, for `AutoModel` and `AutoImageProcessor`."""
