"""The wire at the client's side: sessions, single requests, and how fast the link is."""

import contextlib
import http.client
import json
import os
import ssl
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

from dtufc.errors import UserError
from dtufc.live.refusals import KINDS, Refusal
from dtufc.streams import StreamEncoder
from dtufc.tensors import Values

TIMEOUT = 60.0
"""Seconds that an answer may take."""
ANSWER_BYTES = 1 << 16
"""Largest message of a session that is taken."""
PREDICTION_BYTES = 1 << 28
"""Largest answer to a request that is taken."""
PROBES = (1 << 10, 1 << 16, 1 << 18, 1 << 20)
"""Bytes sent to measure the link, a few times each, until they take long enough to tell."""
PROBE_SECONDS = 0.05
PROBE_REPEATS = 3
TELLABLE = 0.2
"""Of the time of an empty request: what two measured times must differ by to tell anything."""


class LiveClient:
    """One server.

    Args:
        url: ``http://host:port``, or ``https://`` with TLS.
        token: that the server asks for.
        authority: PEM file of the certificates that are trusted; the system's by default.

    Raises:
        FileNotFoundError, UserError: the URL is none, or the file holds no certificates.
    """

    def __init__(self, url: str, token: str | None = None, authority: Path | None = None):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"server: expected http://host:port or https://host:port, got {url!r}")
        self.url, self.host = url, parts.hostname
        self.secure = parts.scheme == "https"
        self.port = parts.port or (443 if self.secure else 80)
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._tls = None
        if self.secure:
            if authority is not None and not authority.is_file():
                raise FileNotFoundError(f"{authority}: no such file of certificates")
            try:
                self._tls = ssl.create_default_context(cafile=authority)
            except ssl.SSLError as error:
                raise UserError(f"{authority}: no PEM file of certificates ({error})") from error

    def health(self) -> dict[str, Any]:
        """What the server says of itself."""
        return self._request("GET", "/health", None)

    def predict(self, data: bytes, told: dict[str, str]) -> dict[str, Any]:
        """A bitstream (version 1) -> the answer.

        Args:
            told: what the back half must know beside it.

        Raises:
            Refusal: what the server said.
            OSError, UserError: it could not be reached, or its answer is none.
        """
        return self._request("POST", f"/predict?{urlencode(told)}", data)

    def open(self, encoder: StreamEncoder) -> "LiveSession":
        """Open a session with the encoder's header.

        Raises:
            Refusal: what the server said.
            OSError: it could not be reached.
        """
        return LiveSession(self, encoder)

    def bandwidth(self) -> float:
        """Bits per second from here to there, measured.

        The time of an empty request is taken off that of a large one; each is the best of a few. Of a
        link that carries the largest in next to no time, a bound from below.
        """
        empty = self._probe(0)
        sent, took = 0, empty
        for size in PROBES:
            try:
                seconds = self._probe(size) - empty
            except Refusal as refusal:
                if refusal.code != "size" or not sent:
                    raise
                break  # the server takes no more at once
            sent, took = size, seconds
            if took > PROBE_SECONDS:
                break
        return 8 * sent / max(took, TELLABLE * empty)

    def _probe(self, size: int) -> float:
        """Seconds of a request with so many bytes that do not compress."""
        data, best = os.urandom(size), float("inf")
        for _ in range(PROBE_REPEATS):
            start = time.perf_counter()
            self._request("POST", "/probe", data)
            best = min(best, time.perf_counter() - start)
            if best > PROBE_SECONDS * 10:  # a slow link is not measured twice
                break
        return best

    def _request(self, method: str, path: str, data: bytes | None) -> dict[str, Any]:
        if self._tls:
            wire = http.client.HTTPSConnection(
                self.host, self.port, timeout=TIMEOUT, context=self._tls
            )
        else:
            wire = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
        try:
            # a server that refuses need not read all; its answer says why
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                wire.request(method, path, data, self.headers)
            answer = wire.getresponse()
            return read_answer(answer.status, answer.read(PREDICTION_BYTES))
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(self.url, error) from error
        finally:
            wire.close()


def unreachable(url: str, error: Exception) -> OSError:
    """The error of a server that does not answer."""
    return OSError(f"{url}: not reached ({str(error) or type(error).__name__})")


