"""The mapping: exact against a float64 reference, the same in numpy and torch, refusing bad files."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtufc.transform.mapping import ASSIGNMENTS, Mapping

LIMIT = 2.0**100
float32s = st.floats(-LIMIT, LIMIT, width=32)


@st.composite
def codebooks(draw) -> np.ndarray:
    """2^b centres, distinct in float32, mostly no float32 numbers themselves."""
    levels = 1 << draw(st.integers(1, 5))
    base = draw(st.lists(float32s, min_size=levels, max_size=levels, unique_by=lambda v: v + 0.0))
    values = np.sort(np.array(base, np.float64) + 0.0)
    moved = values * (1 + draw(st.sampled_from([0.0, 1e-9, -1e-9])))
    keep = (np.diff(moved.astype(np.float32)) > 0).all()
    return moved if keep else values


def reference_levels(x: np.ndarray, codebook: np.ndarray, assignment: str) -> np.ndarray:
    """The definition, in float64 on the centres at float32 precision."""
    centres = codebook.astype(np.float32).astype(np.float64)
    if assignment == "nearest":
        return np.searchsorted((centres[:-1] + centres[1:]) / 2, x.astype(np.float64), side="left")
    return np.clip(np.digitize(x.astype(np.float64), centres) - 1, 0, centres.size - 1)


def probes(codebook: np.ndarray) -> np.ndarray:
    """float32 values at, and next to, all centres and midpoints, both zeros, and the extremes."""
    middle = (codebook[:-1] + codebook[1:]) / 2
    near = np.concatenate([codebook, middle]).astype(np.float32)
    extremes = np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, np.inf, -np.inf], np.float32)
    around = [np.nextafter(near, np.float32(side)) for side in (-np.inf, np.inf)]
    return np.concatenate([near, *around, extremes])


@given(codebook=codebooks(), assignment=st.sampled_from(["nearest", "left"]))
def test_levels_are_exact(codebook, assignment):
    x = probes(codebook)
    u = Mapping(codebook, assignment).forward(x)
    assert u.dtype == np.float32
    assert np.array_equal(u * codebook.size, reference_levels(x, codebook, assignment))


@given(codebook=codebooks(), assignment=st.sampled_from(ASSIGNMENTS))
def test_forward_undoes_inverse(codebook, assignment):
    mapping = Mapping(codebook, assignment)
    u = (np.arange(mapping.levels) / mapping.levels).astype(np.float32)
    x = mapping.inverse(u)
    assert x.dtype == np.float32
    assert np.array_equal(x, codebook.astype(np.float32))
    assert np.array_equal(mapping.forward(x), u)


@pytest.mark.parametrize("name", ["normal", "narrow", "far", "wide"])
@pytest.mark.parametrize("bit_depth", [1, 8, 12])
def test_levels_of_many_values(name, bit_depth):
    rng = np.random.default_rng(3)
    x = {
        "normal": rng.standard_normal(20_000),
        "narrow": 1 + 1e-3 * rng.random(20_000),
        "far": -480 + 0.1 * rng.standard_normal(20_000),
        "wide": rng.standard_normal(20_000) * 10.0 ** rng.integers(-30, 30, 20_000),
    }[name].astype(np.float32)
    codebook = np.sort(rng.choice(np.unique(x), 1 << bit_depth, replace=False).astype(float))
    for assignment in ("nearest", "left"):
        u = Mapping(codebook, assignment).forward(x)
        assert np.array_equal(u * codebook.size, reference_levels(x, codebook, assignment))


def test_tie_goes_to_the_lower_level():
    mapping = Mapping([0, 1, 2, 3])
    x = np.array([0.5, 1.5, 2.5, np.nextafter(np.float32(0.5), np.float32(1))], np.float32)
    assert (mapping.forward(x) * 4).tolist() == [0, 1, 2, 1]


def test_left_is_the_published_digitize():
    """Published: centers from the JSON list, ``np.digitize(x, centers) - 1``, divided by 2^b."""
    rng = np.random.default_rng(0)
    centres = json.loads(json.dumps(np.sort(rng.standard_normal(256)).tolist()))
    x = rng.standard_normal((1, 1, 64, 64)).astype(np.float32)
    published = np.clip(np.digitize(x, centres) - 1, 0, 255) / 256
    mapping = Mapping(centres, "left")
    assert np.array_equal(mapping.forward(x), published.astype(np.float32))
    restored = np.array(centres)[np.rint(published * 256).astype(int)]
    assert np.array_equal(mapping.inverse(mapping.forward(x)), restored.astype(np.float32))


def test_continuous_is_piecewise_linear():
    mapping = Mapping([-1, 0, 2, 10], "continuous")
    x = np.array([-9, -1, -0.5, 0, 1, 6, 10, 11], np.float32)
    expected = np.array([0, 0, 0.5, 1, 1.5, 2.5, 3, 3], np.float32) / 4
    assert np.array_equal(mapping.forward(x), expected)
    assert np.array_equal(mapping.inverse(expected), np.clip(x, -1, 10))


def test_continuous_loses_nothing_inside():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(10_000).astype(np.float32)
    mapping = Mapping(np.quantile(x.astype(float), np.linspace(0, 1, 256)), "continuous")
    assert np.abs(mapping.inverse(mapping.forward(x)) - x).max() < 1e-5


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_any_number_has_an_inverse(assignment):
    mapping = Mapping([-2, -1, 1, 4], assignment)
    u = np.array([-3e38, -1, -0.0, 0.75, 0.9999, 1, 7, 3e38, np.inf, -np.inf, np.nan], np.float32)
    assert mapping.inverse(u).tolist() == [-2, -2, -2, 4, 4, 4, 4, 4, 4, -2, -2]


def test_inverse_rounds_halves_to_even():
    mapping = Mapping([0, 1, 2, 3])
    assert mapping.inverse(np.array([0.125, 0.375, 0.625], np.float32)).tolist() == [0, 2, 2]


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("channels", [None, 3])
def test_torch_gives_the_same(assignment, channels):
    """CPU tensors share the kernels; the path of other devices is run on CPU memory as well."""
    rng = np.random.default_rng(1)
    shape = (256,) if channels is None else (channels, 256)
    mapping = Mapping(np.sort(rng.standard_normal(shape)), assignment)
    x = (3 * rng.standard_normal((2, 3, 20, 21))).astype(np.float32)
    u = mapping.forward(x)
    t = mapping.forward(torch.from_numpy(x))
    assert t.dtype == torch.float32
    assert np.array_equal(t.numpy(), u)
    assert np.array_equal(mapping._forward_device(torch.from_numpy(x)).numpy(), u)
    noisy = u + (0.02 * rng.standard_normal(u.shape)).astype(np.float32)
    noisy[0, 0, 0, :3] = np.nan, np.inf, -np.inf
    restored = mapping.inverse(noisy)
    assert np.array_equal(mapping.inverse(torch.from_numpy(noisy)).numpy(), restored)
    assert np.array_equal(mapping._inverse_device(torch.from_numpy(noisy)).numpy(), restored)


@pytest.mark.gpu
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("channels", [None, 3])
def test_cuda_gives_the_same(assignment, channels):
    rng = np.random.default_rng(1)
    shape = (256,) if channels is None else (channels, 256)
    mapping = Mapping(np.sort(rng.standard_normal(shape)), assignment)
    x = (3 * rng.standard_normal((2, 3, 200, 210))).astype(np.float32)
    t = mapping.forward(torch.from_numpy(x).cuda())
    assert t.device.type == "cuda"
    assert np.array_equal(t.cpu().numpy(), mapping.forward(x))
    noisy = (mapping.forward(x) + 0.02 * rng.standard_normal(x.shape)).astype(np.float32)
    restored = mapping.inverse(torch.from_numpy(noisy).cuda())
    assert np.array_equal(restored.cpu().numpy(), mapping.inverse(noisy))


def test_float16_is_widened_exactly():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 2, 8, 8)).astype(np.float16)
    mapping = Mapping(np.sort(rng.standard_normal(64)))
    assert np.array_equal(mapping.forward(x), mapping.forward(x.astype(np.float32)))
    assert np.array_equal(mapping.forward(torch.from_numpy(x)), mapping.forward(x))


def test_per_channel_is_each_channel_alone():
    rng = np.random.default_rng(0)
    books = np.sort(rng.standard_normal((4, 16)))
    x = rng.standard_normal((2, 4, 5, 6)).astype(np.float32)
    for assignment in ASSIGNMENTS:
        mapping = Mapping(books, assignment)
        u = mapping.forward(x)
        for c in range(4):
            assert np.array_equal(u[:, c], Mapping(books[c], assignment).forward(x[:, c]))
        zeros = [Mapping(row, assignment).zero for row in books]
        assert mapping.zero == pytest.approx(np.mean(zeros), abs=1e-7)


def test_memory_layout_and_input_stay():
    rng = np.random.default_rng(0)
    mapping = Mapping(np.sort(rng.standard_normal(16)))
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    before = x.copy()
    assert np.array_equal(
        mapping.forward(x.transpose(0, 2, 1, 3)), mapping.forward(x).swapaxes(1, 2)
    )
    assert np.array_equal(x, before)
    assert mapping.forward(np.array(0.3, np.float32)).shape == ()
    assert mapping.forward(np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_pinned():
    mapping = Mapping([-4, -1, 0.5, 3])
    assert (mapping.levels, mapping.bit_depth, mapping.per_channel) == (4, 2, False)
    assert mapping.zero == 0.5
    assert mapping.id.hex() == "99bb790aea94ccc5aa7e84571a3c267f5df8dcc04b356c0bc06f27653eefe1e7"
    assert mapping.id != Mapping([-4, -1, 0.5, 3], "left").id
    x = np.array([-9, -2.5, -2.4, 0, 1.75, 2, 99], np.float32)
    assert mapping.forward(x).tolist() == [0, 0, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_files(tmp_path):
    path = tmp_path / "mapping.json"
    mapping = Mapping(np.sort(np.random.default_rng(0).standard_normal(256)))
    mapping.save(path)
    values = json.loads(path.read_text())
    assert len(values) == 256
    assert Mapping.load(path).id == mapping.id
    other = tmp_path / "other.json"
    Mapping(mapping.codebooks + 1).save(other)
    both = Mapping.load([path, other])
    assert both.per_channel and both.codebooks.shape == (2, 256)
    both.save(path)
    assert Mapping.load(path).id == both.id
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["mapping.json", "other.json"]


@pytest.mark.parametrize(
    "text",
    ['{"a": 1}', "3", "[]", "[1, 2, 3]", "[1]", "[2, 1]", "[1, 1]", "[1, NaN]", "[1, Infinity]",
     '["1", "2"]', "[true, false]", "[[1, 2], [1]]", "[[[1, 2]]]", "[0, 1e39]", "not json", "[null, 1]"],
)  # fmt: skip
def test_unsound_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.json"):
        Mapping.load(path)


def test_unsound_input_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        Mapping.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="assignment"):
        Mapping([0, 1], "right")
    with pytest.raises(ValueError, match="float64"):
        Mapping([0, 1]).forward(np.zeros(3))
    with pytest.raises(ValueError, match="int64"):
        Mapping([0, 1]).inverse(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="channel"):
        Mapping([[0, 1], [0, 1]]).forward(np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(ValueError, match="read-only"):
        Mapping([0, 1]).codebooks[0] = 5


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_normalisation_goes_before_and_comes_back(assignment, tmp_path):
    """(x - offset) / scale, then the codebook; the file and the id carry it; devices agree."""
    rng = np.random.default_rng(0)
    offset = rng.normal(0, 50, (2, 1, 5)).astype(np.float32)
    scale = rng.uniform(0.5, 4, (2, 1, 5)).astype(np.float32)
    plain = Mapping(np.linspace(-3, 3, 256), assignment)
    mapping = Mapping(plain.codebooks, assignment, offset, scale)
    y = rng.standard_normal((3, 2, 7, 5)).astype(np.float32)
    x = y * scale + offset
    assert np.array_equal(mapping.forward(x), plain.forward((x - offset) / scale))
    inner = np.abs(y) < 2.9
    error = np.abs(mapping.inverse(mapping.forward(x)) - x)
    assert error[inner].max() < 4 * 6 / 255 * 1.01 + 1e-4
    u = torch.from_numpy(mapping.forward(x))
    assert torch.equal(mapping.forward(torch.from_numpy(x)), u)
    assert np.array_equal(mapping.inverse(u).numpy(), mapping.inverse(u.numpy()))
    assert np.array_equal(mapping._forward_device(torch.from_numpy(x)).numpy(), u.numpy())
    assert np.array_equal(mapping._inverse_device(u).numpy(), mapping.inverse(u.numpy()))
    assert mapping.zero == plain.zero
    assert mapping.id != plain.id
    assert mapping.id != Mapping(plain.codebooks, assignment, offset, scale + 1).id
    mapping.save(tmp_path / "m.json")
    again = Mapping.load(tmp_path / "m.json", assignment)
    assert again.id == mapping.id
    for shape in ((3, 2, 7, 4), (3, 1, 7, 5), (2, 5)):
        with pytest.raises(ValueError, match=r"normalised for \(N, 2, H, 5\)"):
            mapping.forward(np.zeros(shape, np.float32))


def test_unsound_normalisation_is_refused(tmp_path):
    one = np.ones((2, 1, 1))
    for offset, scale, text in (
        (one, None, "or neither"),
        (one[0], one[0], r"expected \(C, 1, W\)"),
        (one, np.ones((2, 1, 3)), r"expected \(C, 1, W\)"),
        (one, 0 * one, "above 0"),
        (one * np.nan, one, "finite"),
        ("a", one, "lists of numbers"),
    ):
        with pytest.raises(ValueError, match=text):
            Mapping([0, 1], "nearest", offset, scale)
    path = tmp_path / "m.json"
    path.write_text('{"centres": [0, 1], "mean": [[[0]]]}')
    with pytest.raises(ValueError, match=r"m\.json: .*keys centres, offset and scale"):
        Mapping.load(path)
