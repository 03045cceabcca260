"""A split model over a socket: what comes back equals the offline result. Hostile clients are refused,
and the others go on."""

import contextlib
import csv
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import serve as serve_websocket

from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.live import ask, gate, link, serve, single
from dtufc.live.app import ONE_BY_ONE
from dtufc.live.backend import Backend, identify, raw_codec
from dtufc.live.client import LiveClient, plain
from dtufc.live.limits import LiveLimits
from dtufc.live.refusals import KINDS, Refusal
from dtufc.live.server import SLACK, LiveServer
from dtufc.live.talk import Talk, Words
from dtufc.machines.llama3.generate import BackHalf, FrontHalf, end_tokens, generate, greedy
from dtufc.machines.opening import open_machine
from dtufc.paths import REPOSITORY
from dtufc.streams import Tensor, open_session

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package

import load_live

CODEC = "klt_llama3_tiny"
OPTIONS = ["layer=1", "device=cpu"]  # two layers with a cache behind the cut
PROMPT = "A picture shows a small red disk"
TOKEN = "a token for tests, 1234"


@pytest.fixture(scope="module")
def machine():
    return open_machine("llama3_tiny", OPTIONS)


@pytest.fixture(scope="module")
def codec():
    return load_codec(CODEC).warm_up()


@pytest.fixture(scope="module")
def backend(machine, codec):
    backend = Backend(machine, codec, LiveLimits())
    backend.warm_up()
    return backend


@contextmanager
def serving(backend, token=None, batching=ONE_BY_ONE, **limits):
    """A server in a thread -> (server, client); it must stop by itself, with nobody inside."""
    backend = Backend(backend.machine, backend.codecs[0], replace(backend.limits, **limits))
    server = LiveServer(backend, token=token, batching=batching)
    thread = server.start()
    try:
        yield server, LiveClient(server.url, token)
    finally:
        server.gate.stop()
        thread.join(20)
    assert not thread.is_alive() and not server.gate.inside


@pytest.fixture(scope="module")
def ids(machine):
    return machine.tokenizer(PROMPT).input_ids


@pytest.fixture(scope="module")
def rows(machine, ids):
    """The prompt's rows, and those of the tokens 5, 6, .. behind it."""
    front = FrontHalf(machine)
    return [front.step(ids), *(front.step([token]) for token in range(5, 15))]


@pytest.fixture(scope="module")
def expected(machine, codec, rows):
    """The token behind each of the rows, offline, with the codec between the halves."""
    answer = coded(machine, codec)
    return [answer(each) for each in rows]


def coded(machine, codec):
    """Rows -> the next token, with one bitstream (version 1) per step between the halves."""
    answer = greedy(BackHalf(machine))
    return lambda rows: answer(codec.decode(codec.encode(rows[None, None]))[0, 0])


def encoder_of(machine, codec, **changed):
    tensor = Tensor(codec, machine.options.facts.kind)
    return open_session({"hidden": tensor}, **{**identify(machine), **changed})


def test_a_lossless_session_gives_what_the_uncut_model_generates(backend, machine, ids):
    whole = AutoModelForCausalLM.from_pretrained(machine.folder, dtype=torch.float32).eval()
    made = whole.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)
    lossless = raw_codec(machine.options.facts).at_quality(24)
    with serving(backend) as (_, client):
        session = client.open(encoder_of(machine, lossless))
        text = generate(
            FrontHalf(machine), ids, lambda rows: session.send(rows)["id"], 64, end_tokens(machine)
        )
        assert list(text) == made[0, len(ids) :].tolist()
        end = session.close()
    assert end["tokens"] == made.shape[1] - len(ids)


def test_ask_gives_what_the_codec_gives_offline(backend, machine, codec, ids, capsys):
    offline = generate(FrontHalf(machine), ids, coded(machine, codec), 64, end_tokens(machine))
    asked = list(offline)
    with serving(backend) as (server, client):
        argv = ["--server", server.url, "--machine", "llama3_tiny", "--prompt", PROMPT]
        ask.main([*argv, "--options", *OPTIONS])
        assert client.health()["inside"] == 0
        counted = server.metrics.text().decode()
    out = capsys.readouterr().out
    words, told = out.rstrip().rsplit("\n", 1)
    assert words.rstrip("\n") == machine.tokenizer.decode(asked, skip_special_tokens=True)
    assert told.startswith(f"{len(asked)} tokens, ") and "ms per token" in told
    assert f"dtufc_live_frames_total {len(asked)}.0" in counted
    assert f"dtufc_live_rows_total {len(ids) + len(asked) - 1}.0" in counted
    assert "dtufc_live_sessions_total 1.0" in counted


