"""The page's routes.

    GET  /                                  the page; its style and script below /page/
    GET  /page/facts                        the machine, the codec's rates, samples
    POST /page/input?sample=N               a sample, or what is posted -> through the front half
    POST /page/code?input=NAME&step=N       that input at a position of the slider

The first line asks for no token: the page's files say nothing of the server. The others hold to the gate
as ``/predict`` does.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response

from dtufc.live.gate import Gate
from dtufc.live.metrics import Metrics
from dtufc.live.page.desk import Desk
from dtufc.live.refusals import Refusal

STATIC = Path(__file__).parent / "static"
FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/drawing.js": ("drawing.js", "text/javascript"),
}
HEADERS = {
    # nothing from elsewhere is loaded or run, and no other page may frame this one
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(
    app: FastAPI,
    desk: Desk,
    gate: Gate,
    metrics: Metrics,
    run: Callable[..., Awaitable[Any]],
) -> None:
    """Add the routes.

    Args:
        run: a function and its arguments -> its result, in the thread that computes.
    """
    from dtufc.live.app import credentials, read_body

    def serve_file(path: str, name: str, kind: str) -> None:
        content = (STATIC / name).read_bytes()

        async def give(request: Request) -> Response:
            gate.keep_pace(credentials(request)[1])
            return Response(content, media_type=kind, headers=HEADERS)

        app.get(path)(give)

    for path, (name, kind) in FILES.items():
        serve_file(path, name, kind)

    @app.get("/page/facts")
    async def facts(request: Request) -> dict[str, Any]:
        with gate.admit(*credentials(request)):
            return await run(desk.facts)

    @app.post("/page/input")
    async def take(request: Request) -> dict[str, Any]:
        with gate.admit(*credentials(request)):
            data = await read_body(request, gate)
            metrics.bytes.labels("in").inc(len(data))
            sample = request.query_params.get("sample")
            number = None if sample is None else read_whole("sample", sample)
            return await run(desk.take, number, data)

    @app.post("/page/code")
    async def code(request: Request) -> dict[str, Any]:
        with gate.admit(*credentials(request)):
            await read_body(request, gate)
            asked = request.query_params
            step = read_whole("step", asked.get("step", ""))
            return await run(desk.code, asked.get("input", ""), step)


def read_whole(key: str, text: str) -> int:
    """A whole number of a query.

    Raises:
        Refusal: frame.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise Refusal("frame", f"{key}: expected a whole number, got {text[:80]!r}")
    return int(text)
