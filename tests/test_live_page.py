"""The page of a server: what it shows equals the machine and the codec offline, hostile visitors are
refused, and a real browser draws it at the width of a desk and of a phone."""

import base64
import io
import json
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
from PIL import Image

from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.live.backend import Backend
from dtufc.live.limits import LiveLimits
from dtufc.live.page import desk as desks
from dtufc.live.page.errors import error_by_place
from dtufc.live.page.pictures import class_colours
from dtufc.live.page.work import open_work
from dtufc.live.server import LiveServer
from dtufc.machines.machine import Sample
from dtufc.machines.opening import open_machine
from dtufc.machines.tiny.world import CLASSES
from dtufc.token_error import TokenErrors

FAST = ("resnet50_tiny", "dinov2_tiny", "llama3_tiny")
SLOW = ("dinov2_tiny_cls", "dinov2_tiny_dpt", "sd3_tiny")
MACHINES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
MIDDLE = 16
"""A position of the slider at which answers differ: quality 1."""
TOKEN = "a token for tests, 1234"


@cache
def desk_of(name):
    """The desk of a machine, for all tests."""
    codec = load_codec(f"klt_{name}")
    backend = Backend(open_machine(name), codec, LiveLimits())
    return desks.Desk(backend)


@pytest.fixture
def desk(request):
    return desk_of(request.param)


each_machine = pytest.mark.parametrize("desk", MACHINES, indirect=True)


def read_png(uri):
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)
    return np.asarray(Image.open(io.BytesIO(data)))


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def feature_of(desk, number):
    """A sample's feature and its sample, offline."""
    machine = desk.machine
    sample = machine.samples("test")[number]
    return sample, machine.extract(sample)


# What the page says is what the machine and the codec say.


@each_machine
def test_figures_are_those_of_the_codec(desk):
    facts = desk.facts()
    assert facts["qualities"] == sorted(facts["qualities"]) and len(facts["qualities"]) == 41
    assert facts["qualities"][facts["start"]] == pytest.approx(desk.codec.quality, abs=0.13)
    _, x = feature_of(desk, 1)
    given = desk.take(1, b"")
    assert given["points"] == x.size and given["raw_bytes"] == 2 * x.size
    found = desk.code(given["input"], MIDDLE)
    codec = desk.codec.at_quality(found["quality"])
    data = codec.encode(x)
    decoded = codec.decode(data)
    assert (found["bytes"], found["bpfp"]) == (len(data), 8 * len(data) / x.size)
    assert found["nmse"] == pytest.approx(
        np.mean((decoded - x.astype(float)) ** 2) / x.var(), rel=1e-3
    )
    if not desk.backend.facts.views.is_map:
        errors = TokenErrors()
        errors.add(x)
        assert found["error"] == pytest.approx(errors.error(x, decoded), rel=0.01)
    best = desk.code(given["input"], 40)
    assert best["bytes"] > found["bytes"] and best["error"] < found["error"]
    assert 0 <= best["distance"] <= found["distance"]


@each_machine
def test_answers_are_those_of_the_machine(desk):
    sample, x = feature_of(desk, 1)
    machine = desk.machine
    given = desk.take(1, b"")
    found = desk.code(given["input"], MIDDLE)
    codec = desk.codec.at_quality(found["quality"])
    decoded = codec.decode(codec.encode(x))
    for answer, feature in ((given["answer"], x), (found["answer"], decoded)):
        prediction = machine.predict(sample, feature)
        if answer["kind"] == "ranking":
            ranked = max(answer["bars"], key=lambda bar: bar["decoded"])["name"]
            expected = prediction if isinstance(prediction, str) else CLASSES[prediction]
            assert ranked.strip() == expected
        elif prediction.dtype == np.uint8 and prediction.ndim == 2:
            colours = class_colours(len(machine.options.classes))
            assert np.array_equal(read_png(answer["picture"]), colours[prediction])
            named = {entry["name"] for entry in answer["legend"]}
            assert {machine.options.classes[k] for k in np.unique(prediction)} <= named
        elif prediction.dtype == np.uint8:
            assert np.array_equal(read_png(answer["picture"]), prediction)
        else:
            assert read_png(answer["picture"]).shape == (*prediction.shape, 3)
    uncoded, coded = (machine.predict(sample, feature) for feature in (x, decoded))
    if isinstance(uncoded, np.ndarray):
        differs = np.not_equal(uncoded, coded)
        expected = {
            "%": 100 * differs.mean(),
            "m": np.sqrt(np.mean((coded.astype(float) - uncoded) ** 2)),
            "grey levels": np.sqrt(np.mean((coded.astype(float) - uncoded) ** 2)),
        }[desk.work.distance.unit]
        assert found["distance"] == pytest.approx(expected) and expected > 0


