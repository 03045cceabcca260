"""What a codec costs a language model: KL divergence by quality, and the quality for a target.

    python kl_curve.py --codec CODEC --machine smollm2      measures, writes CODEC/kl_curve.json
    python fit_klt.py ... --machine smollm2 --kl_curve true     the same, right after the fit
    python encode.py --codec CODEC ... --target_kl 0.01     takes the quality from it

The machine's validation samples go through its front half, the codec at some qualities, and its back
half. What is told is the mean divergence of the next token's distribution from the uncut model's, in
nats per token. Between the qualities that were measured its logarithm is interpolated.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dtufc import config, files
from dtufc.codec import Codec, codec_digest, load_codec
from dtufc.errors import UserError
from dtufc.records import format_table
from dtufc.shipped import codec_folder

if TYPE_CHECKING:
    from dtufc.machines.machine import Machine, Sample

FILE = "kl_curve.json"
QUALITIES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
"""Where a codec of many rates is measured, where nothing else is asked for."""
FEW = 16  # qualities, all of which are measured
LEAST = 1e-12  # nats: what float32 makes of equal distributions may lie below 0


@dataclass(frozen=True)
class Point:
    """One quality."""

    quality: float
    bpfp: float
    """Bits per feature point of the validation samples, all bytes counted."""
    kl: float
    """Nats per token."""


@dataclass(frozen=True)
class KlCurve:
    """KL divergence by quality, ascending.

    Raises:
        UserError: fewer than two points, or not in the order of their qualities.
    """

    machine: str
    samples: int
    points: list[Point]

    def __post_init__(self):
        qualities = [point.quality for point in self.points]
        if len(qualities) < 2 or any(np.diff(qualities) <= 0):
            raise UserError(f"points: expected two ascending qualities or more, got {qualities}")
        if not all(math.isfinite(value) for p in self.points for value in (p.quality, p.kl)):
            raise UserError("points: expected finite numbers")

    @property
    def _logs(self) -> np.ndarray:
        """(points,): logarithms of the KL, never below that of a finer quality."""
        kl = np.maximum([point.kl for point in self.points], LEAST)
        return np.log(np.maximum.accumulate(kl[::-1])[::-1])

    def quality_for(self, kl: float, name: str = "target_kl") -> float:
        """The lowest quality with at most this KL, never below the lowest that was measured.

        Args:
            name: of the option that asks, for messages.

        Raises:
            UserError: ``kl`` is not above 0, or less than the finest quality's.
        """
        if not 0 < kl < math.inf:
            raise UserError(f"{name}: expected a number above 0, got {kl}")
        logs, wanted = self._logs, math.log(kl)
        if logs[-1] > wanted:
            raise UserError(
                f"{name}: {kl:g} is out of reach; the curve ends with {math.exp(logs[-1]):.3g} at "
                f"quality {self.points[-1].quality:g}"
            )
        after = int(np.argmax(logs <= wanted))  # the first point that meets it
        if after == 0:
            return self.points[0].quality
        before, last = self.points[after - 1].quality, self.points[after].quality
        share = (logs[after - 1] - wanted) / (logs[after - 1] - logs[after])
        return before + float(share) * (last - before)

    def kl_at(self, quality: float) -> float:
        """The KL at a quality, in nats per token; beyond the curve's ends, that of the end."""
        qualities = [point.quality for point in self.points]
        return float(np.exp(np.interp(quality, qualities, self._logs)))


def read_kl_curve(codec: str | Path) -> KlCurve:
    """The curve of a codec folder, or of a shipped codec's name.

    Raises:
        UserError: there is none, it is damaged, or it was measured of another fit.
    """
    folder = codec_folder(codec)
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"{path}: the codec has no KL curve; measure one with coding/kl_curve.py, or fit with "
            "--kl_curve true"
        )
    values = files.read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected the record of a KL curve")
    measured = values.pop("codec", None)
    curve = config.build(KlCurve, values, str(path))
    if measured != codec_digest(folder):
        raise UserError(
            f"{path}: was measured of another fit; measure again with coding/kl_curve.py"
        )
    return curve


def quality_for_kl(codec: Codec, folder: str | Path, kl: float, name: str = "target_kl") -> float:
    """The lowest of the codec's qualities with at most this KL by the curve in its folder.

    Args:
        name: of the option that asks, for messages.

    Raises:
        UserError: as :func:`read_kl_curve` and :meth:`KlCurve.quality_for`.
    """
    wanted = read_kl_curve(folder).quality_for(kl, name)
    place = bisect_left(codec.qualities, wanted)
    return codec.qualities[min(place, len(codec.qualities) - 1)]


@dataclass(frozen=True, kw_only=True)
class KlCurveConfig:
    """The measurement of a codec's curve."""

    codec: Path
    """Codec folder; the curve is written into it."""
    machine: str
    """Preset or YAML of the language model that the codec was fitted to."""
    options: list[str] = field(default_factory=list)
    """Flags of the machine's own script, key=value each: device=cuda."""
    qualities: list[float] | None = None
    """Where to measure; null takes 0 to 6, or all that the codec has if they are fewer."""


def measure_kl_curve(cfg: KlCurveConfig) -> KlCurve:
    """Measure, and write the curve into the codec folder.

    Raises:
        FileNotFoundError, UserError: no such codec or machine, or the machine's answers have no KL.
    """
    # torch and the model's libraries come with it, which reading a curve does without
    from dtufc.machines.opening import open_machine

    codec = load_codec(cfg.codec)
    if not codec.qualities:
        raise UserError(f"codec: {cfg.codec} has one rate only, so that there is nothing to choose")
    qualities = sorted(set(cfg.qualities or _usual(codec)))
    machine = open_machine(cfg.machine, cfg.options)
    points = _measure(codec, machine, machine.samples("validation"), qualities)
    curve = KlCurve(cfg.machine, len(machine.samples("validation")), points)
    record = {"codec": codec_digest(cfg.codec)} | asdict(curve)
    files.write_json(codec_folder(cfg.codec) / FILE, record)
    return curve


def _usual(codec: Codec) -> Sequence[float]:
    inside = [q for q in QUALITIES if codec.qualities[0] <= q <= codec.qualities[-1]]
    return codec.qualities if len(codec.qualities) <= FEW else inside


def _measure(
    codec: Codec, machine: "Machine", samples: Sequence["Sample"], qualities: Sequence[float]
) -> list[Point]:
    """The curve's points."""
    from tqdm import tqdm

    codecs = [codec.at_quality(quality) for quality in qualities]
    sizes, predictions = np.zeros(len(codecs)), [[] for _ in codecs]
    count = 0
    for sample in tqdm(samples, desc="KL curve", unit="sample"):
        x = machine.extract_batch([sample])[0]
        count += x.size
        for number, each in enumerate(codecs):
            data = each.encode(x)
            sizes[number] += len(data)
            predictions[number] += machine.predict_batch([sample], [each.decode(data)])
            if "kl" not in machine.score([sample], predictions[number][-1:]).others:
                raise UserError("machine: its answers have no KL divergence; take a language model")
    return [
        Point(codec.quality, float(8 * size / count), machine.score(samples, found).others["kl"])
        for codec, size, found in zip(codecs, sizes, predictions, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(KlCurveConfig, argv, __doc__)
        curve = measure_kl_curve(cfg)
        print(f"{format_table(curve.points)}\n{curve.samples} samples -> {cfg.codec / FILE}")


if __name__ == "__main__":
    main()
