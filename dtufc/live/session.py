"""One session of a language model over a WebSocket, at the server's side.

    client: the stream's header (binary)      server: {"type": "agreed", ...} or a refusal
    client: a frame of rows (binary)          server: {"type": "token", "id", "text", "bytes", ...}
    ...
    client: the stream's end (binary)         server: {"type": "end", ...}, and closes

A refusal is a message too, ``{"type": "refusal", "code", "reason"}``; then the server closes.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from dtufc.bitstream import BitstreamError
from dtufc.errors import UserError
from dtufc.live.backend import Backend
from dtufc.live.gate import Gate, Pace
from dtufc.live.metrics import Metrics
from dtufc.live.refusals import Refusal, of_bytes
from dtufc.live.talk import Talk, Token
from dtufc.streams import StreamDecoder

Run = Callable[..., Awaitable[Any]]
"""A function and its arguments -> its result, computed beside the loop, one at a time."""
FAREWELL = 2.0
"""Seconds that a refusal may take to be sent."""
logger = logging.getLogger(__name__)


class Receiver:
    """The computing side of a session; the one thread that computes calls it."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self.decoder: StreamDecoder = backend.open()
        self.talk = Talk(backend.machine)

    def header(self, data: bytes) -> None:
        """The first message, which is the stream's header.

        Raises:
            Refusal: header or size.
        """
        try:
            blocks = self.decoder.blocks(data)
        except BitstreamError as error:
            raise of_bytes(error, "header") from error
        if self.decoder.session is None or blocks:
            raise Refusal("header", "the first message is the stream's header, whole and alone")
        self.backend.check_session(self.decoder.session)

    def frame(self, data: bytes, since: float) -> tuple[Token | None, dict[str, float]]:
        """The next message -> the token behind its rows, none where it ends the session; and the
        seconds that it waited, and took to decode and to compute.

        Raises:
            Refusal: frame or size.
        """
        start = time.perf_counter()
        try:
            rows = self.decoder.feed(data)
        except UserError as error:
            raise of_bytes(error, "frame") from error
        middle = time.perf_counter()
        token = None
        if rows:
            (feature,) = rows.values()
            token = self.talk.step(feature)
        elif not self.decoder.ended:
            raise Refusal("frame", "a message holds one whole frame of rows")
        end = time.perf_counter()
        return token, {"wait": start - since, "decode": middle - start, "compute": end - middle}


class Conversation:
    """A session from its header to its end."""

    def __init__(self, socket: WebSocket, backend: Backend, metrics: Metrics, run: Run):
        self.socket, self.backend, self.metrics, self.run = socket, backend, metrics, run
        self.limits = backend.limits
        self.tokens = self.bytes = 0

    async def hold(self) -> None:
        """Answer until the client ends it.

        Raises:
            Refusal: anything but a sound session.
            WebSocketDisconnect: the client went away.
        """
        receiver = Receiver(self.backend)
        await self.run(receiver.header, await self._receive())
        self.metrics.sessions.inc()
        await self._send(
            type="agreed",
            **self.backend.identity,
            codec=receiver.decoder.session.tensors[0].codec,
            tokens=self.backend.most_tokens,
            frame_bytes=self.limits.frame_bytes,
            idle_seconds=self.limits.idle_seconds,
        )
        pace = Pace(self.limits.frames_per_second)
        while not receiver.decoder.ended:
            data = await self._receive()
            if not pace.keeps():
                raise Refusal("rate", f"more than {pace.rate:g} frames per second")
            token, seconds = await self.run(receiver.frame, data, time.perf_counter())
            if token is not None:
                self._count(seconds)
                spent = {f"{part}_ms": round(1000 * took, 3) for part, took in seconds.items()}
                await self._send(
                    type="token", id=token.id, text=token.text, bytes=len(data), **spent
                )
        self.metrics.rows.inc(sum(receiver.decoder.rows.values()))
        await self._send(type="end", tokens=self.tokens, bytes=self.bytes)
        await self.socket.close(1000)

    def _count(self, seconds: dict[str, float]) -> None:
        self.tokens += 1
        self.metrics.frames.inc()
        for part, took in seconds.items():
            self.metrics.seconds.labels(part).observe(took)

    async def _receive(self) -> bytes:
        """The next binary message.

        Raises:
            Refusal: late, size, or frame where it is text.
            WebSocketDisconnect: there is none.
        """
        try:
            async with asyncio.timeout(self.limits.idle_seconds):
                message = await self.socket.receive()
        except TimeoutError as error:
            idle = self.limits.idle_seconds
            raise Refusal("late", f"no frame came within {idle:g} seconds") from error
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"], message.get("reason"))
        data = message.get("bytes")
        if data is None:
            raise Refusal("frame", "expected a binary message")
        self.bytes += len(data)
        self.metrics.bytes.labels("in").inc(len(data))
        if len(data) > self.limits.frame_bytes:
            raise Refusal(
                "size", f"a frame of {len(data)} bytes, {self.limits.frame_bytes} at most"
            )
        return data

    async def _send(self, **message: Any) -> None:
        text = json.dumps(message)
        self.metrics.bytes.labels("out").inc(len(text))
        try:
            async with asyncio.timeout(self.limits.idle_seconds):
                await self.socket.send_text(text)
        except TimeoutError as error:
            raise WebSocketDisconnect(1006, "the client does not read") from error


async def serve_session(
    socket: WebSocket, backend: Backend, gate: Gate, metrics: Metrics, run: Run
) -> None:
    """Accept a client that was let in and hold its session. What goes wrong is this client's alone."""
    await socket.accept()
    try:
        async with asyncio.timeout(backend.limits.session_seconds):
            await Conversation(socket, backend, metrics, run).hold()
        return
    except WebSocketDisconnect:
        return
    except Refusal as error:
        refusal = error
    except TimeoutError:
        most = backend.limits.session_seconds
        refusal = Refusal("late", f"the session lasted {most:g} seconds, which is the longest")
    except asyncio.CancelledError:
        if not gate.expired:
            raise
        asyncio.current_task().uncancel()
        refusal = Refusal("stopping", "the server stops, and the session did not end in time")
    except Exception:
        logger.exception("a fault in a session")
        refusal = Refusal("fault", "a fault of the server; its log says more")
    metrics.refusals.labels(refusal.code).inc()
    with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
        async with asyncio.timeout(FAREWELL):
            await socket.send_text(json.dumps(refusal.message()))
            await socket.close(refusal.kind.close, refusal.code)
