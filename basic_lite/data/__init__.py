"""Rows, pictures, conversations and batches; the drawn world is one more source of them."""
