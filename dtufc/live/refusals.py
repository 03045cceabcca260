"""What a server says when it does not go on: a code, a reason in words, and how the wire puts it."""

from typing import Any, NamedTuple

from dtufc.errors import UserError


class Kind(NamedTuple):
    """One sort of refusal."""

    status: int
    """Of HTTP, where no session was opened."""
    close: int
    """Of WebSocket (RFC 6455, 7.4), where one was."""


KINDS = {
    "token": Kind(401, 1008),  # none, or a wrong one
    "full": Kind(503, 1013),  # too many sessions
    "stopping": Kind(503, 1012),  # the server is told to stop
    "header": Kind(400, 1008),  # no header, of another codec, model or cut
    "frame": Kind(400, 1008),  # damaged, forged, or nothing that is asked for here
    "size": Kind(413, 1009),  # beyond a limit of bytes, rows or memory
    "gone": Kind(410, 1008),  # an input of the page that is not kept any more
    "rate": Kind(429, 1008),  # too many too fast
    "late": Kind(408, 1008),  # nothing came for too long
    "fault": Kind(500, 1011),  # a fault of the server
}


class Refusal(UserError):
    """The server does not go on with this client.

    Args:
        code: a key of KINDS.
        reason: in words, one line.
    """

    def __init__(self, code: str, reason: str):
        super().__init__(f"{code}: {reason}")
        self.code, self.reason = code, reason

    @property
    def kind(self) -> Kind:
        return KINDS[self.code]

    def message(self) -> dict[str, Any]:
        """As the client is told, JSON."""
        return {"type": "refusal", "code": self.code, "reason": self.reason}


def of_bytes(error: UserError, code: str) -> Refusal:
    """The refusal for bytes that a codec or a stream does not take."""
    text = str(error)
    return Refusal("size" if text.startswith("too large") else code, text)
