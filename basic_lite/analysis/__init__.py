"""What visual embeddings mean to the LLM: its nearest tokens, layer by layer (paper, section 4.4)."""
