"""States to stream files and back: the commands, every layout, and what is refused."""

import csv
import shutil

import numpy as np
import pytest
import small_codecs

from dtufc import decode, encode, evaluate, files
from dtufc.bitstream import BitstreamError
from dtufc.errors import UserError
from dtufc.feature import FeatureError, write_feature
from dtufc.many import container
from dtufc.many.codec import facts_of, load_state_codec
from dtufc.many.layouts import list_sources, write_state
from dtufc.streams import StreamDecoder, open_session, open_stream
from dtufc.streams.encoder import Tensor
from dtufc.streams.frames import Segment, State, write_end, write_rows

KINDS = {"hidden": "tokens", "maps": "maps"}
CODECS = {"hidden": "klt", "maps": "int"}
SAMPLES = ["s0", "s1", "s2"]
POINTS = 20 * 6 + 6 * 2 * 3 * 3


def state_of(seed: int) -> dict[str, np.ndarray]:
    return {name: small_codecs.made_up(kind, seed) for name, kind in KINDS.items()}


@pytest.fixture(scope="module")
def folder(golden_folder, tmp_path_factory):
    """A codec of states: klt for tokens, integers for maps."""
    folder = tmp_path_factory.mktemp("states") / "codec"
    for name, codec in CODECS.items():
        shutil.copytree(golden_folder(codec, KINDS[name]), folder / name)
    values = {"format": 1, "codec": "klt", "quality": 2, "shifts": {"hidden": 0.5, "maps": 0.0}}
    files.write_json(folder / "tensors.json", values)
    return folder


@pytest.fixture(scope="module")
def codec(folder):
    return load_state_codec(folder)


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """A folder per tensor."""
    root = tmp_path_factory.mktemp("in")
    for seed, name in enumerate(SAMPLES):
        for tensor, x in state_of(seed).items():
            write_feature(root / tensor / f"{name}.npy", x)
    return root


