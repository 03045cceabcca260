"""What ``load_live.py`` does. No script of its own."""

import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from dtufc import provenance
from dtufc.codec import Codec, load_codec
from dtufc.live.backend import identify
from dtufc.machines.llama3.generate import BackHalf, FrontHalf, greedy
from dtufc.machines.opening import open_machine
from dtufc.paths import REPOSITORY
from dtufc.records import write_rows
from dtufc.streams import Tensor, open_session

TEXTS = 8
"""Texts that are told apart by their rows and tokens."""
PROMPTS = ("A picture shows", "The small red disk", "Which colour", "Two large stars")


@dataclass(frozen=True)
class Script:
    """What a client sends, and what it must get: one text."""

    messages: list[bytes]
    """Header, frames, end."""
    tokens: list[int]
    """Behind each frame."""


@dataclass
class Tally:
    """What the clients saw."""

    tokens: int = 0
    wrong: int = 0
    """Answers that are not the offline ones."""
    died: int = 0
    ended: int = 0
    refused: int = 0
    """Damaged frames that were refused."""
    lost: int = 0
    """Sound sessions that broke."""


@dataclass(frozen=True)
class LoadRow:
    """The whole trial."""

    sessions: int
    seconds: float
    batch: int
    """Steps that are computed together, at most."""
    ended: int
    died: int
    tokens: int
    wrong: int
    lost: int
    left: int
    """Sessions that the server still counts when all clients are gone."""
    tokens_per_s: float
    median_ms: float
    p99_ms: float
    mean_batch: float
    """Steps that were computed together, in the mean."""
    mib_early: float
    """The server's memory after a fifth of the time."""
    mib_late: float
    """Its memory at the end."""


@dataclass(frozen=True)
class Moment:
    """The trial so far: a row of the CSV. The last one is behind the last client."""

    second: float
    inside: int
    """Sessions and requests that the server counts."""
    ended: int
    died: int
    refused: int
    tokens: int
    wrong: int
    lost: int
    batch: float
    """Mean number of steps that were computed together."""
    mib: float
    """The server's resident memory."""


