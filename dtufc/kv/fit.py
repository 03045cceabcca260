"""The fit of a KV codec: the work of :mod:`dtufc.kv.fit_kv`.

windows ─ caches ─────> rows of keys (before RoPE) and values ─ covariances ──────────┐
    └──── gradients ─┬> Fisher information ─ weights ──────────────────────────────────┤─ bases ─ tables
                     └> sensitivity of each token ─ prediction of its importance ─────┘
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from dtufc import locks, provenance
from dtufc.devices import check_device
from dtufc.klt import fit_ladder
from dtufc.klt.fit_tables import WEIGHT, Coded
from dtufc.klt.importance import Importance, Probed, fit_importance, to_classes
from dtufc.klt.model import LOWEST, PER_OCTAVE, RUNGS, RUNGS_PER_OCTAVE, KltModel, Layout, Transform
from dtufc.klt.tables import Tables
from dtufc.klt.weighting import weight_of
from dtufc.kv.caches import read_cache
from dtufc.kv.capture import Language, fill_cache, gradients, open_language, read_windows
from dtufc.kv.fit_kv import KvFitConfig
from dtufc.kv.model import Group, KvModel, Part, forward_matrix, group_facts
from dtufc.kv.rope import NO_ROPE, Rope
from dtufc.stamps import Stamp, digest_file

SPANS = (0, 1, 2, 3, 6)
"""Layers per group that are tried; 0: keys and values of a layer apart."""
JUDGED = 6
"""Layers in the middle of the model, on which candidates are compared: a multiple of all SPANS."""
HELD_OUT = 4  # of so many windows the last are not fitted on when candidates are compared
COMPARED_AT = 1.0  # bits per value of the candidate that the others are compared to
STRIDE = 4
"""Of klt's steps, which lie an eighth of an octave apart: tables at the steps of the classes."""
TURNS = 2  # of weights by importances and importances by weights
LEVELS = np.arange(-24.0, 12.0, 0.25)  # log2 of distortions that candidates are tried at


@dataclass(frozen=True)
class Captured:
    """What a fit takes of a model."""

    rows: np.ndarray
    """(windows, prompt, channels) float32: per part keys as cached, and values."""
    slopes: np.ndarray
    """(probed, draws, prompt, channels) float32: gradients of answers by them."""
    probed: np.ndarray
    """(probed,) the windows that these belong to, ascending."""
    columns: dict[Part, slice]
    known: int
    """First tokens that all windows share."""


def fit(cfg: KvFitConfig) -> tuple[KvModel, dict[str, Any]]:
    """Fit and write the codec folder; also what was found on the way.

    Raises:
        FileNotFoundError, UserError: no such model or text, or a text too short.
    """
    check_device(cfg.device)
    language = open_language(cfg.machine, cfg.dtype, cfg.device)
    windows = read_windows(language, cfg.texts, cfg.window, cfg.windows)
    with locks.hold(cfg.output), tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as two:
        stamp = Stamp(cfg.decides(), {"texts": digest_file(cfg.texts)})
        run = provenance.Run(cfg.output, cfg, stamp)
        model, told = build(language, capture(language, windows, cfg, one, two), cfg)
        model.save(cfg.output, told)
        run.finish(groups=len(model.groups), rope=told["rope"], span=told["span"])
    return model, told


