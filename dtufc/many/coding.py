"""What ``encode.py`` and ``decode.py`` do where the codec is one of states: a stream file per state."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dtufc import files, locks
from dtufc.bitstream import BitstreamError
from dtufc.decode import DecodeConfig, claim, list_bitstreams
from dtufc.encode import EncodeConfig
from dtufc.errors import UserError
from dtufc.many.codec import CodedState, facts_of, load_state_codec, state_codec_digest
from dtufc.many.container import Layout, read_layout
from dtufc.many.layouts import Source, Sources, list_sources, target_paths, write_state
from dtufc.many.options import at_rate, check_options
from dtufc.options import progress
from dtufc.overlap import overlap
from dtufc.stamps import digest_files
from dtufc.states import State, state_points
from dtufc.streams.writer import SUFFIX


def encode_states(cfg: EncodeConfig) -> None:
    """Encode every state to ``<sample>.ufs``.

    Raises:
        FeatureError, FileNotFoundError, UserError: no states of the codec's tensors, or no such rate;
            the message names the file.
    """
    check_options(cfg)
    codec = load_state_codec(cfg.codec, cfg.device)
    facts = facts_of(codec)
    if cfg.kind not in (None, facts.kind):
        raise UserError(f"kind: the codec knows {facts.kind}, not {cfg.kind}")
    sources = list_sources(facts, cfg.input)
    codec = at_rate(cfg, codec, Sources(facts, sources))

    def code(source: Source, state: State) -> tuple[CodedState, int]:
        try:
            coded = codec.encode_within(state, cfg.each, layout=source.layout)
        except UserError as error:
            raise type(error)(f"{source.path}: {source.name}: {error}") from error
        return coded, state_points(state)

    total_bytes = total_points = most = 0
    with locks.hold(cfg.output):
        coding = overlap(sources, lambda source: source.read(facts), code, cfg.coders)
        for source, (coded, count) in progress(coding, "encode", len(sources)):
            files.write_bytes(cfg.output / f"{source.name}{SUFFIX}", coded.data)
            total_bytes, total_points = total_bytes + len(coded.data), total_points + count
            most = max(most, 8 * len(coded.data) / count)
    pooled = 8 * total_bytes / total_points
    print(
        f"{len(sources)} states, {total_bytes} bytes, {pooled:.4f} bpfp, {most:.4f} at most in a "
        f"state -> {cfg.output}"
    )


class Stream(NamedTuple):
    """A stream file of one state."""

    path: Path
    layout: Layout


def decode_states(cfg: DecodeConfig) -> None:
    """Decode every ``<sample>.ufs`` to files that lie as the state's own did.

    Raises:
        BitstreamError: a file is not sound or not of this codec; the message names it.
        UserError: the output holds features of these names that decode.py did not write.
    """
    check_options(cfg)
    codec = load_state_codec(cfg.codec, cfg.device)
    facts = facts_of(codec)
    streams = []
    for path in list_bitstreams(cfg.input, SUFFIX):
        try:
            streams.append(Stream(path, read_layout(codec.codecs, path.read_bytes())))
        except BitstreamError as error:
            raise BitstreamError(f"{path}: {error}") from error

    def code(stream: Stream, data: bytes) -> dict[str, np.ndarray]:
        try:
            return codec.decode(data)
        except BitstreamError as error:
            raise BitstreamError(f"{stream.path}: {error}") from error

    targets = [
        target
        for path, layout in streams
        for target in target_paths(facts, cfg.output, path.stem, layout)
    ]
    if twice := {target for target in targets if targets.count(target) > 1}:
        raise UserError(f"{cfg.input}: two states would be decoded to {min(twice)}")
    inputs = digest_files([path for path, _ in streams])
    with locks.hold(cfg.output):
        claim(cfg.output, targets, {"codec": state_codec_digest(cfg.codec), **inputs})
        decoded = overlap(streams, lambda stream: stream.path.read_bytes(), code, cfg.coders)
        for (path, layout), state in progress(decoded, "decode", len(streams)):
            write_state(cfg.output, path.stem, layout, state)
    print(f"{len(streams)} states -> {cfg.output}")