def load(cfg: Any) -> LoadRow:
    """Run the trial, and write it to the CSV while it goes."""
    codec = load_codec(cfg.codec or f"klt_{cfg.machine}").warm_up()
    scripts = list(write_scripts(cfg, codec))
    with serving(cfg) as url:
        watch = Watch(cfg, url)
        times = asyncio.run(crowd(cfg, url, scripts, watch))
        time.sleep(1)
        watch.look()
    tally, last = watch.tally, watch.moments[-1]
    early = watch.moments[len(watch.moments) // 5].mib
    low, high = np.percentile(times, [50, 99])
    return LoadRow(
        cfg.sessions, cfg.seconds, cfg.batch, tally.ended, tally.died, tally.tokens, tally.wrong,
        tally.lost, last.inside, tally.tokens / cfg.seconds, 1000 * low, 1000 * high, last.batch, early,
        last.mib,
    )  # fmt: skip


class Watch:
    """What is seen of a trial, from time to time."""

    def __init__(self, cfg: Any, url: str):
        self.cfg, self.url, self.tally = cfg, url, Tally()
        self.moments: list[Moment] = []
        self._start = time.monotonic()
        self._computer = provenance.computer(provenance.environment())

    def look(self) -> None:
        """One more moment, which the CSV has at once."""
        text = urllib.request.urlopen(f"{self.url}/metrics").read().decode()

        def value(name: str) -> float:
            found = re.search(rf"^{name} (\S+)", text, re.M)
            return float(found[1]) if found else 0.0

        steps = value('dtufc_live_batch_count{of="steps"}')
        tally = self.tally
        self.moments.append(
            Moment(
                round(time.monotonic() - self._start, 1), int(value("dtufc_live_inside")), tally.ended,
                tally.died, tally.refused, tally.tokens, tally.wrong, tally.lost,
                round(value('dtufc_live_batch_sum{of="steps"}') / max(1.0, steps), 3),
                round(value("process_resident_memory_bytes") / 2**20, 1),
            )
        )  # fmt: skip
        if self.cfg.output is not None:
            write_rows(self.cfg.output, self.moments, self._computer)


def write_scripts(cfg: Any, codec: Codec) -> Iterator[Script]:
    """The texts: what is sent, and the tokens that come offline."""
    machine: Any = open_machine(cfg.machine, cfg.options)
    rng = random.Random(cfg.seed)
    for number in range(TEXTS):
        front, answer = FrontHalf(machine), greedy(BackHalf(machine))
        tensor = Tensor(codec, machine.options.facts.kind)
        encoder = open_session({"hidden": tensor}, **identify(machine))
        messages, tokens = [encoder.start()], []
        ids = machine.tokenizer(PROMPTS[number % len(PROMPTS)]).input_ids
        for _ in range(cfg.tokens):
            rows = front.step(ids)
            messages.append(encoder.append({"hidden": rows}))
            tokens.append(answer(codec.decode(codec.encode(rows[None, None]))[0, 0]))
            # mostly what the model says, so that the text goes on however it would end
            ids = [rng.randrange(2, 300) if rng.random() < 0.3 else tokens[-1]]
        yield Script([*messages, encoder.close()], tokens)


@contextmanager
def serving(cfg: Any) -> Iterator[str]:
    """The server as a process -> its URL."""
    argv = [sys.executable, "scripts/serve.py", "--machine", cfg.machine, "--port", "0"]
    argv += ["--codec", str(cfg.codec or f"klt_{cfg.machine}"), "--options", *cfg.options]
    argv += ["--requests_per_second", "1000", "--sessions", str(cfg.sessions)]
    argv += ["--batch", str(cfg.batch), "--batch_wait_ms", str(cfg.batch_wait_ms)]
    server = subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        yield next(word for line in server.stdout for word in line.split() if "://" in word)
        server.send_signal(signal.SIGTERM)
        if server.wait(60):
            raise RuntimeError(f"the server ended with status {server.returncode}")
    finally:
        server.kill()


async def crowd(cfg: Any, url: str, scripts: list[Script], watch: Watch) -> list[float]:
    """All clients -> the seconds of each token."""
    times: list[float] = []
    end = time.monotonic() + cfg.seconds

    async def look() -> None:
        while time.monotonic() < end:
            await asyncio.to_thread(watch.look)
            await asyncio.sleep(min(cfg.every, max(0.0, end - time.monotonic())))

    clients = [client(cfg, url, scripts, n, end, watch.tally, times) for n in range(cfg.sessions)]
    await asyncio.gather(look(), *clients)
    return times


async def client(
    cfg: Any, url: str, scripts: list[Script], number: int, end: float, tally: Tally,
    times: list[float],
) -> None:  # fmt: skip
    """One client after the other, until the time is over."""
    rng = random.Random(f"{cfg.seed} {number}")
    address = url.replace("http", "ws", 1) + "/session"
    while time.monotonic() < end:
        try:
            wire = await connect(address, compression=None, close_timeout=1, proxy=None)
        except Exception:  # the one that died before is still counted
            await asyncio.sleep(0.1)
            continue
        try:
            if not await one_session(cfg, wire, rng.choice(scripts), rng, tally, times):
                tally.died += 1
        except Exception:  # whatever it was, a sound session did not come to its end
            tally.lost += 1
        finally:
            await wire.close()


async def one_session(
    cfg: Any, wire: ClientConnection, script: Script, rng: random.Random, tally: Tally,
    times: list[float],
) -> bool:  # fmt: skip
    """Hold a session -> whether it came to its end; otherwise the client died, as it was to."""
    await wire.send(script.messages[0])
    if json.loads(await wire.recv())["type"] != "agreed":
        raise RuntimeError("not agreed")
    for message, token in zip(script.messages[1:], script.tokens, strict=False):
        if rng.random() < cfg.deaths:
            await die(wire, message, rng, tally)
            return False
        start = time.perf_counter()
        await wire.send(message)
        answer = json.loads(await wire.recv())
        times.append(time.perf_counter() - start)
        tally.tokens += 1
        tally.wrong += answer["type"] != "token" or answer["id"] != token
    await wire.send(script.messages[-1])
    if json.loads(await wire.recv())["type"] != "end":
        raise RuntimeError("no end")
    tally.ended += 1
    return True


async def die(wire: ClientConnection, message: bytes, rng: random.Random, tally: Tally) -> None:
    """Go away at once, while an answer is computed, in the middle of a message, or damaged."""
    way = rng.choice(("at once", "unheard", "in the middle", "damaged"))
    if way == "unheard":
        await wire.send(message)
    if way == "in the middle":
        wire.transport.write(bytes([0x82, 0x80 | 100]) + bytes(30))  # of 100 bytes, masked by 0
        await asyncio.sleep(0)
    if way == "damaged":
        await wire.send(message[:-1] + bytes([message[-1] ^ 1]))
        answer = json.loads(await wire.recv())
        tally.refused += answer["type"] == "refusal"
        tally.wrong += answer["type"] != "refusal"
        return
    wire.transport.abort()
