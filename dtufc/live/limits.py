"""What a server takes of its clients, all of them together and each."""

from dataclasses import dataclass

from dtufc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LiveLimits:
    """What goes beyond is refused, and the others go on.

    Raises:
        UserError: a limit that is not above 0.
    """

    sessions: int = 64
    """Sessions and requests at once."""
    frame_bytes: int = 1 << 20
    """Bytes of a frame, or of a bitstream that is posted."""
    frame_rows: int = 4096
    """Tokens of a frame."""
    points: int = 1 << 24
    """Feature points of a bitstream that is posted. A picture may have a quarter as many pixels."""
    frames_per_second: float = 200
    """Frames of a session; as many may come at once."""
    requests_per_second: float = 100
    """Sessions and requests that an address opens; as many may come at once."""
    idle_seconds: float = 60
    """How long a session may wait for its next frame, and a request until it is whole."""
    session_seconds: float = 3600
    """How long a session may last."""
    session_mib: int = 256
    """Memory of a session's KV cache, MiB."""
    stop_seconds: float = 30
    """How long sessions go on when the server is told to stop."""

    def __post_init__(self):
        for name in LiveLimits.__dataclass_fields__:
            if getattr(self, name) <= 0:
                raise UserError(f"{name}: expected a number above 0, got {getattr(self, name)}")

    @property
    def pixels(self) -> int:
        """Pixels of a picture whose mask is asked for."""
        return self.points // 4
