"""Random models of real architectures, shrunk: the measurement trains what the stages train."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from bench import goals as bench_goals
from bench import runs, start
from tiny import DECODERS, TOWER_SIZES
from transformers import AutoModelForCausalLM, CLIPVisionConfig

from basic_lite.bench import synthetic
from basic_lite.bench.sds import markdown, measure_sds, trl_divergence
from basic_lite.bench.step import Step, compare_steps, measure_steps, set_recomputed
from basic_lite.bench.unsloth_layers import unsloth_layers
from basic_lite.memory import sizes
from basic_lite.method.chunks import Chunk
from basic_lite.method.losses import semantic_distribution
from basic_lite.method.types import Refinement


@pytest.fixture
def shrunk(monkeypatch):
    monkeypatch.setattr(synthetic, "DECODERS", {f"{name}-x": make() for name, make in DECODERS.items()})
    monkeypatch.setattr(synthetic, "CLIP_L_336", TOWER_SIZES)


@pytest.mark.parametrize(("stage", "bits"), [(1, 4), (2, 4), (1, 16)])
@pytest.mark.parametrize("name", DECODERS)
def test_steps_are_measured(shrunk, name, stage, bits):
    assembled = synthetic.random_model(f"{name}-x", bits=bits, dtype=torch.float32, device="cpu", layers=2)
    assert len(assembled.model.model.language_model.layers) == 2
    facts = measure_steps(assembled, Step(stage, micro_batch=2, text=5, rank=4, recompute=1, steps=2))
    assert facts["tokens per row"] == 1 + 9 + 5
    assert facts["layers recomputed"] == 1
    assert facts["samples/s (median)"] > 0
    assert facts["peak MiB"] > 0


def test_weights_in_4_bits_are_made_in_4_bits(shrunk):
    from bitsandbytes.functional import dequantize_4bit

    model = synthetic.random_model("llama-x", bits=4, dtype=torch.float32, device="cpu", layers=2).model
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    packed = [m.weight for m in model.model.language_model.layers.modules() if hasattr(m, "quant_state")]
    assert len(packed) == 14
    assert len({weight.data.numpy().tobytes() for weight in packed}) == 14
    assert all(weight.quant_state.nested for weight in packed)
    for weight in packed:
        wide = dequantize_4bit(weight.data, weight.quant_state)
        assert wide.shape == weight.quant_state.shape
        assert 0.01 < wide.std() < 0.04


def test_what_cannot_be_measured_is_said(shrunk):
    with pytest.raises(ValueError, match="no model is named 'x'; known: llama-x"):
        synthetic.random_model("x", bits=4, dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match="4 or 16 bits, not 8"):
        synthetic.random_model("llama-x", bits=8, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vicuna-7b", 6_738_415_616),
        ("vicuna-13b", 13_015_864_320),
        ("gemma-2b", 2_506_172_416),
        ("phi3-mini", 3_821_079_552),
        ("mistral-7b", 7_241_732_096),
    ],
)
def test_the_decoders_are_the_published_ones(name, parameters):
    from basic_lite.memory.available import parameters_of

    assert parameters_of(synthetic.DECODERS[name]) == parameters


@pytest.mark.parametrize("stage", [1, 2])
def test_our_step_beside_the_documentations_and_the_naive_one(shrunk, stage, monkeypatch):
    assembled = synthetic.random_model("llama-x", bits=16, dtype=torch.float32, device="cpu")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *p: None if name == "unsloth" else find(name, *p)
    )
    found = compare_steps(assembled, Step(stage, micro_batch=2, text=5, rank=4, steps=1), rounds=2)
    if stage == 2:
        assert found.pop() == {"name": "Unsloth's LoRA layers, plain", "why not": "unsloth is not installed"}
    assert len(found) == 4
    assert all(row["samples/s"] > 0 for row in found)
    assert found[1]["time / our plain"] == found[2]["time / documented plain"] == 1
    wanted = found[1]["samples/s"] / found[0]["samples/s"]
    assert found[0]["time / our plain"] == pytest.approx(wanted, rel=0.01)


def test_the_documented_step_has_nothing_of_ours_in_it(shrunk, monkeypatch):
    """After our step, whose classes stay in the model, PEFT's and transformers' own must run."""
    from peft.tuners.lora import Linear
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    from basic_lite.bench import step as bench

    assembled, seen = synthetic.random_model("llama-x", bits=16, dtype=torch.float32, device="cpu"), []
    step = Step(2, micro_batch=1, text=5, rank=4, recompute=0, steps=1)
    bench.measure_steps(assembled, step)
    modules = list(assembled.model.modules())
    names = {type(m).__module__ for m in modules}
    assert "basic_lite.models.adapters" in names
    assert "basic_lite.models.decoder_layer" in names

    class Spy(bench.Trainer):
        def train(self):  # what it is now: afterwards ours is put back
            seen.extend(
                (type(m), m.lora_dropout if hasattr(m, "lora_A") else {}) for m in self.model.modules()
            )
            dropouts.extend(type(drop["default"]) for _, drop in seen if drop)
            return super().train()

    dropouts: list[type] = []
    monkeypatch.setattr(bench, "Trainer", Spy)
    bench.measure_baseline(assembled, step)
    kinds = {kind for kind, _ in seen}
    ours = {kind.__name__ for kind in kinds if kind.__module__.startswith("basic_lite")}
    assert ours == {"Projector", "LlamaDecoderLayer"}  # the last layer's, which asks for no chosen rows
    assert LlamaDecoderLayer in kinds
    assert {kind for kind, drop in seen if drop} == {Linear}
    assert set(dropouts) == {torch.nn.Dropout}


class TheirLayers(ModuleType):
    """Unsloth's functions, by what its documentation says of them: PEFT's layers in one call."""

    def __init__(self) -> None:
        super().__init__("unsloth.kernels")
        self.calls: Counter[str] = Counter()

    def apply_lora_qkv(self, attention, x):
        self.calls["qkv"] += 1
        return attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)

    def apply_lora_o(self, attention, x):
        self.calls["o"] += 1
        return attention.o_proj(x)

    def apply_lora_mlp_swiglu(self, mlp, x):
        self.calls["mlp"] += 1
        return mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))

    def apply_lora_mlp_geglu_approx(self, mlp, x):
        self.calls["mlp"] += 1
        gate = torch.nn.functional.gelu(mlp.gate_proj(x), approximate="tanh")
        return mlp.down_proj(gate * mlp.up_proj(x))


@pytest.mark.parametrize("name", ["llama", "gemma", "mistral"])
def test_unsloths_functions_run_every_adapted_layer(shrunk, name, monkeypatch):
    from basic_lite.models.trainable import Adapters, train_adapters

    theirs = TheirLayers()
    monkeypatch.setitem(sys.modules, "unsloth.kernels", theirs)
    assembled = synthetic.random_model(f"{name}-x", bits=16, dtype=torch.float32, device="cpu")
    train_adapters(assembled, Adapters(4, 8, 0.0))
    decoder = assembled.model.get_base_model().model.language_model
    ids = torch.arange(12)[None] + 10
    plain = decoder(ids).last_hidden_state
    with unsloth_layers(decoder):
        inside = decoder(ids).last_hidden_state
    assert theirs.calls == {"qkv": 4, "o": 4, "mlp": 4}
    torch.testing.assert_close(inside, plain, rtol=1e-5, atol=1e-6)
    decoder(ids)
    assert theirs.calls["qkv"] == 4  # transformers' own again


def test_unsloth_is_measured_where_it_is_installed(shrunk, monkeypatch):
    theirs = TheirLayers()
    package = ModuleType("unsloth")
    package.__spec__ = ModuleSpec("unsloth", None)
    for name, module in (("unsloth", package), ("unsloth.kernels", theirs)):
        monkeypatch.setitem(sys.modules, name, module)
    assembled = synthetic.random_model("llama-x", bits=16, dtype=torch.float32, device="cpu")
    step = Step(2, micro_batch=1, text=5, rank=4, steps=1)
    row = compare_steps(assembled, step, naive=False)[-1]
    assert row["name"].startswith("Unsloth's LoRA layers, plain (micro-batch 1, ")
    assert row["samples/s"] > 0
    assert row["time / documented plain"] > 0
    assert theirs.calls["qkv"] == theirs.calls["o"] == theirs.calls["mlp"] > 0


def test_an_interval_holds_the_ratio_and_grows_with_the_noise():
    from basic_lite.bench.step import ratio

    base = [1.0 + 0.01 * (i % 5) for i in range(25)]
    middle, low, high = ratio(base, [2 * speed for speed in base])
    assert middle == 0.5
    assert low < 0.5 < high
    assert 0.48 < low < high < 0.52
    _, wide_low, wide_high = ratio([s + 0.2 * (i % 3) for i, s in enumerate(base)], base)
    assert wide_high - wide_low > high - low


def test_the_naive_terms_are_basics(shrunk):
    """What is measured as naive BASIC computes the same thing."""
    from basic_lite import BasicSupervision
    from basic_lite.bench.step import _terms
    from basic_lite.data.batches import Collator

    assembled = synthetic.random_model("llama-x", bits=16, dtype=torch.float32, device="cpu")
    rows = synthetic.RandomRows(2, 9, 5, 320, 24)
    batch = Collator(pad_token_id=0, image_token_id=3)([rows[0], rows[1]])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels", "pixel_values")}
    inputs["pixel_values"] = inputs["pixel_values"].float() / 127.5 - 1
    supervision = BasicSupervision(assembled.model)
    with supervision:
        assembled.model(**inputs)
    assembled.model.model.language_model.set_attn_implementation("eager")
    outputs = assembled.model(**inputs, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(_terms(assembled, inputs, outputs), supervision.loss(), rtol=1e-4, atol=1e-5)


def test_the_semantic_distribution_is_measured_beside_its_products():
    found = measure_sds(32, 16, 300, "cpu", torch.float32, 2)
    names = ["three products", "L_sds", "L_sds, in tiles", "naive"]
    assert [row["name"] for row in found[:4]] == names
    others = {row["name"]: row for row in found[4:]}
    assert found[0]["ratio"] == 1
    assert [row.get("chunk") for row in found[:4]] == [None, "32 x 300", "32 x 75", None]
    assert "need a GPU" in others["liger fused JSD"]["why not"]
    trl = others["trl chunked divergence"]  # which is no part of a usual installation
    assert "ratio" in trl or "trl>=1.16" in trl["why not"]
    table = markdown(found)
    assert table.count("\n") == 7
    assert table.startswith("| name | ms | extra MiB | ratio | chunk |")


class _TheirDivergence:
    """TRL's function as documented: the divergence of each row, and the student's entropy."""

    @staticmethod
    def apply(student, head, bias, teacher, teacher_head, teacher_bias, beta, temperature=1.0):
        assert bias is None
        assert teacher_bias is None
        log_q = (student @ head.T).log_softmax(-1)
        log_p = (teacher @ teacher_head.T).log_softmax(-1)
        first, second = (log_p, log_q) if beta == 0 else (log_q, log_p)
        return (first.exp() * (first - second)).sum(-1), -(log_q.exp() * log_q).sum(-1)


def test_trls_divergence_is_asked_for_the_same_thing(monkeypatch):
    module = ModuleType("trl.kernels.chunked_divergence")
    module.ChunkedDivergenceFunction = _TheirDivergence
    for name in ("trl", "trl.kernels", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    torch.manual_seed(0)
    initial, target = torch.randn(7, 16, requires_grad=True), torch.randn(7, 16)
    seen = Refinement(initial, target, torch.rand(7), torch.zeros(7, dtype=torch.long), 1)
    embedding = torch.randn(50, 16)
    theirs, ours = trl_divergence(seen, embedding), semantic_distribution(seen, embedding).total
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    gradients = (torch.autograd.grad(total, initial)[0] for total in (theirs, ours))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_trl_itself_says_what_we_say():
    """Where TRL is installed: its own code in place of the one above, on a CPU."""
    pytest.importorskip("trl.kernels.chunked_divergence", reason="TRL 1.16 or later is not installed")
    torch.manual_seed(0)
    embedding = torch.randn(40_000, 48)  # two of its tiles
    initial, target = torch.randn(37, 48, requires_grad=True), torch.randn(37, 48)
    seen = Refinement(initial, target, torch.rand(37), torch.zeros(37, dtype=torch.long), 1)
    theirs, ours = (
        trl_divergence(seen, embedding),
        semantic_distribution(seen, embedding, Chunk(9, 9_000)).total,
    )
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    theirs, ours = (torch.autograd.grad(total, initial)[0] for total in (theirs, ours))
    assert (theirs - ours).norm() < 1e-5 * ours.norm()
    names = {row["name"]: row for row in measure_sds(8, 16, 300, "cpu", torch.float32, 1)}
    assert names["trl chunked divergence"]["ratio"] > 0


@pytest.fixture
def small_goals(shrunk, monkeypatch):
    named = {"vicuna-7b": DECODERS["llama"](), "gemma-2b": DECODERS["gemma"]()}
    for module in (synthetic, sizes):
        monkeypatch.setattr(module, "DECODERS", named)
    tower = {"clip-l-336": CLIPVisionConfig(**synthetic.CLIP_L_336)}
    for module in (sizes, runs):
        monkeypatch.setattr(module, "TOWERS", tower)
    size = bench_goals.Size("cpu", torch.float32, bits=16, micro_batch=2, text=(5, 6), rank=4, patches=8)
    return replace(size, steps=1, rounds=1)


@pytest.mark.slow
@pytest.mark.full
def test_every_goal_has_its_row(small_goals):
    said = []
    rows = list(runs.every_goal(small_goals, ("vicuna-7b", "gemma-2b"), said.append))
    table = bench_goals.markdown(rows)
    for words in (
        "| L_sds / three products, gemma-2b, N = 8 | at most 1.45 |",
        "| liger's time / L_sds, vicuna-7b, N = 8 | at least 1.4 | - | - | its kernels need a GPU |",
        "| L_sds extra memory / inputs, vicuna-7b, N = 16 | at most 1 | - | - | needs a GPU |",
        "| BASIC step / our plain step, stage 1 recomputing, vicuna-7b | at most 1.035 |",
        "| peak in GB, stage 1, micro-batch 2, recomputing, gemma-2b | at most 6.8 | - |",
        "| rise of the peak from BASIC's terms in MiB, vicuna-7b | at most 128 | - |",
        "| samples/s, BASIC / transformers' plain step, best micro-batches, gemma-2b | at least 1.1 |",
        "| BASIC step / our plain step, stage 2, micro-batch 1, vicuna-7b | at most 1.05 |",
        "BASIC / transformers' plain step at its best, stage 2, micro-batch 1, gemma-2b | at least 1.8 |",
        "| samples/s, BASIC / Unsloth's LoRA layers, plain, vicuna-7b | at least 1 | - | - | unsloth is not",
        "| peak in GB, stage 2, micro-batch 1, adamw, vicuna-7b | at most 15.5 | - |",
        "| peak in GB, stage 2, micro-batch 1, paged-adamw-8bit, vicuna-7b | at most 12 | - |",
        "| stage 1 runs under the cap, gemma-2b | at least 1 | 1 | - |",
        "| stage 2 runs under the cap, vicuna-7b | at least 1 | 1 | - |",
    ):
        assert words in table
    assert all(row.met is None for row in rows)  # not the size, nor the machine, that the goals are about
    ratios = [row.measured for row in rows if "step" in row.what or "products" in row.what]
    assert all(ratio > 0 for ratio in ratios)
    assert any("stage 2" in line for line in said)


def test_a_goal_is_judged_where_it_is_about_the_figure():
    row = bench_goals.Row("a time", 1.25, measured=1.3)
    assert row.met is False
    assert replace(row, measured=1.2).met is True
    assert replace(row, most=False).met is True
    assert replace(row, judged=False).met is None
    assert replace(row, measured=None).met is None
    real = bench_goals.Size("cuda", torch.bfloat16, 24.0)
    assert real.judged
    assert replace(real, steps=3, rounds=1).judged
    assert not any(replace(real, **other).judged for other in ({"layers": 2}, {"rank": 8}, {"device": "cpu"}))


def test_recomputing_is_set_anew_for_every_measurement(small_goals):
    assembled = synthetic.random_model("vicuna-7b", bits=16, dtype=torch.float32, device="cpu")
    layers = assembled.model.model.language_model.layers
    for count, expected in ((None, len(layers)), (0, 0), (2, 2)):
        set_recomputed(assembled, count)
        assert sum(layer.gradient_checkpointing for layer in layers) == expected


def test_what_fails_takes_no_other_row_of_the_table_with_it(small_goals, monkeypatch, tmp_path, capsys):
    """A start that does not come up, a kernel that does not compile, a model that cannot be built."""
    from bench.goals_command import goals

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("CUDA error:\nno kernel image")

    monkeypatch.setattr(runs, "cpu_rows", lambda: [bench_goals.Row("on a CPU", 1.5, measured=1.1)])
    monkeypatch.setattr(start, "measure_starts", fail)
    monkeypatch.setattr(runs, "_stage1", fail)
    build = runs.random_model
    monkeypatch.setattr(
        runs, "random_model", lambda model, **k: fail() if "7b" in model else build(model, **k)
    )
    small = {"micro_batch": 2, "text": 5, "rank": 4, "patches": 8, "steps": 1, "rounds": 1, "bits": 16}
    models, out = ["vicuna-7b", "gemma-2b"], tmp_path / "goals.json"
    goals(model=models, cap=24.0, decoder_layers=2, start=True, out=out, **small)
    rows = {row["what"]: row for row in json.loads(out.read_text())["rows"]}
    failed = {what for what in rows if what.endswith(": failed")}
    assert failed == {
        f"{what}: failed" for what in ("starts of a 7B", "steps, vicuna-7b", "stage 1, gemma-2b")
    }
    assert all("RuntimeError: CUDA error: no kernel image" in rows[what]["note"] for what in failed)
    assert rows["on a CPU"]["met"]
    assert rows["L_sds / three products, vicuna-7b, N = 8"]["measured"] is not None
    assert rows["stage 2 runs under the cap, gemma-2b"]["measured"] == 1
    assert "| starts of a 7B: failed | - | - | - | RuntimeError" in capsys.readouterr().out


@pytest.mark.parametrize("name", DECODERS)
def test_a_random_model_on_disk_is_a_whole_one(name, tmp_path):
    start.write_random_model(tmp_path / "llm", DECODERS[name](), AutoModelForCausalLM)
    files = {path.name for path in (tmp_path / "llm").glob("*.safetensors")}
    assert {"model-0.safetensors", "model-rest.safetensors"} <= files
    model, about = AutoModelForCausalLM.from_pretrained(tmp_path / "llm", output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    assert model.dtype == torch.bfloat16


def test_the_command_writes_what_it_prints(small_goals, monkeypatch, tmp_path, capsys):
    from bench.goals_command import goals

    monkeypatch.setattr(runs, "cpu_rows", lambda: [bench_goals.Row("on a CPU", 1.5, measured=1.1)])
    small = {"micro_batch": 2, "text": 5, "rank": 4, "patches": 8, "steps": 1, "rounds": 1, "bits": 16}
    out = tmp_path / "goals.json"
    goals(model=["gemma-2b"], cap=24.0, decoder_layers=2, start=False, out=out, **small)
    printed = capsys.readouterr().out
    assert "| on a CPU | at most 1.5 | 1.1 | yes |" in printed
    written = json.loads(out.read_text())
    assert all(f"{name}: {written[name]}" in printed for name in ("date", "card", "versions", "command"))
    assert f"torch {torch.__version__}" in written["versions"]
    rows = written["rows"]
    assert [row["what"] in printed for row in rows] == [True] * len(rows)
    assert rows[0]["met"] is True
    assert {row["met"] for row in rows[1:]} == {None}
    with pytest.raises(ValueError, match="no model is named"):
        goals(model=["gpt-5"], start=False, **small)
