"""KV caches to bytes and back.

    codec = load_kv(folder)                    # what ``coding/kv.py fit`` made
    data = codec.encode_cache(cache)           # a transformers DynamicCache -> bytes
    cache = codec.decode_cache(data)           # a DynamicCache that generation goes on from

    encoder, decoder = codec.encoder(), codec.decoder()
    data = encoder.append(cache)               # the tokens that the cache has gained since
    decoder.feed(data)                         # in any pieces
    cache = decoder.cache()

Symbols decode from integers alone, so that bytes from one device decode on every other; the floats
around them may differ in their last bits.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dtufc.bitstream import ID_BYTES, BitstreamError
from dtufc.errors import UserError
from dtufc.klt.importance import FAR
from dtufc.klt.model import PER_OCTAVE
from dtufc.kv import container
from dtufc.kv.caches import DTYPES, Snapshot, make_cache, read_cache
from dtufc.kv.container import Frame, Header, KvLimits, Unframer, Writer
from dtufc.kv.model import Defaults, Group, KvModel, Part, Rows

ALIKE = 2.0**-7
"""Relative error up to which first tokens are taken for those that the codec knows."""
BIT_TYPES = {2: torch.int16, 4: torch.int32}


class KvCodec:
    """Codes the caches of one model. Instances are read-only and may be shared.

    Args:
        settings: how caches are coded; the model's own by default.
    """

    def __init__(self, model: KvModel, settings: Defaults | None = None):
        self.model, self.settings = model, settings or model.defaults

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The codec of a folder.

        Raises:
            FileNotFoundError, UserError: there is none, or no sound one.
        """
        return cls(KvModel.load(Path(folder)))

    @property
    def id(self) -> bytes:
        """SHA-256 that names the codec in its bytes (32 bytes)."""
        return self.model.digest

    def at(self, **settings: float) -> Self:
        """The same codec with other settings: quality, sinks, recent, focus; see
        :class:`dtufc.kv.model.Defaults`.

        Raises:
            UserError: a value that is none.
        """
        return type(self)(self.model, replace(self.settings, **settings))

    def encode_cache(self, cache: Any, *, position: int = 0) -> bytes:
        """A cache -> bytes that decode to it.

        Args:
            cache: a filled ``DynamicCache`` of the codec's model, float16, bfloat16 or float32.
            position: of its first token; above 0 where it is a piece of a longer one.

        Raises:
            UserError: no such cache; the message names the layer.
        """
        encoder = self.encoder(position=position)
        return encoder.append(cache, last=True) + encoder.close()

    def decode_cache(
        self, data: bytes, *, device: Any = None, limits: KvLimits | None = None
    ) -> Any:
        """The bytes of a whole cache -> a ``DynamicCache`` in the dtype of the one that was coded.

        Args:
            device: torch device of its tensors; the CPU by default.

        Raises:
            BitstreamError: the bytes are damaged, cut off, another codec's, or beyond the limits.
        """
        decoder = self.decoder(limits)
        decoder.feed(data)
        decoder.finish()
        return decoder.cache(device)

    def encoder(self, *, position: int = 0) -> "KvEncoder":
        """What codes a cache as it grows."""
        return KvEncoder(self, position)

    def decoder(self, limits: KvLimits | None = None) -> "KvDecoder":
        """What decodes bytes as they come."""
        return KvDecoder(self.model, limits or KvLimits())

    def reconstruct(self, cache: Any, *, position: int = 0) -> Any:
        """What a receiver of :meth:`encode_cache` gets, without bytes."""
        snapshot = self.check(read_cache(cache))
        built = _Built(self.model, snapshot.batch, snapshot.dtype, position)
        for frame, first in self.plan(snapshot, 0, position):
            last = first + frame.tokens
            if frame.kind != container.CODED:
                rows = None
                if frame.kind == container.RAW:
                    rows = _plain_rows(self.model, snapshot, frame, first)
                    dtype = DTYPES[raw_dtype(snapshot.dtype, rows)]
                    rows = [torch.from_numpy(each).to(dtype).float().numpy() for each in rows]
                built.add(frame, rows)
                continue
            found, focus = [], self.settings.focus
            for group, own in zip(self.model.groups, self.model.sets, strict=True):
                start = first + frame.starts[own]
                rows = self.group_rows(snapshot, group, start, last, position, bulk=True)
                empty = start == last
                found.append(rows.x if empty else group.reconstruct(rows, frame.quality, focus))
            built.add(frame, found)
        return make_cache(built.snapshot())

    def check(self, snapshot: Snapshot) -> Snapshot:
        """Refuse the cache of another model.

        Raises:
            UserError: the message names the layer.
        """
        layers = self.model.layers
        if len(snapshot.layers) != len(layers):
            raise UserError(
                f"cache: {len(snapshot.layers)} layers; the codec was fitted to {len(layers)}"
            )
        for number, (got, want) in enumerate(zip(snapshot.layers, layers, strict=True)):
            # without its config a cache keeps all tokens of a sliding layer too
            if replace(got, window=want.window) != want or got.window not in (None, want.window):
                raise UserError(f"cache: layer {number} is {got}; the codec was fitted to {want}")
        return replace(snapshot, layers=layers)

    def plan(self, snapshot: Snapshot, first: int, position: int) -> Iterator[tuple[Frame, int]]:
        """Frames without their content, for the tokens from ``first`` on, each with its first token."""
        tokens = snapshot.tokens
        known = _count_known(self.model, snapshot) if position == 0 == first else 0
        raw = max(known, first, min(self.settings.sinks, tokens) if position == 0 else 0)
        cuts = [
            (container.KNOWN, first, max(first, known)),
            (container.RAW, max(first, known), raw),
            (container.CODED, raw, tokens),
        ]
        quality = round(PER_OCTAVE * self.settings.quality)
        for kind, begin, end in cuts:
            if begin < end:
                gone = [0 if w is None else max(0, tokens - w + 1) for w in self.model.windows]
                starts = tuple(min(max(g - begin, 0), end - begin) for g in gone)
                yield Frame(kind, end - begin, starts, quality), begin

    def group_rows(
        self, snapshot: Snapshot, group: Group, first: int, last: int, position: int, bulk: bool
    ) -> Rows:
        """Rows (B * T, D) of a group's tokens, keys turned back.

        Args:
            bulk: no tokens will come behind the cache's, so that how many are behind each is known.
        """
        found = []
        for part in group.parts:
            x = snapshot.rows(part.layer, part.which, first, last)
            if part.which == "key":
                x = _turn(self.model, part.layer, x, position + first, back=True)
            found.append(x.flatten(0, 1))
        place = np.arange(first, last)
        behind = snapshot.tokens - 1 - place
        behind = np.where((behind < self.settings.recent) & bulk, behind, FAR)
        both = (np.tile(each, snapshot.batch) for each in (behind, position + place))
        return Rows(torch.cat(found, 1).numpy(), *both)


