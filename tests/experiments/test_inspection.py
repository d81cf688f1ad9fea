from __future__ import annotations

import pytest
import torch
from embedded import needs_parts
from torch.nn import functional as F

from basic_lite.data.world.render import render
from basic_lite.data.world.world import SHOWN, held_out_scenes
from basic_lite.experiments.measure import Inspection, inspect_model
from basic_lite.method.fit import match_tokens
from basic_lite.models import zoo
from basic_lite.models.llava import Sources, assemble
from basic_lite.models.parts import parts_of


def test_matching_is_the_argmax_of_all_cosines_in_chunks_too():
    torch.manual_seed(0)
    vectors, table = torch.randn(37, 16), torch.randn(50, 16) * torch.rand(50, 1) * 9
    ids, values = match_tokens(vectors, table, rows=8)
    every = F.cosine_similarity(vectors[:, None].double(), table[None].double(), dim=-1)
    assert torch.equal(ids, every.argmax(1))
    assert torch.allclose(values.double(), every.amax(1), atol=1e-6)
    assert [len(found) for found in match_tokens(vectors[:0], table)] == [0, 0]


@pytest.fixture(scope="module")
def tiny():
    return assemble(Sources.named(zoo.TINY, bits=16, dtype=torch.float32))


@needs_parts
def test_patches_that_say_what_they_show_are_all_meaningful_and_others_none(tiny, monkeypatch):
    scenes = held_out_scenes(4, seed=3)
    table, tokenizer = parts_of(tiny.model).embedding, tiny.tokenizer

    def features(word):
        rows = []
        for scene in scenes:
            picture = render(scene)
            words = [word(scene.things[i]) if i >= 0 else " the" for i in picture.thing]
            rows.append(table[[tokenizer.encode(w, add_special_tokens=False)[0] for w in words]])
        return torch.stack(rows)

    projector = parts_of(tiny.model).llava.multi_modal_projector
    for word, share in ((lambda thing: f" {thing.colour}", 1.0), (lambda thing: " the", 0.0)):
        made = features(word)
        monkeypatch.setattr(projector, "forward", lambda states, made=made: made)
        found = inspect_model(tiny, scenes, views=4)
        assert sum(found.meaningful) == share * sum(found.shown)
        shown = sum(share >= SHOWN for scene in scenes for share in render(scene).share)
        assert sum(found.shown) == shown > 0
    assert [len(view.tokens) for view in found.views] == [64] * 4
    assert min(found.views[0].importance) > 0
    assert Inspection.from_dict(found.as_dict()) == found


@needs_parts
def test_an_inspection_does_not_depend_on_how_scenes_are_batched(tiny):
    scenes = held_out_scenes(5, seed=1)
    one, many = (inspect_model(tiny, scenes, rows=rows) for rows in (1, 5))
    assert one.caption_loss == pytest.approx(many.caption_loss, abs=1e-4)
    assert one.cosine == pytest.approx(many.cosine, abs=1e-4)
    assert (one.shown, one.meaningful) == (many.shown, many.meaningful)
