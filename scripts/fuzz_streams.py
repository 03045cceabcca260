"""The part ``streams`` of ``fuzz.py``: sessions and stream files are damaged. No script of its own.

    bytes      of a session, or of a file, cut, flipped, spliced, added
    frames     payloads, settings, rows, tensors, keys and places changed, every check made right again
    headers    the session's description changed, every check made right again
    states     bytes of a coded state, or its payloads and rows with every check made right again

Sound is ``BitstreamError``, with nothing but the very rows before it. Rows of other values are sound
where a forger made the checks right again. Damage passes a frame's check of 16 bits once in 65 536
times; a session whose end was found whole, which 32 bits check, must not have other values all the
same.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import small_codecs

from dtufc.bitstream import MAGIC, STREAM_VERSION, BitstreamError, write_varint
from dtufc.codec import Codec
from dtufc.many import container
from dtufc.streams import (
    Block,
    Limits,
    Session,
    StreamDecoder,
    TensorSpec,
    open_session,
    open_stream,
    write_stream,
)
from dtufc.streams.frames import (
    End,
    FrameReader,
    Item,
    Restart,
    Segment,
    State,
    write_end,
    write_restart,
    write_rows,
)
from dtufc.streams.layout import read_layout
from dtufc.streams.session import WHOLE

Mutate = Callable[[bytes, random.Random], bytes]
LIMITS = Limits(frame_points=1 << 22, session_rows=1 << 16)
"""What the receiver accepts: an attack may not take more time than so many points do."""


@dataclass(frozen=True)
class StreamSeed:
    """A sound session, the same rows in a file, and what both decode to."""

    codecs: Sequence[Codec]
    session: Session
    data: bytes
    file: bytes
    blocks: Sequence[Block]
    samples: Sequence[dict[str, np.ndarray]]
    items: Sequence[Item]
    tensors: dict[str, Codec]
    state: bytes
    """All tensors of one sample, as ``encode.py`` writes it."""


def make_seed(codecs: Sequence[Codec], folder: Path) -> StreamSeed:
    """A session of two tensors, one of each kind of features: two samples, two qualities, a restart."""
    tokens, maps = (small_codecs.made_up(kind, 100) for kind in ("tokens", "maps"))
    tensors = dict(zip(("tokens", "maps"), codecs, strict=True))
    encoder = open_session(tensors, model="small", metadata={"number": 1})
    path = folder / "seed.ufs"
    with write_stream(path, tensors, model="small", metadata={"number": 1}) as writer:
        parts = []
        for one in (encoder, writer):
            qualities = codecs[0].qualities
            sent = [
                one.append({"tokens": tokens[:, :, :1], "maps": maps[:1]}),
                one.append(
                    {"tokens": tokens[:, :, 1:2]}, quality=qualities[0] if qualities else None
                ),
                one.restart(),
                one.append({"tokens": tokens[:, :, 2:9]}),
                one.new_sample("second"),
                one.append({"maps": maps[1:3]}),
                one.append({"tokens": tokens[:, :, 9:12], "maps": maps[3:4]}),
            ]
            parts.append(b"".join([*sent, one.close()]))
    data = parts[0]
    decoder = StreamDecoder(codecs)
    blocks = decoder.blocks(data)
    decoder.finish()
    with open_stream(path, codecs) as stream:
        samples = [{name: stream[name][n] for name in stream} for n in range(len(stream))]
    state = container.write(tensors, {"tokens": tokens, "maps": maps}, "npz")
    return StreamSeed(
        codecs, encoder.session, data, path.read_bytes(), blocks, samples, _items(data, path),
        tensors, state,
    )  # fmt: skip


def _items(data: bytes, path: Path) -> list[Item]:
    """The frames' items of a session."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(data)
    with raw.open("rb") as file:
        layout = read_layout(file, Limits())
    reader = FrameReader(layout.session, layout.crc, Limits())
    reader.feed(data[layout.start :])
    items: list[Item] = []
    while (found := reader.next()) is not None:
        items += found
    return items


def frame(session: Session, header: bytes, items: Sequence[Item]) -> bytes:
    """A session of these items, every check right."""
    state = State.start(int.from_bytes(header[-4:], "little"), len(session.tensors))
    out = [header]
    for item in items:
        if isinstance(item, Segment):
            out.append(write_rows(state, [item]))
        elif isinstance(item, Restart):
            out.append(write_restart(state, item.sample, item.key, item.rows))
        else:
            out.append(write_end(state))
    return b"".join(out)


def seal_header(description: bytes) -> bytes:
    """The header of any description, its checksum right."""
    body = zlib.compress(description)
    out = MAGIC + bytes([STREAM_VERSION, WHOLE]) + write_varint(len(body)) + body
    return out + zlib.crc32(out).to_bytes(4, "little")


