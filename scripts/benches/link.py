"""The work of ``bench_link.py``: what each part of a machine sends, and what each codec takes for it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from bench_link import LinkBenchConfig
from benches.link_arithmetic import Stages, on_wire
from benches.link_socket import CheckRow, ShapedLink
from benches.link_tables import LinkRow
from benches.number_formats import FORMATS, RAW, NumberFormat

from dtufc.codec import Codec, load_codec
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts
from dtufc.live.link import parse_bandwidth
from dtufc.machines.opening import open_machine
from dtufc.provenance import environment
from dtufc.shipped import describe_codec, pretrained
from dtufc.token_error import TokenErrors

WHOLE, PROMPT, TOKEN = "whole", "prompt", "token"
CHECKED = 5
"""Features that go through the socket, per link and codec."""


@dataclass(frozen=True)
class Coder:
    """A codec at a quality: feature -> bytes and back."""

    name: str
    quality: float | None
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Part:
    """What crosses the link in one go: a whole feature, a prompt's rows, or a token's row."""

    machine: str
    name: str
    facts: FeatureFacts
    features: list[np.ndarray]
    """(N, C, H, W) float32 each."""
    front: float
    """Seconds of the front half for one, the median."""
    back: float
    """Of the back half."""
    judge: Callable[[Coder], float | None]
    """Share of the answers that are as without coding."""
    run: tuple[Callable[[int], np.ndarray], Callable[[int, np.ndarray], Any]] | None = None
    """The halves, for the n-th feature; none of a token, whose halves hold a cache."""


def bench(cfg: LinkBenchConfig) -> tuple[list[LinkRow], list[CheckRow]]:
    """Time all machines and codecs.

    Raises:
        FileNotFoundError, UserError: a machine, its samples or a codec are missing.
    """
    torch.set_num_threads(cfg.threads)
    numba.set_num_threads(cfg.threads)
    further = dict(entry.split("=", 1) for entry in cfg.codec)
    kinds = {name: describe_codec(Path(folder)).kinds for name, folder in further.items()}
    computer = environment()
    rows, checks, used = [], [], set()
    for name in cfg.machine:
        machine: Any = open_machine(name, cfg.options)
        kind = machine.options.facts.kind
        own = {each: Path(further[each]) for each, known in kinds.items() if kind in known}
        used |= own.keys()
        for part in parts_of(machine, name, cfg):
            coders = [*_coders(part, own, cfg)]
            found = []
            for coder in coders:
                torch.set_num_threads(cfg.threads)  # another library may have set its own
                found.append(measure(part, coder, computer))
            plain = found[0]
            rows += [row.beside(plain) for row in found]
            checks += check(part, coders, found, cfg)
    if unused := further.keys() - used:
        raise UserError(f"codec: {sorted(unused)} know none of the features of {cfg.machine}")
    return rows, checks


def parts_of(machine: Any, name: str, cfg: LinkBenchConfig) -> list[Part]:
    """The parts of a machine: one, or two of a language model."""
    from dtufc.live.single import is_language

    samples = machine.samples("test")[: cfg.samples]
    _ = machine.front, machine.back  # loaded before times are taken
    if is_language(machine):
        return language_parts(machine, name, samples, cfg.tokens)
    extract = lambda n: machine.extract(samples[n])  # noqa: E731
    predict = lambda n, x: machine.predict(samples[n], x)  # noqa: E731
    predict(0, extract(0))  # the first one does not count
    features, front = timed(extract, range(len(samples)))
    answers, back = timed(lambda n: predict(n, features[n]), range(len(samples)))

    def judge(coder: Coder) -> float | None:
        decoded = [coder.decode(coder.encode(x), x.shape) for x in features]
        pairs = zip(answers, map(predict, range(len(decoded)), decoded), strict=True)
        shares = [same(*pair) for pair in pairs]
        return None if None in shares else float(np.mean(shares))

    facts = machine.options.facts
    return [Part(name, WHOLE, facts, features, front, back, judge, (extract, predict))]


def same(uncoded: Any, decoded: Any) -> float | None:
    """Whether two answers agree; of masks the share of pixels; none of what has no right and wrong."""
    if not isinstance(uncoded, np.ndarray):
        return float(uncoded == decoded)
    is_mask = uncoded.ndim == 2 and uncoded.dtype == np.uint8
    return float((uncoded == decoded).mean()) if is_mask else None


def language_parts(machine: Any, name: str, samples: Sequence[Any], tokens: int) -> list[Part]:
    """Prompt and token of a language model. It goes on with its own likeliest tokens, beyond an end."""
    from dtufc.machines.llama3.generate import BackHalf, FrontHalf

    prompts = [machine.task.sequences(sample)[0] for sample in samples]
    texts = []  # per sample: the prompt's rows, then one row per token
    answers = []  # the token behind each
    spent: dict[str, list[float]] = {key: [] for key in ("front", "back", "fronts", "backs")}
    for number, ids in enumerate([prompts[0], *prompts]):  # the first one does not count
        front, back = FrontHalf(machine), BackHalf(machine)
        rows, told = [], []
        for step in range(1 + tokens):
            start = time.perf_counter()
            rows.append(front.step(ids))
            middle = time.perf_counter()
            told.append(int(back.step(rows[-1]).argmax()))
            end = time.perf_counter()
            ids = [told[-1]]
            if number:
                spent["fronts" if step else "front"].append(middle - start)
                spent["backs" if step else "back"].append(end - middle)
        if number:
            texts.append([each[None, None] for each in rows])
            answers.append(told)

    told_by: dict[tuple[str, float | None], np.ndarray] = {}

    def agreement(coder: Coder, steps: slice) -> float:
        """With coded rows on both sides of the cache; the text goes on as it did without coding."""
        key = coder.name, coder.quality
        if key not in told_by:
            found = []
            for text in texts:
                back = BackHalf(machine)
                decoded = (coder.decode(coder.encode(x), x.shape) for x in text)
                found.append([int(back.step(x[0, 0]).argmax()) for x in decoded])
            told_by[key] = np.equal(found, answers)
        return float(told_by[key][:, steps].mean())

    def run_back(n: int, x: np.ndarray) -> Any:
        return BackHalf(machine).step(x[0, 0])

    def run_front(n: int) -> np.ndarray:
        return FrontHalf(machine).step(prompts[n])[None, None]

    facts, middle = machine.options.facts, {key: np.median(s) for key, s in spent.items()}
    first, later = ([t[0] for t in texts], [row for t in texts for row in t[1:]])
    judges = [partial(agreement, steps=slice(0, 1)), partial(agreement, steps=slice(1, None))]
    run = (run_front, run_back)
    return [
        Part(name, PROMPT, facts, first, middle["front"], middle["back"], judges[0], run),
        Part(name, TOKEN, facts, later, middle["fronts"], middle["backs"], judges[1]),
    ]


def timed(call: Callable[[int], Any], numbers: Sequence[int]) -> tuple[list[Any], float]:
    """The results, and the median of the seconds."""
    results, seconds = [], []
    for number in numbers:
        start = time.perf_counter()
        results.append(call(number))
        seconds.append(time.perf_counter() - start)
    return results, float(np.median(seconds))


def _coders(part: Part, own: dict[str, Path], cfg: LinkBenchConfig) -> Iterator[Coder]:
    """Raw bfloat16 first, then number formats, what ships and knows the features, what was named."""
    for entry in (RAW, *(each for each in FORMATS if each is not RAW)):
        yield _of_format(entry)
    kind = part.facts.kind
    ours = {n: f for n, f in pretrained().items() if kind in describe_codec(f).kinds}
    for name, folder in (ours | own).items():
        codec = load_codec(folder)
        chosen = cfg.quality if codec.qualities and cfg.quality is not None else [codec.quality]
        for quality in chosen:
            tuned = codec if quality is None else codec.at_quality(quality)
            yield _of_codec(name, tuned, part)


def _of_format(entry: NumberFormat) -> Coder:
    return Coder(entry.name, None, entry.encode, entry.decode)


def _of_codec(name: str, codec: Codec, part: Part) -> Coder:
    """A whole feature is a bitstream; rows are frames of a session, whose setting is known."""
    kind = part.facts.kind
    if part.name == WHOLE:
        return Coder(
            name,
            codec.quality,
            lambda x: codec.encode_array(x, kind),
            lambda data, shape: codec.decode_array(data),
        )
    setting, _ = codec.encode_rows(part.features[0], kind)

    def encode(x: np.ndarray) -> bytes:
        now, payload = codec.encode_rows(x, kind)
        if now != setting:
            raise RuntimeError(f"{name}: a setting that changes from frame to frame is not counted")
        return payload

    return Coder(
        name,
        codec.quality,
        encode,
        lambda data, shape: codec.decode_rows(setting, data, part.facts, tuple(shape)),
    )


def measure(part: Part, coder: Coder, computer: dict[str, Any]) -> LinkRow:
    """Code every feature of a part."""
    errors = None if part.facts.views.is_map else TokenErrors()
    sizes, there, back, found = [], [], [], []
    squares = 0.0
    for number, x in enumerate([part.features[0]] * 2 + part.features):
        start = time.perf_counter()
        data = coder.encode(x)
        middle = time.perf_counter()
        decoded = coder.decode(data, x.shape)
        end = time.perf_counter()
        if number < 2:  # kernels are compiled, and caches filled
            continue
        sizes.append(len(data)), there.append(middle - start), back.append(end - middle)
        found.append((x, decoded))
        squares += float(np.square(decoded.astype(np.float64) - x).sum())
        if errors:
            errors.add(x)
    values = np.concatenate([x.reshape(-1) for x in part.features])
    per_token = errors and float(np.mean([errors.error(*pair) for pair in found]))
    return LinkRow(
        machine=part.machine,
        part=part.name,
        codec=coder.name,
        quality=coder.quality,
        points=round(values.size / len(part.features)),
        bytes=float(np.mean(sizes)),
        bpfp=8 * sum(sizes) / values.size,
        nmse=squares / values.size / float(values.var(dtype=np.float64)),
        token_error=per_token,
        same=part.judge(coder),
        stages=Stages(part.front, float(np.median(there)), float(np.median(back)), part.back),
        wire_bytes=on_wire(float(np.mean(sizes))),
        processor=computer["machine"]["processor"],
        threads=torch.get_num_threads(),
        revision=computer["revision"],
    )


def check(
    part: Part, coders: Sequence[Coder], rows: Sequence[LinkRow], cfg: LinkBenchConfig
) -> Iterator[CheckRow]:
    """Raw and the last codec, end to end over a shaped socket, against the arithmetic."""
    if part.run is None:
        return
    numbers = range(len(part.features))[:CHECKED]
    for name in cfg.check:
        rate = parse_bandwidth(name)
        for coder, row in [(coders[0], rows[0]), (coders[-1], rows[-1])]:
            with ShapedLink(rate) as link:
                runs = np.array([_through(part, coder, link, n) for n in numbers])
            stages = Stages(*np.median(runs[:, [0, 1, 3, 4]], axis=0))
            yield CheckRow(
                part.machine,
                part.name,
                coder.name,
                name,
                1e3 * stages.serial(row.wire_bytes, rate),
                1e3 * float(np.median(runs.sum(axis=1))),
            )


def _through(part: Part, coder: Coder, link: ShapedLink, number: int) -> np.ndarray:
    """Seconds of each of the five stages of a feature, the wire in the middle."""
    front, back = part.run
    times = [time.perf_counter()]
    x = front(number)
    times.append(time.perf_counter())
    data = coder.encode(x)
    times.append(time.perf_counter())
    arrived = link.carry(data)
    times.append(time.perf_counter())
    decoded = coder.decode(arrived, x.shape)
    times.append(time.perf_counter())
    back(number, decoded)
    times.append(time.perf_counter())
    return np.diff(times)