def content(root):
    """Bytes by path, records left out."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".npy", ".npz", ".ufs")
    }


@pytest.mark.parametrize("layout", container.LAYOUTS)
def test_files_come_back_as_they_lay(layout, codec, folder, tmp_path, capsys):
    """A stream file per state; what is decoded lies as its source did, and holds what the API gives."""
    names = SAMPLES if layout != "folder" else SAMPLES[:1]
    for seed, name in enumerate(names):
        write_state(tmp_path / "in", name, layout, state_of(seed))
    source = tmp_path / "in" if layout != "folder" else tmp_path / "in" / "s0"
    argv = ["--codec", str(folder)]
    encode.main([*argv, "--input", str(source), "--output", str(tmp_path / "coded")])
    coded = content(tmp_path / "coded")
    assert [*coded] == [f"{name}.ufs" for name in names]
    assert f"{len(names)} states, {sum(map(len, coded.values()))} bytes" in capsys.readouterr().out
    decode.main(
        [
            *argv,
            "--input",
            str(tmp_path / "coded"),
            "--output",
            str(tmp_path / "out"),
            "--coders",
            "1",
        ]
    )
    assert content(tmp_path / "out").keys() == content(tmp_path / "in").keys()
    found = list_sources(facts_of(codec), tmp_path / "out" / ("" if layout != "folder" else "s0"))
    assert [each.name for each in found] == names
    for seed, each in enumerate(found):
        expected = codec.decode(codec.encode(state_of(seed)))
        assert each.layout == layout
        got = each.read(facts_of(codec))
        assert all(np.array_equal(got[name], expected[name]) for name in KINDS)
    data = coded["s0.ufs"]
    assert len(data) == len(codec.encode(state_of(0)))  # the layout costs nothing
    assert data == codec.encode(state_of(0), layout=layout)


def test_one_npz_is_a_state(codec, folder, tmp_path):
    """As ``numpy.savez_compressed`` writes it, in any order."""
    state = state_of(4)
    np.savez_compressed(tmp_path / "one.npz", maps=state["maps"], hidden=state["hidden"])
    argv = ["--codec", str(folder), "--quality", "3"]
    encode.main([*argv, "--input", str(tmp_path / "one.npz"), "--output", str(tmp_path / "coded")])
    decode.main(
        ["--codec", str(folder), "--input", str(tmp_path / "coded" / "one.ufs"), "--output",
         str(tmp_path / "out")]
    )  # fmt: skip
    at = codec.at_quality(3)
    expected = at.decode(at.encode(state))
    with np.load(tmp_path / "out" / "one.npz") as got:
        assert got.files == [*KINDS]
        assert all(np.array_equal(got[name], expected[name]) for name in KINDS)


@pytest.mark.parametrize(
    "rate", [["--quality", "1"], ["--target_bpfp", "7"], ["--max_bytes", "220"]]
)
def test_bytes_are_those_that_evaluate_counts(rate, codec, folder, states, tmp_path):
    argv = ["--codec", str(folder), *rate]
    encode.main([*argv, "--input", str(states), "--output", str(tmp_path / "coded")])
    evaluate.main([*argv, "--features", str(states), "--output", str(tmp_path / "judged")])
    coded = content(tmp_path / "coded")
    assert coded == content(tmp_path / "judged" / "bitstreams")
    with (tmp_path / "judged" / "rate.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["bytes"]) for row in rows] == [len(data) for data in coded.values()]
    assert [int(row["points"]) for row in rows] == [POINTS] * len(SAMPLES)
    total = sum(map(len, coded.values()))
    if rate[0] == "--target_bpfp":  # over the whole states, and no quality above meets it
        assert 8 * total / (len(SAMPLES) * POINTS) <= 7
        finer = codec.at_quality(float(rows[0]["quality"]) + 1 / 128)
        more = sum(len(finer.encode(state_of(seed))) for seed in range(len(SAMPLES)))
        assert 8 * more / (len(SAMPLES) * POINTS) > 7
    if rate[0] == "--max_bytes":
        assert max(map(len, coded.values())) <= 220


def test_a_file_is_a_stream(codec):
    """The file decodes by the stream's own means, where the session is known."""
    state = state_of(0)
    data = codec.encode(state)
    known = container.known_sessions(codec.codecs, ["tensors"])
    decoder = StreamDecoder(codec.codecs.values(), known=known)
    rows = decoder.feed(data)
    decoder.finish()
    expected = codec.decode(data)
    assert all(np.array_equal(rows[name], expected[name]) for name in KINDS)


def test_open_sizes_are_told_in_the_file(codec, tmp_path):
    """Two samples of tokens in one tensor: a receiver cannot know that, so the header describes it."""
    state = state_of(0)
    state["hidden"] = np.concatenate([state["hidden"], small_codecs.made_up("tokens", 1)])
    data = codec.encode(state)
    decoded = codec.decode(data)
    assert decoded["hidden"].shape == (2, 1, 20, 6)
    alone = codec.codecs["hidden"]
    assert np.array_equal(decoded["hidden"], alone.decode(alone.encode(state["hidden"])))
    (tmp_path / "s.ufs").write_bytes(data)
    with open_stream(tmp_path / "s.ufs", codec.codecs.values()) as stream:
        assert np.array_equal(stream["hidden"][0], decoded["hidden"])


def test_damage_is_refused(codec, folder, tmp_path):
    """Every truncation, every byte changed, bytes behind the end; the command names the file."""
    data = codec.encode(state_of(0), layout="npz")
    codec.decode(data)
    for end in range(len(data)):
        with pytest.raises(BitstreamError):
            codec.decode(data[:end])
    rng = np.random.default_rng(0)
    for place in range(len(data)):
        wrong = bytearray(data)
        wrong[place] ^= int(rng.integers(1, 256))
        with pytest.raises(BitstreamError):
            codec.decode(bytes(wrong))
    with pytest.raises(BitstreamError, match="bytes behind the end"):
        codec.decode(data + b"\0")
    (tmp_path / "coded").mkdir()
    (tmp_path / "coded" / "s.ufs").write_bytes(data[:-1])
    argv = ["--codec", str(folder), "--input", str(tmp_path / "coded"), "--output"]
    with pytest.raises(SystemExit, match=r"coded/s\.ufs: truncated: the state ends inside frame 1"):
        decode.main([*argv, str(tmp_path / "out")])
    assert content(tmp_path / "out") == {}


