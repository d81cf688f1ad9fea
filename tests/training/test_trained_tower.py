"""A vision tower that stage 2 trains, too: its gradients, what is saved of it, and what a run with it can."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import pytest
import torch
from command import run, settings_shown, stage1, stage2
from oracle import oracle
from processes import finish, launch
from safetensors.torch import load_file
from tiled import tiled_batch, tiled_oracle
from tiny import ALL_TOWERS, IMAGE_TOKEN, tiny_assembled, tiny_batch, tower_folder
from tiny_trainer import failing, gradients, trainer

from basic_lite import files
from basic_lite.data.layout import layout_of
from basic_lite.method.objective import Objective
from basic_lite.method.types import Window
from basic_lite.models import quantised, trainable
from basic_lite.models.checkpoint import load_run
from basic_lite.models.llava import read_config
from basic_lite.models.parts import parts_of
from basic_lite.models.projector import Projector
from basic_lite.models.tower import load_tower, parameters_of_features
from basic_lite.training.guards import rows_of


def tuned(tower="clip", how="weights", **settings):
    """Assemble with adapters in the decoder, and the tower trained by its weights or by adapters."""
    assembled = tiny_assembled(tower=tower, **settings)
    torch.manual_seed(0)
    for name, parameter in parts_of(assembled.model).llava.vision_tower.named_parameters():
        if "scale" in name or name.endswith("position_embedding.weight"):
            parameter.data.add_(torch.randn_like(parameter) / 4)  # DINO's layers begin as next to nothing
    adapters = trainable.Adapters(4, 8, 0.0, tower_rank=2 if how == "adapters" else 0)
    trainable.train_adapters(assembled, adapters)
    if how == "weights":
        trainable.train_tower(assembled)
    for name, parameter in assembled.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return assembled


def backward(folder, model, batch, cuts=(), tiling=None):
    """Put a batch through the trainer in parts; return its gradients."""
    made = trainer(folder, model, objective=Objective(), accumulation=1)
    made.transform = None
    made.create_optimizer()
    blocks = None if tiling is None else tiling.blocks(batch["image_sizes"])
    count = 5 if blocks is None else len(blocks)
    ids = batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, count, batch["labels"]
    layout = layout_of(*ids, blocks=blocks)
    whole, edges = batch | {"layout": layout}, [0, *cuts, 5]
    for start, stop in pairwise(edges):
        part = rows_of(whole, start, stop) if cuts else whole
        made.training_step(model, part, Window(len(layout.targets), layout.images))
    return gradients(model)


def of_tower(name):
    return "vision_tower" in name


def check(found, expected, count):
    """Compare each tensor's gradient by the norm of the whole: a key's bias has none but rounding."""
    assert len(expected) == count
    assert {name for name in found if of_tower(name)} == set(expected)
    norm = sum(gradient.square().sum() for gradient in expected.values()).sqrt()
    assert norm > 1e-2
    for name, gradient in expected.items():
        assert float((found[name].double() - gradient).norm()) <= 1e-5 * float(norm), name


def formulas(model, batch, **more):
    names = [n for n, p in model.named_parameters() if of_tower(n) and p.requires_grad]
    return dict(zip(names, oracle(model, batch, 2, trained="vision_tower", **more)["gradients"], strict=True))


COUNTS = {"clip": 5, "siglip": 3, "dinov2": 4, "dinov2_registers": 5, "dinov3": 4, "aimv2": 4, "mlcd": 5}
"""Tensors in front of the layers: patches, class token, positions, registers, first norm."""
PER_LAYER = {"dinov2": 18, "dinov2_registers": 18, "dinov3": 17, "aimv2": 9}
"""Of two norms and six linear layers 16; DINO scales what is added, and AIMv2 has no biases and a gate."""


@pytest.mark.parametrize("tower", ALL_TOWERS)
def test_every_tower_has_the_gradient_of_the_formulas(tmp_path, tower):
    """Of three layers two are trained; in fp64, as SigLIP's own rounding is 1.5e-5 of the whole in fp32."""
    assembled, batch = tuned(tower), tiny_batch()
    expected = formulas(assembled.model, batch)
    assembled.model.double()
    batch["pixel_values"] = batch["pixel_values"].double()
    found = backward(tmp_path, assembled.model, batch, [2])
    check(found, expected, COUNTS[tower] + 2 * PER_LAYER.get(tower, 16))


