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
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect

from dtufc.bitstream import BitstreamError
from dtufc.errors import UserError
from dtufc.live.backend import Backend
from dtufc.live.compute import Compute, Queue, each_or_together, outcome
from dtufc.live.gate import Gate, Pace
from dtufc.live.metrics import Metrics
from dtufc.live.refusals import Refusal, of_bytes
from dtufc.live.talk import Talk, Token, step_together
from dtufc.streams import StreamDecoder

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

    def rows(self, data: bytes) -> np.ndarray | None:
        """The rows of the next message, (1, 1, T, width); None where it ends the session.

        Raises:
            Refusal: frame or size.
        """
        try:
            rows = self.decoder.feed(data)
        except UserError as error:
            raise of_bytes(error, "frame") from error
        if rows:
            (feature,) = rows.values()
            return feature
        if not self.decoder.ended:
            raise Refusal("frame", "a message holds one whole frame of rows")
        return None


class Frame(NamedTuple):
    """A message of a session that waits for its turn."""

    receiver: Receiver
    data: bytes
    since: float
    """When it came, of time.perf_counter."""


class Answer(NamedTuple):
    """What a frame gave."""

    token: Token | None
    """None where the session ended."""
    seconds: dict[str, float]
    """That it waited, and took to decode and to compute. All frames of a batch take its whole time."""


class Steps:
    """Frames of several sessions -> an answer, or what it was refused for, each.

    Each is decoded alone. Those of a single row go through the back half together, where the machine
    can; prompts, which have many rows, go one by one.
    """

    def __init__(self, backend: Backend, metrics: Metrics):
        self.backend, self.metrics = backend, metrics

    def __call__(self, frames: Sequence[Frame]) -> list[Any]:
        outcomes: list[Any] = [None] * len(frames)
        spent, features = [0.0] * len(frames), {}
        for place, frame in enumerate(frames):
            start = time.perf_counter()
            found = outcome(frame.receiver.rows, frame.data)
            spent[place] = time.perf_counter() - start
            if isinstance(found, Exception):
                outcomes[place] = found
            elif found is None:
                outcomes[place] = Answer(None, {})
            else:
                features[place] = found
        for places in self._batches(features):
            self.metrics.batch.labels("steps").observe(len(places))
            start = time.perf_counter()
            pairs = [(frames[place].receiver.talk, features[place]) for place in places]
            tokens = each_or_together(
                pairs,
                lambda pairs: step_together(*zip(*pairs, strict=True)),
                lambda pair: pair[0].step(pair[1]),
            )
            end = time.perf_counter()
            for place, token in zip(places, tokens, strict=True):
                if not isinstance(token, Exception):
                    decode, compute = spent[place], end - start
                    wait = end - frames[place].since - decode - compute
                    token = Answer(token, {"wait": wait, "decode": decode, "compute": compute})
                outcomes[place] = token
        return outcomes

    def _batches(self, features: dict[int, np.ndarray]) -> list[list[int]]:
        """Places of frames that are computed together."""
        if len(features) < 2:
            return [[place] for place in features]
        single = [
            place for place, x in features.items() if x.shape[2] == 1 and not self.backend.alone
        ]
        batches = [[place] for place in features if place not in single]
        return [single, *batches] if single else batches


class Conversation:
    """A session from its header to its end."""

    def __init__(
        self, socket: WebSocket, backend: Backend, metrics: Metrics, compute: Compute, steps: Queue
    ):
        self.socket, self.backend, self.metrics = socket, backend, metrics
        self.compute, self.steps = compute, steps
        self.limits = backend.limits
        self.tokens = self.bytes = 0

    async def hold(self) -> None:
        """Answer until the client ends it.

        Raises:
            Refusal: anything but a sound session.
            WebSocketDisconnect: the client went away.
        """
        receiver = Receiver(self.backend)
        await self.compute.alone(receiver.header, await self._receive())
        self.metrics.sessions.inc()
        await self._send(
            type="agreed",
            **self.backend.identity,
            codec=receiver.decoder.session.tensors[0].codec,
            tokens=self.backend.most_tokens,
            frame_bytes=self.limits.frame_bytes,
            idle_seconds=self.limits.idle_seconds,
            **self.backend.told_guard(),
        )
        pace = Pace(self.limits.frames_per_second)
        while not receiver.decoder.ended:
            data = await self._receive()
            if not pace.keeps():
                raise Refusal("rate", f"more than {pace.rate:g} frames per second")
            token, seconds = await self.steps.ask(Frame(receiver, data, time.perf_counter()))
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
    socket: WebSocket,
    backend: Backend,
    gate: Gate,
    metrics: Metrics,
    compute: Compute,
    steps: Queue,
) -> None:
    """Accept a client that was let in and hold its session. What goes wrong is this client's alone."""
    await socket.accept()
    try:
        async with asyncio.timeout(backend.limits.session_seconds):
            await Conversation(socket, backend, metrics, compute, steps).hold()
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
