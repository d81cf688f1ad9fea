"""Which part of the method does it: named plans, their runs side by side, and one table for each."""
