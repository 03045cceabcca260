"""Pack features into a stream file: ``python pack.py --codec CODEC --input DIR --output FILE.ufs``.

Each feature becomes a sample of the stream, named after its file. Several tensors of a sample are
given as several codecs and folders, which hold features of the same names. A file that is there is
gone on with: what it holds already is left out, so that a killed run is run again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtufc import config
from dtufc.errors import UserError
from dtufc.feature import list_features, read_feature
from dtufc.memory import keep_memory
from dtufc.options import progress
from dtufc.streams.fill import FillOptions, append_sample
from dtufc.streams.writer import write_stream


@dataclass(frozen=True, kw_only=True)
class PackConfig(FillOptions):
    """Feature files to one stream file."""

    input: list[Path]
    """Folder of feature .npy files, or one file; one per tensor."""
    output: Path
    """The stream file, .ufs; one that is there is gone on with."""

    def __post_init__(self):
        super().__post_init__()
        self.check_count("input", self.input)


def pack(cfg: PackConfig) -> None:
    """Write the stream file.

    Raises:
        FeatureError, FileNotFoundError, UserError: as the codec API; the message names the file.
    """
    folders = [{path.stem: path for path in list_features(folder)} for folder in cfg.input]
    for folder, found in zip(cfg.input, folders, strict=True):
        if odd := sorted({*found} ^ {*folders[0]}):
            raise UserError(f"{folder}: expected the same names as in {cfg.input[0]}, see {odd[0]}")
    tensors = cfg.tensors()
    total = 0
    with write_stream(cfg.output, tensors, **cfg.identities) as writer:
        there = {key: number for number, key in enumerate(writer.keys)}
        for stem in progress(folders[0], "pack", len(folders[0])):
            paths = {name: found[stem] for name, found in zip(tensors, folders, strict=True)}
            features = {name: read_feature(path) for name, path in paths.items()}
            where = ", ".join(map(str, paths.values()))
            total += append_sample(writer, stem, features, cfg.frame_rows, there, where)
    size = cfg.output.stat().st_size
    print(f"{len(folders[0])} samples, {total} points added, {size} bytes -> {cfg.output}")


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        pack(config.parse(PackConfig, argv, __doc__))


if __name__ == "__main__":
    main()
