"""Attack the codecs: ``python scripts/fuzz.py --codec all --minutes 5``.

For every codec a small one is made (``small_codecs.py``), and features coded with it are damaged:

    mutants   bytes cut, flipped, spliced, added; in two of three the file's checksum is made right again
    headers   sound files that announce what cannot be: shapes, dtypes, modes, parts
    streams   sessions and stream files, damaged or forged (``fuzz_streams.py``)
    folders   codec folders with damaged files and hostile values
    kills     encode.py and evaluate.py, killed by SIGKILL at random moments and run again

Sound is ``BitstreamError``, the very values, or other values where a forger sealed the file again. Of
folders, ``UserError`` or a codec is sound. After a kill no file may be half-written, and the next run
must end as if nothing had happened. Anything else is an error: the bytes are kept in ``--output``, and
the status is 1.
"""

import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import fuzz_streams
import numpy as np
import small_codecs

from dtufc import bitstream, config, files
from dtufc.bitstream import BitstreamError
from dtufc.codec import Codec, load_codec
from dtufc.errors import UserError
from dtufc.feature import FeatureError, read_feature
from dtufc.records import format_table

PARTS = ("mutants", "headers", "streams", "folders", "kills")
KINDS = ("tokens", "maps")
MAX_POINTS = 1 << 22
"""What the receiver accepts: an attack may not take more time than so many points do."""


@dataclass(frozen=True)
class FuzzConfig:
    """An attack."""

    codec: str = "all"
    """Name of one codec, or all."""
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    """Which attacks: mutants, headers, streams, folders, kills."""
    minutes: float | None = None
    """Mutants and streams: how long each in all; null goes by their number."""
    mutants: int = 2000
    """Mutants and streams: how many of each for each codec, where no time is given."""
    kills: int = 3
    """Kills: trials for each command."""
    seed: int = 0
    """Of all that is random; the same seed gives the same attack."""
    output: Path = Path("fuzz_errors")
    """Folder that keeps what caused an error."""

    def __post_init__(self):
        known = small_codecs.registered()
        if self.codec not in ("all", *known):
            raise UserError(f"codec: expected all or one of {known}, got {self.codec!r}")
        if not self.parts or set(self.parts) - set(PARTS):
            raise UserError(f"parts: expected some of {[*PARTS]}, got {self.parts}")
        if self.mutants < 1 or self.kills < 1 or (self.minutes is not None and self.minutes <= 0):
            raise UserError("mutants, kills, minutes: expected more than 0")


@dataclass
class Row:
    """What became of the attacks of one part on one codec."""

    codec: str
    part: str
    attacks: int = 0
    refused: int = 0
    """By BitstreamError; folders: by UserError."""
    equal: int = 0
    """Decoded to the very values; folders: loaded; kills: ended as if nothing had happened."""
    other: int = 0
    """Decoded to other values, where the payload was sealed again, or where damage passed the check of a
    stream's frame."""
    errors: int = 0
    seconds: float = 0.0
    peak_mib: float = 0.0
    """Largest memory of this process up to here."""

    def note(self, outcome: str) -> None:
        self.attacks += 1
        setattr(self, outcome, getattr(self, outcome) + 1)


@dataclass(frozen=True)
class Seed:
    """A sound bitstream of a codec and what it decodes to."""

    codec: Codec
    data: bytes
    decoded: np.ndarray