class KvEncoder:
    """Turns a growing cache into bytes. An error leaves it as it was."""

    def __init__(self, codec: KvCodec, position: int = 0):
        self.codec, self.position = codec, position
        self.tokens = 0
        """That were coded so far."""
        self._writer: Writer | None = None
        self._like: tuple[int, torch.dtype] | None = None
        self._closed = False

    def append(self, cache: Any, quality: float | None = None, *, last: bool = False) -> bytes:
        """The tokens that a cache has gained since the last call -> bytes, the first with the header.

        Args:
            cache: the whole cache, as :meth:`KvCodec.encode_cache` takes it.
            quality: of these tokens; the settings' by default.
            last: no more tokens will come, so that it is known which ones are recent.

        Raises:
            UserError: no such cache; another batch or dtype, or fewer tokens, than before; or the
                encoder is closed.
        """
        if self._closed:
            raise UserError("append: the encoder is closed")
        codec = self.codec if quality is None else self.codec.at(quality=quality)
        snapshot = codec.check(read_cache(cache))
        like = snapshot.batch, snapshot.dtype
        if snapshot.tokens < self.tokens or self._like not in (None, like):
            raise UserError(
                f"append: {snapshot.tokens} tokens, batch and dtype {like}; coded so far are "
                f"{self.tokens} of {self._like}"
            )
        frames = [
            self._fill(codec, snapshot, frame, first, last)
            for frame, first in codec.plan(snapshot, self.tokens, self.position)
        ]
        if self._writer is None:
            name = next(name for name, dtype in DTYPES.items() if dtype == snapshot.dtype)
            header = Header(codec.id[:ID_BYTES], name, snapshot.batch, self.position)
            self._writer = Writer(header)
        self.tokens, self._like = snapshot.tokens, like
        return self._writer.write(*frames)

    def close(self) -> bytes:
        """The end, which says how many tokens there are.

        Raises:
            UserError: nothing was coded, or it is closed.
        """
        if self._closed or self._writer is None:
            raise UserError("close: the encoder is closed, or has coded nothing")
        self._closed = True
        return self._writer.write(Frame(container.END, self.tokens))

    def _fill(
        self, codec: KvCodec, snapshot: Snapshot, frame: Frame, first: int, last: bool
    ) -> Frame:
        """A planned frame with its content."""
        model, focus = codec.model, codec.settings.focus
        if frame.kind == container.KNOWN:
            return frame
        if frame.kind == container.RAW:
            rows = _plain_rows(model, snapshot, frame, first)
            dtype = raw_dtype(snapshot.dtype, rows)
            raw = b"".join(_to_bytes(torch.from_numpy(each), dtype) for each in rows)
            return replace(frame, raw=raw, dtype=dtype)
        parts = []
        for group, own in zip(model.groups, model.sets, strict=True):
            start, end = first + frame.starts[own], first + frame.tokens
            rows = codec.group_rows(snapshot, group, start, end, self.position, last)
            parts.append(group.encode(rows, frame.quality, focus) if start < end else ())
        return replace(frame, parts=tuple(parts))


