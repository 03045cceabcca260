"""Pinned bytes end to end: codec folders and bitstreams of every codec, and what they decode to.

``golden/<codec>_<kind>/`` holds a codec folder (``codec.zip``), bitstreams ``mode<m>_<name>.ufc``, the
features ``.npy`` that they decode to, and ``symbols.json``: a check of the symbols of each rANS string.
``<stem>.ufs`` are stream files of two samples, ``<stem>_<sample>.npy`` their rows.

``pytest tests/test_golden.py --regenerate_golden`` writes the bitstreams of today's payload mode again,
and what is missing; codec folders, bitstreams of earlier modes and streams are never touched.
"""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dtufc import rans
from dtufc.bitstream import unpack
from dtufc.codec import Codec, load_codec
from dtufc.klt import lanes
from dtufc.paths import REPOSITORY
from dtufc.streams import StreamDecoder, open_stream, write_stream

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package

import small_codecs

GOLDEN = Path(__file__).parent / "golden"
QUALITIES = {
    "klt": (-1, 2, 5),
    "int": (3, 8),
    "cast": (8, 11, 24),
    "jpegxl": (4, 12),
    "hevc": (4, 8),
}
STREAM = "stream2"
"""Stem of the stream that regeneration writes; another one where a codec's frames change."""
BOTH_KINDS = [name for name in small_codecs.registered() if name in QUALITIES]
"""Codecs that are small: both kinds of features are pinned; of the others, tokens are."""
CASES = [(name, "tokens") for name in small_codecs.registered()]
CASES += [(name, "maps") for name in BOTH_KINDS]
CASES += [("klt", "tokens", "format2"), ("klt", "maps", "format2")]  # beside folders of format 1


@pytest.fixture(params=CASES, ids="-".join)
def case(request, tmp_path) -> tuple[str, Path, Path]:
    """Name of a codec, its golden files, its folder."""
    name, kind = request.param[:2]
    golden = GOLDEN / "_".join(request.param)
    if request.config.getoption("--regenerate_golden"):
        regenerate(name, kind, golden, tmp_path)
    with zipfile.ZipFile(golden / "codec.zip") as archive:
        archive.extractall(tmp_path / "codec")
    return name, golden, tmp_path / "codec"


def decode(codec: Codec, data: bytes, monkeypatch) -> tuple[np.ndarray, list[str]]:
    """A decoded feature, and a check of the symbols of each rANS string: their CRC-32, or the lanes'."""
    seen = []
    finish, finish_lanes = rans.Decoder.finish, lanes.Reader.finish

    def note(decoder: rans.Decoder, check: int = 0) -> None:
        finish(decoder, check)
        seen.append(f"{decoder._check:08x}")

    def note_lanes(reader: lanes.Reader, check: int) -> None:
        finish_lanes(reader, check)
        seen.append(f"{check:08x}")

    with monkeypatch.context() as patch:
        patch.setattr(rans.Decoder, "finish", note)
        patch.setattr(lanes.Reader, "finish", note_lanes)
        return codec.decode(data), seen


def test_pinned_bytes_decode_to_pinned_values(case, monkeypatch):
    """Symbols are exact, by their CRC-32 and by the coder's own check, which for learned codecs covers
    the latents; so are values that integers give. Others may differ by what stands here."""
    name, golden, folder = case
    codec = load_codec(folder)
    symbols = json.loads((golden / "symbols.json").read_text())
    streams = sorted(golden.glob("*.ufc"))
    assert len(streams) >= 1
    for path in streams:
        decoded, seen = decode(codec, path.read_bytes(), monkeypatch)
        assert seen == symbols[path.stem]
        check_values(name, path.with_suffix(".npy"), decoded)


def check_values(name: str, path: Path, decoded: np.ndarray) -> None:
    """Compare decoded values with pinned ones."""
    expected = np.load(path)
    assert (decoded.dtype, decoded.shape) == (expected.dtype, expected.shape)
    if name == "klt":
        assert np.allclose(decoded, expected, rtol=1e-5, atol=1e-5), path
    elif name == "jpegxl" and not path.stem.endswith("_12"):  # lossy: the library's floats
        assert np.abs(decoded - expected).max() < 1e-3 * np.ptp(expected), path
    elif name in QUALITIES:
        assert np.array_equal(decoded, expected), path
    else:  # a value at the edge between two levels of the codebook may take the other one
        off = np.abs(decoded - expected) > 0.02 * expected.std()
        assert off.mean() < 0.02, path


