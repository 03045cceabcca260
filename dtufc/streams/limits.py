"""What a receiver accepts of a stream, whoever wrote it."""

from dataclasses import dataclass

from dtufc.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What goes beyond is refused with ``BitstreamError`` before memory is taken for it.

    Raises:
        UserError: a limit below 1.
    """

    header_bytes: int = 1 << 20
    """The session's description, inflated."""
    tensors: int = 1024
    """Tensors of a session."""
    name_bytes: int = 255
    """A tensor's name, and a sample's key, in UTF-8."""
    frame_bytes: int = 1 << 26
    """Payloads of one frame."""
    frame_rows: int = 1 << 20
    """Rows of one tensor in one frame."""
    frame_points: int = 1 << 26
    """Feature points of one tensor in one frame: 256 MiB as float32."""
    session_bytes: int | None = None
    """All bytes of a session; null: no end."""
    session_rows: int | None = None
    """All rows of a session, of all its tensors; null: no end."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise UserError(f"limits: {name}: expected at least 1, got {value}")
