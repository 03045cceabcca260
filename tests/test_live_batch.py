"""Batches of the live server: answers are those of one at a time; what is wrong with one is its own."""

import asyncio
import base64
import io
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from test_live import (  # noqa: F401  fixtures among them
    OPTIONS,
    backend,
    codec,
    coded,
    encoder_of,
    expected,
    ids,
    machine,
    rows,
    serving,
)

from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.live import serve, single
from dtufc.live.backend import Backend, Predictions, identify
from dtufc.live.compute import Batching, Compute, each_or_together
from dtufc.live.limits import LiveLimits
from dtufc.live.metrics import Metrics
from dtufc.live.refusals import Refusal
from dtufc.live.session import Answer, Frame, Receiver, Steps
from dtufc.live.talk import Talk
from dtufc.machines.llama3 import together
from dtufc.machines.llama3.generate import BackHalf, FrontHalf
from dtufc.machines.llama3.together import logits_together, step_together, why_alone
from dtufc.machines.machine import Sample
from dtufc.machines.opening import open_machine
from dtufc.machines.sources.source import LabelledPicture

PROMPTS = ("A picture shows", "Which colour", "The small red disk and two large stars are")


def texts(machine, steps):  # noqa: F811
    """Rows of the prompts, and of steps behind them: [step][text], (T, width)."""
    fronts = [FrontHalf(machine) for _ in PROMPTS]
    starts = [
        front.step(machine.tokenizer(text).input_ids)
        for front, text in zip(fronts, PROMPTS, strict=True)
    ]
    later = [[front.step([5 + 7 * n + k]) for n, front in enumerate(fronts)] for k in range(steps)]
    return [starts, *later]


def started(machine, starts):  # noqa: F811
    """A back half of each text, behind its prompt."""
    halves = [BackHalf(machine) for _ in starts]
    for half, each in zip(halves, starts, strict=True):
        half.step(each)
    return halves


def test_a_batch_of_texts_of_different_lengths(machine):  # noqa: F811
    """Logits are those of each text alone up to rounding, over many steps; tokens are equal."""
    assert why_alone(machine) is None
    starts, *steps = texts(machine, 30)
    alone, batch = started(machine, starts), started(machine, starts)
    assert len({half.tokens for half in alone}) == 3
    for step in steps:
        logits = torch.stack([half.step(each) for half, each in zip(alone, step, strict=True)])
        found = logits_together(batch, step)
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
        assert found.argmax(1).tolist() == logits.argmax(1).tolist()
    assert [half.tokens for half in batch] == [half.tokens for half in alone]
    assert [half.cache_bytes for half in batch] == [half.cache_bytes for half in alone]


def test_a_close_choice_is_made_alone(machine, monkeypatch):  # noqa: F811
    """Where the lead is small, the logits of the batch do not decide."""
    starts, step = texts(machine, 1)
    right = [
        int(half.step(each).argmax())
        for half, each in zip(started(machine, starts), step, strict=True)
    ]

    def wrong(halves, rows):  # noqa: F811
        logits = logits_together(halves, rows)
        other = logits.clone()
        best = logits.topk(2).indices
        first, second = best[0]  # a near tie, decided the other way
        other[0, first] = logits[0, second]
        other[0, second] += 1e-4 * logits[0].abs().max()
        return other

    monkeypatch.setattr(together, "logits_together", wrong)
    halves = started(machine, starts)
    assert step_together(halves, step) == right
    assert [half.tokens for half in halves] == [
        half.tokens + 1 for half in started(machine, starts)
    ]


def test_a_batch_that_fails_leaves_the_texts_as_they_were(machine):  # noqa: F811
    starts, first, second = texts(machine, 2)
    halves = started(machine, starts)
    bad = [first[0], first[1][:, :5], first[2]]
    with pytest.raises(ValueError):
        step_together(halves, bad)

    def fail(*args, **kwargs):
        raise RuntimeError("as if")

    last = machine.back.model.layers[-1]
    hook = last.register_forward_pre_hook(fail)  # behind a layer that has written its cache
    with pytest.raises(RuntimeError, match="as if"):
        step_together(halves, first)
    hook.remove()
    fresh = started(machine, starts)
    assert [half.cache_bytes for half in halves] == [half.cache_bytes for half in fresh]
    assert step_together(halves, first) == step_together(fresh, first)
    assert step_together(halves, second) == step_together(fresh, second)


def test_machines_that_are_not_batched_say_why(machine, monkeypatch):  # noqa: F811
    other = open_machine("llama3_tiny", [*OPTIONS, "dtype=bfloat16"])
    assert "bfloat16 rounds too coarsely" in why_alone(other)
    with monkeypatch.context() as patch:
        patch.setattr(machine.config, "sliding_window", 8, raising=False)
        assert "do not attend to the whole text" in why_alone(machine)
    monkeypatch.setattr(together, "CLOSE", 1e-12)
    assert "away from those of one text" in why_alone(machine)


