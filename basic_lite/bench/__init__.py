"""The speed and memory of this machine."""
