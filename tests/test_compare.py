"""Folders of a stranger's features to one page: what is guessed, refused, converted, resumed."""

import hashlib
import importlib
import re
import subprocess
import sys

import numpy as np
import pytest

from dtufc import config, evaluate, files
from dtufc.axes import AmbiguousAxes, check_axes, feature_axes, guess_axes, to_feature
from dtufc.errors import UserError
from dtufc.experiments import compare, driver
from dtufc.experiments.compare import CompareConfig
from dtufc.experiments.imports import place_source, read_source
from dtufc.experiments.suite import load_suite
from dtufc.experiments.tables import TableRow
from dtufc.feature import FeatureError, load_facts
from dtufc.paths import FeatureRoot


def channels_differ(shape: tuple[int, ...], channel: int, seed: int) -> np.ndarray:
    """Noise with an offset for each channel, as features have."""
    offsets = np.random.default_rng(0).standard_normal(shape[channel]) * 2
    sizes = [1] * len(shape)
    sizes[channel] = -1
    return np.random.default_rng(seed).standard_normal(shape) + offsets.reshape(sizes)


@pytest.fixture
def folders(tmp_path):
    """Three folders of different kinds: files of tokens, files of maps, one file of sequences."""
    made = {name: tmp_path / "in" / name for name in ("tokens", "maps", "block.4")}
    for folder in made.values():
        folder.mkdir(parents=True)
    for k in range(8):
        np.save(made["tokens"] / f"t{k}.npy", channels_differ((9 + k, 12), 1, k))
        x = channels_differ((6, 4, 4), 0, k).astype(np.float32)
        np.save(made["maps"] / f"m{k}.npy", x)
    np.save(made["block.4"] / "all.npy", channels_differ((8, 10, 7), 1, 0).astype(np.float16))
    (made["maps"] / "notes.txt").write_text("mine")
    return made


@pytest.fixture
def in_process(monkeypatch):
    """Jobs of the driver run here, which saves the start of each; their titles are returned."""
    titles = []

    def run_jobs(jobs, parallel=1):
        for job in jobs:
            titles.append(job.title)
            program, option, name, *argv = job.command
            if option == "-m":
                importlib.import_module(name).main(argv)
            else:
                subprocess.run([program, option, name, *argv], check=True)

    monkeypatch.setattr(driver, "run_jobs", run_jobs)
    return titles


def digests(folders) -> dict:
    return {
        path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for folder in folders.values()
        for path in folder.rglob("*")
        if path.is_file()
    }


def argv_of(folders, output, *more) -> list[str]:
    return ["--features", *map(str, folders.values()), "--output", str(output), *more]