def test_sessions_at_once_do_not_mix(backend, machine, codec, rows, expected):
    with serving(backend) as (_, client):
        sessions = [client.open(encoder_of(machine, codec)) for _ in range(3)]
        answers = [[session.send(each)["id"] for session in sessions] for each in rows]
        assert answers == [[token] * 3 for token in expected]
        for session in sessions:
            session.close()


def test_a_terminal_is_not_told_what_to_do():
    assert plain("a\x1b[2Jü\n\tb\r\x07") == "a[2Jü\n\tb"


def test_words_wait_for_whole_characters():
    pieces = [
        b"a",
        "ü".encode()[:1],
        "ü".encode()[1:],
        b"",
        "€".encode()[:2],
        "€".encode()[2:],
    ]
    words = Words(lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace"))
    assert [words.add(i) for i in range(len(pieces))] == ["a", "", "ü", "", "", "€"]


# Hostile clients. Each test has an honest session open before, and ends it after.


@pytest.fixture
def honest(backend, machine, codec, rows, expected):
    """(server, client), with a session beside that must go on undisturbed."""

    @contextmanager
    def around(**limits):
        with serving(backend, **limits) as (server, client):
            session = client.open(encoder_of(machine, codec))
            assert session.send(rows[0])["id"] == expected[0]
            yield server, client
            assert [session.send(each)["id"] for each in rows[1:4]] == expected[1:4]
            session.close()

    return around


def talk_raw(server, *messages):
    """Send messages as they are -> all answers, and the close code."""
    answers = []
    url = server.url.replace("http", "ws") + "/session"
    with connect(url, compression=None, proxy=None, close_timeout=0.5) as wire:
        try:
            for message in messages:
                wire.send(message)
            while True:
                answers.append(json.loads(wire.recv(10)))
        except ConnectionClosed as closed:
            while True:  # what came before the connection broke
                try:
                    answers.append(json.loads(wire.recv(0)))
                except (ConnectionClosed, TimeoutError):
                    return answers, closed.rcvd.code if closed.rcvd else None


def refused(server, code, text, *messages):
    """The last answer is a refusal of this code whose reason holds the text."""
    answers, close = talk_raw(server, *messages)
    assert answers[-1]["type"] == "refusal", answers
    assert (answers[-1]["code"], close) == (code, KINDS[code].close), answers
    assert text in answers[-1]["reason"]


def test_foreign_headers_are_refused(honest, machine, codec):
    other = load_codec("klt_sd3_tiny")
    sound = encoder_of(machine, codec)
    header = sound.start()
    damaged = bytearray(header)
    damaged[9] ^= 1
    with honest() as (server, client):
        refused(server, "header", "foreign", b"GET / HTTP/1.1")
        refused(server, "header", "foreign", pickle.dumps({"a": 1}))
        refused(server, "header", "checksum", bytes(damaged))
        refused(server, "header", "whole and alone", header[:-1])
        refused(server, "header", "whole and alone", b"")
        refused(server, "header", "here is", open_session({"hidden": other}).start())
        refused(server, "frame", "binary", "text")
        for key in ("model", "tokenizer", "split"):
            with pytest.raises(Refusal, match=f"header: {key}: 'another' there"):
                client.open(encoder_of(machine, codec, **{key: "another"}))


def test_forged_frames_are_refused(honest, machine, codec, rows):
    encoder = encoder_of(machine, codec)
    header = encoder.start()
    first, second, third = (encoder.append({"hidden": each}) for each in rows[:3])
    rng = np.random.default_rng(0)
    with honest() as (server, _):
        refused(server, "frame", "whole frame", header, first[:-1])
        refused(server, "frame", "whole frame", header, b"")
        refused(server, "frame", "check", header, first, first)  # a replay
        refused(server, "frame", "check", header, first, third)  # one is missing
        for _ in range(10):
            damaged = bytearray(second)
            damaged[rng.integers(len(second))] ^= 1 << rng.integers(8)
            answers, _ = talk_raw(server, header, first, bytes(damaged))
            assert answers[-1]["type"] == "refusal" and answers[-1]["code"] in ("frame", "size")
        assert "dtufc_live_refusals_total" in server.metrics.text().decode()


def test_oversized_frames_are_refused(honest, machine, codec, rows):
    header = encoder_of(machine, codec).start()
    large = np.zeros((65, 128), np.float32)

    def many(count):
        encoder = encoder_of(machine, codec)
        encoder.start()
        return [encoder.append({"hidden": large[:64]}) for _ in range(count)]

    encoder = encoder_of(machine, codec)
    encoder.start()
    limits = {"frame_bytes": 4096, "frame_rows": 64, "session_mib": 1}
    with honest(**limits) as (server, client):
        refused(server, "size", "4097 bytes, 4096 at most", header, bytes(4097))
        answers, close = talk_raw(server, header, bytes(4096 + SLACK + 1))
        assert close == 1009 and all(each["type"] != "token" for each in answers)
        refused(server, "size", "rows", header, encoder.append({"hidden": large}))
        most = Backend(machine, codec, LiveLimits(**limits)).most_tokens
        assert most == 512
        refused(server, "size", "rows", header, *many(9))  # 576 tokens
        with pytest.raises(Refusal, match="size: more than 4096 bytes"):
            client.predict(bytes(5000), identify(machine))


def test_a_cache_has_an_end(backend, machine, codec):
    per_token = 2 * 2 * 2 * 32 * 4  # keys and values, layers, heads, width, float32
    long = replace(backend.limits, session_mib=1)
    machine = open_machine("llama3_tiny", OPTIONS)
    machine.config.max_position_embeddings = 1 << 20
    assert Backend(machine, codec, long).most_tokens == (1 << 20) // per_token
    machine.config.head_dim = 1 << 20
    with pytest.raises(UserError, match="session_mib: 1 MiB hold no token"):
        Backend(machine, codec, long)


def test_fast_clients_are_refused(backend, machine, codec, rows, expected):
    encoder = encoder_of(machine, codec)
    messages = [encoder.start(), *(encoder.append({"hidden": rows[1]}) for _ in range(2))]
    with (
        serving(backend, frames_per_second=0.01) as (server, client),  # one at once
        client.open(encoder_of(machine, codec)) as session,
    ):
        refused(server, "rate", "more than 0.01 frames per second", *messages)
        assert session.send(rows[0])["id"] == expected[0]


def test_late_clients_are_refused(backend, machine, codec, rows):
    encoder = encoder_of(machine, codec)
    messages = [encoder.start(), encoder.append({"hidden": rows[1]})]
    with serving(backend, idle_seconds=1) as (server, client):
        for count in range(3):
            refused(server, "late", "no frame came within 1 seconds", *messages[:count])
        with socket.create_connection((client.host, client.port), 20) as wire:
            wire.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nslow")
            assert b" 408 " in wire.recv(100)
        with socket.create_connection((client.host, client.port), 20) as wire:
            wire.sendall(b"GET /health HT")  # a request that never comes
            with contextlib.suppress(ConnectionResetError):
                assert wire.recv(100) == b""
    with serving(backend, session_seconds=1) as (server, _):
        refused(server, "late", "the session lasted 1 seconds", *messages)


def test_a_fault_is_one_clients_alone(honest, machine, codec, rows, monkeypatch):
    with honest() as (server, client):
        stranger = client.open(encoder_of(machine, codec))

        def fail(self, feature):
            raise RuntimeError("as if")

        with monkeypatch.context() as patch:
            patch.setattr(Talk, "step", fail)
            with pytest.raises(Refusal, match="fault: a fault of the server"):
                stranger.send(rows[0])
            with pytest.raises(Refusal, match="fault: a fault of the server"):
                client.predict(codec.encode(rows[0][None, None]), identify(machine))
        assert 'refusals_total{code="fault"} 2.0' in server.metrics.text().decode()


def test_too_many_are_refused(backend, machine, codec):
    with serving(backend, sessions=2) as (_, client):
        with client.open(encoder_of(machine, codec)), client.open(encoder_of(machine, codec)):
            with pytest.raises(Refusal, match="full: 2 sessions are open"):
                client.open(encoder_of(machine, codec))
            with pytest.raises(Refusal, match="full"):
                client.predict(b"", {})
        wait_for(lambda: client.health()["inside"] == 0)
        client.open(encoder_of(machine, codec)).close()
    with serving(backend, requests_per_second=0.01) as (_, client):
        client.open(encoder_of(machine, codec)).close()
        with pytest.raises(
            Refusal, match=r"rate: more than 0\.01 sessions and requests per second"
        ):
            client.open(encoder_of(machine, codec))


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_clients_that_die_leave_nothing(honest, machine, codec, rows):
    with honest() as (_, client):
        for number in range(6):
            session = client.open(encoder_of(machine, codec))
            if number % 2:
                session.send(rows[0])
            session._wire.socket.shutdown(socket.SHUT_RDWR)  # no close frame
        wait_for(lambda: client.health()["inside"] == 1)


def test_a_token_is_asked_for(backend, machine, codec, tmp_path):
    with serving(backend, token=TOKEN) as (server, client):
        client.open(encoder_of(machine, codec)).close()
        assert LiveClient(server.url).health()["status"] == "ok"
        for wrong in (None, TOKEN[:-1], TOKEN + "x", "ünknown"):
            stranger = LiveClient(server.url, wrong and wrong.encode().decode("latin-1"))
            with pytest.raises(Refusal, match="token: this server asks for a token"):
                stranger.open(encoder_of(machine, codec))
            with pytest.raises(Refusal, match="token: this server asks for a token"):
                stranger.predict(b"", {})
            with pytest.raises(Refusal, match="token: this server asks for a token"):
                stranger._request("GET", "/metrics", None)
        request = urllib.request.Request(
            f"{server.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        assert (
            b'dtufc_live_refusals_total{code="token"} 12.0'
            in urllib.request.urlopen(request).read()
        )
    path = tmp_path / "token"
    path.write_text(f" {TOKEN}\n")
    assert gate.read_token(path) == TOKEN
    path.write_text("short")
    with pytest.raises(UserError, match="at least 16 ASCII characters"):
        gate.read_token(path)
    with pytest.raises(UserError, match=r"0\.0\.0\.0 can be reached by others; give --token_file"):
        LiveServer(backend, host="0.0.0.0")


SOUND = {"type": "token", "id": 5, "text": "", "bytes": 1, "wait_ms": 0, "decode_ms": 0}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("no JSON", "a message that is no JSON"),
        ("[]", r"expected a message token, got \[\]"),
        (json.dumps(SOUND), "expected a token, got"),
        (json.dumps(SOUND | {"compute_ms": 0, "id": "5"}), "expected a token, got"),
        (json.dumps({"type": "refusal", "code": [], "reason": "\x1b[2J"}), "fault: "),
    ],
)
def test_a_server_is_not_trusted_either(machine, codec, rows, answer, message):
    def play(wire):
        wire.recv()
        wire.send('{"type": "agreed"}')
        wire.recv()
        wire.send(answer)

    with serve_websocket(play, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        with (
            LiveClient(f"http://127.0.0.1:{port}").open(encoder_of(machine, codec)) as session,
            pytest.raises(UserError, match=message),
        ):
            session.send(rows[0])


def test_pace():
    now = [0.0]
    pace = gate.Pace(2, lambda: now[0])
    assert [pace.keeps() for _ in range(3)] == [True, True, False]
    now[0] = 0.5
    assert [pace.keeps() for _ in range(2)] == [True, False]
    now[0] = 100
    assert [pace.keeps() for _ in range(3)] == [True, True, False]


def test_a_stop_lets_sessions_end_or_tells_them(backend, machine, codec, rows, expected):
    with serving(backend, stop_seconds=5) as (server, client):
        ends = client.open(encoder_of(machine, codec))
        stays = client.open(encoder_of(machine, codec))
        server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(Refusal, match="stopping: the server is about to stop"):
            client.open(encoder_of(machine, codec))
        assert client.health()["status"] == "stopping"
        assert ends.send(rows[0])["id"] == expected[0]
        ends.close()
        wait_for(lambda: not server.gate.inside)
        with pytest.raises(
            Refusal, match="stopping: the server stops, and the session did not end"
        ):
            stays.send(rows[0])


# Single requests.


ASKED = {"resnet50_tiny": "--picture", "dinov2_tiny": "--picture", "sd3_tiny": "--caption"}


@pytest.mark.parametrize("preset", ["dinov2_tiny_cls", "dinov2_tiny_dpt"])
def test_other_tasks_of_dinov2_are_served(preset, tmp_path, capsys):
    machine, codec = open_machine(preset, ["device=cpu"]), load_codec(f"klt_{preset}")
    picture, output = tmp_path / "picture.png", tmp_path / "answer.png"
    source = machine.samples("test")[3].source
    Image.fromarray(source.rgb(120, 120) if preset == "dinov2_tiny_cls" else source.rgb()).save(
        picture
    )
    sample, _ = single.sample_for_front(machine, picture, None)
    data = codec.encode(machine.extract(sample))
    offline = machine.predict(sample, codec.decode(data))
    with serving(Backend(machine, codec, LiveLimits())) as (server, _):
        argv = ["--server", server.url, "--machine", preset, "--options", "device=cpu"]
        ask.main([*argv, "--picture", str(picture), "--output", str(output)])
    if preset == "dinov2_tiny_cls":
        assert capsys.readouterr().out.startswith(f"{offline}\n{len(data)} bytes; front")
    else:
        assert np.array_equal(np.asarray(Image.open(output)), machine.picture_of(offline))


@pytest.mark.parametrize("preset", ASKED)
def test_single_requests_give_what_the_codec_gives_offline(preset, tmp_path, capsys):
    options = ["device=cpu", *(["steps=2"] if preset == "sd3_tiny" else [])]
    machine, codec = open_machine(preset, options), load_codec(f"klt_{preset}")
    picture, caption, output = None, None, tmp_path / "answer.png"
    if preset == "sd3_tiny":
        caption = "a red disk"
    else:
        picture = tmp_path / "picture.png"
        sizes = (112, 112) if preset == "resnet50_tiny" else ()
        Image.fromarray(machine.samples("test")[3].source.rgb(*sizes)).save(picture)
    sample, _ = single.sample_for_front(machine, picture, caption)
    feature = machine.extract(sample)
    data = codec.encode(feature)
    offline = machine.predict(sample, codec.decode(data))
    with serving(Backend(machine, codec, LiveLimits(points=1 << 18))) as (server, client):
        argv = ["--server", server.url, "--machine", preset, "--options", *options]
        ask.main([*argv, ASKED[preset], str(picture or caption), "--output", str(output)])
        if preset == "resnet50_tiny":
            assert capsys.readouterr().out.startswith(f"{offline}\n{len(data)} bytes; front")
        else:
            assert np.array_equal(np.asarray(Image.open(output)), offline)
        told = identify(machine) | {"height": "100", "width": "100"}
        with pytest.raises(Refusal, match="frame: corrupted"):
            client.predict(data[:-1] + bytes([data[-1] ^ 1]), told)
        with pytest.raises(Refusal, match="header: written by codec"):
            foreign = load_codec(CODEC)
            client.predict(foreign.encode(np.zeros((1, 1, 4, 128), np.float32)), told)
        with pytest.raises(Refusal, match=r"header: split: 'another' there"):
            client.predict(data, told | {"split": "another"})
        if preset == "dinov2_tiny":
            with pytest.raises(Refusal, match="size: a picture of 9999 x 9999 pixels"):
                client.predict(data, told | {"height": "9999", "width": "9999"})
            with pytest.raises(
                Refusal, match="frame: height, width: expected the picture's pixels"
            ):
                client.predict(data, identify(machine))
            with pytest.raises(Refusal, match="frame: request: 1 crops, the picture has"):
                one = codec.encode(feature[:1])
                client.predict(one, told | {"height": "100", "width": "140"})
        with pytest.raises(Refusal, match=r"header: .* has no sessions; POST /predict"):
            client.open(open_session({"rows": codec}))


def test_a_language_model_answers_single_requests_too(backend, machine, codec, rows, expected):
    with serving(backend) as (_, client):
        answer = client.predict(codec.encode(rows[0][None, None]), identify(machine))
        assert answer["id"] == expected[0]
        with pytest.raises(Refusal, match="size"):
            client.predict(codec.encode(np.zeros((1, 1, 600, 128), np.float32)), identify(machine))


# The link.


class FakeCodec:
    """Bytes by quality."""

    quality, qualities = 0, [-2, -1, 0, 1, 2, 3]

    def __init__(self, quality=0):
        self.quality = quality

    def at_quality(self, quality):
        return FakeCodec(quality)


def test_the_link_picks_the_quality(monkeypatch):
    def trial(codec, rows, facts):
        if isinstance(codec, FakeCodec):  # 25 .. 800 bytes
            return link.Trial(100 * 2.0**codec.quality - link.BESIDE, 0.001)
        return link.Trial(1000 - link.BESIDE, 0)

    monkeypatch.setattr(link, "try_codec", trial)
    raw, codec, rows = object(), FakeCodec(), [None]

    def chosen(bandwidth, budget, least=None):
        choice = link.choose(codec, raw, rows, None, bandwidth, budget, least)
        return "raw" if choice.raw else choice.codec.quality

    assert chosen(1e9, 1) == "raw"  # 0.008 ms against 1 ms
    assert chosen(7.3e6, 1) == "raw"  # 1.096 against 1.110
    assert chosen(7e6, 0.0012) == 0  # 1.143 against 1.114; quality 1 takes 1.229
    assert chosen(1e6, 0.0030) == 1
    assert chosen(1e6, 1) == 3  # 7.4 ms, and raw 8
    assert chosen(1e5, 0.0001) == 0  # too slow for its budget; its own quality all the same
    assert chosen(1e5, 0.0051, least=-2) == -1
    assert chosen(1e5, 0.0001, least=-2) == -2
    with pytest.raises(UserError, match="min_quality: 4 is above the codec's highest, 3"):
        chosen(1e5, 1, least=4)


def test_bandwidths():
    assert link.parse_bandwidth("2Mbit") == 2e6
    assert link.parse_bandwidth("0.5kbit") == 500
    assert link.parse_bandwidth("auto") is None
    for wrong in ("2MB", "fast", "0Mbit", "-1Mbit", ""):
        with pytest.raises(UserError, match="bandwidth: expected bits per second"):
            link.parse_bandwidth(wrong)


def test_ask_says_how_it_codes(backend, machine, capsys):
    with serving(backend, frame_bytes=1 << 17) as (server, client):  # the last probes are too large
        assert 1e6 < client.bandwidth() < 1e12
        argv = [
            "--server",
            server.url,
            "--machine",
            "llama3_tiny",
            "--prompt",
            PROMPT,
            "--tokens",
            "3",
        ]
        argv += ["--options", *OPTIONS, "--bandwidth"]
        ask.main([*argv, "100Gbit"])
        assert "link 1e+05 Mbit/s: raw bfloat16 is faster" in capsys.readouterr().out
        ask.main([*argv, "1kbit", "--min_quality", "-3", "--row_ms", "1"])
        assert "link 0.001 Mbit/s: quality -3, " in capsys.readouterr().out
        ask.main([*argv, "auto"])
        assert "Mbit/s: " in capsys.readouterr().out


# The commands.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "prompt, picture, caption: expected one of them"),
        (["--prompt", "a", "--caption", "b"], "prompt, picture, caption: expected one of them"),
        (["--prompt", "a", "--tokens", "0"], "tokens: expected at least 1"),
        (["--prompt", "a", "--raw", "true", "--quality", "1"], "raw, quality, bandwidth"),
        (["--prompt", "a", "--bandwidth", "fast"], "bandwidth: expected bits per second"),
        (["--prompt", "a", "--row_ms", "3"], "they go with --bandwidth"),
    ],
)
def test_ask_refuses_flags(flags, message, capsys):
    with pytest.raises(SystemExit):
        ask.main(["--server", "http://127.0.0.1:1", "--machine", "llama3_tiny", *flags])
    assert message in capsys.readouterr().err


