"""Replicas of the back half on a cluster: ``serve.py --engine ray``, with Ray Serve.

    client ── HTTP, WebSocket ── Ray's proxy ── replica: the application of app.py, its own gate
                                                  └── office: counts of all, and when to stop

A session is one WebSocket, and stays on the replica that accepted it. Ray asks a replica to go by
sending it nobody new; its sessions go on until they end, ``session_seconds`` at most.
"""

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from dtufc import extras
from dtufc.errors import UserError
from dtufc.live.app import make_app
from dtufc.live.gate import Gate
from dtufc.live.metrics import Metrics
from dtufc.live.office import Office, read_series
from dtufc.live.serve import ServeConfig, load_backend
from dtufc.live.server import KEEP_ALIVE

APP = "dtufc_live"
"""Name of the application on the cluster, and of its office."""
PERIOD = 1.0
"""Seconds between a replica's reports."""
SPARE = 64
"""Requests that a replica takes beyond its sessions: health, metrics, and those that it refuses."""
FAREWELL = 30.0
"""Seconds that a replica may take to end when its last session is over."""
PROXY_BYTES = 1 << 24
"""Largest WebSocket message that Ray's proxy lets through, which is uvicorn's default."""
STORE_BYTES = 100 << 20
"""Object store of a cluster that is started here; the server keeps nothing in it."""
ANSWERING = 120.0
"""Seconds until the proxies answer."""
logger = logging.getLogger(__name__)


class Replica:
    """One back half, within an actor of Ray Serve.

    Args:
        office: handle of the actor that keeps an :class:`dtufc.live.office.Office`.
        edition: the office's number of this deployment.
        name: of this replica, unique in the cluster.
    """

    def __init__(
        self,
        cfg: ServeConfig,
        token: str | None,
        office: Any,
        edition: int,
        name: str | None = None,
    ):
        self.cfg, self.office, self.edition = cfg, office, edition
        self.name = name or serve_name()
        self.gate, self.metrics = Gate(cfg, token), Metrics()
        self.backend = load_backend(cfg)
        self._watch = asyncio.get_running_loop().create_task(self._keep_watch())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, as Ray Serve asks for it."""
        return make_app(
            self.backend, self.gate, self.metrics, batching=self.cfg.batching, counted=self.counted
        )

    async def counted(self) -> bytes:
        """The sums of all replicas."""
        await self._report()
        return await self.office.text.remote()

    async def _report(self, gone: bool = False) -> None:
        series = [tuple(each) for each in read_series(self.metrics.registry)]
        if await self.office.report.remote(self.name, self.edition, series, gone):
            self.gate.stop()

    async def _keep_watch(self) -> None:
        """Report, and stop when told to: those inside may end, and are sent away in the end."""
        while True:
            try:
                await self._report()
            except Exception:  # the office moves with the head node; sessions go on meanwhile
                logger.warning("the office of the replicas was not reached", exc_info=True)
            if self.gate.expired:
                self.gate.send_away()
            await asyncio.sleep(PERIOD)

    async def close(self) -> None:
        """The last report."""
        self._watch.cancel()
        with contextlib.suppress(Exception):
            await self._report(gone=True)


class Deployed(Replica):
    """A replica as Ray Serve ends it: behind its last session."""

    async def __del__(self):
        await self.close()


def serve_name() -> str:
    """This replica's name on the cluster."""
    from ray import serve

    return serve.get_replica_context().replica_tag


def check(cfg: ServeConfig) -> None:
    """Refuse what Ray's proxy cannot hold.

    Raises:
        UserError: the flag, and what to do instead.
    """
    if cfg.page:
        raise UserError("page: its inputs stay in one process; it needs --engine uvicorn")
    if not cfg.port:
        raise UserError("port: expected 1 .. 65535 with --engine ray, the same on every node")
    if cfg.frame_bytes > PROXY_BYTES:
        raise UserError(
            f"frame_bytes: expected at most {PROXY_BYTES} with --engine ray, whose proxy cuts off "
            f"longer messages; got {cfg.frame_bytes}"
        )
    if cfg.certificate is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                cfg.certificate, cfg.key
            )
        except (OSError, ssl.SSLError) as error:
            raise UserError(
                f"certificate: {cfg.certificate}, key: {cfg.key}: expected two PEM files that belong "
                f"together ({error})"
            ) from error


