"""BASIC on one graphics card: the language model's own shallow layers supervise the visual embeddings."""
