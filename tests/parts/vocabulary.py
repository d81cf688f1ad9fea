"""The demo decoder's tokenizer, trained on the grammar's own sentences."""

from __future__ import annotations

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from basic_lite.data.world.dialogues import dialogue
from basic_lite.data.world.grammar import caption
from basic_lite.data.world.lexicon import LANGUAGES
from basic_lite.data.world.scenes import sample_scene

SPECIAL = ("<s>", "<pad>", "<|im_start|>", "<|im_end|>", "<image>")
"""BOS, padding, ChatML's two marks, and a token kept free for image positions, all inside the vocabulary."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_OTHER_TEXT = "0 1 2 3 4 5 6 7 8 9 user assistant system Answer the question using a single word or phrase."


def train_tokenizer(seed: int, scenes: int = 4000, size: int = 1024) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on captions and questions of seen pairs.

    Chinese characters are split from each other first: else whole clauses would become single tokens,
    because Chinese has no spaces, and no token would name a colour or a shape.

    Args:
        seed: Seed of the sentences.
        scenes: How many scenes to write about.
        size: Size of the vocabulary, special tokens included.

    Returns:
        A tokenizer that encodes any text, adds BOS, and knows ChatML.
    """
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(rng, scenes), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<image>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def _sentences(rng: random.Random, scenes: int):
    yield from [
        _OTHER_TEXT
    ] * 100  # often enough to become whole words: every turn of a chat has some of them
    for _ in range(scenes):
        scene = sample_scene(rng)
        for language in LANGUAGES:
            yield caption(scene, language, rng)
        for question, answer in dialogue(scene, 4, rng):
            yield question
            yield answer
