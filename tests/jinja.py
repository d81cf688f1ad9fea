"""Chat templates filled as processors and servers fill them."""

from __future__ import annotations

from jinja2.sandbox import ImmutableSandboxedEnvironment


def fill(source: str, messages: list[dict], generate: bool) -> str:
    """Render a template's Jinja; what it calls an error is a ValueError."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(words: str) -> None:
        raise ValueError(words)

    environment.globals["raise_exception"] = raise_exception
    compiled = environment.from_string(source)
    return compiled.render(messages=messages, add_generation_prompt=generate, eos_token="?", bos_token="?")