def capture(
    language: Language,
    windows: Sequence[Sequence[int]],
    cfg: KvFitConfig,
    one: BinaryIO,
    two: BinaryIO,
) -> Captured:
    """Rows of all windows and gradients of some, kept in the files ``one`` and ``two``."""
    parts = [Part(n, w) for n in range(len(language.layers)) for w in ("key", "value")]
    widths = [language.layers[part.layer].width(part.which) for part in parts]
    ends = np.cumsum(widths)
    columns = {
        part: slice(end - width, end) for part, width, end in zip(parts, widths, ends, strict=True)
    }
    rows = np.memmap(one, np.float32, "w+", shape=(len(windows), cfg.prompt, int(ends[-1])))
    for number, ids in enumerate(tqdm(windows, desc="caches")):
        snapshot = read_cache(fill_cache(language, ids[: cfg.prompt]))
        for part, own in columns.items():
            rows[number, :, own] = snapshot.rows(part.layer, part.which, 0, cfg.prompt)[0]
    probed = np.unique(np.linspace(0, len(windows) - 1, cfg.probed).astype(int))
    slopes = np.memmap(
        two, np.float32, "w+", shape=(len(probed), cfg.draws, cfg.prompt, int(ends[-1]))
    )
    generator = torch.Generator().manual_seed(cfg.seed)
    for number, window in enumerate(tqdm(probed, desc="gradients")):
        drawn = gradients(language, windows[window], cfg.prompt, cfg.draws, generator)
        for draw, both in enumerate(drawn):
            for part, own in columns.items():
                x = both[part.which == "value"][part.layer]
                slopes[number, draw, :, own] = x[0].transpose(0, 1).flatten(1).float().cpu()
    shared = zip(*windows, strict=True)
    known = next((n for n, ids in enumerate(shared) if len(set(ids)) > 1), cfg.prompt - 1)
    return Captured(rows, slopes, probed, columns, min(known, cfg.prompt - 1))


class View:
    """Captured rows and gradients, keys before RoPE or after it.

    Args:
        ropes: by which keys are turned back.
    """

    def __init__(self, language: Language, captured: Captured, ropes: Sequence[Rope]):
        self.language, self.captured, self.ropes = language, captured, ropes
        self.tokens = captured.rows.shape[1]

    def first(self, parts: Sequence[Part]) -> int:
        """The first token whose gradients count: it is not known, and the layers still hold it."""
        layer = self.language.layers[parts[0].layer]
        return max(self.captured.known, layer.first(self.tokens))

    def rows(self, parts: Sequence[Part], windows: Any, first: int) -> np.ndarray:
        """(n, t, D) float32 of some windows, from a token on."""
        found = []
        for part in parts:
            x = np.ascontiguousarray(
                self.captured.rows[windows, first:, self.captured.columns[part]]
            )
            found.append(self._turn(part, x, first, 1.0))
        return np.concatenate(found, 2)

    def slopes(self, part: Part, probes: slice, first: int) -> np.ndarray:
        """(n, draws, t, C) float32 of some probed windows. A gradient turns back as a key does, but for
        the scale, which counts the other way."""
        x = np.ascontiguousarray(
            self.captured.slopes[probes, :, first:, self.captured.columns[part]]
        )
        return self._turn(part, x, first, self.ropes[part.layer].scale ** 2)

    def _turn(self, part: Part, x: np.ndarray, first: int, factor: float) -> np.ndarray:
        rope = self.ropes[part.layer]
        if part.which == "value" or not len(rope.frequency):
            return x
        heads = torch.from_numpy(x).unflatten(-1, (self.language.layers[part.layer].heads, -1))
        turned = rope.turn(heads, range(first, first + x.shape[-2]), back=True)
        turned[..., : 2 * len(rope.frequency)] *= factor
        return turned.flatten(-2).numpy()


