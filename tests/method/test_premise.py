"""Figures of a decoder on text against their formulas, and what is said of them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from command import run
from tiny import DECODERS, llm_folder, target_space, tiny_llava
from transformers import AutoTokenizer

from basic_lite.method.premise import Figures, Measured, examine, glance, judge, measure, unigram_loss
from basic_lite.method.targets import TargetSpace

WORDS = [f"a {colour} {thing} stands {place}" for colour in ("red", "teal", "brown") for thing in
         ("box", "ring", "kite", "lamp") for place in ("here", "on a hill", "far off")]  # fmt: skip


def truth(vectors: torch.Tensor, received: torch.Tensor, ids: torch.Tensor, table: torch.Tensor) -> Figures:
    vectors, received, table = vectors.double(), received.double(), table.double()
    # Row 0, the padding, is zero and nearest to nothing.
    unit, rows = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-9) for x in (vectors, table))
    probability = (vectors @ table.T).softmax(1)
    energy = (vectors**2).sum(0).sort(descending=True).values
    return Figures(
        own=float(((unit @ rows.T).argmax(1) == ids).double().mean()),
        cosine=float(((vectors * received).sum(1) / vectors.norm(dim=1) / received.norm(dim=1)).mean()),
        energy=float(energy[:3].sum() / energy.sum()),
        common=float(vectors.mean(0).norm() / vectors.norm(dim=1).mean()),
        norm=float(vectors.norm(dim=1).mean()),
        entropy=float(-(probability * probability.log()).sum(1).mean()),
    )


@pytest.mark.parametrize("kind", ["raw", "centred", "translated"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_figures_equal_their_formulas(decoder, kind):
    model = tiny_llava(decoder)
    language, head = model.model.language_model, model.lm_head
    rows = torch.randint(4, 300, (70, 12), generator=torch.Generator().manual_seed(3))
    space = TargetSpace() if kind == "raw" else target_space(kind)
    found = measure(language, head, rows, rows, [0, 1, 3], {kind: (space, [1, 2])})
    out = language(input_ids=rows, output_hidden_states=True)
    table, ids = language.embed_tokens.weight, rows[:, 1:].flatten()
    states = [state[:, 1:].flatten(0, 1).detach() for state in out.hidden_states]
    for layer in (0, 1, 3):
        expected = vars(truth(states[layer], states[0], ids, table))
        assert vars(found.layers[layer]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    brought = [space.bring(index, states[index + 1].clone()) for index in (0, 1)]
    for k, target in ((1, brought[0]), (2, brought[0] / 5 + brought[1] * 4 / 5)):
        expected = vars(truth(target, states[0], ids, table))
        assert vars(found.targets[kind][k]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    logits = head(out.last_hidden_state)[:, :-1].flatten(0, 1).double()
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, ids)), rel=1e-5)
    assert (found.tokens, found.vocabulary) == (70 * 11, 320)


def test_frequencies_predict_as_witten_and_bell_say():
    counted, ids = torch.tensor([5, 5, 5, 6]), torch.tensor([[5, 6], [7, 5]])
    likelihood = [(3 + 2 / 10) / 6, (1 + 2 / 10) / 6, (0 + 2 / 10) / 6, (3 + 2 / 10) / 6]
    expected = -sum(math.log(one) for one in likelihood) / 4
    assert unigram_loss(counted, ids, 10) == pytest.approx(expected, rel=1e-9)
    assert unigram_loss(counted, torch.tensor([7, 8]), 10) == pytest.approx(math.log(10))


def measured(loss: float = 3.0, **own: dict[int, float]) -> Measured:
    """Figures in which only the share of own tokens says something: kind -> k -> share."""
    blank = {"cosine": 0.5, "energy": 0.1, "common": 0.2, "norm": 1.0, "entropy": 2.0}
    targets = {kind: {k: Figures(own=s, **blank) for k, s in shares.items()} for kind, shares in own.items()}
    return Measured(500, 1000, loss, 5.0, {}, targets)


@pytest.mark.parametrize(
    ("found", "case", "target", "layers", "said"),
    [
        (measured(raw={2: 1.0, 4: 0.9}), "holds", "raw", 4, "The premise holds:"),
        (measured(raw={2: 0.6, 4: 0.4}), "holds", "raw", 2, "holds with k = 2 instead of 4"),
        (
            measured(raw={2: 0.6, 4: 0.4}, centred={2: 0.9, 4: 0.45}, translated={2: 1.0, 4: 0.9}),
            *("mended", "translated", 4, "holds in part only"),
        ),
        (
            measured(raw={4: 0.0}, centred={4: 0.8}, translated={4: 0.9}),
            *("mended", "centred", 4, "taking the mean state off"),
        ),
        (
            measured(raw={2: 0.0, 4: 0.0}, centred={2: 0.0, 4: 0.0}, translated={2: 0.7, 4: 0.3}),
            *("mended", "translated", 2, "brings it back with k = 2 instead of 4"),
        ),
        (measured(raw={4: 0.0}, translated={4: 0.3}), "fails", None, None, "translated is best, with 30 %"),
        (measured(5.1, raw={4: 1.0}), "untrained", None, None, "no better than the frequencies"),
    ],
)
def test_a_verdict_for_every_case(found, case, target, layers, said):
    verdict = judge(found)
    assert (verdict.case, verdict.target, verdict.layers) == (case, target, layers)
    assert said in verdict.words


def test_the_embedded_decoder_is_told_from_random_weights(tmp_path):
    """Random states may hold their token: what tells them apart is that they predict nothing."""
    found = {}
    for name, more in (("trained", []), ("random", ["--random-weights"])):
        path = tmp_path / f"{name}.json"
        run("analyze", "premise", "--model", "tiny", "--tokens", 128, "--out", path, *more, cwd=tmp_path)
        found[name] = json.loads(path.read_text())
        assert "<svg" in path.with_suffix(".html").read_text()
    assert found["trained"]["verdict"]["case"] in ("holds", "mended")
    assert found["random"]["verdict"]["case"] == "untrained"
    assert found["random"]["targets"]["translated"]["4"]["own"] > 0.9
    assert found["trained"]["loss"] < found["trained"]["unigram"] < found["random"]["loss"]
    assert len(found["trained"]["translation"]["layers"]) == 4


def test_plain_text_training_data_and_four_bits(tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": " ".join(WORDS)}]
    row = {"id": "a", "image": "a.png", "conversations": turns}
    (tmp_path / "captions.json").write_text(json.dumps([row]))
    for text, bits in (("words.txt", 4), ("captions.json", 16)):
        base = ("analyze", "premise", "--llm", llm_folder(), "--bits", bits)
        said = run(*base, "--text", text, cwd=tmp_path).stdout
        assert "Nothing to learn from" in said
    refused = run(*base, "--text", "none.txt", cwd=tmp_path, expect=2)
    assert "--text none.txt cannot be read" in refused.stderr
    (tmp_path / "short.txt").write_text("a box\n")
    refused = run(*base, "--text", "short.txt", cwd=tmp_path, expect=2)
    assert "5 tokens of text are too few" in refused.stderr


def test_too_little_text_for_maps_tries_means_alone():
    tokenizer = AutoTokenizer.from_pretrained(llm_folder())
    model, said = tiny_llava(), []
    parts = (model.model.language_model, model.lm_head, tokenizer)
    found = examine(*parts, ["x" * 100], read=32, progress=said.append)
    assert "too few to fit maps" in said[0]
    assert set(found.measured.targets) == {"raw", "centred"}
    assert found.fit == {}


def test_a_glance_at_fewer_rows_than_one_in_ten_holds_out_one():
    tokenizer = AutoTokenizer.from_pretrained(llm_folder())
    model = tiny_llava()
    parts = (model.model.language_model, model.lm_head, tokenizer)
    found = glance(*parts, [f"number {n}" for n in range(8)], 2, "quadratic")  # 71 letters, eight to a row
    assert 0 < found.measured.tokens < 16


def test_the_glance_reads_the_targets_of_the_run_alone():
    tokenizer = AutoTokenizer.from_pretrained(llm_folder())
    model = tiny_llava()
    parts = (model.model.language_model, model.lm_head, tokenizer)
    found = glance(*parts, WORDS, 2, "quadratic", target_space("centred"))
    assert set(found.measured.targets) == {"raw", "centred"}
    assert found.measured.layers == {}
    assert found.measured.tokens < 300
