"""How each LLM family writes a conversation: one row per template."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

# Every string that is one special token in a template, except for rows with their own `marks`.
SPECIAL = re.compile(r"(</s>|<eos>|<start_of_turn>|<end_of_turn>|<\|\w+\|>)")
_OTHER = r"\[/?(?:INST|SYSTEM_PROMPT)\]|\[gMASK\]|<sop>"
ANY_SPECIAL = re.compile(f"{SPECIAL.pattern[:-1]}|{_OTHER})")
"""Whatever some template uses as a special token: no text of a row may become one."""


@dataclass(frozen=True)
class Template:
    """How one LLM family writes a conversation.

    The training text is `system`, then `user + answer + end + after` per exchange; loss is on `answer + end`.
    The generation prompt stops after `user`, which therefore ends with the assistant's header.
    """

    name: str  # key in `TEMPLATES`
    system: str  # written once, before the first exchange, unless the row has a system turn of its own
    user: str  # a user turn and the assistant's header; `{}` stands for the user's text
    answer: str  # an assistant turn; `{}` stands for its text
    end: str  # special token that ends an answer, with loss
    after: str = ""  # written after every `end`, without loss
    between: str = ""  # written before every `user` but the first
    # Written before the last answer, without loss: the empty thought of a family whose template drops the
    # thoughts of earlier answers
    thought: str = ""
    # A system turn of the row, which then replaces `system`; `{}` stands for its text. Empty for a family
    # without system role: the text then goes before the first question
    system_turn: str = ""
    stop: tuple[str, ...] = ()  # more special tokens at which generation stops, if the tokenizer has them
    needs_bos: bool = False  # write BOS first even if the tokenizer does not do so by itself
    caption: bool = False  # stage-1 form: one image and its caption, the user's words are dropped
    # Which strings of this row are special tokens; in some families `<|user|>` is plain text
    marks: re.Pattern[str] = SPECIAL

    def special(self) -> list[str]:
        """Return the strings that must be single tokens of the tokenizer."""
        return self.marks.findall(self.system + self.system_turn + self.user + self.end)

    @property
    def header(self) -> str:
        """What is written before the last answer; if it ends in a newline, no answer starts with one."""
        return self.user.split("{}")[1] + self.thought


_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
_VICUNA = Template("vicuna_v1", _SYSTEM, "USER: {} ASSISTANT:", " {}", "</s>", system_turn="{} ")
_PHI3_SYSTEM = "<|system|>\nYou are a helpful AI assistant.<|end|>"
_PHI3_USER = "<|user|>\n{}<|end|>\n<|assistant|>\n"
_PHI3_STOP = ("<|endoftext|>", "<|assistant|>")
_GEMMA_USER = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
_CHATML_SYSTEM = "<|im_start|>system\n{}<|im_end|>\n"
_CHATML_USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_CHATML = Template("chatml", "", _CHATML_USER, "{}", "<|im_end|>", "\n", system_turn=_CHATML_SYSTEM)
_OLMO3 = (
    "You are a helpful function-calling AI assistant. You do not currently have access to any functions. "
    "<functions></functions>"
)
_QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# The model's own template writes today's date; training text must not change from day to day.
_SMOLLM3_SYSTEM = _CHATML_SYSTEM.format(
    "## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 01 July 2025\nReasoning Mode: /no_think\n\n"
    "## Custom Instructions\n\n{}\n\n"
)
_LLAMA3_TURN = "<|start_header_id|>{}<|end_header_id|>\n\n"
_LLAMA3_SYSTEM = _LLAMA3_TURN.format("system") + "{}<|eot_id|>"
_LLAMA3_USER = _LLAMA3_TURN.format("user") + "{}<|eot_id|>" + _LLAMA3_TURN.format("assistant")
_LLAMA3 = Template(
    "llama3", "", _LLAMA3_USER, "{}", "<|eot_id|>", system_turn=_LLAMA3_SYSTEM,
    stop=("<|end_of_text|>", "<|eom_id|>"), needs_bos=True,
)  # fmt: skip
# 3.1's template falls back on this date, 3.2's on today's.
_LLAMA31_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
_LLAMA31_SYSTEM = _LLAMA3_SYSTEM.replace("{}", _LLAMA31_DATES + "{}")
_BRACKETS = re.compile(r"(</s>|\[/?(?:INST|SYSTEM_PROMPT)\])")
_TEKKEN = Template("mistral_tekken", "", "[INST]{}[/INST]", "{}", "</s>", marks=_BRACKETS)
_ONLY_EOS = re.compile(r"(<\|endoftext\|>)")
_OLMO_USER = "<|user|>\n{}\n<|assistant|>\n"
_GRANITE_ROLE = "<|start_of_role|>{}<|end_of_role|>"
_GRANITE_SYSTEM = _GRANITE_ROLE.format("system") + "{}<|end_of_text|>\n"
_GRANITE_USER = _GRANITE_ROLE.format("user") + "{}<|end_of_text|>\n" + _GRANITE_ROLE.format("assistant")
_COHERE_TURN = "<|START_OF_TURN_TOKEN|><|{}_TOKEN|>"
_COHERE_SYSTEM = _COHERE_TURN.format("SYSTEM") + "{}<|END_OF_TURN_TOKEN|>"
_COHERE_USER = _COHERE_TURN.format("USER") + "{}<|END_OF_TURN_TOKEN|>" + _COHERE_TURN.format("CHATBOT")
_GLM = re.compile(r"(<\|\w+\|>|\[gMASK\]|<sop>)")

# Sources: LLaVA v1.5 (plain, vicuna_v1, mistral_instruct), LLaVA++ (phi3_instruct), TinyLLaVA (gemma_vicuna),
# LLaMA-Factory (phi3), the models' own chat templates (all others; tests/fixtures/templates).
_ROWS = (
    Template("plain", "", "{}", "{}\n", "", caption=True),
    _VICUNA,
    Template("mistral_instruct", "", "[INST] {} [/INST]", " {} ", "</s>"),
    Template("mistral_official", "", "[INST] {}[/INST]", " {}", "</s>"),
    # LLaVA++ writes the newline before the next turn, so none follows the last answer.
    Template(
        "phi3_instruct", _PHI3_SYSTEM, "\n" + _PHI3_USER, "{}", "<|end|>",
        system_turn="<|system|>\n{}<|end|>", stop=_PHI3_STOP,
    ),
    Template(
        "phi3", "", _PHI3_USER, "{}", "<|end|>", "\n", system_turn="<|system|>\n{}<|end|>\n", stop=_PHI3_STOP
    ),
    # Gemma has no system role.
    Template("gemma_instruct", "", _GEMMA_USER, "{}", "<end_of_turn>", "\n", needs_bos=True),
    replace(_VICUNA, name="gemma_vicuna", end="<eos>", needs_bos=True),
    _CHATML,
    _LLAMA3,
    replace(
        _LLAMA3, name="llama3_1", system=_LLAMA31_SYSTEM.format(""), system_turn=_LLAMA31_SYSTEM
    ),
    # 7B v0.3, with spaces; Nemo and later, without; Small 3 and Ministral 3 have a system role.
    replace(_TEKKEN, name="mistral_v3", user="[INST] {}[/INST]", answer=" {}"),
    _TEKKEN,
    replace(_TEKKEN, name="mistral_v7", system_turn="[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]"),
    replace(_CHATML, name="qwen2_5", system=_CHATML_SYSTEM.format(_QWEN), stop=("<|endoftext|>",)),
    replace(_CHATML, name="qwen3", thought="<think>\n\n</think>\n\n", stop=("<|endoftext|>",)),
    replace(_CHATML, name="smollm2", system=_CHATML_SYSTEM.format(_SMOLLM)),
    replace(
        _CHATML,
        name="smollm3",
        system=_SMOLLM3_SYSTEM.format(_SMOLLM + "."),
        system_turn=_SMOLLM3_SYSTEM,
        user=_CHATML_USER + "<think>\n\n</think>\n",
    ),
    Template(
        "stablelm", "", "<|user|>\n{}<|endoftext|>\n<|assistant|>\n", "{}", "<|endoftext|>", "\n",
        system_turn="<|system|>\n{}<|endoftext|>\n", marks=_ONLY_EOS,
    ),
    # The headers of OLMo 2 are plain text; OLMo 3 writes ChatML, 3.1 with a default system text of its own.
    replace(_CHATML, name="olmo3", system=_CHATML_SYSTEM.format(_OLMO3), stop=("<|endoftext|>",)),
    Template(
        "olmo2", "", _OLMO_USER, "{}", "<|endoftext|>", between="\n", system_turn="<|system|>\n{}\n",
        needs_bos=True, marks=_ONLY_EOS,
    ),
    Template(
        "phi4_mini", "", "<|user|>{}<|end|><|assistant|>", "{}", "<|end|>",
        system_turn="<|system|>{}<|end|>", stop=("<|endoftext|>",),
    ),
    # An answer ends where the next user turn starts, whose token ends the text.
    Template(
        "glm4", "[gMASK]<sop><|user|>", "\n{}<|assistant|>", "\n{}", "<|user|>",
        system_turn="[gMASK]<sop><|system|>\n{}<|user|>", stop=("<|endoftext|>", "<|observation|>"),
        marks=_GLM,
    ),
    Template(
        "granite", "", _GRANITE_USER, "{}", "<|end_of_text|>", "\n", system_turn=_GRANITE_SYSTEM
    ),
    Template(
        "cohere", "", _COHERE_USER, "{}", "<|END_OF_TURN_TOKEN|>", system_turn=_COHERE_SYSTEM, needs_bos=True
    ),
)  # fmt: skip
TEMPLATES: dict[str, Template] = {row.name: row for row in _ROWS}


def template_of(template: Template | str) -> Template:
    """Return a template, or the one of that name; raises ValueError if the name is unknown."""
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise ValueError(f"there is no template {template!r}; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[template]
