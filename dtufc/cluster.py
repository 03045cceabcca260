"""Connecting to Ray, which lends the machines of a cluster.

Ray comes with the extra ``ray``. It is imported here and in the engines that are asked for by
``--engine ray``; whoever stays on one machine never loads it.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from types import ModuleType

from dtufc import extras
from dtufc.errors import UserError

USAGE_STATS = "RAY_USAGE_STATS_ENABLED"
"""Environment variable of Ray. Without it, a local Ray would report its use to its makers."""
STORE_BYTES = 256 << 20
"""Object store of a local Ray. What travels through Ray here are commands and counts; features and
results lie in files."""
REACHABLE = 20
"""Seconds in which the head of a cluster must answer; Ray itself would try for minutes."""


@contextlib.contextmanager
def connect(address: str) -> Iterator[ModuleType]:
    """The module ``ray``, connected to a cluster while the block runs.

    A program that is connected already stays so, whatever the address.

    Args:
        address: ``auto``, the cluster that this machine belongs to or ``RAY_ADDRESS`` names;
            ``host:port``; or ``ray://host:port``. Empty starts a Ray on this machine alone, which ends
            with the block.

    Raises:
        UserError: Ray is not installed, or there is no cluster of its version at the address.
    """
    os.environ.setdefault(USAGE_STATS, "0")
    ray = extras.load("ray")
    if ray.is_initialized():
        yield ray
        return
    _check_reachable(address)
    options = {"logging_level": logging.WARNING}
    if not address:
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"address: no cluster of Ray at {address!r} ({reason})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse a host and port where nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # Ray finds it by itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHABLE).close()
    except OSError as error:
        raise UserError(f"address: no cluster of Ray at {address!r} ({error})") from error


def losses(ray: ModuleType) -> tuple[type[Exception], ...]:
    """What Ray raises where a worker, an actor or a node was lost, and not the work at fault."""
    errors = ray.exceptions
    return (
        errors.WorkerCrashedError, errors.NodeDiedError, errors.LocalRayletDiedError,
        errors.OutOfMemoryError, errors.ObjectLostError, errors.RayActorError,
    )  # fmt: skip
