"""KL curves: measured of a toy language model, stored with the codec, and asked for a quality."""

import math

import numpy as np
import pytest
from test_language import (  # noqa: F401  fixtures among them
    WORDS,
    checkpoint,
    preset,
)

from dtufc import encode, evaluate, files, kl_curve
from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.experiments.automatic import AutomaticConfig
from dtufc.feature import read_feature, write_feature
from dtufc.handcrafted import fit_handcrafted
from dtufc.kl_curve import FILE, KlCurve, Point, quality_for_kl, read_kl_curve
from dtufc.klt import fit_klt
from dtufc.machines.opening import open_machine
from dtufc.options import RateOptions


def curve_of(*kl: float) -> KlCurve:
    """A curve at the qualities 0, 1, 2 ..."""
    return KlCurve("toy", 3, [Point(float(q), 1.0 + q, value) for q, value in enumerate(kl)])


def test_the_quality_lies_between_its_neighbours():
    curve = curve_of(1.0, 0.1, 0.01)
    assert curve.quality_for(0.1) == pytest.approx(1.0)
    assert curve.quality_for(math.sqrt(0.1 * 0.01)) == pytest.approx(1.5)
    assert curve.quality_for(5.0) == 0.0  # never below what was measured
    for kl in (0.9, 0.3, 0.02):
        assert curve.kl_at(curve.quality_for(kl)) == pytest.approx(kl)


def test_noise_does_not_promise_too_much():
    """Where a coarser quality came out better by chance, it counts as its finer neighbour."""
    curve = curve_of(1.0, 0.02, 0.05, 0.001)
    assert curve.kl_at(1.0) == pytest.approx(0.05)
    assert 2.0 < curve.quality_for(0.03) < 3.0
    assert curve.kl_at(-5.0) == 1.0


def test_what_is_out_of_reach_is_told():
    with pytest.raises(
        UserError, match=r"target_kl: 1e-06 is out of reach; the curve ends with 0.01 at q"
    ):
        curve_of(1.0, 0.01).quality_for(1e-6)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="target_kl: expected a number above 0"):
            curve_of(1.0, 0.01).quality_for(wrong)
    for points in ([], [Point(1.0, 1.0, 1.0)], [Point(1.0, 1.0, 1.0), Point(1.0, 1.0, 1.0)]):
        with pytest.raises(UserError, match="points: expected"):
            KlCurve("toy", 3, points)


@pytest.fixture
def language(preset, monkeypatch):  # noqa: F811
    """The preset of a toy language model whose texts are in the default data root, and a folder of its
    training features."""
    monkeypatch.setenv("DTUFC_DATA", str(preset.parent))
    for split in ("train", "validation", "test"):
        files.write_text(preset.parent / "smollm2" / "lm" / "source" / f"{split}.txt", WORDS)
    machine, folder = open_machine(preset), preset.parent / "train"
    for sample in machine.samples("train"):
        write_feature(folder / f"{sample.name}.npy", machine.extract(sample))
    return preset, folder


def test_a_curve_is_measured_and_used(language, tmp_path, capsys):
    preset, features = language  # noqa: F811
    codec = tmp_path / "codec"
    common = ["--features", str(features), "--machine", str(preset)]
    fit_handcrafted.main(["--codec", "int", *common, "--output", str(codec)])
    asked = ["--codec", str(codec), "--input", str(features), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=f"{FILE}: the codec has no KL curve; measure one"):
        encode.main([*asked, "--target_kl", "0.01"])
    kl_curve.main(["--codec", str(codec), "--machine", str(preset)])
    assert "2 samples" in capsys.readouterr().out
    curve, loaded = read_kl_curve(codec), load_codec(codec)
    assert [point.quality for point in curve.points] == list(loaded.qualities)
    machine = open_machine(preset)
    for point in (curve.points[0], curve.points[-1]):  # by definition, from the same samples
        one = loaded.at_quality(point.quality)
        samples = machine.samples("validation")
        decoded = [one.decode(one.encode(machine.extract(sample))) for sample in samples]
        found = machine.score(
            samples, [machine.predict(s, x) for s, x in zip(samples, decoded, strict=True)]
        )
        assert point.kl == pytest.approx(found.others["kl"], rel=1e-6)
    assert curve.points[0].kl > 10 * curve.points[-1].kl > 0
    wanted = math.sqrt(curve.points[1].kl * curve.points[2].kl)
    quality = quality_for_kl(loaded, codec, wanted)
    assert quality in loaded.qualities and curve.kl_at(quality) <= wanted
    encode.main([*asked, "--target_kl", str(wanted)])
    first = sorted(features.iterdir())[0]
    x = read_feature(first)
    coded = tmp_path / "out" / f"{first.stem}.ufc"
    assert coded.read_bytes() == loaded.at_quality(quality).encode(x)
    flags = [
        "--codec",
        str(codec),
        "--features",
        str(features),
        "--output",
        str(tmp_path / "coded"),
    ]
    evaluate.main([*flags, "--target_kl", str(wanted)])
    evaluate.main([*flags[:-1], str(tmp_path / "same"), "--quality", str(quality)])
    for name in (path.name for path in features.iterdir()):
        pair = [read_feature(tmp_path / room / "decoded" / name) for room in ("coded", "same")]
        assert np.array_equal(*pair)
    with pytest.raises(UserError, match="target_kl: give one of them at most"):
        RateOptions(codec=codec, target_kl=0.01, quality=3.0)


def test_the_curve_of_another_fit_is_refused(language, tmp_path):
    preset, features = language  # noqa: F811
    codec = tmp_path / "codec"
    fit_handcrafted.main(
        [
            "--codec",
            "int",
            "--features",
            str(features),
            "--machine",
            str(preset),
            "--output",
            str(codec),
        ]
    )
    kl_curve.main(["--codec", str(codec), "--machine", str(preset), "--qualities", "[3, 5]"])
    assert len(read_kl_curve(codec).points) == 2
    record = files.read_json(codec / FILE)
    files.write_json(codec / FILE, record | {"codec": "0" * 64})
    with pytest.raises(UserError, match="was measured of another fit"):
        read_kl_curve(codec)
    for wrong in ([], record | {"points": [{"quality": 1}]}, record | {"points": 3}):
        files.write_json(codec / FILE, wrong)
        with pytest.raises(UserError, match=FILE):
            read_kl_curve(codec)


@pytest.mark.slow
def test_a_fit_measures_its_curve(language, tmp_path):
    preset, features = language  # noqa: F811
    fit_klt.main(
        ["--features", str(features), "--machine", str(preset), "--output", str(tmp_path / "codec"),
         "--clusters", "[1]", "--kl_curve", "true"]
    )  # fmt: skip
    curve = read_kl_curve(tmp_path / "codec")
    assert curve.points[0].kl > curve.points[-1].kl
    for config in (fit_klt.FitConfig, AutomaticConfig):
        with pytest.raises(UserError, match="kl_curve: give the language model with --machine"):
            config(features=features, output=tmp_path / "other", kl_curve=True)


def test_other_machines_have_no_curve(language, tmp_path):
    _, features = language
    codec = tmp_path / "codec"
    fit_handcrafted.main(["--codec", "int", "--features", str(features), "--output", str(codec)])
    with pytest.raises(SystemExit, match="takes shape"):
        kl_curve.main(["--codec", str(codec), "--machine", "llama3_tiny", "--qualities", "[3, 5]"])
