"""Choices answered by the words of their options: the figures, the files, and what cannot be asked so."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace

import pytest
import torch
from command import make_world, run
from made_runs import made_run
from PIL import Image
from tiled import llava_next_folder
from tiny import tiny_assembled

from basic_lite.data.conversation import IMAGE, encode
from basic_lite.data.templates import TEMPLATES
from basic_lite.evaluation import answer, hf_llava
from basic_lite.evaluation.likelihood import log_likelihoods
from basic_lite.evaluation.question import BY_WORDS, Question
from basic_lite.evaluation.run import Candidate, Evaluation
from basic_lite.models.generate import one_row, prompt_ids
from basic_lite.models.parts import parts_of

OPTIONS = (("red", "a dark blue", "grün"), ("no", "yes"), ("1", "22", "333", "4 of them"), ("b", "a"))


def picture(seed: int) -> bytes:
    pixels = torch.randint(0, 256, (20 + 9 * seed, 24, 3), generator=torch.Generator().manual_seed(seed))
    buffer = io.BytesIO()
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def questions(count: int = 7) -> list[Question]:
    """Of different lengths and numbers of options, some without a picture; the last has no options."""
    words = "what is the brand of this".split()
    asked = []
    for number in range(count):
        stem, options = " ".join(words[: 1 + (5 * number) % 6]), OPTIONS[number % 4]
        choices = dict(zip("ABCD", options, strict=False))
        image = None if number % 3 == 2 else picture(number)
        asked.append(Question(number, f"{stem}\n{choices}", image, 4, choices=choices, stem=stem))
    return [*asked, Question("open", "what is it", None, 4)]


def answers(path) -> dict:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    texts = {row["question_id"]: row["text"] for row in rows}
    assert len(texts) == len(rows), "a question was answered twice"
    return texts


def naive(assembled, question: Question, words: str, blind: bool = False) -> float:
    """One row alone, all its logits, and the labels that training gives it but for the end of the turn."""
    image = None if blind else question.image
    shown = answer._with_picture(
        assembled.transform("pad"), answer.Prompt(replace(question, image=image), [])
    )
    pixels, size = shown.shown or (None, None)
    if isinstance(assembled, hf_llava.HfLlava):
        about = {"pictured": image is not None, "size": size}
        start = len(assembled.prompt_ids(question.stem, **about))
        ids = assembled.answer_ids(question.stem, words, **about)
        labels = [-100] * start + ids[start:]
    else:
        turns = [("user", question.stem if image is None else f"{IMAGE}\n{question.stem}")]
        row = encode(
            assembled.template,
            assembled.tokenizer,
            [*turns, ("assistant", words)],
            image_token_id=assembled.image_token_id,
            tokens_per_image=assembled.image_tokens([] if size is None else [size]),
        )
        ids, labels = row.input_ids, row.labels
        last = max(place for place, label in enumerate(labels) if label != -100)
        assert ids[last] == assembled.tokenizer.convert_tokens_to_ids(assembled.template.end)
        labels = [*labels[:last], *[-100] * (len(labels) - last)]
    if pixels is not None and pixels.dim() == 3:
        pixels = pixels[None]
    sizes = [] if size is None else [size]
    with torch.inference_mode():
        inputs = one_row(assembled.model, ids, pixels, assembled.transform("pad"), sizes)
        logits = assembled.model(**inputs).logits[0].float().log_softmax(-1)
    return sum(float(logits[place - 1, label]) for place, label in enumerate(labels) if label != -100)


def chosen(assembled, question: Question, how: str) -> str:
    """The letter that the naive figures choose."""
    figures = {}
    for letter, words in question.choices.items():
        figures[letter] = naive(assembled, question, words)
        if how == "mutual-information" and question.image is not None:
            figures[letter] -= naive(assembled, question, words, blind=True)
        else:
            figures[letter] /= len(words)
    return max(figures, key=lambda letter: figures[letter])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LLaVA-NeXT of transformers, whose pictures are cut into tiles."""
    path = tmp_path_factory.mktemp("next")
    llava_next_folder(path, [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]])
    return path