def deployment(cfg: ServeConfig, token: str | None, office: Any, edition: int) -> Any:
    """The application, as Ray Serve runs it."""
    from ray import serve

    many = {"num_replicas": cfg.min_replicas}
    if cfg.most_replicas > cfg.min_replicas:
        many = {
            "autoscaling_config": {
                "min_replicas": cfg.min_replicas,
                "max_replicas": cfg.most_replicas,
                "target_ongoing_requests": cfg.sessions_per_replica,
            }
        }
    made = serve.deployment(
        serve.ingress()(Deployed),
        name="back_half",
        **many,
        ray_actor_options={"num_cpus": cfg.replica_cpus, "num_gpus": cfg.replica_gpus},
        max_ongoing_requests=cfg.sessions + SPARE,
        graceful_shutdown_timeout_s=cfg.session_seconds + FAREWELL,
        graceful_shutdown_wait_loop_s=PERIOD,
        max_surge_percent=100,  # new replicas are there before the old ones let go
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    return made.bind(cfg, token, office, edition)


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster that this process is connected to."""

    ray: Any
    own: bool
    """Whether it was started here, and ends with this process."""

    def office(self) -> Any:
        """Handle of the office, which is made where there is none."""
        actor = self.ray.remote(Office)
        return actor.options(name=APP, lifetime="detached", get_if_exists=True, num_cpus=0).remote()

    def close(self) -> None:
        """Leave it."""
        if self.own:
            from ray import serve

            serve.shutdown()
        self.ray.shutdown()


def connect(address: str | None) -> Cluster:
    """Connect to a cluster, or start one on this machine.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = extras.load("ray")
    told = {"namespace": APP, "log_to_driver": False, "logging_level": logging.WARNING}
    if address is None:
        ray.init(include_dashboard=False, object_store_memory=STORE_BYTES, **told)
        return Cluster(ray, True)
    try:
        ray.init(address=address, **told)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"address: no Ray cluster at {address} ({error})") from error
    return Cluster(ray, False)


def serve_replicas(cfg: ServeConfig, token: str | None) -> None:
    """Deploy, or update what is deployed, and stay until told to stop or replaced by a later deployment.

    Raises:
        UserError: as :func:`check` and :func:`connect`; or the replicas cannot start.
    """
    check(cfg)
    cluster = connect(cfg.address)
    stopped = threading.Event()

    def ask_to_stop(*_: Any) -> None:
        if stopped.is_set():  # a second signal ends it at once
            raise KeyboardInterrupt
        stopped.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, ask_to_stop)
    try:
        _serve(resolve(cfg), token, cluster, stopped)
    finally:
        cluster.close()


def resolve(cfg: ServeConfig) -> ServeConfig:
    """With paths that are the same in every process of the cluster's file system."""
    from dataclasses import replace

    from dtufc.shipped import codec_folder

    folder = codec_folder(cfg.codec)
    codec = folder.resolve() if folder == Path(cfg.codec) else cfg.codec  # a shipped one has a name
    is_file = Path(cfg.machine).suffix in (".yaml", ".yml")
    machine = str(Path(cfg.machine).resolve()) if is_file else cfg.machine
    return replace(cfg, codec=codec, machine=machine)


def _serve(cfg: ServeConfig, token: str | None, cluster: Cluster, stopped: threading.Event) -> None:
    from ray import serve
    from ray.serve import RunTarget

    certificate, key = (path and str(path.resolve()) for path in (cfg.certificate, cfg.key))
    serve.start(
        proxy_location="EveryNode",
        http_options={
            "host": cfg.host,
            "port": cfg.port,
            "keep_alive_timeout_s": KEEP_ALIVE,
            "ssl_certfile": certificate,
            "ssl_keyfile": key,
        },
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    office = cluster.office()
    edition = cluster.ray.get(office.begin.remote())
    target = RunTarget(deployment(cfg, token, office, edition), name=APP, route_prefix="/")
    # Ray itself would wait until the sessions of former replicas have ended, too
    serve.run_many([target], wait_for_applications_running=False)
    while cluster.ray.get(office.ready.remote(edition)) < cfg.min_replicas:
        found = serve.status().applications[APP]
        if found.status == "DEPLOY_FAILED":
            raise UserError(f"the replicas do not start: {found.message}")
        if stopped.wait(PERIOD):
            break
    cluster.ray.get(office.open.remote(edition))
    url = wait_for_proxy(cfg, stopped)
    most = f" .. {cfg.most_replicas}" if cfg.most_replicas > cfg.min_replicas else ""
    print(f"{cfg.machine}, {cfg.min_replicas}{most} replicas, at {url}", flush=True)
    while not stopped.wait(PERIOD):
        if cluster.ray.get(office.current.remote()) != edition:
            print("replaced", flush=True)
            return
    cluster.ray.get(office.stop.remote())
    until = time.monotonic() + cfg.stop_seconds + 5 * PERIOD
    time.sleep(3 * PERIOD)  # until all replicas have heard of it
    while cluster.ray.get(office.inside.remote()) and time.monotonic() < until:
        time.sleep(PERIOD)
    serve.delete(APP)
    print("stopped", flush=True)


def wait_for_proxy(cfg: ServeConfig, stopped: threading.Event) -> str:
    """The proxy's URL, once it answers.

    Raises:
        UserError: it does not; a cluster's proxies keep the address that they were first started with.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(cfg.host, cfg.host)
    scheme = "https" if cfg.certificate else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{cfg.port}"
    unchecked = ssl.create_default_context() if cfg.certificate else None
    if unchecked is not None:  # it is our own, and may be for another name than this machine's
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    end = time.monotonic() + ANSWERING
    while not stopped.wait(0.2):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=30, context=unchecked):
                return url
        except OSError:
            if time.monotonic() > end:
                raise UserError(
                    f"port: nothing answers at {url}; Ray Serve that already runs keeps the host, port "
                    "and certificate that it was started with"
                ) from None
    return url
