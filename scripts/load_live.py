"""Many sessions at once on one server, with clients that die at random: ``python scripts/load_live.py``.

    python scripts/load_live.py --sessions 16 --seconds 60

Starts ``serve.py`` as a process of its own and holds so many sessions of a language model, one client
each. A client sends the rows of a text and checks each token against the one that the same codec gives
offline. At random it dies: it goes away without a word, in the middle of a message, or with a damaged
frame; then another one comes. Printed are tokens, wrong answers, sessions left at the end, the server's
memory, and the time of a token. ``--output`` writes the same over time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtufc import config
from dtufc.errors import UserError
from dtufc.records import format_table


@dataclass(frozen=True)
class LoadConfig:
    """How many clients, and for how long."""

    machine: str = "llama3_tiny"
    """Machine preset or YAML of a language model."""
    codec: Path | None = None
    """Codec folder, or name of a shipped codec; null: klt_<machine>."""
    options: list[str] = field(default_factory=lambda: ["layer=1"])
    """Flags of the machine's own script, key=value each."""
    sessions: int = 16
    """Sessions at once."""
    seconds: float = 60
    """How long."""
    tokens: int = 48
    """Tokens of a text."""
    deaths: float = 0.01
    """How likely a client dies before a token."""
    seed: int = 0
    """Of the texts and the deaths."""
    batch: int = 1
    """The server's --batch."""
    batch_wait_ms: float = 0
    """The server's --batch_wait_ms."""
    every: float = 10
    """Seconds between two rows of the CSV."""
    output: Path | None = None
    """CSV of the trial over time; null: none."""

    def __post_init__(self):
        if min(self.sessions, self.tokens) < 1 or min(self.seconds, self.every) <= 0:
            raise UserError("sessions, tokens, seconds, every: expected numbers above 0")
        if not 0 <= self.deaths < 1:
            raise UserError(f"deaths: expected 0 or more, below 1, got {self.deaths}")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(LoadConfig, argv, __doc__)
        from benches.live import load

        print(format_table([load(cfg)]))


if __name__ == "__main__":
    main()