def test_three_kinds_to_one_page(folders, tmp_path, in_process, capsys):
    """And a killed run goes on, a finished one does nothing, and other features are refused."""
    before = digests(folders)
    output = tmp_path / "out"
    argv = argv_of(folders, output, "--codecs", "klt,int", "--rates", "klt=0,1", "int=3,6")
    code, coded = evaluate._code, []

    def killed(codec, path, feature, cfg):
        if len(coded) == 5:
            raise KeyboardInterrupt
        coded.append(path.stem)
        return code(codec, path, feature, cfg)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluate, "_code", killed)
        compare.main(argv)
    assert not (output / "report").exists()
    fits = [title for title in in_process if title.startswith("fit")]
    assert len(fits) == 6
    in_process.clear()
    capsys.readouterr()
    compare.main(argv)
    assert not [title for title in in_process if title.startswith("fit")]
    assert digests(folders) == before

    told = capsys.readouterr().out
    rows = {line.split()[0]: line for line in told.splitlines() if line.strip()}
    assert "6+1+1" not in rows["tokens"] and "5+1+2" in rows["tokens"]
    for name, shape, axes, dtype in (
        ("tokens", "* x 12", "token,channel", "float64 -> float32"),
        ("maps", "6 x 4 x 4", "channel,row,column", "float32"),
        ("block.4", "1 x 10 x 7", "sample,channel,token", "float16"),
    ):
        assert all(part in rows[name] for part in (shape, axes, dtype))
    assert "maps: only .npy is taken, left alone: 1 .txt" in told
    assert "own_maps: NMSE at bits per point" in told and "lowest" in told

    facts = {name: load_facts(output / "configs" / f"{name}.yaml") for name in folders}
    assert facts["tokens"].shape == [1, 1, None, 12]
    assert facts["maps"].shape == [1, 6, 4, 4] and facts["maps"].views.is_map
    assert facts["block.4"].shape == [1, 1, 7, 10] and facts["block.4"].dtype == "float16"
    low, high = facts["tokens"].range
    values = np.concatenate([np.load(p).ravel() for p in folders["tokens"].glob("*.npy")])
    assert (low, high) == pytest.approx((values.min(), values.max()), rel=1e-5)

    own = output / "own"
    test = own / "tokens" / "feature_test"
    assert sorted(p.name for p in test.iterdir()) == ["t3.npy", "t7.npy"]
    assert [p.name for p in (own / "tokens" / "feature_train" / "test").iterdir()] == ["t6.npy"]
    source = np.load(folders["tokens"] / "t3.npy").astype(np.float32)
    assert np.array_equal(np.load(test / "t3.npy"), source[None, None])
    third = np.load(folders["block.4"] / "all.npy")[3]
    made = np.load(own / "block.4" / "feature_test" / "all_000003.npy")
    assert np.array_equal(made[0, 0], third.T)

    page = (output / "report" / "report.html").read_text()
    for name in folders:
        assert f"own_{name}" in page

    in_process.clear()
    compare.main(argv)
    assert in_process == []
    np.save(folders["tokens"] / "t0.npy", channels_differ((9, 12), 1, 99))
    with pytest.raises(SystemExit, match=r"comparison of other features \(content of tokens/"):
        compare.main(argv)
    # the user goes on from the suite, wherever the folder lies
    moved = output.rename(tmp_path / "moved")
    suite = load_suite(moved / "configs" / "compare.yaml")
    assert [load_facts(machine).task for machine in suite.machines] == [*folders]


def test_a_machine_that_the_user_changed_stays(folders, tmp_path, in_process):
    one = {"maps": folders["maps"]}
    argv = argv_of(one, tmp_path / "out", "--codecs", "int", "--rates", "int=3")
    compare.main(argv)
    path = tmp_path / "out" / "configs" / "maps.yaml"
    changed = path.read_text().replace("range:", "rows: 2\n  range:")
    path.write_text(changed)
    compare.main(argv)
    assert path.read_text() == changed
    path.write_text(changed.replace("channel, row", "row, channel"))
    with pytest.raises(SystemExit, match=r"maps\.yaml: feature: axes: expected"):
        compare.main(argv)


def test_labels_give_the_accuracy_of_a_fitted_head(tmp_path, in_process):
    """Two classes that channel means tell apart: right as long as the rate is high enough."""
    folder = tmp_path / "in" / "vit"
    folder.mkdir(parents=True)
    lines = ["name,label"]
    rng = np.random.default_rng(0)
    for k in range(24):
        x = rng.standard_normal((11, 6))
        x[:, k % 2] += 3
        np.save(folder / f"v{k:02d}.npy", x)
        lines.append(f"v{k:02d}.npy,{'cat' if k % 2 else 'dog'}")
    labels = tmp_path / "mine.csv"
    labels.write_text("\n".join(lines))
    argv = argv_of({"vit": folder}, tmp_path / "out", "--codecs", "int", "--rates", "int=8")
    argv += ["--axes", "vit=token,channel", "--labels", f"vit={labels}"]
    compare.main(argv)
    # the last test files all have odd numbers: v03, v07, ...
    record = files.read_json(next((tmp_path / "out" / "coded").rglob("accuracy.json")))
    assert (record["metric"], record["value"], record["samples"]) == ("top1", 1.0, 6)
    assert "top1" in (tmp_path / "out" / "report" / "headline.csv").read_text()
    compare.main([*argv, "--pooling", "max"])  # head and YAML change together
    assert "pooling: max" in (tmp_path / "out" / "configs" / "vit.yaml").read_text()
    record = files.read_json(next((tmp_path / "out" / "coded").rglob("accuracy.json")))
    assert record["options"]["pooling"] == "max"
    lines.pop()
    labels.write_text("\n".join(lines))
    with pytest.raises(SystemExit, match=r"no label for 1 of 24 features, the first is v23"):
        compare.main([*argv[:2], "--output", str(tmp_path / "other"), *argv[4:]])