class KvDecoder:
    """Turns bytes, in any pieces, into a cache. After damage it gives nothing any more.

    Args:
        limits: what is accepted.
    """

    def __init__(self, model: KvModel, limits: KvLimits):
        self.model, self.limits = model, limits
        self.ended = False
        """Whether the sender closed it, and all is here."""
        self._frames = Unframer(limits)
        self._built: _Built | None = None
        self._error: BitstreamError | None = None

    @property
    def tokens(self) -> int:
        """Tokens that are decoded."""
        return 0 if self._built is None else self._built.tokens

    def feed(self, data: bytes) -> int:
        """The next bytes -> how many tokens they make whole.

        Raises:
            BitstreamError: damaged, foreign, another codec's, or beyond the limits.
        """
        if self._error is not None:
            raise self._error
        before = self.tokens
        try:
            self._frames.feed(data)
            if self._built is None:
                self._open()
            while self._built is not None and (body := self._frames.next_body()) is not None:
                self._take(Frame.of_body(body, len(self.model.windows), self.model.sets))
        except BitstreamError as error:
            self._error = error
            raise
        return self.tokens - before

    def cache(self, device: Any = None) -> Any:
        """A ``DynamicCache`` of the tokens so far.

        Raises:
            BitstreamError: there are none.
        """
        if not self.tokens:
            raise BitstreamError("truncated: no token is whole")
        return make_cache(self._built.snapshot(device))

    def finish(self) -> None:
        """Say that no more bytes will come.

        Raises:
            BitstreamError: the end is missing, or the bytes were damaged.
        """
        if self._error is not None:
            raise self._error
        if not self.ended:
            waiting = self._frames.waiting
            raise BitstreamError(
                f"truncated: the cache ends behind token {self.tokens}, {waiting} bytes waiting"
            )

    def _open(self) -> None:
        header = self._frames.read_header()
        if header is None:
            return
        if header.codec != self.model.digest[:ID_BYTES]:
            raise BitstreamError(
                f"written by codec {header.codec.hex()}, this is {self.model.digest[:ID_BYTES].hex()}"
            )
        dtype = DTYPES[header.dtype]
        self._built = _Built(self.model, header.batch, dtype, header.position)

    def _take(self, frame: Frame) -> None:
        if self.ended:
            raise BitstreamError("inconsistent: bytes behind the end")
        if frame.kind == container.END:
            if frame.tokens != self.tokens or not self.tokens:
                raise BitstreamError(f"inconsistent: {self.tokens} of {frame.tokens} tokens")
            self._built.check_windows()
            self.ended = True
            return
        built, after = self._built, self.tokens + frame.tokens
        values = after * built.batch * self.model.channels
        if built.position + after > self.limits.tokens or values > self.limits.values:
            raise BitstreamError(f"too large: {after} tokens, {values} values")
        built.check_starts(frame)
        if frame.kind == container.CODED:
            built.add(frame, self._groups(frame))
        elif frame.kind == container.RAW:
            built.add(frame, self._raw_rows(frame))
        else:
            if built.position or after > len(self.model.known):
                raise BitstreamError(f"inconsistent: the codec does not know token {after - 1}")
            built.add(frame, None)

    def _groups(self, frame: Frame) -> list[np.ndarray]:
        found = []
        groups = zip(self.model.groups, self.model.sets, frame.parts, strict=True)
        for group, own, parts in groups:
            count = self._built.batch * (frame.tokens - frame.starts[own])
            if count:
                found.append(group.decode(parts, count, frame.quality))
            else:
                found.append(np.empty((0, group.channels), np.float32))
        return found

    def _raw_rows(self, frame: Frame) -> list[np.ndarray]:
        model, batch = self.model, self._built.batch
        shapes = []
        for part in model.parts:
            own = model.windows.index(model.layers[part.layer].window)
            shapes.append((batch, frame.tokens - frame.starts[own], model.width(part)))
        size = DTYPES[frame.dtype].itemsize
        counts = [int(np.prod(shape)) for shape in shapes]
        if len(frame.raw) != size * sum(counts):
            raise BitstreamError(f"inconsistent: {len(frame.raw)} bytes of raw rows")
        bits = torch.from_numpy(np.frombuffer(frame.raw, f"<i{size}").copy())
        x = bits.view(DTYPES[frame.dtype]).float().numpy()
        if not np.isfinite(x).all():
            raise BitstreamError("inconsistent: raw rows that are not finite")
        cuts = np.split(x, np.cumsum(counts)[:-1])
        return [cut.reshape(shape) for cut, shape in zip(cuts, shapes, strict=True)]


