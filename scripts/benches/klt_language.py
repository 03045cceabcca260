"""The work of ``bench_klt_language.py``."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from bench_klt_language import METRICS, WAYS, LanguageConfig
from tqdm import tqdm

from dtufc import files, provenance
from dtufc.codec import Codec, codec_digest, load_codec
from dtufc.config import parse
from dtufc.feature import read_feature, write_feature
from dtufc.klt.fit_klt import FitConfig
from dtufc.klt.fit_metric import MetricConfig
from dtufc.machines.machine import Machine, Sample
from dtufc.machines.opening import open_machine
from dtufc.records import write_rows
from dtufc.token_error import TokenErrors

ABOVE = 1.01  # of the uncut model's perplexity


@dataclass(frozen=True)
class Row:
    """A codec at one quality."""

    codec: str
    quality: float
    bpfp: float
    """Bits per feature point, all bytes counted."""
    token_error: float
    kl: float
    """Nats per token."""
    kl_error: float
    """Standard error of it over the windows."""
    perplexity: float
    uncut_perplexity: float
    agreement: float
    """Share of places whose most likely next token is the uncut model's."""
    windows: int
    encode_s: float
    """Per window."""
    decode_s: float
    processor: str
    revision: str | None


@dataclass(frozen=True)
class At:
    """Bits of a codec where it costs the model so much."""

    codec: str
    at: str
    """KL, or a perplexity."""
    bpfp: float | None
    """None where the codec's rows do not reach it."""
    change: float | None
    """In percent, against the first codec."""


def run(cfg: LanguageConfig) -> tuple[list[Row], list[At]]:
    """All rows, and what is between them; both are written."""
    machine = open_machine(cfg.machine, cfg.options)
    train = machine.samples("train")[:: cfg.stride][: cfg.fitted]
    tests = machine.samples("test")[:: cfg.stride][: cfg.judged]
    extract(machine, train[: cfg.probed], cfg.work / "probed")
    extract(machine, train, cfg.work / "train")
    extract(machine, tests, cfg.work / "test")
    judge = Judge(machine, tests, cfg.work / "test")
    rows: list[Row] = []
    for name in cfg.ways:
        folder = fit(cfg, name)
        codec = load_codec(folder)
        for quality in near(codec, judge.features[:3], cfg.bits):
            rows.append(judge.row(name, codec.at_quality(quality), folder))
            write_rows(cfg.output, rows)
        at = list(told(rows, cfg.divergences))
        write_rows(cfg.output.with_name(f"{cfg.output.stem}_at.csv"), at)
    return rows, at


def extract(machine: Machine, samples: Sequence[Sample], folder: Path) -> None:
    """Write the samples' features that are not there yet."""
    for sample in tqdm(samples, desc=f"features of {folder.name}"):
        path = folder / f"{sample.name}.npy"
        if not path.is_file():
            write_feature(path, machine.extract(sample))


def fit(cfg: LanguageConfig, name: str) -> Path:
    """The folder of a codec, which is fitted where it is not there and current."""
    flags = dict(WAYS[name])
    if "metric" in flags:
        flags["metric"] = str(measure(cfg, flags["metric"]))
    folder = cfg.work / "codecs" / name.replace(", ", "_").replace(" ", "_")
    args = ["--machine", cfg.machine, "--features", str(cfg.work / "train"), "--output", str(folder),
            "--clusters", json.dumps(cfg.clusters)]  # fmt: skip
    found = parse(FitConfig, [*args, *(f"--{key}={value}" for key, value in flags.items())], None)
    if found.why_not_made():
        from dtufc.klt.fit import fit as fit_codec

        start = time.process_time()
        fit_codec(found)
        print(f"{name}: fitted in {time.process_time() - start:.0f} s of the processor")
    return folder


def measure(cfg: LanguageConfig, kind: str) -> Path:
    """The file of a metric, which is measured where it is not there."""
    path = cfg.work / f"{kind.replace(' ', '_')}.metric"
    if not path.is_file():
        from dtufc.klt.metric import measure as measure_metric

        args = ["--machine", cfg.machine, "--features", str(cfg.work / "probed"), "--output", str(path),
                "--samples", str(cfg.probed), "--options", json.dumps(cfg.options)]  # fmt: skip
        told_of = measure_metric(parse(MetricConfig, [*args, *METRICS[kind]], None))
        print(f"metric of {kind}: {told_of}")
    return path