def read_answer(status: int, body: bytes) -> dict[str, Any]:
    """An HTTP answer -> its JSON.

    Raises:
        Refusal: it is one.
        UserError: it is none of such a server.
    """
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise UserError(f"server: status {status} and no JSON; is it one of serve.py?") from error
    raise_refusal(answer)
    if status != 200 or not isinstance(answer, dict):
        raise UserError(f"server: status {status}: {str(answer)[:200]}")
    return answer


def plain(text: str) -> str:
    """What a terminal may be shown of a text from elsewhere: no control characters but line breaks."""
    return "".join(each for each in text if each.isprintable() or each in "\n\t")


def raise_refusal(answer: Any) -> None:
    """Raise the refusal that an answer is, if it is one."""
    if isinstance(answer, dict) and answer.get("type") == "refusal":
        code = answer.get("code")
        known = isinstance(code, str) and code in KINDS
        raise Refusal(code if known else "fault", plain(str(answer.get("reason")))[:500])


class LiveSession:
    """A session of a language model: rows there, a token back."""

    def __init__(self, client: LiveClient, encoder: StreamEncoder):
        self._encoder = encoder
        (self._name,) = encoder.rows
        scheme = "wss" if client.secure else "ws"
        host = f"[{client.host}]" if ":" in client.host else client.host
        try:
            self._wire = connect(
                f"{scheme}://{host}:{client.port}/session",
                ssl=client._tls,
                additional_headers=client.headers,
                compression=None,
                max_size=ANSWER_BYTES,
                open_timeout=TIMEOUT,
                close_timeout=1,
                proxy=None,
            )
        except InvalidStatus as error:
            read_answer(error.response.status_code, error.response.body or b"")
            raise unreachable(client.url, error) from error
        except (OSError, InvalidHandshake) as error:
            raise unreachable(client.url, error) from error
        header = encoder.start()
        self.header_bytes = len(header)
        try:
            self.agreed = self._exchange(header, "agreed")
        except BaseException:
            self._wire.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._wire.close()

    def send(self, rows: Values) -> dict[str, Any]:
        """The next rows, (T, C) -> the server's message: ``id``, ``text``, ``bytes``; in ``*_ms`` the
        time that it waited, decoded and computed; ``encode_ms`` and ``wire_ms`` are from here.

        Raises:
            Refusal, OSError: as :meth:`LiveClient.open`.
        """
        start = time.perf_counter()
        frame = self._encoder.append({self._name: rows})
        middle = time.perf_counter()
        answer = self._exchange(frame, "token")
        spent = [answer.get(f"{part}_ms") for part in ("wait", "decode", "compute")]
        told = type(answer.get("id")) is int and isinstance(answer.get("text"), str)
        if not told or not all(
            isinstance(each, int | float) for each in (*spent, answer.get("bytes"))
        ):
            raise UserError(f"server: expected a token, got {str(answer)[:200]}")
        there = sum(spent)
        away = 1000 * (time.perf_counter() - middle)
        return answer | {"encode_ms": 1000 * (middle - start), "wire_ms": max(0.0, away - there)}

    def close(self) -> dict[str, Any]:
        """End the session -> the server's totals."""
        end = self._exchange(self._encoder.close(), "end")
        self._wire.close()
        return end

    def _exchange(self, data: bytes, expected: str) -> dict[str, Any]:
        try:
            self._wire.send(data)
            answer = json.loads(self._wire.recv(TIMEOUT))
        except (ConnectionClosed, TimeoutError) as error:
            raise self._last_word(error) from error
        except ValueError as error:
            raise UserError("server: a message that is no JSON") from error
        raise_refusal(answer)
        if not isinstance(answer, dict) or answer.get("type") != expected:
            raise UserError(f"server: expected a message {expected}, got {str(answer)[:200]}")
        return answer

    def _last_word(self, error: Exception) -> Exception:
        """What the server said before it closed; a refusal may lie behind answers that were not read."""
        try:
            while True:
                raise_refusal(json.loads(self._wire.recv(0)))
        except Refusal as refusal:
            return refusal
        except (ConnectionClosed, TimeoutError, ValueError):
            pass
        close = getattr(error, "rcvd", None)
        if close is not None and close.code == 1009:
            return Refusal("size", close.reason or "the message is too large")
        return OSError(f"session: the connection broke ({str(error) or 'no answer in time'})")
