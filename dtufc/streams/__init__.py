"""Streams: a session is opened once, and then frames carry the next rows of named tensors::

    encoder = open_session({"k": codec_k, "v": codec_v}, model="...", split="...")
    data = encoder.append({"k": k, "v": v})       # bytes of a frame; the first begin with the header
    data += encoder.close()

    decoder = StreamDecoder([codec_k, codec_v])
    rows = decoder.feed(data)                     # {"k": ..., "v": ...}; bytes may come in any pieces
    decoder.finish()                              # says whether the session is whole

    with write_stream(path, {"hidden": codec}) as writer:      # the same encoder, into a file
        writer.new_sample("first"); writer.append({"hidden": rows})
    open_stream(path, [codec])["hidden"][0, 5:9]               # reads these rows and little else

A row is a token where a kind's number of tokens is open, else one whole feature. Every byte is
explained in ``docs/reference/streams.md``.
"""

from dtufc.streams.decoder import Block, StreamDecoder
from dtufc.streams.encoder import StreamEncoder, Tensor, open_session
from dtufc.streams.limits import Limits
from dtufc.streams.reader import StreamFile, open_stream
from dtufc.streams.session import Session, TensorSpec
from dtufc.streams.writer import StreamWriter, write_stream

__all__ = [
    "Block", "Limits", "Session", "StreamDecoder", "StreamEncoder", "StreamFile", "StreamWriter",
    "Tensor", "TensorSpec", "open_session", "open_stream", "write_stream",
]  # fmt: skip