def near(codec: Codec, features: Sequence[np.ndarray], bits: Sequence[float]) -> list[float]:
    """Qualities, in quarters, whose rate on some features comes next to ``bits`` per point."""
    points = sum(x.size for x in features)
    qualities = [q for q in codec.qualities if q == round(4 * q) / 4]

    def rate(place: int) -> float:
        streams = [codec.at_quality(qualities[place]).encode(x) for x in features]
        return 8 * sum(map(len, streams)) / points

    known: dict[int, float] = {}
    found = set()
    for wanted in bits:
        low, high = 0, len(qualities) - 1
        while low < high:  # the first place that takes as many
            middle = (low + high) // 2
            if known.setdefault(middle, 0.0) == 0.0:
                known[middle] = rate(middle)
            low, high = (middle + 1, high) if known[middle] < wanted else (low, middle)
        found.add(low)
    return [qualities[place] for place in sorted(found)]


class Judge:
    """The back half and the features that it reads."""

    def __init__(self, machine: Machine, samples: Sequence[Sample], folder: Path):
        self.machine, self.samples = machine, samples
        self.features = [read_feature(folder / f"{sample.name}.npy") for sample in samples]
        self.errors = TokenErrors()
        for x in self.features:
            self.errors.add(x)
        about = provenance.environment()
        self.processor, self.revision = about["machine"]["processor"], about["revision"]

    def row(self, name: str, codec: Codec, folder: Path) -> Row:
        """A codec's row, which is kept beside the codec."""
        about = [codec_digest(folder), codec.identity, [sample.name for sample in self.samples]]
        path = folder.parent / f"{folder.name}_{codec.quality:g}.json"
        if path.is_file() and (known := files.read_json(path))["about"] == about:
            return Row(**known["row"])
        size, error, seconds, predictions = 0, 0.0, np.zeros(2), []
        for sample, x in tqdm(list(zip(self.samples, self.features, strict=True)), desc=name):
            start = time.perf_counter()
            data = codec.encode(x)
            middle = time.perf_counter()
            decoded = codec.decode(data)
            seconds += middle - start, time.perf_counter() - middle
            size += len(data)
            error += self.errors.error(x, decoded)
            predictions.append(self.machine.predict(sample, decoded))
        count = len(self.samples)
        bpfp = 8 * size / sum(x.size for x in self.features)
        score = self.machine.score(self.samples, predictions)
        kls, others = np.array([each["kl"] for each in score.rows]), score.others
        row = Row(
            name, codec.quality, bpfp, error / count, others["kl"],
            float(kls.std(ddof=1) / count**0.5), score.value, others["uncut_perplexity"],
            others["agreement"], count, *(seconds / count).tolist(), self.processor, self.revision,
        )  # fmt: skip
        files.write_json(path, {"about": about, "row": asdict(row)})
        return row


def told(rows: Sequence[Row], divergences: Sequence[float]) -> list[At]:
    """Bits at divergences and at a perplexity, of each codec."""
    names = list(dict.fromkeys(row.codec for row in rows))
    out = []
    wanted = [(f"KL {kl:g}", math.log(kl), lambda row: math.log(max(row.kl, 1e-12)))
              for kl in divergences]  # fmt: skip
    wanted.append(("perplexity +1 %", ABOVE * rows[0].uncut_perplexity, lambda row: row.perplexity))
    for text, level, value in wanted:
        first = None
        for name in names:
            own = sorted((row for row in rows if row.codec == name), key=lambda row: row.bpfp)
            found = crossing([(row.bpfp, value(row)) for row in own], level)
            first = found if name == names[0] else first
            change = None if found is None or first is None else 100 * (found / first - 1)
            out.append(At(name, text, found, change))
    return out


def crossing(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """Where values that fall with the rate come to a level, between neighbouring points: linear in the
    logarithm of the rate. The last crossing, as noise may cross more than once.

    Args:
        points: (bits, value), bits ascending.
    """
    for (low, above), (high, below) in zip(points[-2::-1], points[:0:-1], strict=True):
        if above > level >= below:
            share = (above - level) / (above - below)
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return None
