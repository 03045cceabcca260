"""Replicas of the live server: they count and stop together, and an update loses no session."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import uvicorn
from test_live import (  # noqa: F401  fixtures among them
    CODEC,
    OPTIONS,
    TOKEN,
    codec,
    coded,
    encoder_of,
    expected,
    ids,
    machine,
    rows,
)

from dtufc.live import replicas, serve
from dtufc.live.client import LiveClient
from dtufc.live.office import SILENT, Office, Series
from dtufc.live.refusals import Refusal
from dtufc.paths import REPOSITORY

FLAGS = ["--machine", "llama3_tiny", "--codec", CODEC, "--options", *OPTIONS]


def config_of(*flags):
    return serve.config.parse(serve.ServeConfig, [*FLAGS, *flags])


def test_an_office_sums_what_its_replicas_count():
    now = [0.0]
    office = Office(lambda: now[0])

    def told(frames, inside, mib):
        return [
            Series("dtufc_live_frames", "counter", "Frames.", [("dtufc_live_frames_total", {}, frames)]),
            Series("dtufc_live_inside", "gauge", "Inside.", [("dtufc_live_inside", {}, inside)]),
            Series("process_mib", "gauge", "Memory.", [("process_mib", {}, mib)]),
        ]  # fmt: skip

    assert office.report("a", 1, told(3.0, 1.0, 10.0)) is False
    office.report("b", 2, told(4.0, 2.0, 20.0))
    text = office.text().decode()
    assert "dtufc_live_frames_total 7.0" in text and "dtufc_live_inside 3.0" in text
    assert 'process_mib{replica="a"} 10.0' in text and "dtufc_live_replicas 2.0" in text
    assert office.inside() == 3
    office.report("a", 1, told(5.0, 0.0, 10.0), gone=True)  # what it counted stays
    text = office.text().decode()
    assert "dtufc_live_frames_total 9.0" in text and "dtufc_live_inside 2.0" in text
    assert 'replica="a"' not in text and office.present() == ["b"]
    office.report("d", 1, told(1.0, 1.0, 30.0), gone=True)
    assert "dtufc_live_frames_total 10.0" in office.text().decode()
    now[0] = SILENT + 1  # one that died says nothing
    assert office.present() == [] and office.inside() == 0
    assert "dtufc_live_frames_total 10.0" in office.text().decode()
    first = office.begin()
    office.open(first)
    office.stop()
    assert office.report("c", first, []) is True
    second = office.begin()
    assert office.current() == first != second  # until its replicas are there
    assert office.report("c", first, []) is False and office.report("e", second, []) is False
    assert (office.ready(first), office.ready(second)) == (1, 1)
    office.open(second)
    assert office.current() == second


class Handle:
    """An office as Ray hands it out: its methods have ``remote``, whose results are awaited."""

    def __init__(self, office):
        self.office = office

    def __getattr__(self, name):
        async def remote(*arguments):
            return getattr(self.office, name)(*arguments)

        return type("Method", (), {"remote": staticmethod(remote)})


def test_replicas_count_and_stop_together(codec, machine, rows, expected):  # noqa: F811
    """The application of a replica, without the cluster around it."""
    office = Office()

    async def play(tell):
        cfg = config_of("--stop_seconds", "600", "--idle_seconds", "600")
        made = [replicas.Replica(cfg, TOKEN, Handle(office), 1, name) for name in "ab"]
        tasks, urls = [], []
        for replica in made:
            listening = socket.create_server(("127.0.0.1", 0))
            urls.append(f"http://127.0.0.1:{listening.getsockname()[1]}")
            app = replica.__serve_build_asgi_app__()
            server = uvicorn.Server(
                uvicorn.Config(app, lifespan="off", log_config=None, ws="websockets-sansio")
            )
            tasks.append((server, asyncio.create_task(server.serve(sockets=[listening]))))
        try:
            await asyncio.to_thread(tell, [LiveClient(url, TOKEN) for url in urls])
        finally:
            for replica in made:
                await replica.close()
            for server, task in tasks:
                server.should_exit = True
                await task

    def tell(clients):
        sessions = [client.open(encoder_of(machine, codec)) for client in clients]
        assert [each.send(rows[0])["id"] for each in sessions] == [expected[0]] * 2
        with pytest.raises(Refusal, match="token: this server asks"):
            LiveClient(clients[0].url, TOKEN + "x").open(encoder_of(machine, codec))
        wait_until(lambda: "dtufc_live_frames_total 2.0" in metrics_of(clients[1].url))
        wait_until(lambda: 'refusals_total{code="token"} 1.0' in metrics_of(clients[1].url))
        text = metrics_of(clients[1].url)
        assert "dtufc_live_inside 2.0" in text and "dtufc_live_replicas 2.0" in text
        assert len(re.findall(r"^process_resident_memory_bytes{", text, re.M)) == 2
        office.stop()
        wait_until(lambda: all(each.health()["status"] == "stopping" for each in clients))
        with pytest.raises(Refusal, match="stopping: the server is about to stop"):
            clients[1].open(encoder_of(machine, codec))
        for session in sessions:
            assert session.send(rows[1])["id"] == expected[1]
            session.close()

    asyncio.run(play(tell))
    assert office.present() == [] and office.inside() == 0


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_what_a_proxy_cannot_hold_is_refused(tmp_path, capsys):
    for flags, line in (
        (["--page", "true"], "page: its inputs stay in one process"),
        (["--port", "0"], "port: expected 1 .. 65535 with --engine ray"),
        (
            ["--frame_bytes", str(1 << 25)],
            "frame_bytes: expected at most 16777216 with --engine ray",
        ),
        (["--certificate", str(tmp_path), "--key", str(tmp_path)], "expected two PEM files"),
        (["--host", "0.0.0.0"], "can be reached by others; give --token_file"),
    ):
        with pytest.raises(SystemExit, match=line):
            serve.main([*FLAGS, "--engine", "ray", *flags])
    for flags, line in (
        (["--address", "auto"], "they go with --engine ray"),
        (
            ["--engine", "ray", "--min_replicas", "3", "--max_replicas", "2"],
            "expected 1 <= min <= max",
        ),
        (["--engine", "ray", "--replica_cpus", "-1"], "replica_cpus, replica_gpus: expected"),
    ):
        with pytest.raises(SystemExit):
            serve.main([*FLAGS, *flags])
        assert line in capsys.readouterr().err


@pytest.fixture
def cluster(monkeypatch):
    """The address of a Ray cluster of one node, alone on this machine."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 4, "object_store_memory": 100 << 20, "include_dashboard": False}
    for left in (
        2,
        1,
        0,
    ):  # Ray gives a node 30 seconds to start, which a busy machine may not keep
        try:
            cluster = Cluster(initialize_head=True, head_node_args=node)
            break
        except Exception:
            if not left:
                raise
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def start(cluster):
    """Flags -> serve.py as a process on the cluster, and a function that waits for a line of it."""
    found = []

    def start(*flags):
        argv = [*FLAGS, "--engine", "ray", "--address", cluster, "--replica_cpus", "0.5", *flags]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[1:])}
        process = subprocess.Popen(
            [sys.executable, "scripts/serve.py", *argv], cwd=REPOSITORY, env=environment,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        found.append((process, threading.Timer(900, process.kill)))
        found[-1][1].start()
        return process

    yield start
    for process, killer in found:
        killer.cancel()
        process.kill()
        process.wait()


@pytest.mark.slow
def test_an_update_loses_no_session(start, machine, codec, rows, expected, tmp_path):  # noqa: F811
    """Two replicas, sessions on both; the server is deployed again, and sessions go on with the tokens
    of the offline codec. Then a stop lets one session end and tells another."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    token = tmp_path / "token"
    token.write_text(TOKEN)
    flags = ["--min_replicas", "2", "--port", str(port), "--token_file", str(token)]
    # starting replicas may take that long
    flags += ["--idle_seconds", "900", "--stop_seconds", "300"]
    first = start(*flags)
    url = first.stdout.readline().split()[-1]
    assert url == f"http://127.0.0.1:{port}"
    client = LiveClient(url, TOKEN)
    with pytest.raises(Refusal, match="token: this server asks"):
        LiveClient(url, TOKEN + "x").open(encoder_of(machine, codec))
    sessions = [client.open(encoder_of(machine, codec)) for _ in range(6)]
    assert [each.send(rows[0])["id"] for each in sessions] == [expected[0]] * 6
    wait_until(lambda: "dtufc_live_replicas 2.0" in metrics_of(url))
    second = start(*flags, "--batch", "4")
    answered = 0
    while second.poll() is None and not is_told(second):  # one token after the other meanwhile
        place = 1 + answered % 4
        if answered < 4:
            assert [each.send(rows[place])["id"] for each in sessions] == [expected[place]] * 6
        answered += 1
        time.sleep(1)
    assert first.wait(300) == 0 and first.stdout.read() == "replaced\n"
    assert "dtufc_live_replicas 4.0" in metrics_of(url)  # two of them take nobody new
    young = client.open(encoder_of(machine, codec))  # on a new replica
    assert young.send(rows[0])["id"] == expected[0]
    for session in sessions:  # those on the old ones go on to their end
        answers = [session.send(each)["id"] for each in rows[1 + min(answered, 4) :]]
        assert answers == expected[1 + min(answered, 4) :]
        session.close()
    assert 'dtufc_live_refusals_total{code="token"}' in metrics_of(url)
    second.send_signal(signal.SIGTERM)
    wait_until(lambda: client.health()["status"] == "stopping")
    assert [young.send(each)["id"] for each in rows[1:3]] == expected[1:3]
    young.close()
    assert second.wait(300) == 0


def metrics_of(url):
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    return urllib.request.urlopen(request, timeout=60).read().decode()


def is_told(process):
    """Whether a process has printed its address."""
    import select

    return bool(select.select([process.stdout], [], [], 0)[0])