@dataclass(frozen=True)
class Draft:
    """A group before its tables."""

    parts: tuple[Part, ...]
    mean: np.ndarray
    unweight: tuple[np.ndarray, ...]
    basis: np.ndarray
    importance: Importance
    forward: np.ndarray
    """(D, D) float32: a centred row times this are its components."""
    fisher: tuple[np.ndarray, ...]
    """Per part, (C, C) float64, of tokens over their importances."""

    def components(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n, t, D) -> components (n, t, D) float32."""
        return (rows - self.mean) @ self.forward


def draft(view: View, parts: Sequence[Part], windows: int, cfg: KvFitConfig) -> Draft:
    """Weights, basis and importances of a group, from the first windows."""
    mean, covariance = _moments(view.rows(parts, slice(0, windows), view.captured.known))
    first = view.first(parts)
    probes = slice(0, int((view.captured.probed < windows).sum()))
    rows = view.rows(parts, view.captured.probed[probes], first)
    slopes = [view.slopes(part, probes, first) for part in parts]
    place = np.arange(first, view.tokens)
    over = np.ones(rows.shape[:2])
    for _ in range(TURNS):
        fisher = [_fisher(each, over) for each in slopes]
        pairs = [weight_of(each, cfg.shrinkage) for each in fisher]
        basis, sigma = _basis(covariance, [weight for weight, _ in pairs])
        forward = forward_matrix([weight for weight, _ in pairs], basis)
        y = (rows - mean) @ forward
        cost = _cost(slopes, [unweight for _, unweight in pairs])
        probed = Probed(y, cost, view.tokens - 1 - place, place)
        importance = fit_importance(probed, sigma, view.tokens)
        over = _importances(importance, y, view.tokens - 1 - place, place)
    unweights = tuple(unweight.astype(np.float32) for _, unweight in pairs)
    return Draft(tuple(parts), mean, unweights, basis, importance, forward, tuple(fisher))


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) float32 and covariance (D, D) float64 of rows (n, t, D)."""
    flat = x.reshape(-1, x.shape[2])
    mean = flat.mean(0, dtype=np.float64).astype(np.float32)
    centred = torch.from_numpy(flat - mean)
    return mean, (centred.T @ centred).double().numpy() / len(flat)


def _cost(slopes: Sequence[np.ndarray], unweights: Sequence[np.ndarray]) -> np.ndarray:
    """(n, t): what an error of a token costs, mean 1 where the weights are these gradients' own."""
    total = sum(
        np.square(each @ unweight.astype(np.float32)).sum(-1).mean(1, dtype=np.float64)
        for each, unweight in zip(slopes, unweights, strict=True)
    )
    return total / sum(map(len, unweights))


def _fisher(slopes: np.ndarray, over: np.ndarray) -> np.ndarray:
    """Mean outer product (C, C) float64 of gradients (n, draws, t, C), each over its token's importance
    (n, t)."""
    scaled = slopes / np.sqrt(over, dtype=np.float32)[:, None, :, None]
    flat = torch.from_numpy(scaled.reshape(-1, slopes.shape[-1]))
    return ((flat.T @ flat).double() / len(flat)).numpy()


