"""What visual embeddings mean to the LLM: its nearest tokens, layer by layer (paper, section 4.4)."""

from basic_lite.analysis.matching import match_tokens

__all__ = ["match_tokens"]