def test_errors_are_one_line(machine, capsys, tmp_path):
    argv = ["--machine", "llama3_tiny", "--prompt", "a", "--server"]
    for server, line in (("host:1", "expected http://host"), ("http://127.0.0.1:1", "not reached")):
        with pytest.raises(SystemExit, match=line):
            ask.main([*argv, server])
    with pytest.raises(SystemExit, match="llama3_tiny: takes --prompt"):
        ask.main(["--machine", "llama3_tiny", "--caption", "a", "--server", "http://127.0.0.1:1"])
    argv = ["--machine", "llama3_tiny", "--codec", CODEC]
    with pytest.raises(SystemExit, match="can be reached by others"):
        serve.main([*argv, "--host", "0.0.0.0"])
    for flags in (["--port", "70000"], ["--key", "a.pem"], ["--idle_seconds", "0"]):
        with pytest.raises(SystemExit):
            serve.main([*argv, *flags])
        assert "expected" in (text := capsys.readouterr().err) or "go together" in text
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(SystemExit, match=r"port: 127\.0\.0\.1:\d+ cannot be listened at \(Address"),
    ):
        serve.main([*argv, "--port", str(taken.getsockname()[1])])
    with pytest.raises(FileNotFoundError, match=r"none\.pem: no such file of certificates"):
        LiveClient("https://127.0.0.1:1", authority=tmp_path / "none.pem")
    with pytest.raises(SystemExit, match=r"codec: knows .* the machine's features are"):
        serve.main(["--machine", "llama3_tiny", "--codec", "klt_sd3_tiny"])
    with pytest.raises(UserError, match=r"options: expected key=value, got '--layer'"):
        open_machine("llama3_tiny", ["--layer"])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, for a certificate")
