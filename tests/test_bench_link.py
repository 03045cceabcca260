"""Where coding pays: the arithmetic of a link, number formats, the shaped socket, and the script."""

import csv
import importlib
import math
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

from dtufc.errors import UserError
from dtufc.paths import REPOSITORY
from dtufc.report import quotes

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package
bench_link = importlib.import_module("bench_link")
arithmetic = importlib.import_module("benches.link_arithmetic")
formats = importlib.import_module("benches.number_formats")
link_socket = importlib.import_module("benches.link_socket")
link_tables = importlib.import_module("benches.link_tables")

RAW = arithmetic.Stages(front=0.004, encode=0.0001, decode=0.0002, back=0.003)
CODED = arithmetic.Stages(front=0.004, encode=0.006, decode=0.005, back=0.003)
SIZES = (4_000, 100_000)  # bytes on the wire, coded and raw


@pytest.mark.parametrize("way", ["serial", "pipelined"])
def test_the_break_even_is_where_the_sides_meet(way):
    """Below it the codec is faster, beyond it it is not; found again by trying bandwidths."""
    solve = getattr(arithmetic, f"{way}_break_even")
    found = solve(CODED, SIZES[0], RAW, SIZES[1])
    for rate in found * np.array([0.01, 0.5, 0.99, 1.01, 2, 100]):
        coded, raw = (getattr(s, way)(n, rate) for s, n in zip((CODED, RAW), SIZES, strict=True))
        assert (coded < raw) == (rate < found)
    assert solve(CODED, SIZES[1], RAW, SIZES[1]) == 0  # no byte saved
    assert math.isinf(solve(RAW, SIZES[0], CODED, SIZES[1]))  # no time spent


def test_stages_add_up_or_overlap():
    rate = 8 * 4_000 / 0.010  # the wire takes 10 ms
    assert CODED.serial(4_000, rate) == pytest.approx(0.004 + 0.006 + 0.010 + 0.005 + 0.003)
    assert CODED.pipelined(4_000, rate) == pytest.approx(0.010)
    assert CODED.pipelined(4_000, 100 * rate) == CODED.slowest == 0.006


def test_packets_have_headers():
    assert arithmetic.on_wire(0) == 10 + 40
    assert arithmetic.on_wire(1450) == 1460 + 40
    assert arithmetic.on_wire(1451) == 1461 + 80


@pytest.mark.parametrize("entry", formats.FORMATS, ids=lambda entry: entry.name)
def test_number_formats_keep_their_steps(entry):
    """The error stays within half a step of the format, beside giants too; zeros stay zeros."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 1, 5, 100)).astype(np.float32)  # 500 values: no whole groups
    x[0, 0, 0, 3] = 24_827
    x[0, 0, 4] = 0
    data = entry.encode(x)
    decoded = entry.decode(data, x.shape)
    assert decoded.shape == x.shape and decoded.dtype == np.float32
    assert not decoded[0, 0, 4].any()
    groups = np.zeros(512, np.float32)
    groups[:500] = np.abs(x).reshape(-1)
    largest = np.repeat(groups.reshape(-1, 64).max(1), 64)[:500].reshape(x.shape)
    step = {"raw bf16": 0, "fp8": 2**-9 / 448, "int8 + zstd": 0.5 / 127, "int4 + zstd": 0.5 / 7}
    # of the scale's or the value's own rounding to 8 bits, and of fp8's 3 bits of mantissa
    relative = {"raw bf16": 2**-8, "fp8": 2**-4 + 2**-8}.get(entry.name, 2**-7)
    bound = 1.02 * step[entry.name] * largest + relative * np.abs(x) + 1e-6
    assert (np.abs(decoded - x) <= bound).all()
    bits = {"raw bf16": 16, "fp8": 8, "int8 + zstd": 8, "int4 + zstd": 4}[entry.name]
    assert len(data) <= 512 * bits / 8 + 2 * 8 + 1


def test_the_socket_keeps_to_its_rate():
    """What arrives is what was sent, and no sooner than the link allows."""
    data = np.random.default_rng(0).bytes(50_000)
    told = 8 * arithmetic.on_wire(len(data)) / 8e6  # 51 ms
    with link_socket.ShapedLink(8e6) as link:
        assert link.carry(b"a") == b"a"
        start = time.perf_counter()
        assert link.carry(data) == data
        assert told * 0.97 <= time.perf_counter() - start < 5 * told


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Rows of the CSV of a run on one machine."""
    folder = tmp_path_factory.mktemp("link")
    argv = ["--machine", "resnet50_tiny", "--samples", "2", "--check", "[1Gbit]"]
    bench_link.main([*argv, "--quality", "-2", "1", "--output", str(folder)])
    with (folder / "link.csv").open(newline="") as file:
        return folder, list(csv.DictReader(file))