class _Built:
    """A cache that is being put together."""

    def __init__(self, model: KvModel, batch: int, dtype: torch.dtype, position: int):
        self.model, self.batch, self.dtype, self.position = model, batch, dtype, position
        self.tokens = 0
        self._pieces: dict[Part, list[Tensor]] = {part: [] for part in model.parts}

    def check_starts(self, frame: Frame) -> None:
        """Refuse rows that are left out of layers that keep all tokens."""
        for window, start in zip(self.model.windows, frame.starts, strict=True):
            if start and window is None:
                raise BitstreamError("inconsistent: rows are missing from a layer that keeps all")

    def check_windows(self) -> None:
        """Refuse a cache whose sliding layers do not hold what their windows span."""
        for part, pieces in self._pieces.items():
            held = sum(piece.shape[2] for piece in pieces)
            if held != self.tokens - self.model.layers[part.layer].first(self.tokens):
                raise BitstreamError(f"inconsistent: layer {part.layer} holds {held} tokens")

    def add(self, frame: Frame, rows: list[np.ndarray] | None) -> None:
        """The tokens of a frame: per group (R, D); of a raw frame per part (B, T, C); None of a known
        one."""
        if frame.kind == container.CODED:
            for group, each in zip(self.model.groups, rows, strict=True):
                self._add_group(frame, group, each)
        else:
            if rows is None:
                rows = self._known(frame)
            for part, each in zip(self.model.parts, rows, strict=True):
                self._add(frame, part, torch.from_numpy(each))
        self.tokens += frame.tokens

    def snapshot(self, device: Any = None) -> Snapshot:
        """What there is so far."""
        found: dict[str, list[Tensor]] = {"key": [], "value": []}
        for part, pieces in self._pieces.items():
            found[part.which].append(torch.cat(pieces, 2).to(device))
        layers = self.model.layers
        return Snapshot(layers, self.tokens, tuple(found["key"]), tuple(found["value"]))

    def _known(self, frame: Frame) -> list[np.ndarray]:
        """Rows of tokens that the codec knows, per part (B, T, C)."""
        model, found, at = self.model, [], 0
        last = self.tokens + frame.tokens
        for part in model.parts:
            width = model.width(part)
            own = model.windows.index(model.layers[part.layer].window)
            first = self.tokens + frame.starts[own]
            rows = model.known[first:last, at : at + width]
            found.append(np.repeat(rows[None], self.batch, 0))
            at += width
        return found

    def _add_group(self, frame: Frame, group: Group, rows: np.ndarray) -> None:
        first = self.tokens + frame.starts[self.model.set_of(group)]
        last = self.tokens + frame.tokens
        widths = [self.model.width(part) for part in group.parts]
        columns = torch.from_numpy(rows).split(widths, 1)
        for part, each in zip(group.parts, columns, strict=True):
            x = each.reshape(self.batch, last - first, -1)
            if part.which == "key":
                x = _turn(self.model, part.layer, x, self.position + first, back=False)
            self._add(frame, part, x)

    def _add(self, frame: Frame, part: Part, x: Tensor) -> None:
        """Rows (B, T, C) of one layer's keys or values."""
        layer, pieces = self.model.layers[part.layer], self._pieces[part]
        own = self.model.windows.index(layer.window)
        largest = torch.finfo(self.dtype).max
        x = x.clamp(-largest, largest).to(self.dtype)
        if frame.starts[own]:
            pieces.clear()  # all before has left the window
        pieces.append(x.unflatten(2, (layer.heads, -1)).transpose(1, 2))
        if layer.window is not None and (held := sum(p.shape[2] for p in pieces)) >= layer.window:
            pieces[:] = [torch.cat(pieces, 2)[:, :, held - layer.window + 1 :]]


