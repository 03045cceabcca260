"""Fit the best codec for features of one kind: ``python fit.py --features DIR --output DIR``.

Fits several codecs within some minutes on four files of five, compares them on the fifth by their rate
at equal error, every byte counted, and fits the best to all files. What was compared is printed, and
written to ``compared.json`` in the codec folder. Without ``--nmse`` a codec must serve any rate. With
it, the rate at that error decides, and ``native``, which is trained for one rate, takes part where the
minutes allow.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from dtufc import config, files
from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.experiments.automatic_native import train_native
from dtufc.feature import FeatureFacts, Moments, list_features, read_feature
from dtufc.fitting import FitOptions
from dtufc.kl_curve import KlCurveConfig, measure_kl_curve
from dtufc.records import format_table

QUALITIES = (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 5.0)
NMSES = (0.3, 0.1, 0.03, 0.01)
"""Errors at which codecs of any rate are compared."""
CODED = 4_000_000  # values of held-out features that are coded at each quality, about
SLOWER = 3.0  # times the first fit's seconds, that a memory, a prediction or two layouts take
RECORD = "compared.json"
Curve = list[tuple[float, float]]
"""Bits per point and NMSE, by quality."""


@dataclass(frozen=True, kw_only=True)
class AutomaticConfig(FitOptions):
    """The choice of a codec."""

    minutes: float = 10.0
    """What the choice may take, about; the first codec is fitted in any case."""
    held_out: Path | None = None
    """Folder of features to compare on; without one every fifth file is held out."""
    nmse: float | None = None
    """The error that matters, MSE over the variance of all values; null: all from 0.3 to 0.01."""
    kl_curve: bool = False
    """Measure afterwards what the codec costs the language model of --machine by quality, for
    --target_kl; see kl_curve.py."""
    seed: int = 0
    """Of fits and training."""

    def __post_init__(self):
        if not self.minutes > 0:
            raise UserError(f"minutes: expected more than 0, got {self.minutes}")
        if self.nmse is not None and not 0 < self.nmse < 1:
            raise UserError(f"nmse: expected a number between 0 and 1, got {self.nmse}")
        if self.kl_curve and self.machine is None:
            raise UserError("kl_curve: give the language model with --machine")


@dataclass(frozen=True)
class Entrant:
    """One way to make a codec."""

    name: str
    flags: dict = field(default_factory=dict)
    """Fields of klt's FitConfig."""


@dataclass(frozen=True)
class Row:
    """What was measured of one codec, or why it was not."""

    codec: str
    rate: str
    """Its bits at equal error against the first one's, as the mean over the errors."""
    bpfp: str
    """Bits per point at these errors."""
    seconds: float | None
    megabytes: float | None


