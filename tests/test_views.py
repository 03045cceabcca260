"""Views of a feature by its named axes; facts that say them; ids that do not change."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts, load_facts
from dtufc.handcrafted.codec import CastCodec
from dtufc.klt.entropy import Bank
from dtufc.klt.model import RUNGS, KltModel, Layout, Rung, Transform
from dtufc.prepare import script_path
from dtufc.views import MAP_AXES, TOKEN_AXES, Views

TOKENS, sizes = Views(TOKEN_AXES), st.integers(1, 5)


def maps(rows: int, cols: int) -> Views:
    return Views(MAP_AXES, (rows, cols))


@given(sizes, sizes, sizes, sizes, sizes, st.sampled_from([1, 2, 4, 8]))
def test_every_view_and_back(n, rows, cols, h, w, block):
    shape = (n, rows * cols, h, w)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    for views in (TOKENS, maps(rows, cols), Views(MAP_AXES)):
        plane = views.pack(x)
        assert plane.shape == views.plane(shape)
        assert np.array_equal(views.unpack(plane, shape), x)
        native = views.to_native(x)
        assert native.shape == views.native_size(shape)
        assert np.array_equal(views.from_native(native, shape), x)
        vectors = views.to_vectors(x, block)
        assert len(vectors) == views.count_vectors(shape, block)
        assert np.array_equal(views.from_vectors(vectors, shape, block), x)
        matrix = views.to_matrix(x)
        assert matrix.shape == (x.size // views.channels(shape), views.channels(shape))
        assert np.array_equal(views.from_matrix(matrix, shape), x)


def test_planes_are_laid_out_as_published():
    sd3 = np.arange(16 * 4, dtype=np.float32).reshape(1, 16, 2, 2)
    plane = maps(4, 4).pack(sd3)
    assert plane.shape == (8, 8)
    assert np.array_equal(plane[2:4, 4:6], sd3[0, 6])  # tile of row 1, column 2
    dino = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    plane = TOKENS.pack(dino)
    assert plane.shape == (2 * 4, 3 * 5)
    assert np.array_equal(plane[4 + 1, 2 * 5 : 3 * 5], dino[1, 2, 1])


def test_one_answer_to_where_channels_are():
    """Every view has the channels in the same order, that of ``channel_axes``."""
    x = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    for views in (TOKENS, Views(MAP_AXES)):
        first = views.to_native(x)[0, :, 0, 0]
        place = tuple(slice(None) if axis in views.channel_axes else 0 for axis in range(4))
        assert np.array_equal(first, x[place].ravel())
        assert np.array_equal(first, views.to_matrix(x)[0])
        assert np.array_equal(first, views.to_vectors(x, 1)[0, :, 0])


@pytest.mark.parametrize(
    ("channels", "grid"), [(16, (4, 4)), (128, (16, 8)), (2048, (64, 32)), (7, (7, 1)), (6, (3, 2))]
)
def test_the_default_grid_is_the_published_one(channels, grid):
    assert Views(MAP_AXES).grid(channels) == grid


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="16 channels, the feature has 15"):
        maps(4, 4).pack(np.zeros((1, 15, 2, 2), np.float32))
    with pytest.raises(ValueError, match="packs to"):
        TOKENS.unpack(np.zeros((3, 4)), (1, 1, 4, 3))
    with pytest.raises(ValueError, match="at least 1"):
        maps(0, 4)
    with pytest.raises(ValueError, match="only maps"):
        Views(TOKEN_AXES, (2, 2))
    with pytest.raises(ValueError, match="non-empty"):
        TOKENS.plane((1, 0, 2, 2))
    for axes in (
        ("token", "channel"),
        ("sample", "token", "layer", "channel"),
        ("a", "b", "c", "d"),
    ):
        with pytest.raises(ValueError, match=r"expected .*'token', 'channel'.*transpose"):
            Views(axes)


# Ids and records as version 0.1 made them, before axes had names.
OLD = {
    "2ed4fa685b9de89412d2c6b11e1ab64b4bef97a4274f93349bc58da92a400537": {
        "model": "toy", "task": "hidden", "shape": [1, 1, None, 16],
        "packing": {"layout": "tokens", "rows": 0, "cols": 0},
        "dtype": "float32", "range": None, "rows": 0, "script": None,
    },
    "f95880602f1592bc5734f637a00f8e31d5a3398f70f35606c3757ba175d664d2": {
        "model": "toy", "task": "maps", "shape": [1, 16, None, None],
        "packing": {"layout": "tiles", "rows": 4, "cols": 4},
        "dtype": "float16", "range": [-1.0, 2.0], "rows": 0, "script": "machines/sd3/sd3.py",
    },
    "e4457a2bc2f3ed15d05fa8d47907a9a838eab7d1bce6fd81ea124606e977f04c": {
        "model": "toy", "task": "my maps", "shape": [1, None, 7, 7],
        "packing": {"layout": "tiles", "rows": 2, "cols": 8},
        "dtype": "float32", "range": None, "rows": 0, "script": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("id", OLD)
def test_facts_of_earlier_versions_keep_their_codec_ids(id):
    facts = FeatureFacts.of_record(OLD[id], "config.json: facts")
    assert CastCodec(facts, {}, 8.0).id.hex() == id
    assert facts.identity() == OLD[id]
    again = FeatureFacts.of_record(json.loads(json.dumps(facts.record())), "config.json: facts")
    assert again == facts


def test_klt_folders_of_earlier_versions_keep_their_id(tmp_path):
    """A ``config.json`` as version 0.1 wrote it, and the id that it computed then."""
    bank = Bank(
        (np.array([40000, 25535, 1]),), np.array([-1], np.int32), np.zeros((1, 5), np.float32)
    )
    entropy = Rung(bank, np.zeros((1, 4), np.int32), np.array([65535, 1], np.int32))
    mean = np.arange(4, dtype=np.float32).reshape(1, 4, 1)
    transform = Transform(Layout(False, 1, 1, True), mean, None, 1.5)
    facts = FeatureFacts("toy", "map", [1, 4, None, None], list(MAP_AXES), dtype="float16")
    KltModel(facts, transform, (entropy,) * RUNGS, 0.12).save(tmp_path, 1.0, {})
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["facts"] = {
        "model": "toy", "task": "map", "shape": [1, 4, None, None],
        "packing": {"layout": "tiles", "rows": 2, "cols": 2},
        "dtype": "float16", "range": None, "rows": 0, "script": None,
    }  # fmt: skip
    path.write_text(json.dumps(values))
    assert load_codec(tmp_path).id.hex() == (
        "02887ad7dc0fd32c3ed7cccc095bc22e5145631f860a5c6a862f74c32af9d8a6"
    )


def test_records_keep_the_names_of_axes():
    facts = FeatureFacts("m", "t", [None, 2, 3, 4], ["crop", "layer", "token", "channel"])
    assert FeatureFacts.of_record(facts.record(), "x").axes == facts.axes
    record = facts.record()
    tiles = {"layout": "tiles", "rows": 1, "cols": 2}
    for values in (
        None, [], {}, {"packing": 1}, {**record, "extra": 1}, {**record, "model": "../up"},
        {**record, "packing": {**tiles, "layout": "spiral"}}, {**record, "packing": tiles},
        {**record, "axes": list(MAP_AXES)}, {**record, "packing": {"layout": "tokens"}},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"^x: "):
            FeatureFacts.of_record(values, "x")


def write(path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


BASE = "feature: {model: %s, task: t, shape: [1, 4, null, null], axes: [%s]%s}\n"
MAPS = ", ".join(MAP_AXES)


def test_yamls_of_earlier_versions_are_told_what_to_write(tmp_path):
    old = "feature: {model: m, task: t, shape: [1, 4, 2, 2], packing: {layout: %s}}\n"
    path = write(tmp_path / "m.yaml", old % "tokens")
    with pytest.raises(ValueError, match=r"write axes: \[sample, layer, token, channel\] instead"):
        load_facts(path)
    write(path, old % "tiles, rows: 1, cols: 4")
    with pytest.raises(
        ValueError, match=r"axes: \[sample, channel, row, column\] and tiles: \[1, 4\]"
    ):
        load_facts(path)
    write(path, "feature: {model: m, task: t, shape: [1, 4, 2, 2]}")
    with pytest.raises(
        ValueError, match=r"axes: missing; write axes: \[sample, layer,.*, column\]"
    ):
        load_facts(path)


@pytest.mark.parametrize("model", ["../up", "a/b", ".hidden", "''"])
def test_names_that_are_no_folders_are_refused(tmp_path, model):
    with pytest.raises(ValueError, match=r"model: expected (letters|no path)"):
        load_facts(write(tmp_path / "m.yaml", BASE % (model, MAPS, "")))


def test_scripts_are_confined(tmp_path):
    """To the repository's machines and the YAML's own folder, links resolved."""
    inside, outside = tmp_path / "inside", tmp_path / "outside.py"
    outside.write_text("")
    write(inside / "own.py", "")
    (inside / "link.py").symlink_to(outside)
    path = inside / "m.yaml"
    write(path, BASE % ("m", MAPS, ", script: own.py"))
    assert script_path(path) == (inside / "own.py").resolve()
    write(path, BASE % ("m", MAPS, ", script: machines/sd3/sd3.py"))
    assert script_path(path).name == "sd3.py"
    for script in ("../outside.py", "link.py", str(outside), "own.sh"):
        write(path, BASE % ("m", MAPS, f", script: {script}"))
        with pytest.raises(ValueError, match=r"script: expected a \.py file"):
            load_facts(path)
    write(path, BASE % ("m", MAPS, ', script: "a\\0.py"'))
    with pytest.raises(UserError, match="script: expected a path"):
        load_facts(path)
    write(path, BASE % ("m", MAPS, ", script: none.py"))
    with pytest.raises(FileNotFoundError, match=r"none\.py is not there"):
        load_facts(path)
