"""Ask the decoder about described scenes: the probe of its pretraining."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from basic_lite.data.world.dialogues import held_out_queries
from basic_lite.data.world.grammar import Ask, ask, caption, choose, letter, with_options
from basic_lite.data.world.lexicon import LANGUAGES, Language, is_meaningful
from basic_lite.data.world.questions import KINDS
from basic_lite.data.world.scenes import Scene, sample_scene
from parts.corpus import is_reserved, words_of
from parts.pretrain_decoder import blur


def exam(
    questions: int, language: Language, seed: int, wanted: Callable[[Scene], bool] = lambda scene: True
) -> list[tuple[Scene, Ask]]:
    """Return `held_out_queries` in words; of each kind every other question is multiple choice."""
    rng = random.Random(seed)
    asked = enumerate(held_out_queries(questions, seed, wanted))
    return [
        (scene, (choose if i // len(KINDS) % 2 else ask)(query, language, rng)) for i, (scene, query) in asked
    ]


@torch.no_grad()
def answer_all(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], rows: int = 64
) -> list[str]:
    """Answer prompts greedily, each as one user turn, in batches padded on the left."""
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        for prompt in prompts
    ]
    order = sorted(range(len(chats)), key=lambda i: len(chats[i]))
    answers = [""] * len(chats)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        batch = tokenizer(
            [chats[i] for i in chosen],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            return_token_type_ids=False,
        )
        ids = model.generate(**batch, max_new_tokens=10, do_sample=False)
        texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text.strip()
    return answers


def probe_decoder(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: int, seed: int
) -> dict[str, float]:
    """Return the share of right answers on described scenes that the decoder never read of.

    Args:
        model: The decoder.
        tokenizer: Its tokenizer.
        questions: Questions per language; half are multiple choice and answered by a letter.
        seed: Seed of scenes and questions.

    Returns:
        Accuracy in percent by language, by language and form, and by language and kind.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    rng = random.Random(seed)
    for language in LANGUAGES:
        items = exam(questions, language, seed, is_reserved)
        prompts = [
            f"{caption(scene, language, rng)}\n{with_options(q, language) if q.options else q.text}"
            for scene, q in items
        ]
        for (_, q), said in zip(items, answer_all(model, tokenizer, prompts), strict=True):
            right = said == (letter(q) if q.options else q.answer)
            form = "choice" if q.options else "open"
            for key in (language, f"{language} {form}", f"{language} {q.kind}"):
                hits[key].append(right)
    return {key: round(100 * sum(values) / len(values), 1) for key, values in hits.items()}


@torch.no_grad()
def probe_shallow(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, scenes: int = 200
) -> dict[str, float]:
    """Say how well the first half of the layers names blurred words of held-out scenes.

    Args:
        model: The decoder.
        tokenizer: Its tokenizer.
        seed: Seed of scenes, word choice and noise.
        scenes: How many scenes; each thing stands at one position, among as many positions of noise.

    Returns:
        In percent, over the positions of things: how often the token nearest by cosine names something true
        of the thing, for the input and for the mean of states after layers `1..k` with weights `l^2`, and
        100 times the cosine between the two.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    table = model.get_input_embeddings().weight
    names = [tokenizer.decode([i]) for i in range(len(table))]
    layers = model.config.num_hidden_layers // 2
    weights = torch.arange(1, layers + 1).square().float()
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(scenes):
        things = list(sample_scene(rng, held_out=True).things)
        places = things + [None] * len(things)
        rng.shuffle(places)
        words = torch.zeros(len(places), len(table))
        for i, thing in enumerate(places):
            for name in words_of(thing, rng.choice(LANGUAGES), rng) if thing else ():
                words[i, tokenizer.encode(name, add_special_tokens=False)[0]] = 1.0
        inputs = blur(words, table)
        start = table[tokenizer("<|im_start|>user\n")["input_ids"]]
        row = torch.cat([start, inputs])[None]
        states = model(inputs_embeds=row, output_hidden_states=True).hidden_states
        shallow = torch.stack([s[0, len(start) :] for s in states[1 : layers + 1]], -1)
        target = shallow @ (weights / weights.sum())
        for key, vectors in (("shallow input", inputs), ("shallow mean", target)):
            best = (F.normalize(vectors, dim=1) @ F.normalize(table, dim=1).T).argmax(1).tolist()
            found[key] += [is_meaningful(names[b], t) for b, t in zip(best, places, strict=True) if t]
        cosine = F.cosine_similarity(inputs, target).tolist()
        found["shallow cosine x 100"] += [c for c, t in zip(cosine, places, strict=True) if t]
    return {key: round(100 * sum(values) / len(values), 1) for key, values in found.items()}