class Choice:
    """The comparison within its minutes."""

    def __init__(self, cfg: AutomaticConfig, facts: FeatureFacts, folder: Path):
        self.cfg, self.facts, self.folder = cfg, facts, folder
        self.end = time.monotonic() + 60 * cfg.minutes
        self.told, unseen = _split(cfg, folder)
        self.unseen = _thin(unseen)
        self.moments = Moments()
        for path in self.unseen:
            self.moments.add(facts.read(path))
        self.curves: dict[str, Curve] = {}
        self.seconds: dict[str, float] = {}
        self.skipped: dict[str, str] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def run(self) -> tuple[str, Entrant | None]:
        """Name and flags of the best codec; None for one that is not klt's."""
        first = Entrant("klt")
        self._fit(first)
        entrants = [first, *self._others()]
        for entrant in entrants[1:]:
            slow = {"memory", "predict", "layouts"} & entrant.flags.keys()
            likely = self.seconds["klt"] * (SLOWER if slow else 1.0)
            spent = likely + (likely if self.cfg.held_out is None else 0.0)  # the last fit, to all
            if spent > self.left:
                self.skipped[entrant.name] = f"would take {likely:.0f} s"
            else:
                self._fit(entrant)
        if self.cfg.nmse is not None:
            self._train(self.cfg.nmse)
        rates = {name: self.rate(name) for name in self.curves}
        best = min(rates, key=rates.__getitem__)
        return best, next((each for each in entrants if each.name == best), None)

    def _others(self) -> list[Entrant]:
        """The other ways with klt: format 2, with contexts and a prediction as well, a memory, layouts
        that are compared at other rates, and two layouts where more than one rate matters."""
        contextual = {"format": 2, "contexts": True}
        ways: list[tuple[str, dict]] = [("klt, format 2", {"format": 2})]
        ways.append(("klt, format 2, contexts", contextual))
        if not self.facts.views.is_map:
            ways.append(("klt, format 2, contexts, prediction", contextual | {"predict": True}))
            ways.append(("klt, memory", {"memory": True}))
        if self.cfg.nmse is None:
            at = {"at low rates": [-2.5, -1.5, -0.5], "at high rates": [2.5, 3.5, 4.5]}
            ways.append(("klt, two layouts", {"layouts": "two"}))
            two = contextual | {"layouts": "two"}
            ways.append(("klt, format 2, contexts, two layouts", two))
        else:
            quality = self._quality(self.curves["klt"], self.cfg.nmse)
            at = {f"at NMSE {self.cfg.nmse:g}": [quality - 0.5, quality + 0.5]}
        for name, compared_at in at.items():
            ways.append((f"klt {name}", {"compared_at": compared_at}))
            if not self.facts.views.is_map:
                flags = {"compared_at": compared_at, "memory": True}
                ways.append((f"klt {name}, memory", flags))
        return [Entrant(name, flags) for name, flags in ways]

    def _quality(self, curve: Curve, nmse: float) -> float:
        """Where the curve has this error, about."""
        errors = np.log([max(error, 1e-30) for _, error in curve])
        return round(float(np.interp(math.log(nmse), errors[::-1], QUALITIES[::-1])), 2)

    def _fit(self, entrant: Entrant) -> None:
        # what it imports takes a second, which a wrong option should not wait for
        from dtufc.klt.fit import fit

        start = time.monotonic()
        print(f"\n{entrant.name}", flush=True)
        fit(fit_config(self.cfg, entrant, self.told, self.place(entrant.name)))
        self.seconds[entrant.name] = time.monotonic() - start
        self.curves[entrant.name] = self.measure(self.place(entrant.name))

    def _train(self, nmse: float) -> None:
        """The codec that is trained for one rate."""
        start = time.monotonic()
        made = train_native(self.told, self.facts, nmse, self.left, self.folder, self.cfg.seed)
        if isinstance(made, str):
            self.skipped["native"] = made
            return
        self.place("native").symlink_to(made)
        self.seconds["native"] = time.monotonic() - start
        self.curves["native"] = self.measure(made)

    def place(self, name: str) -> Path:
        """Folder of a codec."""
        return self.folder / "codecs" / name.replace(",", "").replace(" ", "_")

    def measure(self, folder: Path) -> Curve:
        """Bits per point, all bytes counted, and NMSE on held-out files."""
        loaded, found = load_codec(folder), []
        for quality in QUALITIES if loaded.qualities else (None,):
            codec = loaded if quality is None else loaded.at_quality(quality)
            size = error = 0.0
            for path in self.unseen:
                x = self.facts.read(path)
                data = codec.encode(x)
                size += len(data)
                error += float(np.sum(np.square(codec.decode(data).astype(np.float64) - x)))
            points = self.moments.count
            found.append((8 * size / points, error / points / max(self.moments.variance, 1e-30)))
        return found

    def bits(self, name: str) -> list[float]:
        """Bits per point at each error, interpolated on logarithms; infinite where the codec does not
        come to it."""
        errors = NMSES if self.cfg.nmse is None else (self.cfg.nmse,)
        curve = np.log(np.maximum(self.curves[name], 1e-30))
        if len(curve) == 1:  # one rate: good enough, or not
            return [
                self.curves[name][0][0] if curve[0, 1] <= math.log(e) else math.inf for e in errors
            ]
        inside = [curve[-1, 1] <= math.log(error) for error in errors]
        found = np.exp(np.interp(np.log(errors), curve[::-1, 1], curve[::-1, 0]))
        return np.where(inside, found, math.inf).tolist()

    def rate(self, name: str) -> float:
        """Bits at equal error over the first codec's, as the geometric mean over the errors that it
        comes to."""
        pairs = zip(self.bits(name), self.bits("klt"), strict=True)
        logs = [math.log(one / other) for one, other in pairs if other < math.inf]
        return math.exp(sum(logs) / len(logs)) if logs else 1.0

    def rows(self) -> list[Row]:
        """The table, the best first."""
        rows = []
        for name in sorted(self.curves, key=self.rate):
            size = sum(p.stat().st_size for p in self.place(name).glob("*.safetensors")) / 1e6
            bits = ", ".join("-" if b == math.inf else f"{b:.4g}" for b in self.bits(name))
            if len(self.curves[name]) == 1:
                bits = "{:.4g} at {:.3g}".format(*self.curves[name][0])
            rate = self.rate(name) - 1
            told = "not reached" if rate == math.inf else f"{rate:+.1%}"
            rows.append(Row(name, told, bits, self.seconds[name], size))
        return rows + [Row(name, "skipped", why, None, None) for name, why in self.skipped.items()]