@each_machine
def test_a_posted_sample_is_the_sample(desk):
    """The same picture, caption or text, dropped on the page, gives the same bytes."""
    shown = desk.offers[0].shown
    if "picture" in shown:
        body = base64.b64decode(shown["picture"].partition(",")[2])
    elif "text" in shown:
        body = shown["text"].encode()
    else:
        body = "".join(shown["tokens"][1:]).encode()  # the first one begins every text
    names = [desk.take(0, b"")["input"], desk.take(None, body)["input"]]
    sample, posted = (desk.code(name, MIDDLE) for name in names)
    assert sample["bytes"] == posted["bytes"] and sample["distance"] == posted["distance"]


@each_machine
def test_errors_are_told_by_place(desk):
    given = desk.take(1, b"")
    found = desk.code(given["input"], MIDDLE)["errors"]
    assert 0 < found["mean"] <= found["worst"]
    if "values" in found:
        assert len(found["values"]) == len(given["shown"]["tokens"]) == given["shape"][2]
        return
    cells = found["rows"] * found["columns"]
    assert all(len(panel["values"]) == cells for panel in found["panels"])
    n, c, h, w = given["shape"]
    if desk.backend.facts.views.is_map:
        assert (found["rows"], found["columns"], len(found["panels"])) == (h, w, n)
    else:
        assert (cells + 1, len(found["panels"])) == (h, n * c)
        assert all(panel["first"] > 0 for panel in found["panels"])


def test_a_spoilt_place_stands_out():
    """An error at one token or position is told there alone."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 5, 7)).astype(np.float32)
    spoilt = x.copy()
    spoilt[1, 2, 4] += 1
    tokens = error_by_place(False, x, spoilt)
    assert tokens.shape == (6, 5) and np.argwhere(tokens).tolist() == [[5, 4]]
    spoilt = x.copy()
    spoilt[1, :, 4, 6] += 1
    maps = error_by_place(True, x, spoilt)
    assert maps.shape == (2, 5, 7) and np.argwhere(maps).tolist() == [[1, 4, 6]]


def test_the_text_goes_on_as_the_model_says():
    desk = desk_of("llama3_tiny")
    given = desk.take(None, b"A picture shows a small red disk")
    steps = given["answer"]["continued"]
    assert all(step["uncoded"] == step["decoded"] and step["instead"] is None for step in steps)
    tokenizer = desk.machine.tokenizer
    ids = tokenizer("A picture shows a small red disk").input_ids
    from dtufc.machines.llama3.generate import BackHalf, FrontHalf, generate, greedy

    made = generate(FrontHalf(desk.machine), ids, greedy(BackHalf(desk.machine)), len(steps))
    assert [step["text"] for step in steps] == [tokenizer.decode([token]) for token in made]
    spoilt = desk.code(given["input"], 0)["answer"]
    assert any(step["instead"] is not None for step in spoilt["continued"])
    assert any(spoilt["changed"])


def test_inputs_are_forgotten(monkeypatch):
    monkeypatch.setattr(desks, "KEPT", 2)
    desk = desks.Desk(desk_of("resnet50_tiny").backend)
    first, second = (desk.take(n, b"")["input"] for n in (0, 1))
    desk.code(first, 0)  # asked for later than the second
    desk.take(2, b"")
    desk.code(first, 0)
    with pytest.raises(UserError, match="gone: input: this one is not kept any more"):
        desk.code(second, 0)
    monkeypatch.setattr(desks, "KEPT_BYTES", 1)
    third = desk.take(0, b"")["input"]
    assert desk.code(third, 0)["bytes"] > 0  # the latest is kept whatever it takes
    with pytest.raises(UserError, match="gone"):
        desk.code(first, 0)


def test_a_codec_with_one_rate_has_one_position():
    backend = Backend(
        open_machine("resnet50_tiny"), load_codec("hyperprior_tiny_0.004"), LiveLimits()
    )
    desk = desks.Desk(backend)
    facts = desk.facts()
    assert len(facts["qualities"]) == 1 and facts["start"] == 0
    found = desk.code(desk.take(0, b"")["input"], 0)
    assert found["bytes"] > 0 and found["quality"] == facts["qualities"][0]


def test_other_machines_have_no_page():
    class Unknown:
        options = desk_of("resnet50_tiny").machine.options

    with pytest.raises(UserError, match="page: shows no resnet50_tiny_cls"):
        open_work(Unknown(), LiveLimits())


# The wire, and hostile visitors.


@contextmanager
def serving(name="resnet50_tiny", token=None, page=True, **limits):
    """A server with a page in a thread -> a function that asks it."""
    known = desk_of(name).backend
    backend = Backend(known.machine, known.codecs[0], LiveLimits(**limits))
    server = LiveServer(backend, token=token, desk=desks.Desk(backend) if page else None)
    thread = server.start()

    def ask(method, path, body=None, token=token):
        """-> (status, headers, body); JSON is read."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(server.url + path, body, headers, method=method)
        try:
            answer = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            answer = error
        data = answer.read()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, answer.headers, json.loads(data) if is_json else data

    ask.url = server.url
    try:
        yield ask
    finally:
        server.gate.stop()
        thread.join(20)
    assert not thread.is_alive() and not server.gate.inside


def refused(answer, status, code, text):
    assert (answer[0], answer[2]["type"], answer[2]["code"]) == (status, "refusal", code), answer
    assert text in answer[2]["reason"]


