"""Where the two parts that ship with the package are. Both are ordinary Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

PARTS = Path(__file__).parent / "weights"

DECODER = PARTS / "decoder"
"""A Llama decoder with its tokenizer, for `AutoModelForCausalLM` and `AutoTokenizer`."""

TOWER = PARTS / "tower"
"""A CLIP vision tower with its image processor, for `AutoModel` and `AutoImageProcessor`."""

EMBEDDED: dict[str, Path] = {"tiny-decoder": DECODER, "tiny-tower": TOWER}


def located(source: str) -> str:
    """Return where a part's files are: the folder of an embedded part, else the folder or hub id itself."""
    return str(EMBEDDED.get(source, source))