def test_forgeries_are_refused(codec, golden_codec, tmp_path):
    """Sound streams of other content: what is decoded is a state of the codec, or nothing is."""
    state, codecs = state_of(0), codec.codecs

    def stream(*frames, tensors=codecs, metadata=None, sample=False):
        encoder = open_session(tensors, metadata=metadata)
        data = b"".join(encoder.append(rows) for rows in frames)
        return data + (encoder.new_sample("next") if sample else b"") + encoder.close()

    assert codec.decode(stream(state)).keys() == state.keys()
    swapped = {"hidden": codecs["maps"], "maps": codecs["hidden"]}
    other = {**codecs, "hidden": golden_codec("int")}
    one = {"hidden": state["hidden"]}
    turned = {"hidden": state["maps"], "maps": state["hidden"]}
    for data, why in (
        (stream(one), "expected rows of each tensor once"),
        (stream(state, one), "expected rows of each tensor once"),
        (stream({"maps": state["maps"]}, one), "expected rows of each tensor once"),
        (stream(state, sample=True), "expected rows of each tensor once"),
        (stream(), "expected rows of each tensor once"),
        (stream(turned, tensors=swapped), "expected the tensors"),
        (stream(one, tensors={"hidden": codecs["hidden"]}), "expected the tensors"),
        (stream(state, tensors=other), "tensor hidden: small_tokens written by codec"),
        (stream(state, metadata={"layout": "zip"}), "layout: expected one of"),
        (stream(state, metadata={"layout": "npz", "more": 1}), "layout: expected one of"),
        (codecs["hidden"].encode(state["hidden"]), "version 1: expected a stream"),
    ):
        with pytest.raises(BitstreamError, match=why):
            codec.decode(data)
    foreign = open_session(other, named=True)
    with pytest.raises(BitstreamError, match="written by another codec of states"):
        codec.decode(foreign.append(state) + foreign.close())


def test_announced_sizes_take_no_memory(codec):
    """A million rows in no bytes, and a limit of points that the receiver sets."""
    session = container.known_sessions(codec.codecs, ["tensors"])[0]
    header = session.header(named=True)
    segments = container.read(codec.codecs, codec.encode(state_of(0)))[1]
    state = State.start(int.from_bytes(header[-4:], "little"), 2)
    forged = [
        Segment(0, 1 << 20, segments[0].setting, segments[0].payload),
        Segment(1, 1 << 20, segments[1].setting, b""),
    ]
    data = header + write_rows(state, forged) + write_end(state)
    with pytest.raises(BitstreamError):
        codec.decode(data)
    with pytest.raises(BitstreamError, match=r"too large: .* 20 rows, 120 points, limits .*, 119"):
        codec.decode(codec.encode(state_of(0)), max_points=119)


