"""Decode bitstreams: ``python decode.py --codec DIR --input FILE_OR_DIR --output DIR``.

Writes one feature ``<name>.npy`` a bitstream ``<name>.ufc``, in the source's shape and dtype. Nothing
but the bitstream and the codec folder is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coding import config
from coding.bitstream import SUFFIX, BitstreamError
from coding.errors import UserError
from coding.feature import write_feature
from coding.options import CodecOptions, progress
from coding.overlap import check_coders, overlap


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(CodecOptions):
    """Bitstreams to feature files."""

    input: Path
    """A bitstream, or a folder of them."""
    output: Path
    """Folder of the decoded features."""
    coders: int = 2
    """Features decoded at once: the entropy coding of one overlaps the networks of the next."""

    def __post_init__(self):
        super().__post_init__()
        check_coders(self.coders)


def list_bitstreams(path: Path) -> list[Path]:
    """The bitstreams of a folder, sorted by name; a single file is itself.

    Raises:
        FileNotFoundError: no such file or folder.
        UserError: the folder holds none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    found = sorted(p for p in path.glob(f"*{SUFFIX}") if not p.name.startswith("."))
    if not found:
        raise UserError(f"{path}: holds no *{SUFFIX} file")
    return found


def decode(cfg: DecodeConfig) -> None:
    """Decode every bitstream.

    Raises:
        BitstreamError: a file is not sound or not of this codec; the message names it.
    """
    codec = cfg.load()
    paths = list_bitstreams(cfg.input)

    def code(path: Path, data: bytes) -> np.ndarray:
        try:
            return codec.decode(data)
        except BitstreamError as error:
            raise BitstreamError(f"{path}: {error}") from error

    decoded = overlap(paths, Path.read_bytes, code, cfg.coders)
    for path, feature in progress(decoded, "decode", len(paths)):
        write_feature(cfg.output / f"{path.stem}.npy", feature)
    print(f"{len(paths)} features -> {cfg.output}")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        decode(config.parse(DecodeConfig, argv, __doc__))


if __name__ == "__main__":
    main()