def fit_config(cfg: AutomaticConfig, entrant: Entrant, features: Path, output: Path):
    """The fit of an entrant."""
    from dtufc.klt.fit_klt import FitConfig

    made = FitConfig(features=features, output=output, machine=cfg.machine, seed=cfg.seed)
    return replace(made, **entrant.flags)


def _split(cfg: AutomaticConfig, folder: Path) -> tuple[Path, list[Path]]:
    """The folder to fit on, and the files to compare on.

    Raises:
        UserError: there is one file, of which none can be held out.
    """
    paths = list_features(cfg.features)
    if cfg.held_out is not None:
        return cfg.features, list_features(cfg.held_out)
    if len(paths) < 3:
        raise UserError(f"features: {cfg.features} holds fewer than three files; give --held_out")
    told = folder / "told"
    told.mkdir()
    for number, path in enumerate(paths):
        if number % 5 != 2:  # klt holds out others itself, to choose its layout
            (told / path.name).symlink_to(path.resolve())
    return told, paths[2::5]


def _thin(paths: Sequence[Path]) -> list[Path]:
    """Some of the files, of about CODED values at most."""
    size = read_feature(paths[0]).size
    return list(paths[:: max(1, len(paths) * size // CODED)])


def choose(cfg: AutomaticConfig) -> list[Row]:
    """Compare, and write the best codec to the output -> what was compared, the best first.

    Raises:
        FeatureError, FileNotFoundError, UserError: no features, or unsound ones, or too few.
    """
    facts = cfg.facts()
    if cfg.output.exists() and any(cfg.output.iterdir()):
        raise UserError(f"output: {cfg.output} holds something; take another folder")
    with tempfile.TemporaryDirectory() as name:
        choice = Choice(cfg, facts, Path(name))
        best, entrant = choice.run()
        rows = choice.rows()
        if entrant is not None and cfg.held_out is None:
            # fields that klt's own run records: all of the user's files, and the user's folder
            from dtufc.klt.fit import fit

            print(f"\n{best}, fitted to all files", flush=True)
            fit(fit_config(cfg, entrant, cfg.features, cfg.output))
        else:
            cfg.output.mkdir(parents=True, exist_ok=True)
            shutil.copytree(choice.place(best).resolve(), cfg.output, dirs_exist_ok=True)
        errors = list(NMSES if cfg.nmse is None else (cfg.nmse,))
        told = {"nmse": errors, "rows": [asdict(row) for row in rows]}
        files.write_json(cfg.output / RECORD, told | {"curves": choice.curves})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(AutomaticConfig, argv, __doc__)
        rows = choose(cfg)
        errors = ", ".join(f"{e:g}" for e in (NMSES if cfg.nmse is None else (cfg.nmse,)))
        print(f"\n{format_table(rows)}\n\nbpfp at NMSE {errors} of files that were held out")
        print(f"{rows[0].codec} -> {cfg.output}")
        if cfg.kl_curve and cfg.machine is not None:
            measure_kl_curve(KlCurveConfig(codec=cfg.output, machine=cfg.machine))


if __name__ == "__main__":
    main()
