from __future__ import annotations

import random

from basic_lite.data.world.scenes import COLOURS, HELD_OUT, SEEN, SHAPES, sample_scene


def test_the_same_seed_draws_the_same_scenes():
    one, other = random.Random(1), random.Random(1)
    assert [sample_scene(one) for _ in range(20)] == [sample_scene(other) for _ in range(20)]


def test_held_out_pairs_are_in_no_training_scene_and_in_every_held_out_scene(
    training_scenes, held_out_scenes
):
    assert not HELD_OUT & SEEN
    assert len(HELD_OUT | SEEN) == len(COLOURS) * len(SHAPES)
    assert all(thing.pair not in HELD_OUT for scene in training_scenes for thing in scene.things)
    assert all(any(thing.pair in HELD_OUT for thing in scene.things) for scene in held_out_scenes)


def test_every_colour_and_every_shape_is_seen_with_seven_partners():
    for i, names in enumerate((COLOURS, SHAPES)):
        assert all(sum(pair[i] == name for pair in SEEN) == 7 for name in names)


def test_things_differ_in_pair_and_place(training_scenes, held_out_scenes):
    for scene in training_scenes + held_out_scenes:
        assert 1 <= len(scene.things) <= 4
        assert len({thing.pair for thing in scene.things}) == len(scene.things)
        assert len({thing.place for thing in scene.things}) == len(scene.things)


def test_scenes_repeat_colours_and_shapes_often_enough_to_count(training_scenes):
    several = [s for s in training_scenes if len(s.things) > 1]
    repeats = [len({t.colour for t in s.things}) < len(s.things) for s in several]
    assert 0.2 < sum(repeats) / len(repeats) < 0.8