T, M = "sample,layer,token,channel", "sample,channel,row,column"


@pytest.mark.parametrize(
    ("shape", "channel", "axes"),
    [
        ((5,), 0, "channel"),
        ((None, 16), 1, "token,channel"),
        ((16, None), 0, "channel,token"),
        ((40, 16), 1, "token,channel"),
        ((16, 40), 0, "channel,token"),
        ((2, 40, 16), 2, "sample,token,channel"),
        ((1, None, 16), 2, "sample,token,channel"),
        ((1, 16, 40), 1, "sample,channel,token"),
        ((32, 7, 7), 0, "channel,row,column"),
        ((7, 7, 32), 2, "row,column,channel"),
        ((16, None, None), 0, "channel,row,column"),
        ((12, 6, 9), 0, "channel,row,column"),
        ((1, 1, None, 16), 3, T),
        ((2, 3, 50, 16), 3, T),
        ((1, 16, 8, 8), 1, M),
        ((1, 16, None, None), 1, M),
        ((2, 8, 8, 16), 3, "sample,row,column,channel"),
        ((3, 16, 5, 9), 1, M),
    ],
)
def test_axes_are_guessed(shape, channel, axes):
    shapes = [tuple(n or 8 + k + i for i, n in enumerate(shape)) for k in range(6)]
    arrays = [channels_differ(each, channel, k) for k, each in enumerate(shapes)]
    guess = guess_axes(shapes, arrays)
    assert ",".join(guess.axes) == axes
    x = to_feature(arrays[0], guess.axes)
    assert x.ndim == 4 and x.size == arrays[0].size
    wanted = feature_axes(guess.axes)
    # the channels are where the feature has them
    means = x.mean(axis=tuple(k for k in range(4) if wanted[k] != "channel"))
    others = tuple(k for k in range(len(shape)) if k != channel)
    assert means == pytest.approx(arrays[0].mean(axis=others))


@pytest.mark.parametrize("shape", [(50, 64), (4, 50, 64), (3, 16, 5, 9), (1, 28, 30)])
def test_noise_tells_no_axes(shape):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for _ in range(6)]
    with pytest.raises(AmbiguousAxes) as caught:
        guess_axes([shape] * 6, arrays)
    assert len(caught.value.candidates) > 1


def test_smooth_rows_are_asked_about():
    """Channels last, rows and columns unequal: a map, or samples of tokens."""
    x = np.cumsum(channels_differ((9, 14, 16), 2, 0) * 0.1, axis=0) + channels_differ((16,), 0, 1)
    with pytest.raises(AmbiguousAxes):
        guess_axes([x.shape] * 3, [x] * 3)


def test_axes_that_are_said_are_checked(tmp_path):
    assert check_axes(["token", "channel"]) == ("token", "channel")
    assert feature_axes(("crop", "row", "column", "channel")) == (
        "crop",
        "channel",
        "row",
        "column",
    )
    for wrong in (["token"], ["token", "token", "channel"], ["row", "token", "channel"],
                  ["sample", "crop", "channel"], ["colour", "channel"]):  # fmt: skip
        with pytest.raises(UserError, match="axes: expected names"):
            check_axes(wrong)
    for k in range(4):
        np.save(tmp_path / f"{k}.npy", np.ones((3, 4 + k)))
    with pytest.raises(UserError, match=r"names 3, the files of .* have the shape"):
        read_source(tmp_path, "x", ("sample", "token", "channel"))
    with pytest.raises(UserError, match="number of channels differs"):
        read_source(tmp_path, "x", ("token", "channel"))