@pytest.mark.parametrize("how", ["weights", "adapters"])
@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3, 4]])
def test_every_split_of_a_step_has_the_same_gradient(tmp_path, how, cuts):
    assembled, batch = tuned(how=how), tiny_batch("left")
    expected = formulas(assembled.model, batch)
    check(backward(tmp_path, assembled.model, batch, cuts), expected, 37 if how == "weights" else 24)


@pytest.mark.parametrize("where", ["decoder", "tower"])
def test_a_step_that_ran_out_of_memory_has_it_once(tmp_path, where):
    """In backward, where the decoder's adapters or the tower's later layers have their gradients already."""
    assembled, batch = tuned(), tiny_batch()
    expected = formulas(assembled.model, batch)
    tower, seen = parts_of(assembled.model).llava.vision_tower, []

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def watch(layer, args, output):
        seen.append(len(output))
        if len(output) > 3:
            output.register_hook(fail)

    if where == "decoder":
        failing(assembled.model, 3, "backward")
    else:
        tower.encoder.layers[0].register_forward_hook(watch)
    check(backward(tmp_path, assembled.model, batch), expected, 37)
    assert where == "decoder" or seen == [5, 3, 2]


@pytest.mark.parametrize("cuts", [[], [2, 3]])
def test_pictures_in_tiles_have_the_gradient_of_the_formulas(tmp_path, cuts):
    assembled, batch = tuned(tiles=4), tiled_batch()
    expected = tiled_oracle(assembled.model, batch, 2, is_wanted=of_tower)["gradients"]
    check(backward(tmp_path, assembled.model, batch, cuts, assembled.tiling), expected, 37)


def joined(projector, features):
    """Put the features of 2 x 2 of a square's 4 x 4 patches side by side and project them, one by one."""

    def embedding(patches, corner):
        four = torch.cat([patches[corner + step] for step in (0, 1, 4, 5)])
        first = torch.nn.functional.linear(four, projector.linear_1.weight, projector.linear_1.bias)
        gelu = torch.nn.functional.gelu(first)
        return torch.nn.functional.linear(gelu, projector.linear_2.weight, projector.linear_2.bias)

    return torch.stack([torch.stack([embedding(square, at) for at in (0, 2, 8, 10)]) for square in features])


@pytest.mark.parametrize("how", ["weights", "adapters"])
@pytest.mark.parametrize("cuts", [[], [2, 3]])
def test_joined_patches_have_the_gradient_of_the_formulas(tmp_path, monkeypatch, how, cuts):
    """With `--pool 2`, whose projector the definition runs patch by patch."""
    assembled, batch = tuned(how=how, pool=2, image_size=32), tiny_batch(patches=4, size=32)
    with monkeypatch.context() as patch:
        patch.setattr(Projector, "forward", joined)
        expected = formulas(assembled.model, batch, count=4)
    check(backward(tmp_path, assembled.model, batch, cuts), expected, 37 if how == "weights" else 24)


def test_joined_patches_of_tiles_have_the_gradient_of_the_formulas(tmp_path, monkeypatch):
    """A picture of two tiles: 2 x 2 of the whole, then 2 lines of 4 over both tiles, each with a newline."""
    assembled = tuned(pool=2, tiles=2, image_size=32)
    row = tiny_batch(patches=14, size=32)
    batch = {name: row[name][4:] for name in ("input_ids", "attention_mask", "labels")}
    batch |= {"pixel_values": row["pixel_values"][:3], "image_sizes": [(32, 64)]}
    with monkeypatch.context() as patch:
        patch.setattr(Projector, "forward", joined)
        patch.setattr("tiled.BASE", 4)
        patch.setattr("tiled.SHAPES", {(32, 64): (2, 4, 3)})
        expected = tiled_oracle(assembled.model, batch, 2, is_wanted=of_tower)["gradients"]
    check(backward(tmp_path, assembled.model, batch, tiling=assembled.tiling), expected, 37)


def test_a_decoder_in_four_bits_hands_the_gradient_on(tmp_path):
    """The tower beside it stays fp32; its gradient is that of the numbers that the 4 bits stand for."""
    import bitsandbytes.functional as bnb

    assembled, plain, batch = tuned(bits=4), tuned(), tiny_batch()
    for name, module in assembled.model.named_modules():
        if type(module).__name__ == "Linear4bit":
            weight = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.model.get_submodule(name).weight.data.copy_(weight)
    check(backward(tmp_path, assembled.model, batch, [2]), formulas(plain.model, batch), 37)


