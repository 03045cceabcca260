"""The server process: sockets, TLS, and a stop that lets those inside end."""

import logging
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import uvicorn

from dtufc.errors import UserError
from dtufc.live.app import ONE_BY_ONE, make_app
from dtufc.live.backend import Backend
from dtufc.live.compute import Batching
from dtufc.live.gate import Gate
from dtufc.live.metrics import Metrics

if TYPE_CHECKING:
    from dtufc.live.page.desk import Desk

SLACK = 1 << 16
"""Bytes by which a message may exceed a frame's limit and still be told so in words; what is larger is
cut off by the WebSocket itself (close code 1009)."""
KEEP_ALIVE = 5
"""Seconds that an HTTP connection without a request stays open."""


def check_exposure(host: str, token: str | None) -> None:
    """Refuse to listen beyond this machine without a token.

    Raises:
        UserError: anybody in the network could use the server.
    """
    if token is None and host not in ("127.0.0.1", "::1", "localhost"):
        raise UserError(f"host: {host} can be reached by others; give --token_file too")


class LiveServer(uvicorn.Server):
    """A server that, when it is told to stop, lets those inside end first.

    Args:
        port: 0 takes a free one.
        certificate, key: PEM files of TLS; without them the wire is not encrypted.
        desk: of the page; None serves none.
        batching: what is computed together.

    Raises:
        OSError: the port is taken.
        UserError: certificate and key are not sound.
    """

    def __init__(
        self,
        backend: Backend,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        desk: "Desk | None" = None,
        batching: Batching = ONE_BY_ONE,
    ):
        check_exposure(host, token)
        self.gate, self.metrics = Gate(backend.limits, token), Metrics()
        config = uvicorn.Config(
            make_app(backend, self.gate, self.metrics, desk, batching),
            loop="asyncio",  # these three: not what else happens to be installed
            http="h11",
            ws="websockets-sansio",
            ws_max_size=backend.limits.frame_bytes + SLACK,
            ws_per_message_deflate=False,  # frames are compressed; and bombs would be let in
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=KEEP_ALIVE,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        try:
            config.load()
        except (ssl.SSLError, FileNotFoundError) as error:
            raise UserError(
                f"certificate: {certificate}, key: {key}: expected two PEM files that belong together "
                f"({error})"
            ) from error
        super().__init__(config)
        self._patience = backend.limits.idle_seconds
        self._seen: WeakKeyDictionary[object, float] = WeakKeyDictionary()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self.socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise OSError(
                f"port: {host}:{port} cannot be listened at ({error.strerror})"
            ) from error
        scheme, name = ("https" if certificate else "http"), f"[{host}]" if ":" in host else host
        self.url = f"{scheme}://{name}:{self.socket.getsockname()[1]}"

    def handle_exit(self, sig: int, frame: object) -> None:
        """The first signal starts to stop; a second one ends at once."""
        if self.gate.stopping:
            super().handle_exit(sig, frame)
        self.gate.stop()

    async def on_tick(self, counter: int) -> bool:
        """Ten times per second."""
        self._drop_silent()
        if self.gate.expired:
            self.gate.send_away()
        if self.gate.stopping and not self.gate.inside:
            self.should_exit = True
        return await super().on_tick(counter)

    def _drop_silent(self) -> None:
        """Close connections on which no request came for ``idle_seconds``; uvicorn waits for ever."""
        now = time.monotonic()
        for connection in list(self.server_state.connections):
            since = self._seen.setdefault(connection, now)
            if getattr(connection, "cycle", self) is None and now - since > self._patience:
                connection.transport.abort()

    def listen(self) -> None:
        """Serve until it is told to stop, in this thread."""
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        logging.getLogger("uvicorn.error").addFilter(_no_false_alarm)
        self.run(sockets=[self.socket])

    def start(self) -> threading.Thread:
        """Serve in a thread of its own, for tests and programs; ``gate.stop()`` ends it."""
        thread = threading.Thread(target=self.listen, daemon=True)
        thread.start()
        return thread


def _no_false_alarm(record: logging.LogRecord) -> bool:
    """uvicorn takes a refused handshake, which was answered, for one that was not."""
    return "without completing handshake" not in record.getMessage()
