"""The server's routes.

    GET  /health     whether it takes clients; nothing is asked for
    GET  /metrics    what it counts, for Prometheus
    POST /predict    a bitstream (version 1) -> the answer, JSON
    POST /probe      anything -> how many bytes it was, for a client that measures its link
    WS   /session    a session of a language model, see session.py
    GET  /           the page, where the server has one, see page/routes.py

All but ``/health`` and the page's own files ask for the token, where the server has one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from dtufc.live.backend import Backend, Predictions
from dtufc.live.compute import Batching, Compute
from dtufc.live.gate import Gate
from dtufc.live.metrics import Metrics
from dtufc.live.refusals import Refusal
from dtufc.live.session import Steps, serve_session

if TYPE_CHECKING:
    from dtufc.live.page.desk import Desk

ONE_BY_ONE = Batching()


def make_app(
    backend: Backend,
    gate: Gate,
    metrics: Metrics,
    desk: "Desk | None" = None,
    batching: Batching = ONE_BY_ONE,
    counted: Callable[[], Awaitable[bytes]] | None = None,
) -> FastAPI:
    """The application. One thread decodes and computes for all clients, in the order in which their
    frames come, so that the loop goes on to listen.

    Args:
        desk: of the page; None serves none.
        counted: what ``/metrics`` gives, for one of several replicas; by default what is counted here.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    compute = Compute(batching)
    steps = compute.queue(Steps(backend, metrics))
    predictions = compute.queue(Predictions(backend, metrics))
    metrics.inside.set_function(lambda: gate.inside)

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> JSONResponse:
        metrics.refusals.labels(refusal.code).inc()
        return JSONResponse(refusal.message(), refusal.kind.status)

    @app.exception_handler(Exception)
    async def confess(request: Request, error: Exception) -> JSONResponse:
        # uvicorn logs the traceback
        return await refuse(request, Refusal("fault", "a fault of the server; its log says more"))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "status": "stopping" if gate.stopping else "ok",
            "kind": backend.facts.kind,
            "codec": backend.codecs[0].id.hex(),
            "inside": gate.inside,
            "most": gate.limits.sessions,
            **backend.told_guard(),
        }

    @app.get("/metrics")
    async def told(request: Request) -> Response:
        gate.check(*credentials(request))
        text = metrics.text() if counted is None else await counted()
        return Response(text, media_type="text/plain; version=0.0.4")

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        with gate.admit(*credentials(request)):
            data = await read_body(request, gate)
            metrics.bytes.labels("in").inc(len(data))
            answer = await predictions.ask((data, dict(request.query_params)))
            metrics.frames.inc()
            metrics.rows.inc()
            return answer | {"bytes": len(data)}

    @app.post("/probe")
    async def probe(request: Request) -> dict[str, int]:
        with gate.admit(*credentials(request)):
            return {"bytes": len(await read_body(request, gate))}

    @app.websocket("/session")
    async def session(socket: WebSocket) -> None:
        try:
            with gate.admit(*credentials(socket)):
                await serve_session(socket, backend, gate, metrics, compute, steps)
        except Refusal as refusal:  # before it was accepted
            metrics.refusals.labels(refusal.code).inc()
            await socket.send_denial_response(JSONResponse(refusal.message(), refusal.kind.status))

    if desk is not None:
        from dtufc.live.page.routes import add_page

        add_page(app, desk, gate, metrics, compute.alone)
    return app


def credentials(client: Request | WebSocket) -> tuple[str | None, str]:
    """What the gate asks for: the header with the token, and the address."""
    return client.headers.get("authorization"), client.client.host if client.client else ""


async def read_body(request: Request, gate: Gate) -> bytes:
    """The body of a request, which is not read further than it may be long.

    Raises:
        Refusal: size or late.
    """
    most, idle = gate.limits.frame_bytes, gate.limits.idle_seconds
    body = bytearray()
    try:
        async with asyncio.timeout(idle):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise Refusal("size", f"more than {most} bytes")
    except TimeoutError as error:
        raise Refusal("late", f"the request was not whole within {idle:g} seconds") from error
    except ClientDisconnect as error:
        raise Refusal("late", "the request was cut off") from error
    return bytes(body)