def test_pinned_streams_decode_to_pinned_rows(case):
    """As a file with its index, and the same bytes as a session."""
    name, golden, folder = case
    codec = load_codec(folder)
    paths = sorted(golden.glob("*.ufs"))
    assert golden / f"{STREAM}.ufs" in paths
    for path in paths:
        with open_stream(path, codec) as stream:
            assert (stream.keys, stream.problem) == (["first", "second"], None)
            assert stream.session.metadata == {"pinned": 1}
            rows = [stream["x"][sample] for sample in range(2)]
        for sample, decoded in enumerate(rows):
            check_values(name, golden / f"{path.stem}_{sample}.npy", decoded)
        decoder = StreamDecoder(codec)
        blocks = decoder.blocks(path.read_bytes())
        decoder.finish()
        axis = stream.session.tensors[0].axis
        for sample, decoded in enumerate(rows):
            parts = [block.rows for block in blocks if block.sample == sample]
            assert np.array_equal(np.concatenate(parts, axis), decoded)


def test_golden_files_are_small_and_of_every_codec():
    files = [path for path in GOLDEN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 450_000
    assert {path.parent.name for path in files} == {"_".join(case) for case in CASES}


def regenerate(name: str, kind: str, golden: Path, scratch: Path) -> None:
    """Write golden files; see the module's docstring."""
    golden.mkdir(parents=True, exist_ok=True)
    if not (golden / "codec.zip").is_file():
        (golden / "codec.zip").write_bytes(zipped(small_codecs.make(name, kind, scratch / "new")))
    with zipfile.ZipFile(golden / "codec.zip") as archive:
        archive.extractall(scratch / "old")
    codec = load_codec(scratch / "old")
    if not (golden / f"{STREAM}.ufs").is_file():
        write_golden_stream(codec, kind, golden)
    x = small_codecs.made_up(kind, 100)
    raw = x.copy()
    raw.ravel()[:2] = (1e30, -3e38)  # no symbols tell these
    streams = {
        f"{quality}": codec.at_quality(quality).encode(x) for quality in QUALITIES.get(name, ())
    } or {"plain": codec.encode(x)}
    if name == "klt":
        streams["raw"] = codec.encode(raw)
    pins = golden / "symbols.json"
    symbols = json.loads(pins.read_text()) if pins.is_file() else {}
    with pytest.MonkeyPatch.context() as patch:
        for label, data in streams.items():
            stem = f"mode{unpack(data).mode}_{label}"
            decoded, symbols[stem] = decode(codec, data, patch)
            (golden / f"{stem}.ufc").write_bytes(data)
            np.save(golden / f"{stem}.npy", decoded)
    pins.write_text(json.dumps(symbols, indent=2, sort_keys=True) + "\n")


def write_golden_stream(codec: Codec, kind: str, golden: Path) -> None:
    """Two samples; frames of one row and more, at two qualities, with a vector that no symbols tell."""
    x = small_codecs.made_up(kind, 100)
    rare = x.copy()
    if kind == "tokens":
        rare[0, 0, 4, :2] = (1e30, -3e38)
    path = golden / f"{STREAM}.ufs"
    ends = codec.qualities and [codec.qualities[-1], codec.qualities[len(codec.qualities) // 2]]
    with write_stream(path, {"x": codec}, metadata={"pinned": 1}) as writer:
        cut = writer.session.tensors[0].cut
        writer.new_sample("first")
        for number, (first, end) in enumerate([(0, 1), (1, 2), (2, 4), (4, 6)]):
            quality = ends[number % 2] if ends else None
            writer.append({"x": cut(rare if ends else x, first, end)}, quality=quality)
            if number == 2:
                writer.restart()
        writer.new_sample("second")
        writer.append({"x": cut(x, 0, 6)})
    with open_stream(path, codec) as stream:
        for sample in range(2):
            np.save(golden / f"{STREAM}_{sample}.npy", stream["x"][sample])


def zipped(folder: Path) -> bytes:
    """The files of a codec folder that it reads, as a zip archive that depends on nothing else."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != "run.json":
                info = zipfile.ZipInfo(str(path.relative_to(folder)), (2000, 1, 1, 0, 0, 0))
                info.compress_type = zipfile.ZIP_LZMA
                archive.writestr(info, path.read_bytes())
    return out.getvalue()