@pytest.mark.parametrize("layer", [-1, -2, 1])
@pytest.mark.parametrize("tower", ALL_TOWERS)
def test_trained_is_what_the_features_depend_on(tower, layer):
    """Whatever is left out has no gradient: layers after the feature layer, last norm, head, mask token."""
    assembled = tiny_assembled(tower=tower, tower_layer=layer)
    llava = parts_of(assembled.model).llava
    llava.vision_tower.requires_grad_(True)
    wanted = parameters_of_features(llava.vision_tower, layer)
    torch.cat(list(llava.get_image_features(torch.randn(2, 3, 24, 24)).pooler_output)).sum().backward()
    reached = {name for name, p in llava.vision_tower.named_parameters() if p.grad is not None}
    assert wanted.keys() == {name for name in reached if "mask_token" not in name}
    assert len(wanted) < len(list(llava.vision_tower.parameters()))


@pytest.mark.parametrize(
    ("tower", "drops"),
    [
        ("clip", {"attention_dropout": 0.5}),
        ("dinov2", {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "drop_path_rate": 0.5}),
        ("dinov3", {"attention_dropout": 0.5, "drop_path_rate": 0.5}),
    ],
)
def test_a_tower_drops_nothing_in_training_mode(tmp_path, tower, drops):
    """Frozen or trained: the published configurations say 0, somebody's own may say more."""
    folder = shutil.copytree(tower_folder(tower), tmp_path / "tower")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | drops))
    read = read_config(str(folder), "vision tower")
    loaded = load_tower(str(folder), read, 24, torch.float32, "cpu").train()
    pixels = torch.randn(2, 3, 24, 24)
    assert torch.equal(loaded(pixels).last_hidden_state, loaded(pixels).last_hidden_state)


def test_adapters_with_dropout_have_one_gradient_with_and_without_recomputation(tmp_path):
    """A layer that runs again draws the same masks, also where an adapter draws its own again inside it."""
    found = []
    for recompute in (True, False):
        assembled, batch = tiny_assembled(), tiny_batch()
        trainable.train_adapters(assembled, trainable.Adapters(4, 8, 0.5, tower_rank=2))
        for name, parameter in assembled.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.1)
        for layer in parts_of(assembled.model).llava.vision_tower.encoder.layers:
            assert layer.gradient_checkpointing
            layer.gradient_checkpointing = recompute
        made = trainer(tmp_path, assembled.model, objective=Objective(), accumulation=1)
        made.transform = None
        layout = layout_of(batch["input_ids"], batch["attention_mask"], IMAGE_TOKEN, 5, batch["labels"])
        torch.manual_seed(7)
        made.training_step(assembled.model, batch | {"layout": layout}, Window(len(layout.targets), 5))
        found.append({n: g for n, g in gradients(assembled.model).items() if of_tower(n)})
    assert len(found[0]) == 24
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-5, atol=1e-6)


def test_the_tower_multiplies_in_the_decoder_s_precision(tmp_path):
    """Its weights stay fp32, as Adam needs them, and so do their gradients."""
    assembled, seen = tuned(dtype=torch.bfloat16), []
    tower = parts_of(assembled.model).llava.vision_tower
    tower.encoder.layers[0].mlp.fc1.register_forward_hook(lambda m, args, output: seen.append(output.dtype))
    found = backward(tmp_path, assembled.model, tiny_batch())
    assert set(seen) == {torch.bfloat16}
    assert {gradient.dtype for name, gradient in found.items() if of_tower(name)} == {torch.float32}


# Whole runs, as they are typed.

HOW = {"weights": ("--train-tower",), "adapters": ("--tower-lora", 2)}
MORE = ("--lora", "--rank", 4, "--bits", 4, "--max-steps", 3, "--save-steps", 2, "--no-quantised-copy")
RATES = ("--tower-learning-rate", 1e-3, "--learning-rate", 1e-2)


