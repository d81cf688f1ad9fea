"""The fit of a target: closed form against the obvious way, streamed, held out, from text alone."""

from __future__ import annotations

import pytest
import torch
from oracle import close
from tiny import DECODERS, adapted, llm_folder, tiny_assembled, tiny_llava
from transformers import AutoTokenizer

from basic_lite import BasicSupervision, fit_target
from basic_lite.method.fit import Sums, fit_rows, states_of, token_rows

TEXTS = [f"a {colour} {thing} stands {place}" for colour in ("red", "teal", "brown") for thing in
         ("box", "ring", "kite", "lamp") for place in ("here", "on a hill", "far off")]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(llm_folder())


def test_the_map_is_the_least_squares_solution_of_the_augmented_system():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64) @ mixing
    x[:, 0] += 3000  # a coordinate whose mean is far above its deviation
    y = torch.randn(400, 6, generator=generator, dtype=torch.float64) + x @ mixing
    sums = Sums(6, torch.device("cpu"), torch.float64)
    for part_x, part_y in zip(x.split(37), y.split(37), strict=True):
        sums.add(part_x, part_y)
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    strength = 0.05 * centred_x.square().sum(0).mean()
    above = torch.cat([centred_x, strength.sqrt() * torch.eye(6, dtype=torch.float64)])
    truth = torch.linalg.lstsq(above, torch.cat([centred_y, torch.zeros(6, 6)])).solution
    torch.testing.assert_close(sums.solve(0.05), truth, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sums.means(), (x.mean(0), y.mean(0)), rtol=1e-12, atol=1e-9)


def test_single_precision_sums_survive_a_massive_coordinate():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2000, 5, generator=generator)
    y = x @ torch.randn(5, 5, generator=generator)
    found = []
    for shift in (0.0, 3000.0):
        sums = Sums(5, torch.device("cpu"), torch.float32)
        moved = x + torch.tensor([shift, 0, 0, 0, 0])
        for part_x, part_y in zip(moved.split(100), y.split(100), strict=True):
            sums.add(part_x, part_y)
        found.append(sums.solve(1e-6))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=2e-3)


@pytest.mark.parametrize("decoder", DECODERS)
def test_states_are_those_of_the_decoder_without_the_first_token(decoder, tokenizer):
    model = tiny_llava(decoder)
    language = model.model.language_model
    rows = token_rows(tokenizer, TEXTS, 1000)
    truth = language(input_ids=rows, output_hidden_states=True)
    for whole in (False, True):
        batches = list(states_of(language, rows, [1, 3], whole=whole, batch=100_000))
        assert len(batches) == 1
        batch = batches[0]
        assert (batch.final is not None) == whole
        torch.testing.assert_close(batch.ids, rows[:, 1:].flatten())
        torch.testing.assert_close(batch.received, truth.hidden_states[0][:, 1:].flatten(0, 1))
        assert list(batch.states) == [1, 3]
        for layer, states in batch.states.items():
            expected = truth.hidden_states[layer][:, 1:].flatten(0, 1)
            torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    if whole:
        torch.testing.assert_close(batch.final, truth.last_hidden_state, rtol=1e-5, atol=1e-5)


def test_the_model_is_left_as_it_was(tokenizer):
    model = tiny_llava().train()
    before = {name: module.training for name, module in model.named_modules()}
    logits = model(input_ids=torch.arange(4, 12)[None]).logits
    fit_target(model, tokenizer, TEXTS)
    assert before == {name: module.training for name, module in model.named_modules()}
    assert torch.equal(model(input_ids=torch.arange(4, 12)[None]).logits, logits)


def states_by_layer(model, rows, k):
    parts = [
        list(one.states.values()) for one in states_of(model.model.language_model, rows, range(1, k + 1))
    ]
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_map_is_the_regression_to_what_the_first_layer_received(decoder, tokenizer):
    """For Gemma that is E times sqrt(D): the space that visual embeddings are compared in."""
    model = tiny_llava(decoder)
    rows = token_rows(tokenizer, TEXTS, 4000)
    space = fit_rows(model.model.language_model, rows, "translated", 2, ridge=1e-12)
    kept = rows[torch.arange(len(rows)) % 10 != 9]
    received = model.get_input_embeddings()(kept[:, 1:]).flatten(0, 1).double()
    for index, states in enumerate(states_by_layer(model, kept, 2)):
        affine = torch.cat([states.double(), torch.ones(len(states), 1)], 1)
        truth = affine @ torch.linalg.lstsq(affine, received).solution
        assert close(space.bring(index, states.clone()), truth, 1e-4)
        assert not close(states, truth, 0.1)


def test_centred_takes_the_mean_text_state_off(tokenizer):
    model, rows = tiny_llava(), token_rows(tokenizer, TEXTS, 4000)
    space = fit_rows(model.model.language_model, rows, "centred", 2)
    kept = rows[torch.arange(len(rows)) % 10 != 9]
    for index, states in enumerate(states_by_layer(model, kept, 2)):
        torch.testing.assert_close(space.centre[index], states.mean(0), rtol=1e-5, atol=1e-5)


def test_layers_in_groups_give_the_same_maps(tokenizer):
    model, rows = tiny_llava(), token_rows(tokenizer, TEXTS, 4000)
    said = []
    one = fit_rows(
        model.model.language_model, rows, "translated", 3, sum_bytes=2 * 32 * 32 * 8, progress=said.append
    )
    assert len(said) == 3
    whole = fit_rows(model.model.language_model, rows, "translated", 3)
    for ours, theirs in zip(one.maps, whole.maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_held_out_text_is_held_out(tokenizer, monkeypatch):
    """The fit never sees the rows that its quality is read from."""
    runs = []
    real = states_of

    def watched(decoder, rows, *more, **named):
        runs.append({tuple(row) for row in rows.tolist()})
        return real(decoder, rows, *more, **named)

    monkeypatch.setattr("basic_lite.method.fit.states_of", watched)
    rows = torch.randint(4, 260, (40, 16), generator=torch.Generator().manual_seed(2))
    fit_rows(tiny_llava().model.language_model, rows, "translated", 2)
    fitted, held_out = runs
    assert not fitted & held_out
    assert fitted | held_out == {tuple(row) for row in rows.tolist()}


@pytest.mark.parametrize("bits", [4, 16])
def test_a_fit_goes_into_the_supervision(bits, tokenizer):
    model = tiny_assembled(bits=bits).model
    space = fit_target(model, tokenizer, TEXTS, "translated", layers=3)
    assert BasicSupervision(model, layers=3, target=space).layers == 3
    assert len(space.report["layers"]) == 3
    assert fit_target(model, tokenizer, [], "raw").kind == "raw"


def test_a_decoder_with_adapters_is_fitted_too(tokenizer):
    space = fit_target(adapted(tiny_llava()), tokenizer, TEXTS)
    assert space.maps[0].isfinite().all()


def test_little_text_for_the_width_is_said(tokenizer):
    said = []
    fit_target(tiny_llava(), tokenizer, ["a red box"] * 11, progress=said.append)
    assert "are little text for maps of width 32" in said[0]


def test_too_little_text_is_refused(tokenizer):
    with pytest.raises(ValueError, match="3 tokens of text are too few"):
        fit_target(tiny_llava(), tokenizer, ["abc"])
