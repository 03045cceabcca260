"""Fit the codec without a network: ``python fit_klt.py --features DIR --output DIR``.

Takes training features of one kind, lets layouts race (basis, blocks, mixtures of Karhunen-Loeve
transforms, shrinkage of their covariances) on a part of the files, keeps the one with the lowest rate at
equal MSE on the others, and fits it to all; of a single file the last fifth of its vectors is held out.
Files are read once, and some once more for the post-filter. Statistics and a bounded sample of vectors
are all that is kept.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dtufc import config
from dtufc.errors import UserError
from dtufc.fitting import FitOptions
from dtufc.stamps import Stamp, digest_file

if TYPE_CHECKING:
    from dtufc.klt.model import KltModel

COMPARED_AT = (-0.5, 0.5, 1.5, 2.5)
"""Qualities at which layouts are compared where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class FitConfig(FitOptions):
    """Fitting of a klt codec."""

    clusters: list[int] | None = None
    """Mixtures to try; null tries 1, 4, 8 and 16 where there are vectors enough."""
    compared_at: list[float] | None = None
    """Qualities at which layouts are compared, two at least: about those that will be asked for. null
    takes -0.5, 0.5, 1.5 and 2.5; of tokens by the standard deviation of usual ones, where a few giants
    raise that of all by a factor of two or more."""
    quality: float = 1.0
    """What the codec takes where nothing is asked for: log2 of the feature's standard deviation over
    the step."""
    sample: int = 24_000_000
    """Values at most that are kept to fit mixtures and tables on."""
    tables: int = 48
    """Entropy tables of a step at most; fewer make a smaller codec."""
    format: Literal[1, 2] = 1
    """Of the codec. 1: plain quantisation, one string. 2: dependent quantisation by a trellis, and lanes
    that a GPU decodes, where there is no memory; it knows no transform per layer."""
    post_filter: bool = True
    """Look for a filter over neighbouring tokens behind the decoder; it is kept at the steps where it
    lowers the error on files that it was not fitted on."""
    memory: bool = False
    """Look for a memory of tokens (:mod:`dtufc.klt.memory`); it is kept where it lowers the rate by 1.4%
    or more, on files that it was not made of. It takes a larger model and more time."""
    layouts: Literal["one", "two"] = "one"
    """two: look for a layout for the coarse steps and another one for the fine ones, by a race for each;
    both are kept where one of them takes 1.5% fewer bits than the one layout in its steps, on held-out
    vectors. The codec folder is about twice as large then."""
    predict: bool = False
    """Look for a linear prediction of each token from the one before (:mod:`dtufc.klt.prediction`),
    format 2; it is kept where it lowers the rate by 1.4% or more on files that it was not made of.
    Coding goes from token to token then, which takes several times as long."""
    contexts: bool = False
    """Choose tables by the symbols of the same vector before (:mod:`dtufc.klt.contexts`), format 2. It
    lowers the rate by 1 to 2 %, of maps in one basis by 3 to 8 %; decoding takes longer."""
    metric: Path | None = None
    """What errors cost the model behind, a file of fit_metric.py: bits then go where they count. Where
    it tells tokens apart there is no post-filter."""
    search: Literal["race", "exhaustive"] = "race"
    """race: layouts that fall behind on small samples are dropped. exhaustive: all are compared on the
    whole sample, which takes several times as long."""
    kl_curve: bool = False
    """Measure afterwards what the codec costs the language model of --machine by quality, for
    --target_kl; see kl_curve.py."""
    seed: int = 0
    """Of the sample and the mixtures."""
    device: str | None = None
    """torch device of matrix products; the first GPU where there is one."""

    def stamp(self) -> Stamp:
        found = super().stamp()
        values = {key: value for key, value in found.config.items() if key != "metric"}
        if self.compared_at is None:  # as it was written when this was the default
            values["compared_at"] = list(COMPARED_AT)
        for name in ("predict", "contexts"):
            if not values[name]:
                del values[name]  # stamps of codecs that are older than it hold
        if self.layouts == "one":
            del values["layouts"]
        inputs = dict(found.inputs)
        if self.metric is not None:
            inputs["metric"] = digest_file(self.metric)
        return Stamp(values, inputs)

    def __post_init__(self):
        if self.clusters is not None and (not self.clusters or min(self.clusters) < 1):
            raise UserError(f"clusters: expected numbers of at least 1, got {self.clusters}")
        if not 1 <= self.tables <= 256:
            raise UserError(f"tables: expected 1 .. 256, got {self.tables}")
        if self.kl_curve and self.machine is None:
            raise UserError("kl_curve: give the language model with --machine")
        if self.predict and (self.format != 2 or self.memory):
            raise UserError("predict: expected --format 2, without --memory")
        if self.contexts and self.format != 2:
            raise UserError("contexts: expected --format 2")
        if self.compared_at is not None and len(set(self.compared_at)) < 2:
            raise UserError(f"compared_at: expected two qualities at least, got {self.compared_at}")
        if (
            self.layouts == "two"
            and self.compared_at is not None
            and len(set(self.compared_at)) < 4
        ):
            raise UserError(
                "compared_at: expected four qualities at least for two layouts, half of them for each, "
                f"got {self.compared_at}"
            )


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(FitConfig, argv, __doc__)
        from dtufc.klt.fit import fit
        from dtufc.klt.model import PER_OCTAVE, WEIGHTS

        start = time.time()
        model = fit(cfg)
        size = (cfg.output / WEIGHTS).stat().st_size
        name = _told(model.each[0])
        if model.fine is not None:
            name += f"; from quality {model.fine_from / PER_OCTAVE:g} {_told(model.fine)}"
        print(f"{name}, {size / 1e6:.2f} MB, {time.time() - start:.0f} s -> {cfg.output}")
        if cfg.kl_curve and cfg.machine is not None:
            from dtufc.kl_curve import KlCurveConfig, measure_kl_curve

            measure_kl_curve(KlCurveConfig(codec=cfg.output, machine=cfg.machine))


def _told(model: "KltModel") -> str:
    """A model's layout, in words."""
    forecasts = ", half of the modes with a forecast" if model.prediction else ""
    return f"{model.transform.layout}{forecasts}"


if __name__ == "__main__":
    main()
