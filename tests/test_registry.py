"""The registry: every member keeps the codec API; codecs of other packages plug in by an entry point."""

import dataclasses
import importlib
import textwrap

import numpy as np
import pytest
import yaml
from conftest import CHANNELS, toy_feature

from dtufc import config
from dtufc.codec import Codec, load_codec
from dtufc.experiments import driver
from dtufc.experiments.products import why_not_made
from dtufc.fitting import FitOptions
from dtufc.registry import codecs, find_codec
from dtufc.streams import StreamDecoder


@pytest.mark.parametrize("name", codecs())
def test_every_member_is_what_its_entry_says(name):
    entry = codecs()[name]
    assert entry.name == name
    assert issubclass(entry.load_class(), Codec)
    config_class = entry.load_config()
    fields = {field.name for field in dataclasses.fields(config_class)}
    assert dict(entry.flags).keys() <= fields
    assert hasattr(config_class, "stamp") and hasattr(config_class, "why_not_made")
    if entry.trained:
        assert {"patches", "output", "arch", "lambda_value", "epochs", "seed", "resume"} <= fields
    else:
        assert issubclass(config_class, FitOptions)
    assert entry.any_rate != entry.trained
    assert entry.tiles == (entry.load_class().at_tile is not Codec.at_tile)
    assert entry.published_name is None or find_codec(entry.published_name) is entry
    with pytest.raises(ValueError, match="none of"):
        find_codec(f"{name}x")


@pytest.mark.parametrize("name", [name for name, entry in codecs().items() if not entry.trained])
def test_every_fitted_member_keeps_the_api(name, toy, tmp_path):
    """Fit by its own script, load, code at each end of its qualities, be current, be told apart."""
    entry = codecs()[name]
    values = {
        "features": str(toy / "toy" / "hidden" / "feature_train" / "train"),
        "machine": str(toy / "toy.yaml"), "output": str(tmp_path / name), **dict(entry.flags),
    }  # fmt: skip
    cfg = config.build(entry.load_config(), values, "test")
    assert why_not_made(cfg) == "not made yet"
    importlib.import_module(entry.script).main(config.to_argv(cfg))
    assert why_not_made(cfg) is None
    codec = load_codec(tmp_path / name)
    x = toy_feature(5, 33)
    assert entry.any_rate
    ends = [codec.at_quality(codec.qualities[place]) for place in (0, -1)]
    sizes = []
    for one in ends:
        data = one.encode(x)
        decoded = codec.decode(data)
        assert (decoded.shape, decoded.dtype) == (x.shape, x.dtype)
        assert np.array_equal(decoded, load_codec(tmp_path / name).decode(data))
        sizes.append(len(data))
    assert sizes[0] < sizes[1]
    assert ends[0].identity != ends[1].identity
    for broken in (b"", data[:-1], data + b"\0"):
        with pytest.raises(ValueError, match=r"foreign|truncated|corrupted"):
            codec.decode(broken)


PLUGIN = '''
    """A codec of another package: the values themselves, at 16 or 32 bits."""

    from dataclasses import dataclass
    from pathlib import Path

    import numpy as np

    from dtufc import config, files, provenance
    from dtufc.codec import OneKindCodec
    from dtufc.feature import FeatureFacts
    from dtufc.fitting import FitOptions
    from dtufc.registry import CodecEntry

    ENTRY = CodecEntry("plain", "values as they are", "plain_codec:Plain", "plain_codec",
                       "plain_codec:Fit", any_rate=True)


    class Plain(OneKindCodec):
        qualities = (16, 32)

        def __init__(self, facts, bits):
            self.facts, self.bits = facts, bits

        @property
        def id(self):
            return bytes.fromhex(files.digest("plain", files.dump_json(self.facts.identity())))

        @property
        def identity(self):
            return f"{self.id.hex()} {self.bits}"

        @classmethod
        def load(cls, folder, *, device, published, kinds):
            facts = files.read_json(folder / "config.json")["facts"]
            return cls(FeatureFacts.of_record(facts, str(folder)), 32)

        def at_quality(self, quality):
            return Plain(self.facts, int(quality))

        def encode_parts(self, feature):
            return (feature.astype(f"<f{self.bits // 8}").tobytes(),)

        def decode_parts(self, parts, shape, mode):
            size = len(parts[0]) // int(np.prod(shape))
            return np.frombuffer(parts[0], f"<f{size}").reshape(shape)


    @dataclass(frozen=True, kw_only=True)
    class Fit(FitOptions):
        pass


    if __name__ == "__main__":
        cfg = config.parse(Fit)
        run = provenance.Run(cfg.output, cfg, cfg.stamp())
        values = {"codec": "plain", "facts": cfg.facts().record()}
        files.write_json(cfg.output / "config.json", values)
        run.finish()
'''


def test_a_codec_of_another_package_plugs_in(toy, tmp_path, monkeypatch, capsys):
    """Found by its entry point: the driver fits it, codes with it and puts it into the table."""
    site = tmp_path / "site"
    info = site / "plain_codec-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "plain_codec.py").write_text(textwrap.dedent(PLUGIN))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain_codec\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dtufc.codecs]\nplain = plain_codec:ENTRY\n")
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    monkeypatch.syspath_prepend(str(site))
    codecs.cache_clear()
    try:
        assert "plain" in codecs()
        suite = tmp_path / "suite.yaml"
        rows = [{"codec": "plain", "quality": [16, 32]}]
        suite.write_text(yaml.safe_dump({"machines": [str(toy / "toy.yaml")], "fitted": rows}))
        root = tmp_path / "root"
        (root / "toy").mkdir(parents=True)
        (root / "toy" / "hidden").symlink_to(toy / "toy" / "hidden")
        rows = driver.run_batch(driver.BatchConfig(suite=str(suite), data_root=root))
        assert [(row.codec, row.quality, round(row.bpfp)) for row in rows] == [
            ("plain", 16, 16), ("plain", 32, 32),
        ]  # fmt: skip
        assert rows[1].nmse == 0 < rows[0].nmse
        folder = root / "codecs" / "plain" / "trained_hidden" / "none" / "fit"
        codec = load_codec(folder)
        assert codec.facts.shape[3] == CHANNELS
        x = toy_feature(1, 5)
        (rows,) = StreamDecoder(codec).feed(codec.stream("x").append({"x": x})).values()
        assert np.array_equal(rows, x)
    finally:
        codecs.cache_clear()
    monkeypatch.undo()
    assert "plain" not in codecs()


def test_two_codecs_of_one_name_are_refused(tmp_path, monkeypatch):
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (tmp_path / "other.py").write_text("from dtufc.registry import BUILT_IN\nENTRY = BUILT_IN[0]\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dtufc.codecs]\nother = other:ENTRY\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    codecs.cache_clear()
    try:
        with pytest.raises(ValueError, match="there is a codec 'hyperprior'"):
            codecs()
    finally:
        codecs.cache_clear()