# Capped scores and logits, windows that bite, and tiles of a run and of a folder.
@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3", "mistral", "gemma3_text", "tiles", "folder"])
def test_log_likelihoods_are_those_of_one_row_alone(kind, folder, tmp_path):
    if kind == "folder":
        assembled = hf_llava.load(str(folder))
    else:
        assembled = tiny_assembled(tiles=4) if kind == "tiles" else tiny_assembled(kind)
    *asked, written = questions()
    known = [[naive(assembled, q, words) for words in q.choices.values()] for q in asked]
    prompts = []
    for q in asked:
        plain = replace(q, text=q.stem, choices={words: words for words in q.choices.values()})
        prompt = answer.Prompt(plain, answer._prompt_ids(assembled, plain))
        prompts.append(answer._with_picture(assembled.transform("pad"), prompt))
    for size in (1, 3, 7):
        batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        given = [score for batch in batches for score in answer._log_likelihoods(assembled, batch)]
        for own, expected in zip(given, known, strict=True):
            torch.testing.assert_close(own, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    for how in BY_WORDS:
        expected = {q.id: chosen(assembled, q, how) for q in asked}
        for size in (1, 16):
            path = tmp_path / f"{how}-{size}.jsonl"
            assert answer.generate(assembled, [*asked, written], path, batch_size=size, answer_by=how) == 0
            letters = answers(path)
            assert letters.pop("open") == answer.answer_one(assembled, written)
            assert letters == expected


def test_both_ways_and_the_sum_choose_differently():
    """So that a mix-up of them would show in the test above."""
    assembled = tiny_assembled("llama")
    asked = [q for q in questions(12) if q.image is not None]
    by = {how: [chosen(assembled, q, how) for q in asked] for how in BY_WORDS}
    sums = [max(q.choices, key=lambda letter, q=q: naive(assembled, q, q.choices[letter])) for q in asked]
    assert by["option"] != by["mutual-information"] != sums != by["option"]


@pytest.mark.parametrize("name", ["chatml", "vicuna_v1", "mistral_instruct", "plain"])
def test_an_answers_ids_are_its_words_alone(name):
    """Without the end of a turn, and without the newline or space that two templates write before it."""
    assembled = replace(tiny_assembled("llama"), template=TEMPLATES[name])
    question = Question(0, "what", picture(1), 4)
    prompt = answer.Prompt(question, answer._prompt_ids(assembled, question))
    ids = answer._answer_ids(assembled, prompt, "dark red")
    assert assembled.tokenizer.decode(ids).removeprefix(" ") == "dark red"


def test_a_prompt_passes_once_and_the_head_sees_options_alone():
    assembled = tiny_assembled("llama")
    asked = [answer.Prompt(q, prompt_ids(assembled, [("user", q.stem)])) for q in questions(2)[:2]]
    options = [[[9, 8, 7], [6], [5, 4]], [[9, 8], [7]]]
    parts, seen = parts_of(assembled.model), []
    head = parts.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    passes = []
    decoder = parts.decoder.register_forward_pre_hook(
        lambda module, args, given: passes.append(given["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    log_likelihoods(assembled.model, answer._padded(assembled, asked), options)
    head.remove()
    decoder.remove()
    assert sum(shape[0] for shape in seen) == 3 + 1 + 2 + 2 + 1
    assert passes == [(2, max(len(prompt.ids) for prompt in asked)), (5, 2)]


def rotated(count: int = 5) -> list[Question]:
    """Every question in four orders of its options, as MMBench's rows have them."""
    words, rows = ["red", "green one", "blue", "white"], []
    for turn in range(4):
        for number in range(count):
            choices = dict(zip("ABCD", words[turn:] + words[:turn], strict=True))
            stem = "what is it now"[: 4 + 3 * (number % 2)]
            rows.append(
                Question(
                    number + 1000 * turn, f"{stem}{choices}", picture(number), 4, choices=choices, stem=stem
                )
            )
    return rows


@pytest.mark.parametrize("how", BY_WORDS)
def test_the_rotations_of_a_question_are_asked_once_and_agree(tmp_path, monkeypatch, how):
    assembled, rows, asked = tiny_assembled("llama"), rotated(), []
    ids = answer._prompt_ids
    monkeypatch.setattr(answer, "_prompt_ids", lambda a, q: asked.append(q.image is not None) or ids(a, q))
    answer.generate(assembled, rows, tmp_path / "whole.jsonl", batch_size=8, answer_by=how)
    assert sum(asked) == 5
    letters = answers(tmp_path / "whole.jsonl")
    words = {
        number: {rows[i].choices[letters[rows[i].id]] for i in range(number, 20, 5)} for number in range(5)
    }
    assert all(len(own) == 1 for own in words.values())
    assert set(letters.values()) == set("ABCD"), "the letter moves with the words"
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for cut in (1, 300, len(whole) // 2):  # a kill in the middle of a write, within a question's rotations
        broken = tmp_path / "broken.jsonl"
        broken.write_bytes(whole[:-cut])
        assert answer.generate(assembled, rows, broken, batch_size=8, answer_by=how) == 0
        assert broken.read_bytes() == whole
    order = random.Random(0).sample(rows, len(rows))
    answer.generate(assembled, order, tmp_path / "order.jsonl", batch_size=8, answer_by=how)
    assert answers(tmp_path / "order.jsonl") == letters


def test_a_tie_goes_to_the_same_words_whichever_rotations_are_left(tmp_path):
    assembled, rows = tiny_assembled("llama"), rotated()
    assembled.model.lm_head.weight.data.zero_()
    for number, path in enumerate(tmp_path / f"{name}.jsonl" for name in "abcd"):
        before = rows[:: number + 2] if number else []
        for asked in (before, rows):
            answer.generate(assembled, asked, path, batch_size=8, answer_by="mutual-information")
        letters = answers(path)
        assert {q.choices[letters[q.id]] for q in rows} == {"blue"}, "the first by name"


def test_an_option_counts_as_a_row_of_the_batch_and_memory_halves_it(tmp_path, monkeypatch):
    assembled, rows, sizes = tiny_assembled("llama"), rotated(), []
    for size, most in ((8, 99), (8, 1), (2, 99)):
        sizes.append([])

        def short(model, inputs, options, most=most):
            sizes[-1].append(len(options))
            if len(options) > most:
                raise torch.OutOfMemoryError
            return log_likelihoods(model, inputs, options)

        monkeypatch.setattr(answer, "log_likelihoods", short)
        path = tmp_path / f"{size}-{most}.jsonl"
        answer.generate(assembled, rows, path, batch_size=size, answer_by="option")
    assert sizes == [[2, 2, 1], [2, 1, 1, 1, 1, 1], [1] * 5]
    assert answers(tmp_path / "8-1.jsonl") == answers(tmp_path / "8-99.jsonl")


def test_on_the_command_line_for_a_run_and_its_folder(trained):
    make_world(trained)
    base = ("eval", "mmbench", "--data", "bench.tsv", "--any-size")
    run("export", "runs/stage1", "worded", "--device", "cpu", cwd=trained)
    for how, said in (("option", "(acc_norm)"), ("mutual-information", "(acc_mutual_info)")):
        given = []
        for source in (("--run", "runs/stage1"), ("--model", "worded")):
            out = trained / f"{how}{source[0]}"
            run(*base, *source, "--out", out, "--answer-by", how, cwd=trained)
            content = json.loads((out / "results.json").read_text())
            assert said in content["run"]["decoding"]
            assert content["value"] == content["figures"]["all_rows"], "circular is plain accuracy"
            assert content["parse_failures"] == 0
            given.append(answers(out / "predictions.jsonl"))
        assert given[0] == given[1]
        assert len(given[0]) == 12
    mixed = run(*base, "--run", "runs/stage1", "--out", out, "--answer-by", "option", cwd=trained, expect=2)
    assert "made with another" in mixed.stderr
    assert "answer_by" in mixed.stderr
    (trained / "open.jsonl").write_text(json.dumps({"question": "What is it?", "answer": "red"}))
    base = ("eval", "mine", "--data", "open.jsonl", "--run", "runs/stage1", "--out", "open", "--answer-by")
    for how in BY_WORDS:
        said = f"error: mine has no choices to compare: leave --answer-by {how} out\n"
        assert run(*base, how, cwd=trained, expect=2).stderr == said


def refused(questions, how, **who) -> str:
    evaluation = Evaluation(Candidate(**who), "mmstar", None, answer_by=how)
    with pytest.raises(ValueError, match="--answer-by") as error:
        evaluation._check_choices(questions)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_asked_without_its_options_is_refused_in_one_line(tmp_path):
    wordless = [Question("7", "?", None, 4, choices={"A": "red", "B": " "}, stem="?")]
    stemless = [Question("7", "Which?", None, 4, choices={"A": "red", "B": "blue"})]
    for how in BY_WORDS:
        assert "mmstar has no choices to compare" in refused([Question("7", "?", None, 4)], how, model="x")
        assert "(first: question 7): take --answer-by likelihood" in refused(wordless, how, model="x")
        assert "mmstar's rows do not have question and options apart" in refused(stemless, how, model="x")
    Evaluation(Candidate(model="x"), "mmstar", None, answer_by="likelihood")._check_choices(wordless)
    captions = made_run(tmp_path / "run", "llama", "clip", "stage1", template="plain")
    whole = questions()
    assert "has the template plain, which says nothing without" in refused(
        whole, "mutual-information", run=captions
    )
    Evaluation(Candidate(run=captions), "mmstar", None, answer_by="option")._check_choices(whole)
