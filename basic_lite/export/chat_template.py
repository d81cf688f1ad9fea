"""A conversation template as the Jinja that processors, harnesses and servers run; BOS is not in it."""

from __future__ import annotations

from basic_lite.data.conversation import IMAGE
from basic_lite.data.templates import Template


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _system(template: Template) -> str:
    """Return the branch for a system message of the caller's, as `conversation.segments` writes it."""
    if not template.system_turn:
        return "{% set seen.first = text + '\\n\\n' %}"
    before, behind = template.system_turn.split("{}")
    return f"{{{{ {_quoted(before)} + text + {_quoted(behind)} }}}}"


def chat_template(template: Template) -> str:
    """Write a row of `conversation.TEMPLATES` as Jinja.

    `apply_chat_template(messages)` is `conversation.render` of the same turns. A message's content is a
    string, in which `<image>` marks a picture, or a list of parts; pictures come first, one per line, as
    in training.
    """
    header, footer = template.user.split("{}")
    before, after = template.answer.split("{}")
    answer = "text.lstrip()" if template.header.endswith("\n") else "text"
    ending = _quoted(after + template.end + template.after)
    default = f"{{{{ {_quoted(template.system)} }}}}" if template.system else ""
    between = (
        f"{{% if seen.user %}}{{{{ {_quoted(template.between)} }}}}{{% endif %}}" if template.between else ""
    )
    thought = (
        f"{{% if loop.last %}}{{{{ {_quoted(template.thought)} }}}}{{% endif %}}" if template.thought else ""
    )
    return (
        "{% set seen = namespace(first='', user=false) %}"
        "{% for message in messages %}"
        "{% if message['content'] is string %}{% set text = message['content'] %}{% else %}"
        "{% set found = namespace(pictures='', text='') %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' or part['type'] == 'image_url' %}"
        f"{{% set found.pictures = found.pictures + {_quoted(IMAGE)} + '\\n' %}}"
        "{% elif part['type'] == 'text' %}{% set found.text = found.text + part['text'] %}{% endif %}"
        "{% endfor %}{% set text = found.pictures + found.text %}{% endif %}"
        f"{{% if message['role'] == 'system' %}}{_system(template)}"
        f"{{% else %}}{{% if loop.first %}}{default}{{% endif %}}"
        f"{{% if message['role'] == 'user' %}}{between}{{{{ {_quoted(header)} + seen.first + text }}}}"
        "{% set seen.first = '' %}{% set seen.user = true %}"
        f"{{% else %}}{{{{ {_quoted(footer)} }}}}{thought}{{{{ {_quoted(before)} + {answer} + {ending} }}}}"
        "{% endif %}{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {_quoted(footer + template.thought)} }}}}{{% endif %}}"
    )