def forge(seed: StreamSeed, rng: random.Random, mutate: Mutate) -> bytes:
    """A session with one item changed, or its description, and every check right."""
    items, header = list(seed.items), seed.session.header()
    if rng.randrange(5) == 0:
        header = seal_header(mutate(seed.session.description, rng))
    place = rng.randrange(len(items))
    item = items[place]
    if isinstance(item, Segment):
        way = rng.randrange(5)
        if way < 2:
            item = item._replace(payload=mutate(item.payload, rng))
        elif way == 2:
            item = item._replace(setting=mutate(item.setting, rng)[:200])
        elif way == 3:
            rows = (1, 2, 3, 17, 1 << 10, 1 << 16, 1 << 20, 1 << 30, rng.randrange(1, 1 << 22))
            item = item._replace(rows=rng.choice(rows))
        else:
            item = item._replace(tensor=1 - item.tensor)
    elif isinstance(item, Restart):
        item = item._replace(
            sample=item.sample + rng.choice((0, 1, 2, 1 << 30)),
            key=item.key + "x" * rng.choice((0, 1, 300)),
            rows=tuple(rows + rng.choice((0, 1, 1 << 20)) for rows in item.rows),
        )
    items[place] = item
    if rng.randrange(4) == 0:
        items.insert(rng.randrange(len(items)), items[rng.randrange(len(items))])
    return frame(seed.session, header, items)


def forge_state(seed: StreamSeed, rng: random.Random, mutate: Mutate) -> bytes:
    """A coded state with one payload or number of rows changed, and every check right."""
    session, segments = container.read(seed.tensors, seed.state)
    place = rng.randrange(len(segments))
    item = segments[place]
    if rng.randrange(2):
        item = item._replace(payload=mutate(item.payload, rng))
    else:
        item = item._replace(rows=rng.choice((1, item.rows + 1, 1 << 16, 1 << 20)))
    items: list[Item] = [*segments]
    items[place] = item
    return frame(session, session.header(named=True), [*items, End(0)])


def attacks(
    seed: StreamSeed, rng: random.Random, mutate: Mutate, folder: Path
) -> Iterator[tuple[bytes, Callable[[], str]]]:
    """(damaged bytes, a call that decodes them -> what became of it), without end."""
    path = folder / "mutant.ufs"
    while True:
        way = rng.randrange(4)
        if way == 3:
            sealed = bool(rng.randrange(2))
            data = forge_state(seed, rng, mutate) if sealed else mutate(seed.state, rng)
            yield data, lambda data=data, sealed=sealed: judge_state(seed, data, sealed)
        elif way == 0:
            data = mutate(seed.data, rng)
            yield data, lambda data=data: judge_session(seed, data, False, rng)
        elif way == 1:
            data = forge(seed, rng, mutate)
            yield data, lambda data=data: judge_session(seed, data, True, rng)
        else:
            data = mutate(seed.file, rng)
            path.write_bytes(data)
            yield data, lambda: judge_file(seed, path)


def judge_session(seed: StreamSeed, data: bytes, sealed: bool, rng: random.Random) -> str:
    """Feed a session in pieces -> refused, equal, other or an error in words."""
    decoder, blocks = StreamDecoder(seed.codecs, limits=LIMITS), []
    step = rng.choice((len(data) or 1, 7, 64))
    refused = False
    try:
        for at in range(0, len(data), step):
            blocks += decoder.blocks(data[at : at + step])
        decoder.finish()
    except BitstreamError:
        refused = True
    same = len(blocks) <= len(seed.blocks) and all(
        (ours.name, ours.sample, ours.first) == (true.name, true.sample, true.first)
        and np.array_equal(ours.rows, true.rows)
        for ours, true in zip(blocks, seed.blocks, strict=False)
    )
    if same and (refused or len(blocks) == len(seed.blocks)):
        return "refused" if refused else "equal"
    if not all(np.isfinite(block.rows).all() for block in blocks):
        return "decoded to values that are not finite"
    if sealed or refused:  # a forger's; or damage that passed one frame's check
        return "other"
    return "a whole session of other values"


def judge_file(seed: StreamSeed, path: Path) -> str:
    """Read all of a file -> refused, equal, other or an error in words."""
    refused = other = False
    try:
        with open_stream(path, seed.codecs, limits=LIMITS) as stream:
            refused = stream.problem is not None
            for name in stream:
                for sample in range(len(stream)):
                    try:
                        rows = stream[name][sample]
                    except BitstreamError:
                        refused = True
                        continue
                    true = seed.samples[sample][name] if sample < len(seed.samples) else rows[:0]
                    spec: TensorSpec = next(t for t in stream.session.tensors if t.name == name)
                    count = spec.count(rows) or 0
                    whole = spec.count(true) or 0
                    refused |= count < whole
                    other |= count > whole or not np.array_equal(rows, spec.cut(true, 0, count))
    except BitstreamError:
        refused = True
    return "other" if other else "refused" if refused else "equal"


def judge_state(seed: StreamSeed, data: bytes, sealed: bool) -> str:
    """Decode a state -> refused, equal, other or an error in words."""
    try:
        state = container.decode(seed.tensors, data, LIMITS.frame_points)
    except BitstreamError:
        return "refused"
    true = container.decode(seed.tensors, seed.state)
    if all(np.array_equal(x, true[name]) for name, x in state.items()):
        return "equal"
    if not all(np.isfinite(x).all() for x in state.values()):
        return "decoded to values that are not finite"
    return "other" if sealed else "a whole state of other values"