@pytest.fixture(scope="module", params=HOW)
def tuned_run(request, trained_run, tmp_path_factory):
    """Three steps in 4 bits with dropout, a checkpoint after two; with its command and what it said."""
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copytree(trained_run, folder / "runs/stage1")
    command = stage2(trained_run.parents[1], *MORE, *RATES, *HOW[request.param], "--val-share", "20%")
    return folder / "runs", command, run(*command, cwd=folder).stdout


def trains_weights(command):
    return "--train-tower" in command


def test_a_run_says_what_it_trains_and_at_which_rate(tuned_run):
    runs, command, said = tuned_run
    shown, manifest = settings_shown(said), files.read_manifest(runs / "stage2")
    assert float(shown["tower learning rate"]) == manifest["training"]["tower_learning_rate"] == 1e-3
    of_it = [name for name in manifest["trainable"] if of_tower(name)]
    assert len(of_it) == (37 if trains_weights(command) else 24)
    assert ("tower.safetensors" in manifest["weights"]) == trains_weights(command)
    assert "vision_tower.encoder.layers.*." in said
    log = [json.loads(line) for line in (runs / "stage2/log.jsonl").read_text().splitlines()]
    assert [row["val_rows"] for row in log if "val_rows" in row][-1] == 4
    base = parts_of(tiny_assembled().model).llava.vision_tower.state_dict()
    tower = parts_of(load_run(runs / "stage2")[0].model).llava.vision_tower.state_dict()
    if trains_weights(command):
        assert all(torch.equal(base[n], tower[n]) == (".2." in n or "post" in n or "ids" in n) for n in base)
    else:
        moved = [float(t.abs().max()) for n, t in tower.items() if "lora_B" in n]
        assert len(moved) == 12
        assert min(moved) > 1e-4


def test_a_resumed_run_ends_with_the_same_bytes(tuned_run, tmp_path):
    whole, command, _ = tuned_run
    out = shutil.copytree(whole, tmp_path / "runs") / "stage2"
    for path in (*out.glob("*.safetensors"), out / files.MANIFEST, out / "checkpoint-3"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    rate = [2e-3 if value == 1e-3 else value for value in command]
    for other, reason in (
        (rate, "another training: {'tower_learning_rate': 0.001}, now {'tower_learning_rate': 0.002}"),
        (stage2(command[2].parent, *MORE, "--val-share", "20%"), "was started with another training: {"),
    ):
        refused = run(*other, "--resume", cwd=tmp_path, expect=2).stderr
        assert reason in refused
    run(*command, "--resume", cwd=tmp_path)
    for path in whole.glob("stage2/*.safetensors"):
        assert files.file_hash(out / path.name) == files.file_hash(path)


def test_an_exported_folder_says_what_the_run_says(tuned_run, tmp_path, monkeypatch):
    monkeypatch.setenv(quantised.VARIABLE, str(tmp_path / "cache"))
    runs, command, _ = tuned_run
    out = tmp_path / "out"
    run("export", runs / "stage2", out, "--base", "dequantised", "--dtype", "fp32", cwd=tmp_path)
    content = json.loads((out / "export.json").read_text())
    assert content["parity"]["gap"] < 1e-5
    written, base = load_file(out / "model.safetensors"), load_file(tower_folder() / "model.safetensors")
    name = "encoder.layers.0.mlp.fc1.weight"
    (here,) = (tensor for key, tensor in written.items() if key.endswith(name) and "vision" in key)
    before = next(tensor for key, tensor in base.items() if key.endswith(name))
    assert float((here - before).abs().max()) > 1e-4
    refused = run("export", runs / "stage2", "no", "--to", "peft", cwd=tmp_path, expect=2).stderr
    assert "trained its vision tower, too, which a folder of the LLM's adapters cannot hold" in refused
    # What was exported is the start of another, and so is the run itself, of which the tower goes on.
    more, firsts = (*MORE, "--val-share", "20%", "--max-steps", 1), []
    how = HOW["weights" if trains_weights(command) else "adapters"]
    for name, start in (("run", (runs / "stage2", *how)), ("model", (out, "--bits", 16))):
        run(*stage2(command[2].parent, *more, "--out", name, "--start", *start), cwd=tmp_path)
        firsts.append(json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])["val_lm"])
    assert firsts[0] == pytest.approx(firsts[1], rel=1e-4)


