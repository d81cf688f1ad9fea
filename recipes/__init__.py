"""Small Typer recipes: the only place where the parts meet."""
