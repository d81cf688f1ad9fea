"""One module per benchmark: how its files are read, asked, scored and submitted; no torch."""
