"""Ollama's Modelfile for a pair of GGUF files: the conversation template in Go's language, and the stops."""

from __future__ import annotations

from basic_lite.data.templates import Template
from basic_lite.export.chat_template import system_places


def modelfile(template: Template, text: str, pictures: str) -> str:
    """Write the Modelfile; `text` and `pictures` name the files of the text model and of the projector.

    A system message stands where the template's own stood, or in front of the first user's words.
    """
    header, footer = template.user.split("{}")
    before, after = template.answer.split("{}")
    places = system_places(template)
    if places is None:
        start, first = (
            "{{ $system := .System }}",
            '{{ if $system }}{{ $system }}\n\n{{ $system = "" }}{{ end }}',
        )
    else:
        asked = f"{places[0]}{{{{ .System }}}}{places[1]}"
        start, first = f"{{{{ if .System }}}}{asked}{{{{ else }}}}{template.system}{{{{ end }}}}", ""
    user = f'{{{{ if eq .Role "user" }}}}{header}{first}{{{{ .Content }}}}{footer}'
    ending = f"{{{{ .Content }}}}{after}{template.end}{template.after}"
    answer = f'{{{{ else if eq .Role "assistant" }}}}{before}{ending}'
    lines = [
        f"FROM ./{text}",
        f"FROM ./{pictures}",
        f'TEMPLATE """{start}{{{{ range .Messages }}}}{user}{answer}{{{{ end }}}}{{{{ end }}}}"""',
        *(f'PARAMETER stop "{stop}"' for stop in (template.end, *template.stop)),
        "PARAMETER temperature 0",
    ]
    return "\n".join(lines) + "\n"
