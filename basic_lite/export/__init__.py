"""A finished run in the layouts that other people's tools read."""
