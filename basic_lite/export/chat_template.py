"""A conversation template as the Jinja that processors, harnesses and servers run; BOS is not in it."""

from __future__ import annotations

import re

from basic_lite.data.conversation import IMAGE
from basic_lite.data.templates import Template

_SPECIAL = re.compile(r"(<[^<>\s]+>)")
_NO_SYSTEM = "this model was trained without a system message; put the text into the first user message"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _system(template: Template) -> str:
    """Return the branch for a system message of the caller's: it stands where the template's own stood."""
    pieces = _SPECIAL.split(template.system)
    longest = max(pieces, key=len)
    if not longest.strip():
        return f"{{{{ raise_exception({_quoted(_NO_SYSTEM)}) }}}}"
    before, after = template.system.split(longest)
    before += longest[: len(longest) - len(longest.lstrip())]
    after = longest[len(longest.rstrip()) :] + after
    return f"{{{{ {_quoted(before)} + text + {_quoted(after)} }}}}"


def chat_template(template: Template) -> str:
    """Write a row of `conversation.TEMPLATES` as Jinja.

    `apply_chat_template(messages)` is `conversation.render` of the same turns. A message's content is a
    string, in which `<image>` marks a picture, or a list of parts; pictures come first, one per line, as
    in training.
    """
    header, footer = template.user.split("{}")
    before, after = template.answer.split("{}")
    answer = "text.lstrip()" if footer.endswith("\n") else "text"
    ending = _quoted(after + template.end + template.after)
    default = f"{{{{ {_quoted(template.system)} }}}}" if template.system else ""
    return (
        "{% for message in messages %}"
        "{% if message['content'] is string %}{% set text = message['content'] %}{% else %}"
        "{% set found = namespace(pictures='', text='') %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' or part['type'] == 'image_url' %}"
        f"{{% set found.pictures = found.pictures + {_quoted(IMAGE)} + '\\n' %}}"
        "{% elif part['type'] == 'text' %}{% set found.text = found.text + part['text'] %}{% endif %}"
        "{% endfor %}{% set text = found.pictures + found.text %}{% endif %}"
        f"{{% if message['role'] == 'system' %}}{_system(template)}"
        f"{{% else %}}{{% if loop.first %}}{default}{{% endif %}}"
        f"{{% if message['role'] == 'user' %}}{{{{ {_quoted(header)} + text }}}}"
        f"{{% else %}}{{{{ {_quoted(footer)} + {_quoted(before)} + {answer} + {ending} }}}}"
        "{% endif %}{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {_quoted(footer)} }}}}{{% endif %}}"
    )
