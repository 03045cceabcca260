"""The generated world: deterministic, splits apart, labels, masks and words from one scene."""

import numpy as np
import pytest

from dtufc.machines.tiny import world


def test_scenes_depend_on_their_numbers_alone():
    a = [world.scene(3, i, "test") for i in range(5)]
    b = [world.scene(3, i, "test") for i in reversed(range(5))][::-1]
    assert a == b
    assert np.array_equal(world.render(a[2]).rgb, world.render(b[2]).rgb)
    assert world.scene(4, 0, "test") != a[0]


def test_splits_share_no_scene():
    scenes = [world.scene(0, i, split) for split in world.SPLITS for i in range(20)]
    assert len({(s.main.x, s.main.y, s.noise_seed) for s in scenes}) == len(scenes)


def test_all_classes_come_up():
    labels = np.array([world.label(world.scene(0, i, "network")) for i in range(1200)])
    counts = np.bincount(labels, minlength=len(world.CLASSES))
    assert len(world.CLASSES) >= 10
    assert counts.min() > 60


@pytest.mark.parametrize("index", range(12))
def test_picture_mask_and_label_agree(index):
    scene = world.scene(0, index, "train")
    picture = world.render(scene)
    assert picture.rgb.shape == (112, 112, 3)
    assert picture.rgb.dtype == np.uint8
    assert picture.mask.shape == (112, 112)
    shown = set(np.unique(picture.mask)) - {0}
    described = {1 + world.CLASSES.index(s.kind) for s in (scene.main, *scene.others)}
    assert shown == described
    sizes = np.bincount(picture.mask.ravel(), minlength=len(world.CLASSES) + 1)[1:]
    assert sizes.argmax() == world.label(scene)  # the main shape is the largest


def test_plain_scene_is_its_title():
    scene = world.scene(0, 3, "train")
    plain = world.plain(scene)
    rgb, mask = world.render(plain).rgb, world.render(plain).mask
    assert set(np.unique(mask)) == {0, 1 + world.label(scene)}
    assert np.array_equal(np.unique(rgb[:2].reshape(-1, 3), axis=0), [scene.background.rgb])
    assert (rgb == scene.main.paint.rgb).all(2)[mask > 0].mean() > 0.8  # the rest is its edge
    assert abs(plain.main.angle) <= np.pi / 12
    words = (scene.main.paint.colour, scene.main.kind, world.place(scene.main))
    assert world.title(plain) == world.title(scene)
    assert all(word in world.title(scene) for word in (*words, scene.background.colour))


def test_depth_follows_from_the_main_shape():
    """The larger, the nearer; small shapes are on the wall behind, which leans back."""
    found = []
    for index in range(20):
        scene = world.scene(0, index, "train")
        mask, depth = world.render(scene).mask, world.depth(scene)
        assert depth.shape == (112, 112) and depth.dtype == np.float32
        main = mask == 1 + world.label(scene)
        assert (depth[main] == np.float32(0.7 / scene.main.radius)).all()
        wall = np.where(main, np.nan, depth)
        assert np.nanmin(wall) >= 4 and np.nanmax(wall) <= 5 and depth[main].max() < 4
        rows = np.nanmean(wall, axis=1)
        assert (np.diff(rows) < 0).all() and np.nanstd(wall, axis=1).max() < 1e-5
        found.append((scene.main.radius, depth[main].mean()))
    near = np.array(sorted(found))[:, 1]
    assert (np.diff(near) < 0).all() and near.min() < 2.2 and near.max() > 3.3


def test_content_is_the_same_at_every_size():
    scene = world.scene(0, 5, "train")
    small, large = world.render(scene, 112, 112).mask, world.render(scene, 224, 224).mask
    assert np.mean(small == large[::2, ::2]) > 0.97


def test_bad_numbers():
    with pytest.raises(ValueError, match="split: expected one of"):
        world.scene(0, 0, "nothing")
    with pytest.raises(ValueError, match="at least 0"):
        world.scene(0, -1, "test")
