"""How the two parts that ship were built; `python -m parts.command` in tests/ builds them anew."""