def test_two_processes_with_tls_and_a_stop(machine, codec, rows, expected, tmp_path):
    """serve.py as a process: TLS, a token, and SIGTERM while a session is under way."""
    pem, key, token = (tmp_path / name for name in ("cert.pem", "key.pem", "token"))
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
            "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(pem)]  # fmt: skip
    subprocess.run(made, check=True, capture_output=True)
    token.write_text(TOKEN)
    argv = ["--machine", "llama3_tiny", "--codec", CODEC, "--port", "0", "--options", *OPTIONS]
    argv += ["--token_file", str(token), "--certificate", str(pem), "--key", str(key)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[1:])}
    server = subprocess.Popen(
        [sys.executable, "scripts/serve.py", *argv], cwd=REPOSITORY, env=environment,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    killer = threading.Timer(180, server.kill)
    killer.start()
    try:
        url = server.stdout.readline().split()[-1]
        assert url.startswith("https://127.0.0.1:")
        client = LiveClient(url, TOKEN, pem)
        with pytest.raises(OSError, match=r"not reached .*certificate"):
            LiveClient(url, TOKEN).health()
        session = client.open(encoder_of(machine, codec))
        assert session.send(rows[0])["id"] == expected[0]
        server.send_signal(signal.SIGTERM)
        wait_for(lambda: client.health()["status"] == "stopping")
        assert [session.send(each)["id"] for each in rows[1:]] == expected[1:]
        session.close()
        assert server.stdout.readline() == "stopped\n"
        assert server.wait(30) == 0
    finally:
        killer.cancel()
        server.kill()
        server.wait()


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
def test_load_with_clients_that_die(batch, capsys, tmp_path):
    path = tmp_path / "load.csv"
    argv = ["--sessions", "6", "--seconds", "8", "--deaths", "0.05", "--tokens", "20"]
    load_live.main([*argv, "--every", "2", "--batch", str(batch), "--output", str(path)])
    names, _, values = (line.split() for line in capsys.readouterr().out.splitlines())
    row = dict(zip(names, map(float, values), strict=True))
    assert row["died"] > 2 and row["ended"] > 2
    assert row["wrong"] == row["lost"] == row["left"] == 0
    moments = list(csv.DictReader(path.open()))
    assert len(moments) > 3 and float(moments[-2]["inside"]) > 0
    assert [float(moments[-1][key]) for key in ("inside", "wrong", "lost")] == [0, 0, 0]
    assert float(moments[-1]["tokens"]) == row["tokens"]
    assert (row["mean_batch"] > 1.2) == (batch > 1)