# Items and their mates, without a server.


def frames_of(backend, machine, codec, starts):  # noqa: F811
    """Sessions behind their prompts -> receivers and encoders."""
    receivers, encoders = [], []
    for start in starts:
        encoder, receiver = encoder_of(machine, codec), Receiver(backend)
        receiver.header(encoder.start())
        receiver.talk.step(receiver.rows(encoder.append({"hidden": start})))
        receivers.append(receiver)
        encoders.append(encoder)
    return receivers, encoders


def test_a_bad_frame_is_its_own(backend, machine, codec, monkeypatch):  # noqa: F811
    starts, first, second = texts(machine, 2)
    offline = [coded(machine, codec) for _ in starts]
    tokens = [
        [answer(each[n]) for each in (starts, first, second)] for n, answer in enumerate(offline)
    ]
    receivers, encoders = frames_of(backend, machine, codec, starts)
    metrics = Metrics()
    steps = Steps(backend, metrics)
    data = [each.append({"hidden": x}) for each, x in zip(encoders, first, strict=True)]
    data[1] = data[1][:-1] + bytes([data[1][-1] ^ 1])
    found = steps([Frame(each, bytes_, 0.0) for each, bytes_ in zip(receivers, data, strict=True)])
    assert isinstance(found[1], Refusal) and found[1].code in ("frame", "size")
    assert [found[0].token.id, found[2].token.id] == [tokens[0][1], tokens[2][1]]
    assert set(found[0].seconds) == {"wait", "decode", "compute"}
    assert 'dtufc_live_batch_bucket{le="2.0",of="steps"} 1.0' in metrics.text().decode()
    # a fault in the batch: the one that it is about gets it, and its mate goes on
    broken, step = receivers[0].talk, Talk.step

    def fail(self, feature):
        if self is broken:
            raise RuntimeError("as if")
        return step(self, feature)

    monkeypatch.setattr(Talk, "step", fail)
    monkeypatch.setattr("dtufc.live.session.step_together", lambda *args: 1 / 0)
    pair = [Frame(receivers[n], encoders[n].append({"hidden": second[n]}), 0.0) for n in (0, 2)]
    failed, sound = steps(pair)
    assert isinstance(failed, RuntimeError) and sound.token.id == tokens[2][2]
    end = steps([Frame(receivers[2], encoders[2].close(), 0.0)])
    assert end == [Answer(None, {})]


def test_a_queue_serves_each_and_forgets_who_left():
    busy, go = threading.Event(), threading.Event()
    batches = []

    def work(items):
        batches.append(list(items))
        busy.set()
        go.wait(30)
        return [ValueError(item) if item < 0 else 10 * item for item in items]

    async def trial():
        queue = Compute(Batching(size=3)).queue(work)
        first = asyncio.create_task(queue.ask(1))
        await asyncio.to_thread(busy.wait, 30)
        later = [asyncio.create_task(queue.ask(item)) for item in (2, 3, -4, 5, 6)]
        await asyncio.sleep(0)
        later[1].cancel()  # its client went away
        await asyncio.sleep(0)
        go.set()
        return await first, await asyncio.gather(*later, return_exceptions=True)

    first, later = asyncio.run(trial())
    assert (first, later[0], later[3], later[4]) == (10, 20, 50, 60)
    assert isinstance(later[1], asyncio.CancelledError) and isinstance(later[2], ValueError)
    assert batches == [[1], [2, -4, 5], [6]]

    async def broken():
        queue = Compute(Batching(size=2)).queue(lambda items: 1 / 0)
        return await asyncio.gather(queue.ask(1), queue.ask(2), return_exceptions=True)

    assert all(isinstance(each, ZeroDivisionError) for each in asyncio.run(broken()))


def test_a_queue_waits_for_others_where_it_is_told_to():
    async def trial(wait):
        batches = []

        def work(items):
            batches.append(len(items))
            return items

        queue = Compute(Batching(2, wait)).queue(work)
        first = asyncio.create_task(queue.ask(1))
        await asyncio.sleep(0.05)
        assert await asyncio.gather(queue.ask(2), queue.ask(3)) == [2, 3]
        assert await first == 1
        return batches

    assert asyncio.run(trial(5.0)) == [2, 1]  # a full batch waits no longer; the last one, its time
    for wrong in ({"size": 0}, {"wait": -1}, {"wait": 11}):
        with pytest.raises(UserError, match="expected"):
            Batching(**wrong)