def test_the_script_tells_each_codec(table):
    folder, rows = table
    named = [(row["codec"], row["quality"]) for row in rows]
    assert named[0] == ("raw bf16", "") and ("klt_resnet50_tiny", "-2.0") in named
    assert {"fp8", "int8 + zstd", "int4 + zstd", "hyperprior_tiny_0.004"} <= dict(named).keys()
    raw, *others = rows
    assert float(raw["bpfp"]) == 16 and float(raw["bytes"]) == 2 * 128 * 49
    assert float(raw["same"]) == 1
    for row in others:
        assert 0 < float(row["bpfp"]) < 16 and float(row["nmse"]) > float(raw["nmse"])
        assert row["processor"] and row["threads"] == "1"
    with (folder / "link_check.csv").open(newline="") as file:
        checks = list(csv.DictReader(file))
    assert [row["codec"] for row in checks] == ["raw bf16", rows[-1]["codec"]]
    assert (folder / "link.png").read_bytes().startswith(b"\x89PNG")


def recompute(row, raw):
    """The break-evens of a row of the CSV, from its stages and bytes, in Mb/s."""
    keys = ("front_ms", "encode_ms", "decode_ms", "back_ms")
    sides = [(arithmetic.Stages(*(float(r[k]) / 1e3 for k in keys)), float(r["wire_bytes"]))
             for r in (row, raw)]  # fmt: skip
    (coded, size), (plain, plain_size) = sides
    return [
        getattr(arithmetic, f"{way}_break_even")(coded, size, plain, plain_size) / 1e6
        for way in ("serial", "pipelined")
    ]


def check_break_evens(rows):
    raw = None
    for row in rows:
        if row["codec"] == "raw bf16":
            raw = row
            continue
        assert (row["machine"], row["part"]) == (raw["machine"], raw["part"])
        for way, found in zip(("serial", "pipelined"), recompute(row, raw), strict=True):
            told = row[f"{way} break-even Mb/s"]
            words = {0.0: "never", math.inf: "always"}
            assert told == words[found] if found in words else float(told) == pytest.approx(found)
        for way in ("serial", "pipelined"):
            times = [float(row[f"{way} ms at {name}"]) for name in link_tables.LINKS]
            assert all(slow >= fast for slow, fast in pairwise(times))


def test_break_evens_follow_from_the_stages(table):
    check_break_evens(table[1])


def test_results_follow_from_the_stages():
    """The committed results, too."""
    with (REPOSITORY / "results/link.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    check_break_evens(rows)
    parts = {(row["machine"], row["part"]) for row in rows}
    tiny = {(name, "whole") for name in bench_link.TINY[1:]}
    assert parts >= tiny | {("llama3_tiny", "prompt"), ("llama3_tiny", "token")}


@pytest.mark.slow
def test_a_language_model_has_two_parts(tmp_path):
    argv = ["--machine", "llama3_tiny", "--samples", "2", "--tokens", "3", "--check", "[]"]
    bench_link.main([*argv, "--output", str(tmp_path)])
    with (tmp_path / "link.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = {row["part"]: row for row in rows if row["codec"] == "klt_llama3_tiny"}
    assert parts.keys() == {"prompt", "token"}
    assert parts["token"]["points"] == "128"
    assert float(parts["prompt"]["bytes"]) > float(parts["token"]["bytes"])
    assert not (tmp_path / "link_check.csv").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--samples", "0"], "expected at least 1"),
        (["--codec", "klt"], "expected name=DIR"),
        (["--check", "auto"], "not auto"),
    ],
)
def test_wrong_flags_are_named(argv, message, capsys):
    with pytest.raises(SystemExit):
        bench_link.main(argv)
    assert message in capsys.readouterr().err


def test_a_quote_of_any_csv(tmp_path):
    (tmp_path / "a.csv").write_text('codec,"x, y",ms\nklt,1,12345.6\nraw,,never\n')
    table = quotes.ask("a.csv cells codec=klt columns=codec,ms", tmp_path)
    assert table.rows == [["klt", 12345.6]]
    assert quotes.ask("a.csv cells", tmp_path).rows[1] == ["raw", None, "never"]
    with pytest.raises(UserError, match="no column is called 'colour'"):
        quotes.ask("a.csv cells colour=red", tmp_path)