def test_the_page_is_served_whole():
    with serving() as ask:
        status, headers, page = ask("GET", "/")
        assert status == 200 and headers.get_content_type() == "text/html"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and headers["X-Content-Type-Options"] == "nosniff"
        assert b"http://" not in page.replace(b"http://www.w3.org", b"")  # nothing from elsewhere
        for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript"),
                           ("drawing.js", "text/javascript")):  # fmt: skip
            status, headers, text = ask("GET", f"/page/{name}")
            assert (status, headers.get_content_type()) == (200, kind) and b"https://" not in text
        status, _, given = ask("POST", "/page/input?sample=0", b"")
        assert status == 200
        assert ask("POST", f"/page/code?input={given['input']}&step=3", b"")[2]["bytes"] > 0


def test_without_a_page_there_is_none():
    with serving(page=False) as ask:
        for method, path in (
            ("GET", "/"),
            ("GET", "/page/facts"),
            ("POST", "/page/input?sample=0"),
        ):
            assert ask(method, path, None if method == "GET" else b"")[0] == 404
        assert ask("GET", "/health")[0] == 200


def test_the_page_asks_for_the_token():
    with serving(token=TOKEN) as ask:
        assert ask("GET", "/", token=None)[0] == 200
        for token in (None, TOKEN + "x"):
            refused(ask("GET", "/page/facts", token=token), 401, "token", "asks for a token")
            refused(ask("POST", "/page/input?sample=0", b"", token), 401, "token", "asks for a")
            refused(ask("POST", "/page/code?input=a&step=0", b"", token), 401, "token", "asks for")
        assert ask("GET", "/page/facts")[2]["takes"] == "picture"


def test_the_page_keeps_the_pace():
    with serving(requests_per_second=0.01) as ask:
        assert ask("GET", "/")[0] == 200
        refused(ask("GET", "/page/page.css"), 429, "rate", "more than 0.01")


def test_wrong_inputs_are_refused():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
    with serving(frame_bytes=1 << 16, points=1 << 16) as ask:

        def post(body):
            return ask("POST", "/page/input", body)

        refused(post(b"no picture"), 400, "frame", "expected a picture")
        refused(post(png(noise)[:2000]), 400, "frame", "damaged")
        refused(post(b"GIF89a" + bytes(50)), 400, "frame", "one of PNG, JPEG, WEBP")
        refused(post(png(np.zeros((4000, 4000), np.uint8))), 413, "size", "16384 at most")
        refused(post(png(np.zeros((16, 70, 3), np.uint8))), 400, "frame", "4 times as long")
        refused(post(png(np.zeros((8, 8, 3), np.uint8))), 400, "frame", "at least 16 pixels")
        refused(post(bytes(1 << 17)), 413, "size", "more than 65536 bytes")
        refused(ask("POST", "/page/input?sample=8", b""), 400, "frame", "expected 0 .. 7")
        refused(ask("POST", "/page/input?sample=-1", b""), 400, "frame", "a whole number")
        given = post(png(noise))[2]
        for step in ("41", "-1", "x", "", "1e3", "9" * 7):
            answer = ask("POST", f"/page/code?input={given['input']}&step={step}", b"")
            refused(answer, 400, "frame", "step: expected")
        refused(ask("POST", "/page/code?input=another&step=0", b""), 410, "gone", "not kept")
        assert ask("POST", f"/page/code?input={given['input']}&step=40", b"")[0] == 200


def test_wrong_texts_are_refused():
    desk = desk_of("llama3_tiny")
    for body, text in ((b"\xff", "UTF-8"), (b"  \n", "at least one character"),
                       (b"a" * 9000, "9000 characters, 8192 at most"),
                       (b"red disk " * 300, "tokens, 384 at most")):  # fmt: skip
        with pytest.raises(UserError, match=text):
            desk.take(None, body)


def test_modes_of_pictures_are_taken():
    """Grey, with a palette, with transparency, turned: all become upright RGB."""
    desk = desk_of("dinov2_tiny")
    grey = np.tile(np.arange(0, 128, 2, dtype=np.uint8), (96, 1))  # 64 wide, 96 high
    for image in (
        Image.fromarray(grey),
        Image.fromarray(grey).convert("P"),
        Image.fromarray(grey).convert("RGBA"),
        Image.fromarray(grey).convert("I;16"),
    ):
        file = io.BytesIO()
        image.save(file, "PNG")
        shown = read_png(desk.take(None, file.getvalue())["shown"]["picture"])
        assert shown.shape == (96, 64, 3)
    turned = Image.fromarray(grey).getexif()
    turned[0x0112] = 6  # a quarter to the right
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", exif=turned)
    assert read_png(desk.take(None, file.getvalue())["shown"]["picture"]).shape == (64, 96, 3)


def test_samples_that_are_not_there_are_not_offered(monkeypatch):
    desk = desk_of("dinov2_tiny")

    def missing(split: str) -> list[Sample]:
        raise FileNotFoundError("no list")

    monkeypatch.setattr(desk.machine, "samples", missing)
    assert desk.work.offers() == []
