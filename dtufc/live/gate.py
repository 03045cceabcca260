"""Who is let in: the token, how many at once, how fast, and none once the server is to stop."""

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dtufc.errors import UserError
from dtufc.live.limits import LiveLimits
from dtufc.live.refusals import Refusal

ADDRESSES = 4096
"""Addresses whose pace is kept; the one that came longest ago is forgotten first."""
TOKEN_LENGTH = 16
"""Characters that a token has at least."""


def read_token(path: Path | None) -> str | None:
    """The token of a file, without white space around it.

    Raises:
        FileNotFoundError: no such file.
        UserError: it is too short, or none that a header can hold.
    """
    if path is None:
        return None
    token = path.read_text().strip()
    if len(token) < TOKEN_LENGTH or not token.isascii() or not token.isprintable():
        raise UserError(f"{path}: expected a token of at least {TOKEN_LENGTH} ASCII characters")
    return token


class Pace:
    """So many per second, and as many at once (a token bucket)."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic):
        self.rate, self._most, self._clock = rate, max(1.0, rate), clock
        self._left, self._last = self._most, clock()

    def keeps(self) -> bool:
        """Count one more -> whether it comes in time."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._last) * self.rate)
        self._last = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Gate:
    """Lets clients in and counts them."""

    def __init__(self, limits: LiveLimits, token: str | None = None):
        self.limits = limits
        self._token = None if token is None else _digest(token)
        self._inside: set[asyncio.Task] = set()
        self._paces: OrderedDict[str, Pace] = OrderedDict()
        self._stops_at: float | None = None
        self._sent_away = False

    @property
    def inside(self) -> int:
        """Sessions and requests under way."""
        return len(self._inside)

    @property
    def stopping(self) -> bool:
        """Whether no more are let in."""
        return self._stops_at is not None

    @property
    def expired(self) -> bool:
        """Whether those inside had their time to end."""
        return self._stops_at is not None and time.monotonic() > self._stops_at

    def stop(self) -> None:
        """Let nobody in any more; those inside have ``stop_seconds`` to end."""
        if self._stops_at is None:
            self._stops_at = time.monotonic() + self.limits.stop_seconds

    def send_away(self) -> None:
        """Interrupt those that are still inside, once: they may say so to their clients."""
        for task in () if self._sent_away else self._inside:
            task.cancel()
        self._sent_away = True

    def keep_pace(self, address: str) -> None:
        """Refuse who asks too fast.

        Raises:
            Refusal: rate.
        """
        if not self._pace(address).keeps():
            most = self.limits.requests_per_second
            raise Refusal("rate", f"more than {most:g} sessions and requests per second")

    def check(self, authorization: str | None, address: str) -> None:
        """Refuse who asks too fast, or does not know the token; the comparison takes the same time for
        all.

        Args:
            authorization: the header of that name, ``Bearer TOKEN``.

        Raises:
            Refusal: rate or token.
        """
        self.keep_pace(address)
        if self._token is None:
            return
        scheme, _, told = (authorization or "").partition(" ")
        if not hmac.compare_digest(_digest(told.strip()), self._token) or scheme != "Bearer":
            raise Refusal("token", "this server asks for a token, and this is none or another")

    @contextmanager
    def admit(self, authorization: str | None, address: str) -> Iterator[None]:
        """Around all that is done for a client, within its task.

        Raises:
            Refusal: as :meth:`check`; stopping or full.
        """
        self.check(authorization, address)
        if self.stopping:
            raise Refusal("stopping", "the server is about to stop")
        if self.inside >= self.limits.sessions:
            raise Refusal("full", f"{self.limits.sessions} sessions are open; try again later")
        task = asyncio.current_task()
        self._inside.add(task)
        try:
            yield
        finally:
            self._inside.discard(task)

    def _pace(self, address: str) -> Pace:
        pace = self._paces.pop(address, None) or Pace(self.limits.requests_per_second)
        self._paces[address] = pace
        if len(self._paces) > ADDRESSES:
            self._paces.popitem(last=False)
        return pace


def _digest(token: str) -> bytes:
    """Of one length whatever the token's is."""
    return hashlib.sha256(token.encode()).digest()
