"""A conversation template in other programs' languages, without BOS: Jinja, and Ollama's Modelfile."""

from __future__ import annotations

from basic_lite.data.conversation import IMAGE
from basic_lite.data.templates import Template

_ALONE = "this model reads a system message as part of the user message after it, and there is none"
_ROLES = "messages have the roles system, user and assistant, not "


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def system_places(template: Template) -> tuple[str, str] | None:
    """Return what stands before and after a caller's system message, or `None` if the family has no place."""
    if not template.system_turn:
        return None
    before, after = template.system_turn.split("{}")
    return before, after


_MEDIA = (
    "{% set found = namespace(pictures='', text='') %}{% for piece in message['content'].split('<__media') %}"
    "{% if loop.first %}{% set found.text = piece %}"
    "{% elif '__>' in piece %}{% set halves = piece.split('__>', 1) %}"
    "{% set found.pictures = found.pictures + '<__media' + halves[0] + '__>\\n' %}"
    "{% set found.text = found.text + halves[1] %}"
    "{% else %}{% set found.text = found.text + '<__media' + piece %}{% endif %}{% endfor %}"
    "{% set text = found.pictures + found.text %}"
)
"""llama.cpp gives a template one string instead of parts: `<__media__>` (or `<__media_ID__>`) stands for a
picture, without the newline that follows a picture in training."""


def chat_template(template: Template, markers: bool = False) -> str:
    """Write a row of `conversation.TEMPLATES` as Jinja; the same turns come out as of `conversation.render`.

    A message's content is a string, in which `<image>` marks a picture, or a list of parts; pictures come
    first, one per line. A system message stands where the template's own stood, or is the first paragraph of
    the next user message. With `markers` a string's media markers are llama.cpp's, and are moved to its
    start.
    """
    header, footer = template.user.split("{}")
    before, after = template.answer.split("{}")
    answer = "text.lstrip()" if template.header.endswith("\n") else "text"
    ending = _quoted(after + template.end + template.after)
    default = f"{{{{ {_quoted(template.system)} }}}}" if template.system else ""
    string = _MEDIA if markers else "{% set text = message['content'] %}"
    places = system_places(template)
    if places is None:
        system = "{% set seen.first = seen.first + text + '\\n\\n' %}"
    else:
        system = f"{{{{ {_quoted(places[0])} + text + {_quoted(places[1])} }}}}"
    between = (
        f"{{% if seen.user %}}{{{{ {_quoted(template.between)} }}}}{{% endif %}}" if template.between else ""
    )
    thought = (
        f"{{% if loop.last %}}{{{{ {_quoted(template.thought)} }}}}{{% endif %}}" if template.thought else ""
    )
    return (
        "{% set seen = namespace(first='', user=false) %}"
        "{% for message in messages %}"
        f"{{% if message['content'] is string %}}{string}{{% else %}}"
        "{% set found = namespace(pictures='', text='') %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' or part['type'] == 'image_url' %}"
        f"{{% set found.pictures = found.pictures + {_quoted(IMAGE)} + '\\n' %}}"
        "{% elif part['type'] == 'text' %}{% set found.text = found.text + part['text'] %}{% endif %}"
        "{% endfor %}{% set text = found.pictures + found.text %}{% endif %}"
        f"{{% if message['role'] == 'system' or message['role'] == 'developer' %}}{system}"
        f"{{% else %}}{{% if loop.first %}}{default}{{% endif %}}"
        f"{{% if message['role'] == 'user' %}}{between}{{{{ {_quoted(header)} + seen.first + text }}}}"
        "{% set seen.first = '' %}{% set seen.user = true %}"
        f"{{% elif message['role'] == 'assistant' %}}{{{{ {_quoted(footer)} }}}}{thought}"
        f"{{{{ {_quoted(before)} + {answer} + {ending} }}}}"
        f"{{% else %}}{{{{ raise_exception({_quoted(_ROLES)} + message['role']) }}}}"
        "{% endif %}{% endif %}{% endfor %}"
        f"{{% if seen.first %}}{{{{ raise_exception({_quoted(_ALONE)}) }}}}{{% endif %}}"
        f"{{% if add_generation_prompt %}}{{{{ {_quoted(footer + template.thought)} }}}}{{% endif %}}"
    )


def modelfile(template: Template, text: str, pictures: str) -> str:
    """Write Ollama's Modelfile; `text` and `pictures` name the files of the text model and the projector.

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
