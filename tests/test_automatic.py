"""One automatic choice: what is compared, on which files, within which time, and what comes of it."""

import json

import numpy as np
import pytest
import yaml
from test_klt import picture_like
from test_klt_memory import sentence

from dtufc.codec import load_codec
from dtufc.experiments import automatic, automatic_native
from dtufc.experiments.automatic import AutomaticConfig, choose
from dtufc.feature import write_feature


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Tokens that come again, so that a memory pays."""
    folder = tmp_path_factory.mktemp("automatic") / "train"
    for i in range(20):
        write_feature(folder / f"{i:02d}.npy", sentence(i))
    return folder


@pytest.mark.slow
def test_the_best_is_fitted_to_all_files(features, tmp_path):
    """A memory, where tokens come again; the command prints and keeps what it compared."""
    output = tmp_path / "codec"
    automatic.main(["--features", str(features), "--output", str(output), "--minutes", "60"])
    told = json.loads((output / "compared.json").read_text())
    names = [row["codec"] for row in told["rows"]]
    assert {"klt", "klt, memory", "klt at low rates", "klt at high rates, memory"} <= {*names}
    rates = [float(row["rate"].rstrip("%")) for row in told["rows"]]
    assert rates == sorted(rates)
    assert rates[0] < -5
    codec = load_codec(output)
    assert "memory" in names[0] and codec.model.memory is not None
    assert json.loads((output / "config.json").read_text())["made_by"]["files"] == 20
    x = np.load(features / "03.npy")
    assert np.mean((codec.decode(codec.encode(x)) - x) ** 2) < 0.2 * x.var()


def test_what_is_compared_has_not_been_seen(features, tmp_path, monkeypatch):
    """Of files that klt was not fitted on; and no time means that the first one is taken."""
    told, coded = [], []
    fitted = automatic.fit_config

    def spy(cfg, entrant, folder, output):
        told.append({path.name for path in folder.iterdir()})
        return fitted(cfg, entrant, folder, output)

    monkeypatch.setattr(automatic, "fit_config", spy)
    measure = automatic.Choice.measure

    def watch(self, folder):
        coded.append({path.name for path in self.unseen})
        return measure(self, folder)

    monkeypatch.setattr(automatic.Choice, "measure", watch)
    rows = choose(AutomaticConfig(features=features, output=tmp_path / "codec", minutes=1e-4))
    assert told == [
        {f"{i:02d}.npy" for i in range(20) if i % 5 != 2},
        {f"{i:02d}.npy" for i in range(20)},
    ]
    assert coded == [{f"{i:02d}.npy" for i in range(2, 20, 5)}]
    assert rows[0].codec == "klt"
    assert {row.rate for row in rows[1:]} == {"skipped"}


def test_one_error_decides_where_it_is_given(tmp_path, monkeypatch):
    """native takes part; of maps there is no memory."""
    facts = {"model": "toy", "task": "map", "shape": [1, 4, 12, 12], "dtype": "float16",
             "axes": ["sample", "channel", "row", "column"]}  # fmt: skip
    (tmp_path / "map.yaml").write_text(yaml.safe_dump({"feature": facts}))
    for i in range(14):
        part = "train" if i < 10 else "held_out"
        write_feature(tmp_path / part / f"{i:02d}.npy", picture_like(i))
    made = {}

    def train(told, facts, nmse, seconds, folder, seed):
        made.update(nmse=nmse, files=len([*told.iterdir()]))
        return "would train for 3 epochs; 15 are the fewest"

    monkeypatch.setattr(automatic, "train_native", train)
    rows = choose(
        AutomaticConfig(
            features=tmp_path / "train", output=tmp_path / "codec", machine=str(tmp_path / "map.yaml"),
            held_out=tmp_path / "held_out", nmse=0.05, minutes=60,
        )
    )  # fmt: skip
    assert made == {"nmse": 0.05, "files": 10}
    others = {"klt, format 2", "klt, format 2, contexts", "klt at NMSE 0.05", "native"}
    assert {row.codec for row in rows} == {"klt", *others}
    assert rows[-1].rate == "skipped" and "3 epochs" in rows[-1].bpfp
    loaded = load_codec(tmp_path / "codec")
    assert loaded.decode(loaded.encode(picture_like(99))).shape == (1, 4, 12, 12)


@pytest.mark.slow
def test_native_is_trained_as_long_as_there_is_time(features, tmp_path, monkeypatch):
    for name, value in (("MOST", 4), ("FEWEST", 3), ("PATCHES", 32)):
        monkeypatch.setattr(automatic_native, name, value)
    facts = AutomaticConfig(features=features, output=tmp_path / "codec").facts()
    made = automatic_native.train_native(features, facts, 0.1, 1e6, tmp_path, 0)
    assert "epochs4" in made.name
    codec = load_codec(made)
    x = sentence(99)
    assert codec.decode(codec.encode(x)).shape == x.shape


def test_wrong_options_are_named(features, tmp_path, capsys):
    for flags, match in ((["--minutes", "0"], "minutes"), (["--nmse", "2"], "nmse")):
        with pytest.raises(SystemExit):
            automatic.main(["--features", str(features), "--output", str(tmp_path / "x"), *flags])
        assert match in capsys.readouterr().err
    with pytest.raises(SystemExit, match="holds something"):
        automatic.main(["--features", str(features), "--output", str(features)])
    write_feature(tmp_path / "few" / "a.npy", sentence(0))
    with pytest.raises(SystemExit, match="fewer than three files; give --held_out"):
        automatic.main(["--features", str(tmp_path / "few"), "--output", str(tmp_path / "y")])