def test_ambiguous_folders_are_named_in_one_line(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(4):
            np.save(tmp_path / name / f"{k}.npy", rng.standard_normal((20, 30)))
    argv = ["--features", str(tmp_path / "a"), str(tmp_path / "b"), "--output"]
    with pytest.raises(SystemExit) as caught:
        compare.main([*argv, str(tmp_path / "out")])
    text = str(caught.value)
    assert "\n" not in text and "b (20 x 30): --axes b=token,channel or b=channel,token" in text
    assert not (tmp_path / "out").exists()
    cfg = config.parse(CompareConfig, [*argv, "out", "--axes", "channel,token", "b=token,channel"])
    sources = compare.read_sources(cfg, compare.folder_names(cfg.features))
    assert [source.shape for source in sources] == [[1, 1, 30, 20], [1, 1, 20, 30]]


def test_a_split_that_is_there_is_taken_and_bfloat16_is_read(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4) - 5.5  # exact in 8 bits
    for part, count in (("train", 3), ("test", 1)):
        (tmp_path / part).mkdir()
        for k in range(count):
            bits = (values[: 2 + k % 2].view(np.uint32) >> 16).astype(np.uint16)
            np.save(tmp_path / part / f"{k}.npy", bits.view("V2"))
    source = read_source(tmp_path, "x")
    assert [len(part) for part in source.split.values()] == [2, 1, 1]
    assert (source.dtypes, source.dtype) == (["bfloat16"], "float32")
    assert np.array_equal(source.split["test"][0].read(), values[:2])


def test_what_is_no_folder_of_features_is_refused(folders, tmp_path):
    def refused(text, *features, output=tmp_path / "out", more=()):
        with pytest.raises(SystemExit) as caught:
            compare.main(["--features", *map(str, features), "--output", str(output), *more])
        assert text in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    def folder(name, *arrays):
        (tmp_path / name).mkdir()
        for k, x in enumerate(arrays):
            np.save(tmp_path / name / f"{k}.npy", x)
        return tmp_path / name

    maps = folders["maps"]
    (tmp_path / "link").symlink_to(maps)
    refused("holds the features of", maps, output=tmp_path / "link")
    refused("holds the features of", maps, output=maps.parent)
    refused("is a file", maps, output=maps / "m0.npy")
    refused("a folder is there twice", maps, tmp_path / "link")
    refused("no such file or folder", tmp_path / "none")
    torch_files = folder("torch")
    (torch_files / "a.pt").write_bytes(b"")
    refused("holds no .npy file (1 .pt), nor train and test folders", torch_files)
    refused("only .npy files are taken", torch_files / "a.pt")
    refused("holds int64", folder("ints", *[np.ones((2, 2), int)] * 3))
    refused("expected 3 at least", folder("two", *[np.ones(4)] * 2))
    refused("has 2 axes, 0.npy has 1", folder("mixed", np.ones(4), np.ones((2, 4)), np.ones(4)))
    refused("expected arrays of 1 to 4 axes", folder("five", *[np.ones((1,) * 5)] * 3))
    refused("no axis can be the channels", folder("sizes", *[np.ones(k) for k in (4, 5, 6)]))
    refused("expected an array of values", folder("empty", *[np.ones((0, 4))] * 3))
    refused("axes: ['nope'] are none of the folders", maps, more=["--axes", "nope=channel"])


def test_values_that_are_no_numbers_are_refused(tmp_path):
    for k in range(4):
        np.save(tmp_path / f"{k}.npy", np.full((4,), np.nan if k == 1 else 1.0))
    with pytest.raises(SystemExit, match=r"1\.npy: the feature holds NaN or infinity"):
        compare.main(["--features", str(tmp_path), "--output", str(tmp_path.parent / "out")])


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--codecs", "mp3"], "codecs: 'mp3' is none of"),
        (["--rates", "cast=8"], r"rates: \['cast'\] are none of the codecs"),
        (["--rates", "klt"], "rates: expected klt=-1,0,1"),
        (["--rates", "klt=low"], "rates: expected klt=-1,0,1"),
        (["--epochs", "0"], "epochs: expected 1 or more"),
    ],
)
def test_options_are_checked_before_anything_else(flags, text, capsys):
    with pytest.raises(SystemExit):
        config.parse(CompareConfig, ["--features", "a", "--output", "b", *flags])
    assert re.search(text, capsys.readouterr().err)


