"""Read rows of a stream file into features: ``python unpack.py --input FILE.ufs --output DIR``.

Writes ``<sample>.npy`` for each sample, or ``<tensor>/<sample>.npy`` where the stream has several
tensors. ``--samples`` and ``--rows`` read a part, and nothing but that part is decoded. Features that
decode.py or unpack.py did not write are never replaced.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtufc import config, locks
from dtufc.codec import codec_digest, load_codec
from dtufc.decode import claim
from dtufc.errors import UserError
from dtufc.feature import MAX_NAME, write_feature
from dtufc.memory import keep_memory
from dtufc.options import progress
from dtufc.stamps import digest_files
from dtufc.streams.reader import StreamFile, open_stream


@dataclass(frozen=True, kw_only=True)
class UnpackConfig:
    """Rows of a stream file to feature files."""

    input: Path
    """The stream file, .ufs."""
    output: Path
    """Folder of the features."""
    codec: list[Path] | None = None
    """Codec folders that may have written it, in any order; null: the codecs that ship."""
    name: list[str] | None = None
    """Only these tensors."""
    samples: list[str] | None = None
    """Only these samples, by name or by number from 0."""
    rows: str = ":"
    """first:end of the rows, from 0, the end not included; as in Python either may be left out or be
    negative."""
    device: str = "cpu"
    """torch device of the networks."""

    def __post_init__(self):
        if not re.fullmatch(r"(-?\d+)?:(-?\d+)?", self.rows):
            raise UserError(f"rows: expected first:end, got {self.rows!r}")

    @property
    def part(self) -> slice:
        """The rows."""
        return slice(*(int(end) if end else None for end in self.rows.split(":")))


def unpack(cfg: UnpackConfig) -> None:
    """Write the features.

    Raises:
        BitstreamError: the stream is damaged where it is read, or of other codecs.
        UserError: no such tensor, sample or rows, or the output holds features of another origin.
    """
    codecs = cfg.codec and [load_codec(folder, device=cfg.device) for folder in cfg.codec]
    with open_stream(cfg.input, codecs) as stream:
        names = cfg.name or [*stream]
        samples = _samples(stream, cfg.samples)
        stems = [_stem(stream.keys[sample], sample) for sample in samples]
        if twice := {stem for stem in stems if stems.count(stem) > 1}:
            raise UserError(
                f"{cfg.input}: several samples are named {min(twice)}; give their numbers"
            )
        targets = {
            (name, sample): cfg.output / (name if len([*stream]) > 1 else "") / f"{stem}.npy"
            for name in names
            for sample, stem in zip(samples, stems, strict=True)
        }
        for name in names:
            if len([*stream]) > 1 and _stem(name, -1) != name:
                raise UserError(f"{cfg.input}: tensor {name!r} cannot name a folder")
            for sample in samples:
                if not range(stream[name].rows(sample))[cfg.part]:
                    raise UserError(f"rows: {cfg.rows} holds none of sample {sample} of {name}")
        inputs = digest_files([cfg.input])
        inputs |= {f"codec {path.name}": codec_digest(path) for path in cfg.codec or ()}
        with locks.hold(cfg.output):
            claim(cfg.output, [*targets.values()], inputs)
            for (name, sample), path in progress(targets.items(), "unpack", len(targets)):
                write_feature(path, stream[name][sample, cfg.part])
        if stream.problem:
            print(f"{cfg.input}: {stream.problem}; all whole frames were read")
    print(f"{len(targets)} features -> {cfg.output}")


def _samples(stream: StreamFile, asked: Sequence[str] | None) -> list[int]:
    """Numbers of the samples that are asked for."""
    if asked is None:
        return [*range(len(stream))]
    numbers = []
    for each in asked:
        if each in stream.keys:
            numbers.append(stream.keys.index(each))
        elif each.isdecimal() and int(each) < len(stream):
            numbers.append(int(each))
        else:
            raise UserError(f"samples: {stream.path} holds {len(stream)} samples, none is {each!r}")
    return numbers


def _stem(key: str, sample: int) -> str:
    """A file's name for a sample: its own, where that is one, else its number."""
    plain = key.isprintable() and "/" not in key and not key.startswith(".")
    return key if key and plain and len(key.encode()) <= MAX_NAME - 4 else f"sample{sample:06d}"


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        unpack(config.parse(UnpackConfig, argv, __doc__))


if __name__ == "__main__":
    main()