def make_seeds(name: str, folder: Path) -> list[Seed]:
    """Sound files of a codec: both kinds of features, a few qualities and features."""
    seeds = []
    for kind in KINDS:
        codec = load_codec(small_codecs.make(name, kind, folder / kind))
        ends = codec.qualities and (codec.qualities[0], codec.qualities[len(codec.qualities) // 2])
        for one in [codec.at_quality(quality) for quality in ends] or [codec]:
            for number in (100, 101):
                data = one.encode(small_codecs.made_up(kind, number))
                seeds.append(Seed(codec, data, codec.decode(data)))
        if name == "klt":  # vectors that no symbols can tell
            x = small_codecs.made_up(kind, 102)
            x.ravel()[:2] = (1e30, -3e38)
            data = codec.encode(x)
            seeds.append(Seed(codec, data, codec.decode(data)))
    return seeds


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Cut, flip, splice or add bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            del out[at:]
        elif kind == 1 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 2 and out:
            out[at % len(out)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 3:
            out[at : at + rng.randrange(1, 30)] = rng.randbytes(rng.randrange(30))
        elif kind == 4:
            out[at:at] = rng.randbytes(rng.randrange(1, 20))
        else:
            start = rng.randrange(len(out) + 1)
            out[at:at] = out[start : start + rng.randrange(1, 40)]
    return bytes(out)


def seal(data: bytes) -> bytes:
    """The file with its checksum made right, as a forger would."""
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def mutants(seeds: Sequence[Seed], rng: random.Random) -> Iterator[tuple[Seed, bytes, bool]]:
    """(seed, damaged file, whether its payload was sealed again), without end."""
    while True:
        seed = rng.choice(seeds)
        way = rng.randrange(3)
        if way == 0:
            data = mutate(seed.data, rng)
        elif way == 1:
            data = seal(mutate(seed.data, rng))
        else:  # a sound container around a damaged part
            stream = bitstream.unpack(seed.data)
            parts = list(stream.parts)
            place = rng.randrange(len(parts))
            parts[place] = mutate(parts[place], rng)
            data = bitstream.pack(replace(stream, parts=tuple(parts)))
        yield seed, data, way > 0


def headers(seeds: Sequence[Seed], rng: random.Random) -> Iterator[tuple[Seed, bytes, bool]]:
    """Sound containers that announce something else than what they hold."""
    for seed in seeds:
        stream = bitstream.unpack(seed.data)
        n, c, h, w = stream.shape
        shapes = [(n, c, h + 1, w), (n + 1, c, h, w), (n, c, 1, w), (n, c, h, w + 1), (1, c, 1, 1)]
        shapes += [(1, c, (1 << 28) // (c * w), w), ((1 << 28) // (c * h * w), c, h, w)]
        shapes += [(1 << 21, c, h, w), (1, 1 << 24, 1, 1), (1 << 28, 1, 1, 1), (w, h, c, n)]
        changes = [{"shape": shape} for shape in shapes]
        changes += [{"dtype": "float16"}, {"codec_id": bytes(4)}, {"mapping_id": b"none"}]
        changes += [{"mode": mode} for mode in range(16) if mode != stream.mode]
        changes += [
            {"grid": grid} for grid in (None, (1, 2), (2, 1), (1, 1)) if grid != stream.grid
        ]
        short = tuple(part[:8] for part in stream.parts)
        changes += [{"parts": parts} for parts in ((), short, (b"",) * 3, stream.parts * 2)]
        changes += [{"parts": short, "shape": shape} for shape in shapes]
        for change in changes:
            try:
                data = bitstream.pack(replace(stream, **change))
            except ValueError:  # what no writer can announce
                continue
            if data != seed.data:
                yield seed, data, True


def attack(
    row: Row, attacks: Iterator[tuple[Seed, bytes, bool]], cfg: FuzzConfig, until: float | None,
    count: int | None,
) -> None:  # fmt: skip
    """Decode damaged files until the time or their number is up."""
    start = time.time()
    for done, (seed, data, sealed) in enumerate(attacks):
        if (until is not None and time.time() > until) or (count is not None and done >= count):
            break
        try:
            decoded = seed.codec.decode(data, max_points=MAX_POINTS)
        except BitstreamError:
            row.note("refused")
            continue
        except Exception as error:
            keep(cfg, row, data, repr(error))
            continue
        same = decoded.shape == seed.decoded.shape and np.array_equal(decoded, seed.decoded)
        if same:
            row.note("equal")
        elif sealed and decoded.dtype == seed.decoded.dtype and np.isfinite(decoded).all():
            row.note("other")
        else:
            keep(cfg, row, data, "decoded to other values")
    row.seconds += time.time() - start
    row.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def streams(
    row: Row, folder: Path, cfg: FuzzConfig, rng: random.Random, until: float | None,
    count: int | None,
) -> None:  # fmt: skip
    """Decode damaged sessions and stream files until the time or their number is up."""
    start = time.time()
    codecs = [load_codec(folder / kind / "codec") for kind in KINDS]
    seed = fuzz_streams.make_seed(codecs, folder)
    for done, (data, judge) in enumerate(fuzz_streams.attacks(seed, rng, mutate, folder)):
        if (until is not None and time.time() > until) or (count is not None and done >= count):
            break
        try:
            outcome = judge()
        except Exception as error:
            keep(cfg, row, data, repr(error))
            continue
        if outcome in ("refused", "equal", "other"):
            row.note(outcome)
        else:
            keep(cfg, row, data, outcome)
    row.seconds += time.time() - start


def keep(cfg: FuzzConfig, row: Row, data: bytes, why: str) -> None:
    """Count an error and keep what caused it."""
    row.note("errors")
    stem = f"{row.codec}_{row.part}_{row.errors:03d}"
    files.write_bytes(cfg.output / f"{stem}.bin", data)
    files.write_text(cfg.output / f"{stem}.txt", why + "\n")
    print(f"{row.codec}, {row.part}: {why}; kept as {cfg.output / stem}.bin", file=sys.stderr)


HOSTILE = (None, "", "x", -1, 0, 1e999, -1e999, 1e308, 1 << 40, [], {}, [[]], True)
"""What a key of a config.json may be changed to."""


def folders(row: Row, name: str, folder: Path, cfg: FuzzConfig, rng: random.Random) -> None:
    """Damage each file of a codec folder, and each value of its config.json."""
    start = time.time()
    for kind in KINDS:
        source = folder / kind / "codec"
        read = [path for path in source.rglob("*") if path.suffix in (".json", ".safetensors")]
        for path in read:
            if path.name == "run.json":
                continue
            data = path.read_bytes()
            damaged = [b"", b"[" * 100_000, b"{}", b"null", rng.randbytes(100), None]
            damaged += [mutate(data, rng) for _ in range(12)]
            if path.name == "config.json":
                damaged += list(_changed(json.loads(data), rng))
            for content in damaged:
                _try_folder(row, source, path.relative_to(source), content, kind, cfg)
    row.seconds += time.time() - start


def _changed(values: dict, rng: random.Random) -> Iterator[bytes]:
    """A config.json with each of its values, at any depth, gone or replaced by something hostile."""

    def places(value: object, path: tuple = ()) -> Iterator[tuple]:
        items = value.items() if isinstance(value, dict) else ()
        if isinstance(value, list):
            items = enumerate(value[:3])
        for key, item in items:
            if key not in ("made_by",):
                yield (*path, key)
                yield from places(item, (*path, key))

    for path in places(values):
        for value in (*rng.sample(HOSTILE, 5), KeyError):
            copy = json.loads(json.dumps(values))
            inner = copy
            for key in path[:-1]:
                inner = inner[key]
            if value is KeyError:
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
            yield json.dumps(copy).encode()


def _try_folder(
    row: Row, source: Path, name: Path, content: bytes | None, kind: str, cfg: FuzzConfig
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "codec"
        shutil.copytree(source, target)
        (target / name).unlink()
        if content is not None:
            (target / name).write_bytes(content)
        x = small_codecs.made_up(kind, 100)
        try:
            codec = load_codec(target)
            decoded = codec.decode(codec.encode(x))
            if not np.isfinite(decoded).all():
                raise ArithmeticError("decoded to values that are not finite")
        except (UserError, FileNotFoundError):
            row.note("refused")
        except Exception as error:
            keep(cfg, row, content or b"", f"{name}: {error!r}")
        else:
            row.note("equal")


def kills(row: Row, name: str, folder: Path, cfg: FuzzConfig, rng: random.Random) -> None:
    """Kill commands at random moments; look at what they left; run them again to their end."""
    start = time.time()
    base = folder / "tokens"
    codec, features = base / "codec", base / "features"
    for command in ("encode", "evaluate"):
        flags = ["--codec", str(codec), "--output", str(base / command)]
        flags += ["--input" if command == "encode" else "--features", str(features)]
        argv = [sys.executable, "-m", f"dtufc.{command}", *flags]
        began = time.time()
        subprocess.run(argv, check=True, capture_output=True)
        whole = time.time() - began
        expected = _contents(base / command)
        for _ in range(cfg.kills):
            shutil.rmtree(base / command)
            process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.5, 1) * whole)
            process.kill()
            process.wait()
            broken = _half_written(base / command)
            again = subprocess.run(argv, capture_output=True, text=True, check=False)
            left = [
                path for path in base.rglob(f"*{files.PART}") if path.is_relative_to(base / command)
            ]
            if broken or again.returncode or left or _contents(base / command) != expected:
                keep(
                    cfg,
                    row,
                    again.stderr.encode(),
                    f"{command}: {broken or left or 'other results'}",
                )
            else:
                row.note("equal")
    row.seconds += time.time() - start


def _contents(folder: Path) -> dict[str, bytes]:
    """Bitstreams and features of a folder."""
    found = [path for path in folder.rglob("*") if path.suffix in (".ufc", ".npy")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def _half_written(folder: Path) -> list[str]:
    """Files that are there and not whole."""
    broken = []
    for path in folder.rglob("[!.]*"):
        try:
            if path.suffix == ".npy":
                read_feature(path)
            elif path.suffix == ".ufc":
                bitstream.unpack(path.read_bytes())
            elif path.suffix == ".json":
                files.read_json(path)
        except (UserError, FeatureError) as error:
            broken.append(f"{path}: {error}")
    return broken


def fuzz(cfg: FuzzConfig) -> list[Row]:
    """Run the attack -> a row per codec and part."""
    names = small_codecs.registered() if cfg.codec == "all" else [cfg.codec]
    rows = []
    for name in names:
        rng = random.Random(f"{cfg.seed} {name}")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            seeds = make_seeds(name, folder)
            for part in cfg.parts:
                row = Row(name, part)
                rows.append(row)
                until = None
                if cfg.minutes is not None:
                    until = time.time() + 60 * cfg.minutes / len(names)
                count = cfg.mutants if until is None else None
                if part == "mutants":
                    attack(row, mutants(seeds, rng), cfg, until, count)
                elif part == "streams":
                    streams(row, folder, cfg, rng, until, count)
                elif part == "headers":
                    attack(row, headers(seeds, rng), cfg, None, None)
                elif part == "folders":
                    folders(row, name, folder, cfg, rng)
                else:
                    kills(row, name, folder, cfg, rng)
                row.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        rows = fuzz(config.parse(FuzzConfig, argv, __doc__))
    total = Counter()
    for row in rows:
        total.update({key: value for key, value in asdict(row).items() if isinstance(value, int)})
    print(format_table(rows))
    print(f"{total['attacks']} attacks, {total['errors']} errors")
    if total["errors"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
