"""A loopback connection with a bandwidth: a relay between two TCP sockets keeps to a rate.

No script of its own.
"""

import contextlib
import socket
import threading
import time
from dataclasses import dataclass

from benches.link_arithmetic import FRAMING, HEADERS, PAYLOAD

INTERVAL = 0.0005
"""Seconds of the link that the relay forwards at once; shorter ones are lost in the sleep's slack."""


@dataclass(frozen=True)
class CheckRow:
    """Milliseconds end to end: by the arithmetic, and over the socket."""

    machine: str
    part: str
    codec: str
    link: str
    told_ms: float
    measured_ms: float


class ShapedLink:
    """A link of ``rate`` bits per second; packets' headers are counted, not sent."""

    def __init__(self, rate: float):
        self.rate = rate
        packets = max(1, int(rate * INTERVAL / 8) // (PAYLOAD + HEADERS))
        self.chunk = packets * PAYLOAD
        self.near, relay_in = _pair()
        relay_out, self.far = _pair()
        self._ends = (self.near, relay_in, relay_out, self.far)
        self._relay = threading.Thread(target=self._forward, args=(relay_in, relay_out))

    def __enter__(self) -> "ShapedLink":
        self._relay.start()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self.near.shutdown(socket.SHUT_RDWR)
        self._relay.join()
        for end in self._ends:
            end.close()

    def carry(self, data: bytes) -> bytes:
        """Send a message from one end -> what arrives at the other."""
        message = len(data).to_bytes(FRAMING, "big") + data
        sender = threading.Thread(target=self.near.sendall, args=(message,))
        sender.start()
        size = int.from_bytes(_receive(self.far, FRAMING), "big")
        arrived = _receive(self.far, size)
        sender.join()
        return arrived

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        free = time.perf_counter()  # when the link has sent all that it was given
        while chunk := source.recv(self.chunk):
            bits = 8 * (len(chunk) + HEADERS * -(-len(chunk) // PAYLOAD))
            free = max(free, time.perf_counter()) + bits / self.rate
            time.sleep(max(0.0, free - time.perf_counter()))
            target.sendall(chunk)


def _pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over the loopback that do not wait for more to send."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def _receive(end: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = end.recv(size - len(data))
        if not part:
            raise ConnectionError("the link was closed in the middle of a message")
        data += part
    return bytes(data)