def test_a_benchmark_and_a_chat_read_it(tuned_run, short_answers, tmp_path):
    runs, command, _ = tuned_run
    bench = command[2].parent / "bench.tsv"
    more = ("--data", bench, "--any-size", "--limit", 1, "--out", tmp_path / "answers")
    run("eval", "mmbench", "--run", runs / "stage2", *more, cwd=tmp_path)
    assert list((tmp_path / "answers").rglob("*.jsonl"))


def test_a_start_whose_tower_was_trained_goes_on_in_the_same_way_alone(tuned_run, tmp_path):
    runs, command, _ = tuned_run
    other = HOW["adapters" if trains_weights(command) else "weights"]
    for how in ((), other):
        more = (*MORE, *how, "--start", runs / "stage2", "--out", "no")
        refused = run(*stage2(command[2].parent, *more), cwd=tmp_path, expect=2).stderr
        assert "trained its tower, too, which goes on with --t" in refused
        assert refused.count("\n") == 1
    assert not (tmp_path / "no").exists()


def test_the_whole_decoder_and_the_tower(stage1_run, world, tmp_path):
    run(*stage2(world, "--bits", 16, "--max-steps", 1, "--train-tower"), cwd=tmp_path)
    out = tmp_path / "runs/stage2"
    manifest = files.read_manifest(out)
    assert manifest["training"]["tower_learning_rate"] == 2e-6
    assert manifest["weights"].keys() == {f"{n}.safetensors" for n in ("decoder", "projector", "tower")}
    run("export", out, "out", "--dtype", "fp32", cwd=tmp_path)
    assert json.loads((tmp_path / "out/export.json").read_text())["parity"]["gap"] < 1e-5


def test_a_frozen_projector_leaves_the_terms_to_the_tower(stage1_run, world, tmp_path):
    more = ("--lora", "--rank", 4, "--max-steps", 1, "--projector-learning-rate", 0, "--tower-lora", 2)
    said = run(*stage2(world, *more), cwd=tmp_path).stdout
    assert "The projector stays as stage 1 left it" in said
    assert "measured only" not in said
    assert files.read_manifest(tmp_path / "runs/stage2")["training"]["tower_learning_rate"] == 2e-5


def test_what_does_not_go_together_is_said_in_one_line(stage1_run, world, tmp_path):
    lora = ("--lora", "--rank", 4)
    for more, reason in (
        ((*lora, "--train-tower", "--tower-lora", 2), "give only one"),
        ((*lora, "--tower-learning-rate", 1e-5), "add --train-tower or --tower-lora"),
        (("--bits", 16, "--tower-lora", 2), "--tower-lora goes with --lora"),
        ((*lora, "--tower-lora", 0), "--tower-lora must be at least 1, got 0"),
        ((*lora, "--tower-lora", 2, "--tower-layer", 0), "leaves no layer for --tower-lora"),
        ((*lora, "--train-tower", "--tower-learning-rate", 0), "--tower-learning-rate must be above 0"),
    ):
        refused = run(*stage2(world, *more), cwd=tmp_path, expect=2).stderr
        assert reason in refused
        assert refused.count("\n") == 1
    assert not (tmp_path / "runs/stage2").exists()
    for option in (("--train-tower",), ("--tower-lora", 8), ("--tower-learning-rate", 1e-6)):
        refused = run(*stage1(world, *option), cwd=tmp_path, expect=2).stderr
        assert refused.count("\n") == 1
        assert "stage 1 trains the projector alone" in refused


@pytest.mark.slow
def test_two_processes_make_the_update_of_one(stage1_run, world, tmp_path):
    """With rows of text alone in one process, whose tower then has no gradient.

    A key's bias changes nothing, so all of its gradient is rounding, which Adam makes steps of.
    """
    more = ("--lora", "--rank", 4, "--dropout", 0, "--train-tower", "--max-steps", 4, "--bits", 16)
    more += ("--tower-learning-rate", 1e-3)
    run(*stage2(world, *more, "--micro-batch", 4, "--out", "one"), cwd=tmp_path)
    finish(launch(stage2(world, *more, "--micro-batch", 2, "--out", "two"), tmp_path))
    for name in ("tower", "adapter_model"):
        one, two = (load_file(tmp_path / n / f"{name}.safetensors") for n in ("one", "two"))
        for key in one:
            if not key.endswith("k_proj.bias"):
                torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-6)
