"""Bounds on the KL divergence: of the client and of the server, whatever the link asks for."""

import shutil
from dataclasses import asdict

import pytest
from test_live import (  # noqa: F401  fixtures among them
    CODEC,
    OPTIONS,
    PROMPT,
    FakeCodec,
    encoder_of,
    machine,
)

from dtufc import files
from dtufc.codec import codec_digest, load_codec
from dtufc.errors import UserError
from dtufc.kl_curve import FILE, KlCurve, Point
from dtufc.live import ask, link, serve
from dtufc.live.backend import Backend
from dtufc.live.client import LiveClient
from dtufc.live.guard import Guard
from dtufc.live.limits import LiveLimits
from dtufc.live.server import LiveServer
from dtufc.shipped import codec_folder

CURVE = KlCurve("llama3_tiny", 3, [Point(float(q), 1.0 + q, 10.0**-q) for q in range(6)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped codec, with a curve of 10^-quality nats per token."""
    folder = tmp_path_factory.mktemp("codec") / "klt"
    shutil.copytree(codec_folder(CODEC), folder)
    files.write_json(folder / FILE, {"codec": codec_digest(folder)} | asdict(CURVE))
    return folder


@pytest.fixture(scope="module")
def argv(folder):
    """Of ask.py, but for the server."""
    flags = [
        "--machine",
        "llama3_tiny",
        "--prompt",
        PROMPT,
        "--tokens",
        "2",
        "--codec",
        str(folder),
    ]
    return [*flags, "--options", *OPTIONS]


@pytest.fixture(scope="module")
def url(machine, folder):  # noqa: F811
    """Of a server without a bound."""
    server = LiveServer(Backend(machine, load_codec(folder), LiveLimits()))
    thread = server.start()
    yield server.url
    server.gate.stop()
    thread.join(30)


def asked(url, argv, *flags):
    """Ask -> the choice that was made."""
    text = ask.ask(ask.config.parse(ask.AskConfig, ["--server", url, *argv, *flags]))
    return text.choice


def test_a_bound_picks_the_quality(url, argv, capsys):
    """The codec's own quality, unless the bound asks for more."""
    own = load_codec(CODEC).quality
    choice = asked(url, argv, "--max_kl", str(2 * 10.0**-own))
    assert (choice.codec.quality, choice.why) == (own, "")
    choice = asked(url, argv, "--max_kl", "1e-4")
    assert choice.codec.quality == pytest.approx(4.0, abs=0.01)
    assert CURVE.kl_at(choice.codec.quality) <= 1e-4 * (1 + 1e-9)
    assert (
        choice.why.endswith("max_kl 0.0001 allows no less")
        and choice.why in capsys.readouterr().out
    )
    choice = asked(url, argv, "--target_kl", "0.01")
    assert choice.codec.quality == pytest.approx(2.0, abs=0.01) and choice.why == ""


def test_a_slow_link_does_not_go_below_the_bound(url, argv):
    slow = ("--bandwidth", "1kbit", "--row_ms", "1")
    choice = asked(url, argv, *slow, "--max_kl", "0.01")
    assert choice.codec.quality == pytest.approx(2.0, abs=0.01) and not choice.raw
    assert choice.why.endswith("the link asks for less, which max_kl 0.01 does not allow")
    choice = asked(url, argv, *slow, "--max_kl", "0.01", "--min_quality", "3")
    assert choice.codec.quality == pytest.approx(3.0, abs=0.01)
    assert "max_kl" not in choice.why  # it is not what keeps the quality
    choice = asked(url, argv, "--bandwidth", "100Gbit", "--max_kl", "0.01")
    assert choice.raw


def test_a_link_that_asks_for_no_less_is_told_nothing(monkeypatch):
    def trial(codec, rows, facts):
        if isinstance(codec, FakeCodec):
            return link.Trial(100 * 2.0**codec.quality - link.BESIDE, 0.001)
        return link.Trial(1000 - link.BESIDE, 0)

    monkeypatch.setattr(link, "try_codec", trial)
    why = [
        link.choose(FakeCodec(), object(), [None], None, 1e6, budget, 0.0, "max_kl 1").why
        for budget in (0.0019, 0.0017)  # quality 0 takes 1.8 ms
    ]
    assert "max_kl" not in why[0] and why[1].endswith("which max_kl 1 does not allow")


def test_what_a_bound_does_not_allow_is_refused(url, argv, folder, tmp_path):
    for flags, line in (
        (
            ("--quality", "1", "--max_kl", "0.01"),
            "quality: 1 is too low; max_kl 0.01 allows 2",
        ),
        (("--target_kl", "0.1", "--max_kl", "0.01"), "is too low; max_kl 0.01 allows"),
        (("--max_kl", "1e-7"), "max_kl: 1e-07 is out of reach; the curve ends with 1e-05"),
        (("--codec", CODEC, "--max_kl", "0.1"), "the codec has no KL curve; measure one with"),
        (("--codec", CODEC, "--target_kl", "0.1"), "the codec has no KL curve; measure one with"),
    ):
        with pytest.raises(UserError, match=line):
            asked(url, argv, *flags)
    with pytest.raises(SystemExit, match="the codec has no KL curve"):
        serve.main(["--machine", "llama3_tiny", "--codec", CODEC, "--max_kl", "0.1"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target_kl", "0.1", "--quality", "1"], "raw, quality, bandwidth, target_kl: expected"),
        (["--raw", "true", "--max_kl", "0.1"], "max_kl: it bounds what a codec costs"),
        (["--max_kl", "0"], "max_kl: expected a number above 0"),
        (["--target_kl", "-1"], "target_kl: expected a number above 0"),
    ],
)
def test_flags_of_bounds_are_checked(flags, message, capsys):
    with pytest.raises(SystemExit):
        ask.main(["--server", "http://a:1", "--machine", "llama3_tiny", "--prompt", "a", *flags])
    assert message in capsys.readouterr().err


def test_a_server_tells_its_bound(machine, folder, argv):  # noqa: F811
    codec = load_codec(folder)
    guard = Guard.of_codec(codec, folder, 0.001)
    server = LiveServer(Backend(machine, codec, LiveLimits(), guard))
    thread = server.start()
    try:
        client = LiveClient(server.url)
        told = {"max_kl": 0.001, "min_quality": guard.quality}
        assert told.items() <= client.health().items()
        with client.open(encoder_of(machine, codec)) as session:
            assert told.items() <= session.agreed.items()
        choice = asked(server.url, argv)
        assert choice.codec.quality == guard.quality
        assert choice.why.endswith("the server's max_kl 0.001 allows no less")
        assert asked(server.url, argv, "--max_kl", "1e-4").why.endswith(
            "max_kl 0.0001 allows no less"
        )
        with pytest.raises(UserError, match=r"too low; the server's max_kl 0\.001 allows 3"):
            asked(server.url, argv, "--quality", "2")
    finally:
        server.gate.stop()
        thread.join(30)
    assert Guard.of_server({}) is None
    with pytest.raises(UserError, match="max_kl, min_quality: expected numbers"):
        Guard.of_server({"max_kl": "a", "min_quality": None})