def test_wrong_inputs_are_refused(codec, folder, states, tmp_path):
    facts = facts_of(codec)
    (tmp_path / "none").mkdir()
    (tmp_path / "text.txt").write_text("no state")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK no archive")
    few, odd, raw = tmp_path / "few.npz", tmp_path / "odd.npz", tmp_path / "raw.npz"
    np.savez(few, hidden=state_of(0)["hidden"])
    np.savez(odd, **{**state_of(0), "maps": state_of(0)["hidden"]})
    np.savez(raw, **{**state_of(0), "maps": np.array([object()])})
    part = tmp_path / "part"
    write_feature(part / "hidden.npy", state_of(0)["hidden"])
    mixed = tmp_path / "mixed"
    write_state(mixed, "s0", "tensors", state_of(0))
    write_state(mixed, "s0", "npz", state_of(0))
    lost = tmp_path / "lost"
    shutil.copytree(states, lost)
    (lost / "maps" / "s1.npy").unlink()
    for path, why in (
        (tmp_path / "nowhere", "nowhere: no such file or folder of states"),
        (tmp_path / "none", r"holds no states; expected the folders \['hidden', 'maps'\]"),
        (tmp_path / "text.txt", r"expected a folder of states or an \.npz"),
        (broken, r"broken\.npz: not a readable \.npz"),
        (few, r"few\.npz: expected the arrays \['hidden', 'maps'\], got \['hidden'\]"),
        (odd, r"odd\.npz: maps: small_maps takes shape"),
        (raw, r"raw\.npz: not a readable \.npz"),
        (part, r"part/maps\.npy: missing; a state of"),
        (mixed, "holds states in several layouts, tensors, npz"),
        (lost, r"s1\.npy is not there of both hidden and maps"),
    ):
        with pytest.raises((FeatureError, FileNotFoundError), match=why):
            for source in list_sources(facts, path):
                source.read(facts)
        argv = ["--codec", str(folder), "--input", str(path), "--output", str(tmp_path / "out")]
        with pytest.raises(SystemExit, match=why):
            encode.main(argv)
    assert not (tmp_path / "out").exists() or content(tmp_path / "out") == {}


def test_wrong_options_are_refused(folder, states, tmp_path):
    coded = tmp_path / "coded"
    argv = ["--codec", str(folder), "--input", str(states), "--output", str(coded)]
    for flags, why in (
        (["--tile", "64"], "tile: a codec of states does not take it"),
        (["--target_kl", "0.1"], "target_kl: a codec of states does not take it"),
        (["--kind", "toy_kv"], "kind: the codec knows small_, not toy_kv"),
        (["--quality", "99"], r"quality: expected .*, got 99"),
        (["--target_bpfp", "0.01"], r"target_bpfp: 0\.01 is out of reach"),
    ):
        with pytest.raises(SystemExit, match=why):
            encode.main([*argv, *flags])
    with pytest.raises(SystemExit, match=r"s0: max_bytes: 20 is out of reach"):
        encode.main([*argv, "--max_bytes", "20"])
    encode.main(argv)
    argv = ["--codec", str(folder), "--input", str(coded), "--output"]
    mapping = ["--mapping", "m.json", "--machine", "resnet50_tiny"]
    with pytest.raises(SystemExit, match="mapping: a codec of states does not take it"):
        decode.main([*argv, str(tmp_path / "out"), *mapping])
    with pytest.raises(SystemExit, match=r"hidden/s0\.npy is there, and decode\.py did not write"):
        decode.main([*argv, str(states)])
    with pytest.raises(SystemExit, match=r"holds no \*\.ufs file"):
        decode.main(["--codec", str(folder), "--input", str(states), "--output", str(tmp_path)])


def test_two_states_of_one_name(codec, folder, tmp_path):
    """Files of two layouts that would be decoded to the same place."""
    coded = tmp_path / "coded"
    coded.mkdir()
    (coded / "maps.ufs").write_bytes(codec.encode(state_of(0), layout="folder"))
    (coded / "hidden.ufs").write_bytes(codec.encode(state_of(1)))
    argv = ["--codec", str(folder), "--input", str(coded), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"two states would be decoded to .*maps/hidden\.npy"):
        decode.main(argv)


def test_open_rows_of_maps(codec):
    """Whole features along the first axis, as many as there are."""
    state = state_of(0)
    state["maps"] = state["maps"][:2]
    assert codec.decode(codec.encode(state))["maps"].shape == (2, 2, 3, 3)
    with pytest.raises(UserError, match="expected the tensors"):
        codec.encode({"hidden": state["hidden"]})
    assert Tensor(codec.codecs["maps"]).axis == 0