def test_what_fits_is_computed_together_or_else_alone():
    def one(item):
        if item < 0:
            raise ValueError(item)
        return item + 1

    assert each_or_together([1, 2], lambda items: [0, 0], one) == [0, 0]
    assert each_or_together([1], lambda items: 1 / 0, one) == [2]
    first, second = each_or_together([1, -2], lambda items: [one(item) for item in items], one)
    assert first == 2 and isinstance(second, ValueError)


# Over the wire.


def test_sessions_in_batches_give_the_same_tokens(backend, machine, codec, rows, expected):  # noqa: F811
    def hold(client, delay):
        with client.open(encoder_of(machine, codec)) as session:
            for each in rows[1 : 1 + delay]:  # texts of different lengths
                session.send(each)
            answers = [session.send(each) for each in rows]
            session.close()
        return answers

    assert backend.tell_batches(8) == "batches of up to 8 steps of sessions"
    alone = coded(machine, codec)
    shifted = [alone(each) for each in [*rows[1:3], *rows]][2:]
    with serving(backend, batching=Batching(8, 0.02)) as (server, client):
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda n: hold(client, 2 * (n % 2)), range(6)))
        counted = server.metrics.text().decode()
    for number, answers in enumerate(found):
        assert [each["id"] for each in answers] == (shifted if number % 2 else expected)
        assert all(each[f"{part}_ms"] >= 0 for each in answers for part in ("wait", "compute"))
    steps = float(re.search(r'live_batch_count{of="steps"} (\S+)', counted)[1])
    total = float(re.search(r'live_batch_sum{of="steps"} (\S+)', counted)[1])
    assert total == 6 * len(rows) + 3 * 2 and steps < 0.7 * total


PRESETS = {
    "resnet50_tiny": (112, 112), "dinov2_tiny_cls": (120, 120), "dinov2_tiny": (120, 140),
    "dinov2_tiny_dpt": (120, 150), "sd3_tiny": (112, 112),
}  # fmt: skip
"""Height and width of the pictures."""


@pytest.mark.parametrize("preset", PRESETS)
def test_posted_features_in_batches(preset):
    """Classes and masks equal those of one at a time; of pictures, no value differs by more than 1."""
    machine, codec = open_machine(preset, ["device=cpu"]), load_codec(f"klt_{preset}")  # noqa: F811
    backend = Backend(machine, codec, LiveLimits())  # noqa: F811
    height, width = PRESETS[preset]
    told, rng = identify(machine), np.random.default_rng(0)
    if preset in ("dinov2_tiny", "dinov2_tiny_dpt"):
        told |= {"height": str(height), "width": str(width)}
    features = [feature_of(machine, rng, height, width) for _ in range(3)]
    posted = [(codec.encode(x), told) for x in features]
    damaged = posted[0][0][:-1] + bytes([posted[0][0][-1] ^ 1])
    metrics = Metrics()
    found = Predictions(backend, metrics)([*posted[:2], (damaged, told), posted[2]])
    assert 'dtufc_live_batch_bucket{le="2.0",of="features"} 0.0' in metrics.text().decode()
    assert 'dtufc_live_batch_bucket{le="4.0",of="features"} 1.0' in metrics.text().decode()
    assert isinstance(found[2], Refusal) and found[2].code == "frame"
    samples = [single.sample_for_back(machine, told, 1 << 22) for _ in posted]
    decoded = [codec.decode(data) for data, _ in posted]
    for sample, x, answer in zip(samples, decoded, [*found[:2], found[3]], strict=True):
        alone = single.answer(machine, sample, x)
        if "png" not in alone:
            assert answer == alone
            continue
        one, other = (picture_of(each).astype(int) for each in (alone, answer))
        assert one.shape == other.shape and one.std() > 0
        most = 1 if preset in ("sd3_tiny", "dinov2_tiny_dpt") else 0
        assert np.abs(one - other).max() <= most


def feature_of(machine, rng, height, width):  # noqa: F811
    """The feature of a picture of large random squares, or a random latent."""
    if type(machine).__name__ == "DiffusionMachine":
        return rng.standard_normal(machine.options.facts.smallest, np.float32)
    rgb = rng.integers(0, 256, (9, 11, 3), np.uint8).repeat(16, 0).repeat(16, 1)[:height, :width]
    if single.tells_class(machine):
        return machine.extract(Sample("a", LabelledPicture("a", 0, lambda *sides: rgb), 0))
    return machine.extract(single.of_size(machine, rgb, height, width))


def picture_of(answer):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["png"]))))


def test_flags_of_batches_are_checked(capsys):
    argv = ["--machine", "llama3_tiny", "--codec", "klt_llama3_tiny"]
    for flags, line in ((["--batch", "0"], "batch: expected at least 1"),
                        (["--batch_wait_ms", "-1"], "batch_wait_ms: expected 0")):  # fmt: skip
        with pytest.raises(SystemExit):
            serve.main([*argv, *flags])
        assert line in capsys.readouterr().err
