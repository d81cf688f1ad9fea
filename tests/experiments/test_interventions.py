"""What an experiment does to the teacher reaches the target, exactly, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import PATCHES, llm_folder, tiny_batch, tiny_llava

from basic_lite import BasicSupervision
from basic_lite.data.layout import layout_of
from basic_lite.experiments.interventions import check, make, parse
from basic_lite.method.targets import layer_weights
from basic_lite.method.types import Refinement
from basic_lite.models.parts import parts_of


def watched(model, text: str, seed: int = 7, **options: object) -> BasicSupervision:
    """Watch one forward pass under an intervention."""
    supervision, batch = BasicSupervision(model, layers=2, **options), tiny_batch()
    if (changed := make(text, parts_of(model), 2, "quadratic")) is not None:
        supervision.intervene(changed)
    token = model.config.image_token_id
    rows = layout_of(batch["input_ids"], batch["attention_mask"], token, 5)
    supervision.use(rows, rows=list(range(5)))
    torch.manual_seed(seed)
    with supervision:
        model(**batch)
    return supervision


def same(one: Refinement, other: Refinement, names: tuple[str, ...]) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.fixture(scope="module")
def raw(model) -> Refinement:
    return watched(model, "none").refinement


def test_noise_of_nothing_is_the_raw_target_exactly(model, raw):
    assert same(watched(model, "noise=0").refinement, raw, ("initial", "target", "importance", "image"))


def test_noise_is_relative_to_every_state_and_goes_no_further(model):
    """`E |sum_l w_l e_l| ** 2 = size ** 2 sum_l w_l ** 2 |h_l| ** 2`, and the decoder's output stays."""
    states = []

    def keep(layer, args, output) -> None:
        states.append((output if torch.is_tensor(output) else output[0]).detach())

    hooks = [layer.register_forward_hook(keep) for layer in parts_of(model).decoder.layers[:2]]
    batch = tiny_batch()
    model(**batch)
    for hook in hooks:
        hook.remove()
    at = layout_of(batch["input_ids"], batch["attention_mask"], model.config.image_token_id, 5).patch
    lengths = [state.flatten(0, 1)[at].norm(dim=-1) for state in states]
    weights = layer_weights(2, "constant")
    wanted = 0.3**2 * sum(w**2 * length**2 for w, length in zip(weights, lengths, strict=True)).sum()
    raw = watched(model, "none", weighting="constant").refinement
    noisy = [watched(model, "noise=0.3", seed, weighting="constant").refinement for seed in range(20)]
    found = torch.stack([(one.target - raw.target).square().sum() for one in noisy])
    assert float(found.mean() / wanted) == pytest.approx(1, abs=0.05)  # of 20 draws
    assert same(noisy[0], raw, ("initial", "importance"))


def test_shuffled_targets_are_those_of_the_image_before(model, raw):
    found = watched(model, "shuffled").refinement
    blocks = raw.target.view(5, PATCHES, -1)
    assert torch.equal(found.target.view(5, PATCHES, -1), blocks[[4, 0, 1, 2, 3]])
    assert same(found, raw, ("initial", "importance", "image"))


def test_another_teacher_gives_the_targets_of_its_own_layers(model, raw, tmp_path):
    """The same decoder as a teacher gives the raw target; a random one another, the same for a seed."""
    parts_of(model).decoder.save_pretrained(tmp_path)
    depth = len(parts_of(model).decoder.layers)
    assert torch.allclose(watched(model, f"teacher={tmp_path}").refinement.target, raw.target, atol=1e-5)
    random = [watched(model, "teacher=random").refinement.target for _ in range(2)]
    assert torch.equal(*random)
    assert not torch.allclose(random[0], raw.target, atol=1e-2)
    assert len(parts_of(model).decoder.layers) == parts_of(model).decoder.config.num_hidden_layers == depth


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "known: none, noise=SIZE"),
        ("noise", "known: none"),
        ("shuffled=2", "known: none"),
        ("noise=-1", "noise must be 0 or a positive number"),
        ("noise=much", "noise must be 0 or a positive number"),
        ("teacher=/nowhere", "no teacher can be loaded"),
        ("shuffled", "two images in a forward pass"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_loaded(text, said, model):
    with pytest.raises(ValueError, match=said):
        check(text, parts_of(model).decoder.config, micro_batch=1)


def test_a_teacher_of_another_width_is_refused(model):
    config = copy.deepcopy(parts_of(model).decoder.config)
    check(f"teacher={llm_folder()}", config, 4)
    config.hidden_size += 8
    with pytest.raises(ValueError, match="targets need equal width"):
        check(f"teacher={llm_folder()}", config, 4)


def test_names():
    assert parse("none") == ("none", "")
    assert parse("teacher=a=b") == ("teacher", "a=b")