def test_names_of_folders(tmp_path):
    paths = [tmp_path / "a" / "x y", tmp_path / "b" / "x y", tmp_path / "hybrid"]
    assert [*compare.folder_names(paths).values()] == ["a-x-y", "b-x-y", f"{tmp_path.name}-hybrid"]
    assert [*compare.folder_names([paths[2]]).values()] == ["hybrid-features"]


@pytest.mark.slow
def test_trained_codecs_are_stated_and_trained(folders, tmp_path, in_process):
    """One hybrid codec for all folders, one native codec each, in suites that load; both run."""
    output = tmp_path / "out"
    argv = argv_of(folders, output, "--codecs", "native,hyperprior,elic,int", "--rates", "int=8")
    cfg = config.parse(CompareConfig, argv)
    sources = compare.read_sources(cfg, compare.folder_names(cfg.features))
    placed = [compare.Placed((-9.0, 9.0), (-8.0, 8.0), 4.0)] * 3
    machines = [output / "configs" / f"{source.name}.yaml" for source in sources]
    suites = [load_suite(path) for path in compare._write_suites(cfg, sources, placed, machines)]
    plane, native = suites
    assert [(row.codec, row.train_task) for row in plane.rows] == [
        ("hyperprior", "hybrid"), ("elic", "hybrid"),
    ]  # fmt: skip
    assert plane.rows[0].patch_size == "64-64"
    assert [row.patch_size for row in native.rows] == ["16-1", "4-4", "8-1"]
    assert native.transform.assignment == "continuous"
    # 16^2 / 4 / (255^2 2 ln 2 0.1)
    assert native.rows[0].lambda_value[1] == pytest.approx(0.0071)

    one = {"maps": folders["maps"]}
    more = ["--codecs", "native", "--rates", "native=0.01", "--epochs", "1"]
    compare.main(argv_of(one, tmp_path / "one", *more))
    assert "train native on maps lambda 0.01" in in_process


def test_help_needs_no_torch():
    code = "import sys, dtufc.experiments.compare as c\n"
    code += "try: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_files_that_are_features_are_linked_and_others_converted(tmp_path):
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", np.ones((1, 1, 4 + k, 5), np.float32 if k else np.float16))
    source = read_source(tmp_path, "x")
    assert (source.dtypes, source.dtype) == (["float16", "float32"], "float32")
    root = FeatureRoot(tmp_path / "out")
    place_source(source, root)
    assert not (root.feature_train / "train" / "0.npy").samefile(tmp_path / "0.npy")
    np.save(tmp_path / "0.npy", np.ones((1, 1, 4, 5), np.float32))
    place_source(read_source(tmp_path, "x"), root)
    assert (root.feature_train / "train" / "0.npy").samefile(tmp_path / "0.npy")
    (tmp_path / "1.npy").write_bytes(b"no array")
    with pytest.raises(FeatureError, match=r"1\.npy: not a readable"):
        read_source(tmp_path, "x")


def test_the_lowest_codec_at_each_rate():
    def row(codec, bpfp, nmse):
        return TableRow(codec, "t", "none", None, 1.0, "own_t", bpfp, nmse, nmse)

    points = [("a", 1, 0.1), ("a", 4, 0.001), ("b", 0.5, 0.4), ("b", 2, 0.02), ("c", 9, 0.0)]
    lines = [line.split() for line in compare.summarise([row(*each) for each in points])]
    assert lines[1][-4:] == ["0.5", "1", "2", "4"]
    assert lines[2:] == [
        ["a", "-", "0.1", "0.01", "0.001"],
        ["b", "0.4", "0.0894", "0.02", "-"],
        ["lowest", "b", "alone", "b", "a", "a", "alone"],
    ]
