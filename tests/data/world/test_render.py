from __future__ import annotations

import numpy as np
import pytest

from basic_lite.data.world.render import _PAINT, PATCH, SIDE, outline, render
from basic_lite.data.world.scenes import COLOURS, SHAPES, Scene, Thing

GRID = SIDE // PATCH


def test_the_same_scene_gives_the_same_picture(training_scenes):
    one, other = render(training_scenes[0]), render(training_scenes[0])
    assert one.image.tobytes() == other.image.tobytes()
    assert (one.thing, one.share) == (other.thing, other.share)


def test_another_seed_gives_another_picture_of_the_same_scene(training_scenes):
    scene = training_scenes[0]
    other = Scene(scene.things, scene.texture, scene.seed + 1)
    assert render(scene).image.tobytes() != render(other).image.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("row", [0, 2])
def test_patches_are_covered_where_the_pixels_are_painted(shape, row):
    # Blue on a muted ground: a pixel is the thing's iff it is clearly blue, whatever the light.
    picture = render(Scene((Thing("blue", shape, "large", row, 1),), "grain", 7))
    pixels = np.asarray(picture.image).astype(int)
    painted = (pixels[..., 2] - pixels[..., 0] > 60).reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)).flatten()
    np.testing.assert_allclose(picture.share, painted, atol=0.16)  # edge pixels are mixtures
    assert abs(sum(picture.share) - painted.sum()) < 0.06 * painted.sum() + 0.1
    assert {thing for thing, share in zip(picture.thing, picture.share, strict=True) if share > 0} == {0}
    assert {thing for thing, share in zip(picture.thing, picture.share, strict=True) if share == 0} == {-1}


def test_every_thing_leads_a_patch_inside_its_own_cell(training_scenes, held_out_scenes):
    for scene in (training_scenes + held_out_scenes)[::5]:
        picture = render(scene)
        for index, thing in enumerate(scene.things):
            led = [i for i, leader in enumerate(picture.thing) if leader == index]
            assert max(picture.share[i] for i in led) > 0.2
            centre = max(led, key=lambda i: picture.share[i])
            row, column = divmod(centre, GRID)
            assert ((row + 0.5) * 3 // GRID, (column + 0.5) * 3 // GRID) == (thing.row, thing.column)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_has_its_colour_in_the_middle(colour):
    picture = render(Scene((Thing(colour, "square", "large", 1, 1),), "stripes", 3))
    middle = np.asarray(picture.image)[SIDE // 2, SIDE // 2].astype(int)
    distance = {name: np.abs(middle - paint).sum() for name, paint in _PAINT.items()}
    assert min(distance, key=distance.get) == colour


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_stay_near_their_radius(shape):
    reach = [max(abs(x), abs(y)) for x, y in outline(shape, 1.0)]
    assert 0.8 <= max(reach) <= 1.16