def _basis(covariance: np.ndarray, weights: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Karhunen-Loeve basis (D, D) of weighted rows in the precision that is stored, the largest variance
    first, and the components' standard deviations (D,)."""
    ends = np.cumsum([len(each) for each in weights])[:-1]
    half = np.concatenate([w @ r for w, r in zip(weights, np.split(covariance, ends), strict=True)])
    scaled = np.concatenate(
        [c @ w for w, c in zip(weights, np.split(half, ends, 1), strict=True)], 1
    )
    exact = torch.from_numpy((scaled + scaled.T) / 2)
    values, vectors = torch.linalg.eigh(exact.float() if len(exact) > 1024 else exact)
    basis = vectors.flip(1).numpy().astype(np.float16).astype(np.float32)
    sigma = values.flip(0).double().clamp(min=0).sqrt().numpy()
    return basis, np.maximum(sigma, 1e-6 * sigma[0] + 1e-20)


def _importances(
    importance: Importance, y: np.ndarray, behind: np.ndarray, position: np.ndarray
) -> np.ndarray:
    """(n, t) of components (n, t, D): those of their classes."""
    n, t, d = y.shape
    places = (np.tile(each, n) for each in (behind, position))
    return 2.0 ** to_classes(importance.log2(y.reshape(n * t, d), *places)).reshape(n, t)


def build(
    language: Language, captured: Captured, cfg: KvFitConfig
) -> tuple[KvModel, dict[str, Any]]:
    """The codec of what was captured."""
    tried: dict[str, float] = {}
    rope, span = choose(language, captured, cfg, tried)
    view = _view(language, captured, rope)
    layout = make_groups(language, span)
    drafts = [draft(view, parts, len(captured.rows), cfg) for parts in tqdm(layout, desc="bases")]
    sigma = np.concatenate([each.importance.sigma for each in drafts])
    unit = float(np.sqrt(np.mean(np.square(sigma, dtype=np.float64))))
    groups = tuple(
        _group(each, view, unit, number, cfg)
        for number, each in enumerate(tqdm(drafts, desc="tables"))
    )
    first = np.array(captured.rows[:, : captured.known]).mean(0)
    model = KvModel(language.layers, tuple(view.ropes), groups, first, cfg.defaults())
    told = {
        "rope": rope, "span": span, "tried": tried, "windows": len(captured.rows), "seed": cfg.seed,
        "sensitivity": _sensitivity(drafts),
    }  # fmt: skip
    return model, told


def _view(language: Language, captured: Captured, rope: str) -> View:
    ropes = language.ropes if rope == "before" else [NO_ROPE] * len(language.layers)
    return View(language, captured, ropes)


def make_groups(
    language: Language, span: int, layers: Sequence[int] | None = None
) -> list[list[Part]]:
    """Parts of each group: ``span`` neighbouring layers of one window, or, of span 0, one part each.

    Args:
        layers: of all that are wanted; None: all.
    """
    groups: list[list[Part]] = []
    members: list[int] = []
    for number in range(len(language.layers)) if layers is None else layers:
        layer = language.layers[number]
        if span == 0:
            groups += [[Part(number, "key")], [Part(number, "value")]]
            continue
        if members and (len(members) == span or language.layers[members[0]].window != layer.window):
            groups.append([Part(n, w) for n in members for w in ("key", "value")])
            members = []
        members.append(number)
    if members:
        groups.append([Part(n, w) for n in members for w in ("key", "value")])
    return groups


def _group(plan: Draft, view: View, unit: float, number: int, cfg: KvFitConfig) -> Group:
    """A group with its tables, fitted to some rows of all windows."""
    rng = np.random.default_rng([cfg.seed, number])
    windows = len(view.captured.rows)
    x = view.rows(plan.parts, slice(0, windows), view.captured.known)
    x = x.reshape(-1, x.shape[-1])
    some = np.sort(rng.choice(len(x), min(cfg.rows, len(x)), replace=False))
    y = plan.components(x[some])
    channels = len(plan.mean)
    layout = Layout(rotate=False, block=1, clusters=1, centre=False)
    transform = Transform(layout, np.zeros((1, channels, 1), np.float32), None, unit)
    klt = KltModel(
        group_facts(number, channels), transform, _tables(transform, y[:, :, None]), WEIGHT
    )
    return Group(plan.parts, plan.mean, plan.unweight, plan.basis, plan.importance, klt)


def _tables(transform: Transform, sample: np.ndarray) -> tuple[Tables, ...]:
    """klt's tables of all its steps; those of every STRIDE-th are fitted, and serve the steps around."""
    width = PER_OCTAVE // RUNGS_PER_OCTAVE
    grades = [LOWEST * PER_OCTAVE + width * n for n in range(0, RUNGS, STRIDE)]
    found = list(fit_ladder.fit(transform, Coded.plain(transform, sample), grades, WEIGHT))
    return tuple(found[round(n / STRIDE)] for n in range(RUNGS))


def choose(
    language: Language, captured: Captured, cfg: KvFitConfig, tried: dict[str, float]
) -> tuple[str, int]:
    """Before or after RoPE, and layers per group: what codes held-out windows in the fewest bits.

    Args:
        tried: gets the estimated bits per value of each candidate.
    """
    spans = [cfg.span] if cfg.span is not None else _fitting(language, cfg.widest)
    ropes = ["before", "after"] if cfg.rope == "auto" else [cfg.rope]
    if len(spans) == len(ropes) == 1:
        return ropes[0], spans[0]
    start = min(spans, key=lambda span: abs(span - 1))
    curves = {(rope, start): _held_out(language, captured, rope, start, cfg) for rope in ropes}
    rate, cost = curves[ropes[0], start]
    cost = float(np.interp(COMPARED_AT, rate[::-1], np.log2(cost[::-1])))

    def bits(candidate: tuple[str, int]) -> float:
        rates, costs = curves[candidate]
        return float(np.interp(cost, np.log2(costs), rates))

    rope = min(ropes, key=lambda rope: bits((rope, start)))
    for span in spans:
        if (rope, span) not in curves:
            curves[rope, span] = _held_out(language, captured, rope, span, cfg)
    tried |= {f"{name} RoPE, span {span}": round(bits((name, span)), 4) for name, span in curves}
    return rope, min(spans, key=lambda span: bits((rope, span)))


def _fitting(language: Language, widest: int) -> list[int]:
    """Spans whose groups are no wider than asked for, one at least."""
    width = max(layer.width("key") + layer.width("value") for layer in language.layers)
    found = [span for span in SPANS if span * width <= widest and span <= len(language.layers)]
    return found or [0]


def _held_out(
    language: Language, captured: Captured, rope: str, span: int, cfg: KvFitConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Bits per value and cost, at each of LEVELS, on windows that were not fitted on.

    Components are taken for Gaussian, each coded with the variance that it has among the others.
    """
    view = _view(language, captured, rope)
    windows = len(captured.rows) - max(1, len(captured.rows) // HELD_OUT)
    probes = slice(int((captured.probed < windows).sum()), len(captured.probed))
    bits, cost, channels = np.zeros(len(LEVELS)), np.zeros(len(LEVELS)), 0
    start = max(0, (len(language.layers) - JUDGED) // 2)
    judged = range(start, min(start + JUDGED, len(language.layers)))
    for parts in make_groups(language, span, judged):
        plan = draft(view, parts, windows, cfg)
        first = view.first(parts)
        y = plan.components(view.rows(parts, captured.probed[probes], first))
        place = np.arange(first, view.tokens)
        over = _importances(plan.importance, y, view.tokens - 1 - place, place)
        spent = _cost([view.slopes(part, probes, first) for part in parts], plan.unweight)
        own_bits, own_cost = _coded(y, plan.importance.sigma.astype(np.float64) ** 2, over, spent)
        bits, cost, channels = bits + own_bits, cost + own_cost, channels + len(plan.mean)
    return bits / channels, cost


def _coded(
    y: np.ndarray, variance: np.ndarray, over: np.ndarray, spent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bits per token and cost at each of LEVELS, of components (n, t, D).

    Args:
        variance: (D,) that is counted on. over: (n, t) importances. spent: (n, t) what errors cost.
    """
    bits, cost = [], []
    flat, own, s = y.reshape(-1, y.shape[2]), over.ravel(), spent.ravel()
    energy = {c: np.square(flat[own == c], dtype=np.float64).mean(0) for c in np.unique(own)}
    for level in 2.0**LEVELS:
        total = paid = 0.0
        for c, mean_square in energy.items():
            noise = level / c
            ratio = (mean_square + noise) / (variance + noise)
            length = 0.5 * (np.log2(1 + variance / noise) + (ratio - 1) / np.log(2)).sum()
            total += length * (own == c).mean()
            paid += (noise * variance / (variance + noise)).sum() * s[own == c].sum() / len(s)
        bits.append(total)
        cost.append(paid)
    return np.array(bits), np.array(cost)


def _sensitivity(drafts: Sequence[Draft]) -> list[dict[str, float]]:
    """Mean Fisher information per channel of each layer's keys and values, nats per squared unit."""
    found: dict[int, dict[str, float]] = {}
    for each in drafts:
        for part, fisher in zip(each.parts, each.fisher, strict=True):
            mean = float(np.trace(fisher) / len(fisher))
            found.setdefault(part.layer, {})[part.which] = mean
    return [found[layer] for layer in sorted(found)]
