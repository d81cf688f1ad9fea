"""Rows, pictures and batches."""
