"""How each LLM family writes a conversation: one row per template."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

# Every string that a template below uses as one special token.
SPECIAL = re.compile(r"(</s>|<eos>|<start_of_turn>|<end_of_turn>|<\|\w+\|>)")


@dataclass(frozen=True)
class Template:
    """How one LLM family writes a conversation.

    The training text is `system`, then `user + answer + end + after` per exchange; loss is on `answer + end`.
    The generation prompt stops after `user`, which therefore ends with the assistant's header.

    Attributes:
        name: key in `TEMPLATES`.
        system: written once, in front of the first exchange.
        user: a user turn and the assistant's header; `{}` stands for the user's text.
        answer: an assistant turn; `{}` stands for its text.
        end: special token that ends an answer, with loss.
        after: written after every `end`, without loss.
        stop: more special tokens at which generation stops, where the tokenizer has them.
        needs_bos: put BOS in front even if the tokenizer does not do so by itself.
        caption: stage-1 form: one image and its caption, the user's words are dropped.
    """

    name: str
    system: str
    user: str
    answer: str
    end: str
    after: str = ""
    stop: tuple[str, ...] = ()
    needs_bos: bool = False
    caption: bool = False

    def special(self) -> list[str]:
        """Return the strings that must be single tokens of the tokenizer."""
        return SPECIAL.findall(self.system + self.user + self.end)


_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
_VICUNA = Template("vicuna_v1", _SYSTEM, "USER: {} ASSISTANT:", " {}", "</s>")
_PHI3_SYSTEM = "<|system|>\nYou are a helpful AI assistant.<|end|>"
_PHI3_USER = "<|user|>\n{}<|end|>\n<|assistant|>\n"
_PHI3_STOP = ("<|endoftext|>", "<|assistant|>")
_GEMMA_USER = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
_CHATML_USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

# Sources: LLaVA v1.5 (plain, vicuna_v1, mistral_instruct), LLaVA++ (phi3_instruct), TinyLLaVA (gemma_vicuna),
# LLaMA-Factory (phi3), the models' own chat templates (mistral_official, gemma_instruct, chatml).
_ROWS = (
    Template("plain", "", "{}", "{}\n", "", caption=True),
    _VICUNA,
    Template("mistral_instruct", "", "[INST] {} [/INST]", " {} ", "</s>"),
    Template("mistral_official", "", "[INST] {}[/INST]", " {}", "</s>"),
    # LLaVA++ writes the newline in front of the next turn, so none follows the last answer.
    Template("phi3_instruct", _PHI3_SYSTEM, "\n" + _PHI3_USER, "{}", "<|end|>", stop=_PHI3_STOP),
    Template("phi3", "", _PHI3_USER, "{}", "<|end|>", "\n", stop=_PHI3_STOP),
    # Gemma has no system role.
    Template("gemma_instruct", "", _GEMMA_USER, "{}", "<end_of_turn>", "\n", needs_bos=True),
    replace(_VICUNA, name="gemma_vicuna", end="<eos>", needs_bos=True),
    Template("chatml", "", _CHATML_USER, "{}", "<|im_end|>", "\n"),
)
TEMPLATES: dict[str, Template] = {row.name: row for row in _ROWS}


def template_of(template: Template | str) -> Template:
    """Return a template, or the one of that name.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise ValueError(f"there is no template {template!r}; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[template]
