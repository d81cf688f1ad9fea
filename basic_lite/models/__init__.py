"""The models by name, their parts, and the LLaVA that is assembled of them."""
