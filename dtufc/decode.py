"""Decode bitstreams: ``python decode.py --codec DIR --input FILE_OR_DIR --output DIR``.

Writes one feature ``<name>.npy`` per bitstream ``<name>.ufc``, in the source's shape and dtype. Nothing
but the bitstream and the codec folder is read. Beside the features lies ``decoded.json``, which names
what they were decoded from. Features that decode.py did not write are never replaced.

With a codec of states (:mod:`dtufc.many`), the input is stream files ``<sample>.ufs``, and what is
decoded lies as the states' own files did: ``k0/<sample>.npy``, ``<sample>/k0.npy`` or ``<sample>.npz``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dtufc import config, files, locks
from dtufc.bitstream import SUFFIX, BitstreamError
from dtufc.codec import codec_digest
from dtufc.errors import UserError
from dtufc.feature import check_name, write_feature
from dtufc.memory import keep_memory
from dtufc.options import CodecOptions, progress
from dtufc.overlap import check_coders, overlap
from dtufc.paths import DECODED_JSON
from dtufc.stamps import Stamp, digest_files
from dtufc.states import is_state_codec


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(CodecOptions):
    """Bitstreams to feature files."""

    input: Path
    """A bitstream, or a folder of them; of states, stream files."""
    output: Path
    """Folder of the decoded features."""
    coders: int = 2
    """Features decoded at once: the entropy coding of one overlaps the networks of the next."""

    def __post_init__(self):
        super().__post_init__()
        check_coders(self.coders)


def list_bitstreams(path: Path, suffix: str = SUFFIX) -> list[Path]:
    """The bitstreams of a folder, sorted by name; a single file is itself.

    Raises:
        FileNotFoundError: no such file or folder.
        UserError: the folder holds none.
    """
    if path.is_file():
        return [check_name(path)]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    found = sorted(p for p in path.glob(f"*{suffix}") if not p.name.startswith("."))
    if not found:
        raise UserError(f"{path}: holds no *{suffix} file")
    return [check_name(path) for path in found]


def claim(folder: Path, targets: Sequence[Path], inputs: Mapping[str, str]) -> None:
    """Write the record that says what the features of a folder were decoded from.

    Raises:
        UserError: it holds features of these names, and no such record.
    """
    record = folder / DECODED_JSON
    if not record.is_file() and (there := [target for target in targets if target.exists()]):
        raise UserError(f"output: {there[0]} is there, and decode.py did not write it")
    files.write_json(record, Stamp({}, inputs).record())


def decode(cfg: DecodeConfig) -> None:
    """Decode every bitstream.

    Raises:
        BitstreamError: a file is not sound or not of this codec; the message names it.
        UserError: the output holds features of these names that decode.py did not write.
    """
    if is_state_codec(cfg.codec):
        from dtufc.many.coding import decode_states

        decode_states(cfg)
        return
    codec = cfg.load()
    paths = list_bitstreams(cfg.input)

    def code(path: Path, data: bytes) -> np.ndarray:
        try:
            return codec.decode(data)
        except BitstreamError as error:
            raise BitstreamError(f"{path}: {error}") from error

    targets = [cfg.output / f"{path.stem}.npy" for path in paths]
    with locks.hold(cfg.output):
        claim(cfg.output, targets, {"codec": codec_digest(cfg.codec), **digest_files(paths)})
        decoded = overlap(paths, Path.read_bytes, code, cfg.coders)
        for path, feature in progress(decoded, "decode", len(paths)):
            write_feature(cfg.output / f"{path.stem}.npy", feature)
    print(f"{len(paths)} features -> {cfg.output}")


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        decode(config.parse(DecodeConfig, argv, __doc__))


if __name__ == "__main__":
    main()
