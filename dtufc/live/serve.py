"""The back half of a machine behind a socket: ``python serve.py --machine llama3_tiny --codec DIR``.

Answers sessions of language models and single requests of the others, see ``docs/guide/live.md``.
SIGTERM and Ctrl+C let what is under way end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dtufc import config
from dtufc.errors import UserError
from dtufc.live.compute import Batching
from dtufc.live.limits import LiveLimits

if TYPE_CHECKING:
    from dtufc.live.backend import Backend


@dataclass(frozen=True, kw_only=True)
class ServeConfig(LiveLimits):
    """What is served, to whom, and how much of it."""

    machine: str
    """Machine preset or YAML."""
    codec: Path
    """Codec folder, or name of a shipped codec. Raw bfloat16 is taken too."""
    options: list[str] = field(default_factory=list)
    """Flags of the machine's own script, key=value each: layer=1 device=cuda."""
    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs --token_file."""
    port: int = 8700
    """Port; 0 takes a free one."""
    token_file: Path | None = None
    """File with the token that clients must have."""
    certificate: Path | None = None
    """PEM file of the TLS certificate; needs --key."""
    key: Path | None = None
    """PEM file of its private key."""
    batch: int = 1
    """Steps of sessions, or posted features, that go through the back half together, at most."""
    batch_wait_ms: float = 0
    """How long one of them may wait for others to come; what comes while the back half is busy is taken
    together anyway."""
    max_kl: float | None = None
    """Tell clients to keep the KL divergence from the uncut language model at or below this, in nats per
    token, by the codec's own curve; see kl_curve.py."""
    engine: Literal["uvicorn", "ray"] = "uvicorn"
    """uvicorn: one process. ray: replicas on a cluster, with Ray Serve."""
    address: str | None = None
    """With --engine ray: the cluster's address, or auto; null starts one on this machine."""
    min_replicas: int = 1
    """With --engine ray: replicas that are always there."""
    max_replicas: int | None = None
    """With --engine ray: replicas at most; null: min_replicas, so that none is added."""
    sessions_per_replica: float = 16
    """With --engine ray: sessions and requests per replica at which another one is started."""
    replica_cpus: float = 1
    """With --engine ray: CPUs that a replica reserves."""
    replica_gpus: float = 0
    """With --engine ray: GPUs that a replica reserves."""
    page: bool = False
    """Show a page at / where inputs are tried in a browser; it needs the front half here too, its memory
    and its time."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"port: expected 0 .. 65535, got {self.port}")
        if self.max_kl is not None and not 0 < self.max_kl < math.inf:
            raise UserError(f"max_kl: expected a number above 0, got {self.max_kl}")
        if not 1 <= self.min_replicas <= self.most_replicas:
            raise UserError(
                f"min_replicas, max_replicas: expected 1 <= min <= max, got {self.min_replicas} and "
                f"{self.most_replicas}"
            )
        if self.sessions_per_replica <= 0:
            raise UserError("sessions_per_replica: expected a number above 0")
        if min(self.replica_cpus, self.replica_gpus) < 0:
            raise UserError("replica_cpus, replica_gpus: expected 0 or more")
        if self.engine == "uvicorn" and (self.address is not None or self.most_replicas > 1):
            raise UserError("address, min_replicas, max_replicas: they go with --engine ray")
        _ = self.batching  # raises where it is none
        if (self.certificate is None) != (self.key is None):
            raise UserError("certificate: --certificate and --key go together")

    @property
    def most_replicas(self) -> int:
        """Replicas at most."""
        return self.min_replicas if self.max_replicas is None else self.max_replicas

    @property
    def batching(self) -> Batching:
        return Batching(self.batch, self.batch_wait_ms / 1000)


def serve(cfg: ServeConfig) -> None:
    """Serve until told to stop.

    Raises:
        FileNotFoundError, OSError, UserError: machine, codec, token, certificate or port are missing or
            do not fit together.
    """
    from dtufc.live.gate import read_token
    from dtufc.live.server import LiveServer, check_exposure

    token = read_token(cfg.token_file)
    check_exposure(cfg.host, token)
    if cfg.engine == "ray":
        from dtufc.live.replicas import serve_replicas

        return serve_replicas(cfg, token)
    backend = load_backend(cfg)
    desk = None
    if cfg.page:
        from dtufc.live.page.desk import Desk

        desk = Desk(backend)
        desk.warm_up()
    server = LiveServer(
        backend, cfg.host, cfg.port, token, cfg.certificate, cfg.key, desk, cfg.batching
    )
    if cfg.batch > 1:
        print(backend.tell_batches(cfg.batch))
    what = f"{backend.facts.kind}, codec {backend.codecs[0].id.hex()[:8]} or raw"
    print(f"{what}, at {server.url}", flush=True)
    server.listen()
    print("stopped", flush=True)


def load_backend(cfg: ServeConfig) -> "Backend":
    """The back half with its codecs, ready for the first client.

    Raises:
        FileNotFoundError, UserError: as :func:`serve`.
    """
    from dtufc.codec import load_codec
    from dtufc.live.backend import Backend
    from dtufc.live.guard import Guard
    from dtufc.machines.opening import open_machine

    codec = load_codec(cfg.codec)
    guard = None if cfg.max_kl is None else Guard.of_codec(codec, cfg.codec, cfg.max_kl)
    backend = Backend(open_machine(cfg.machine, cfg.options), codec, cfg, guard)
    backend.warm_up()
    if cfg.batch > 1 and backend.language:
        _ = backend.alone  # the machine is tried now, not at the first batch
    return backend


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        serve(config.parse(ServeConfig, argv, __doc__))


if __name__ == "__main__":
    main()