def _turn(model: KvModel, layer: int, rows: Tensor, position: int, back: bool) -> Tensor:
    """Keys (B, T, heads * channels) of a layer, turned."""
    positions = range(position, position + rows.shape[1])
    heads = rows.unflatten(2, (model.layers[layer].heads, -1))
    return model.ropes[layer].turn(heads, positions, back).flatten(2)


def _plain_rows(model: KvModel, snapshot: Snapshot, frame: Frame, first: int) -> list[np.ndarray]:
    """Rows of a frame as they are, per part (B, T, C)."""
    found = []
    for part in model.parts:
        own = model.windows.index(model.layers[part.layer].window)
        start, end = first + frame.starts[own], first + frame.tokens
        found.append(snapshot.rows(part.layer, part.which, start, end).numpy())
    return found


def _count_known(model: KvModel, snapshot: Snapshot) -> int:
    """How many of the first tokens are those that the codec knows."""
    most = min(len(model.known), snapshot.tokens)
    same, at = np.ones(most, bool), 0
    for part in model.parts:
        width = model.width(part)
        first = min(model.layers[part.layer].first(snapshot.tokens), most)
        known = model.known[first:most, at : at + width]
        got = snapshot.rows(part.layer, part.which, first, most).numpy()
        error = np.square(got - known).sum(2)  # (B, T)
        same[first:] &= (error <= ALIKE**2 * np.square(known).sum(1)).all(0)
        at += width
    return int(same.argmin()) if not same.all() else most


def raw_dtype(dtype: torch.dtype, rows: list[np.ndarray]) -> str:
    """What raw rows are sent as: the cache's own 16 bits; of float32, float16 where it holds them."""
    if dtype == torch.float32:
        most = max((float(np.abs(each).max(initial=0)) for each in rows), default=0.0)
        return "float16" if most <= torch.finfo(torch.float16).max else "float32"
    return next(name for name, known in DTYPES.items() if known == dtype)


def _to_bytes(x: Tensor, dtype: str) -> bytes:
    x = x.to(DTYPES[dtype]).contiguous()
    return x.view(BIT_TYPES[x.element_size()]).numpy().tobytes()


def load_kv(folder: str | Path) -> KvCodec:
    """The KV codec of a folder.

    Raises:
        FileNotFoundError, UserError: as :meth:`KvCodec.load`.
    """
    return KvCodec.load(folder)
