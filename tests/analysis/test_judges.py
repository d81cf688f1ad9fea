"""Which matches count, and how tokens are shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from basic_lite.analysis.judges import by_words, content_kept, end_tokens, read_words, shown, token_f1
from basic_lite.data.templates import TEMPLATES
from basic_lite.data.world import parts
from basic_lite.method.words import WordTokens, is_content, token_texts, words_of

VICUNA = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "vicuna"


@pytest.fixture(scope="module")
def vicuna():
    tokenizer = AutoTokenizer.from_pretrained(VICUNA)
    return tokenizer, token_texts(tokenizer, 32010)


def test_words_are_without_grammar_and_punctuation():
    assert words_of("A dog, the dog's Bone -- 2 red-hot 红色的圆形!") == [
        *("a", "dog", "the", "dog's", "bone", "2", "red-hot"),
        "红色的圆形",
    ]
    assert [word for word in ("A", " the", "cat", ",", "", "的", "红", "2", "Isn't") if is_content(word)] == [
        *("cat", "红", "2")
    ]


def test_caption_words_count_with_and_without_space_in_any_case_and_by_long_pieces(vicuna):
    tokenizer, texts = vicuna
    found = WordTokens(tokenizer, texts).of(words_of("A red Cat, on the sofas of zebras"))
    counted = {texts[token] for token in found}
    assert {" red", "red", " Red", "Red", " cat", "cat", " Cat", "Cat"} <= counted
    assert not {" on", " the", " of", ",", "A", " A"} & counted
    pieces = [texts[token] for token in tokenizer("sofas", add_special_tokens=False).input_ids]
    assert {piece for piece in pieces if len(piece.strip()) > 2} <= counted
    assert all(len(text.strip()) > 2 for text in counted)  # no "s", no "el"
    red = tokenizer.convert_tokens_to_ids("▁red")
    assert by_words(found)([red, 0, 13]) == [True, False, False]


def test_chinese_words_count_by_the_characters_that_say_something():
    tokenizer = AutoTokenizer.from_pretrained(parts.located("tiny-decoder"))
    texts = token_texts(tokenizer, len(tokenizer))
    counted = {texts[token] for token in WordTokens(tokenizer, texts).of(words_of("左边的红色圆形。"))}
    assert {"红", "左"} <= counted
    assert not {"的", "。"} & counted


def test_tokens_are_shown_whatever_they_are(vicuna):
    tokenizer, texts = vicuna
    assert len(texts) == 32010
    assert [texts[i] for i in (0, 2, 13, 32000)] == ["<unk>", "</s>", "<0x0A>", "<row 32000>"]
    assert texts[tokenizer.convert_tokens_to_ids("▁red")] == " red"
    assert [shown(text) for text in (" red", "\n", " ", "a\tb", "  ", "\n ", "\x0c")] == [
        *("red", "↵", "␣", "a⇥b", "␣␣", "↵␣", "<U+000C>")
    ]
    small = AutoTokenizer.from_pretrained(parts.located("tiny-decoder"))
    written = token_texts(small, len(small))
    ids = small("红\n red", add_special_tokens=False).input_ids
    assert "".join(written[token] for token in ids) == "红\n red"
    broken = small.convert_tokens_to_ids("ç")  # one byte of three
    assert written[broken] == "<0xE7>"


def test_special_tokens_and_newlines_are_ends(vicuna):
    tokenizer, texts = vicuna
    several = [*texts[:500], "\n\n", *texts[501:]]  # as Gemma has
    assert 500 in end_tokens(tokenizer, several, [])
    ends = end_tokens(tokenizer, texts, [TEMPLATES["vicuna_v1"], TEMPLATES["plain"]])
    assert {0, 1, 2, 13} <= ends
    assert tokenizer.convert_tokens_to_ids("▁red") not in ends
    assert all(texts[token].strip("\r\n") in ("", "<unk>", "<s>", "</s>", "<0x0A>") for token in ends)


def test_texts_are_compared_word_by_word():
    assert token_f1("a red cat", "a red cat") == 1
    assert token_f1("red red", "red dog sits") == pytest.approx(2 * 1 / 5)
    assert token_f1("", "") == 1
    assert token_f1("", "cat") == 0
    assert content_kept("the dog is red", "a red cat on a red sofa") == pytest.approx(1 / 3)
    assert content_kept("anything", "it is the") is None
    assert token_f1("红圆", "红方") == pytest.approx(0.5)


def test_a_word_list_is_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# animals\nCat\n\ndog  # barks\n", encoding="utf-8")
    assert read_words(path) == ["cat", "dog"]
    path.write_text("the\n,\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no word"):
        read_words(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_words(tmp_path / "none.txt")
