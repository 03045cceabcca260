"""The work of ``draw_klt.py``: what is drawn, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from draw_klt import DrawConfig

from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.feature import list_features
from dtufc.klt import coder, trellis
from dtufc.klt.codec import KltCodec
from dtufc.klt.model import rung

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 40  # components whose path through the trellis is drawn
REACH = 7.5  # fine steps of either sign that are drawn
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#888888"
QUANTISERS = (BLUE, ORANGE)


@dataclass(frozen=True)
class Followed:
    """One token after each stage."""

    x: np.ndarray
    """(C,) values."""
    mean: np.ndarray
    """(C,) of its mode."""
    y: np.ndarray
    """(D,) components in fine steps."""
    symbols: np.ndarray
    """(D,)."""
    states: np.ndarray
    """(D,) of the machine, before each symbol."""
    values: np.ndarray
    """(D,) what the symbols stand for, in fine steps."""
    bits: np.ndarray
    """(D,)."""
    decoded: np.ndarray
    """(C,)."""


def follow(codec: KltCodec, x: np.ndarray, token: int) -> Followed:
    """A token of a feature (N, C, H, W) on its way.

    Raises:
        UserError: the codec is none of tokens and format 2, or there is no such token.
    """
    model, grade = codec.model, codec.grade
    plain = not (model.memory or model.weighting or model.prediction)
    if model.format != 2 or model.facts.views.is_map or not plain:
        raise UserError(
            "codec: expected a klt codec of tokens, of format 2, without memory, metric and prediction"
        )
    vectors = model.to_vectors(x)
    if not 0 <= token < len(vectors):
        raise UserError(f"token: expected 0 .. {len(vectors) - 1}, got {token}")
    mine = vectors[token : token + 1]
    found, _ = model.search(mine, grade)
    mode, tables = int(found.modes[0]), model.rungs[rung(grade)]
    symbols, states = found.symbols[:, 0], [0]
    for k in symbols[:-1]:
        states.append(int(trellis.NEXT[states[-1], k & 1]))
    fine = trellis.FINE * model.transform.step(grade)
    return Followed(
        x=mine[0, :, 0],
        mean=model.transform.mean[mode, :, 0],
        y=coder.forward(model.transform, mine, mode)[:, 0] / fine,
        symbols=symbols,
        states=np.array(states),
        values=tables.values_of(found.symbols, found.modes)[:, 0],
        bits=tables.bits_of(found.code, found.modes)[:, 0] + tables.shift,
        decoded=model.restore(found.modes, found.symbols.T, grade)[0, :, 0],
    )


def draw_stages(token: Followed) -> "Figure":
    """One panel per stage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 11), layout="constrained")
    axes = figure.subplots(5, 1, height_ratios=[1, 1, 1.6, 1, 1])
    channels = np.arange(len(token.x))
    axes[0].plot(channels, token.x, color=BLUE, lw=0.8, label="the token")
    axes[0].plot(channels, token.mean, color=ORANGE, lw=0.8, label="the mean of its mode")
    axes[0].set(title="1  The token, and the mean", xlabel="channel", ylabel="value")
    axes[0].legend(loc="lower right", ncols=2)
    axes[1].bar(channels, token.y, color=BLUE, width=1.0)
    axes[1].set(title="2  Without the mean, in the basis", xlabel="component", ylabel="fine steps")
    _draw_search(axes[2], token)
    axes[3].bar(channels, token.bits, color=BLUE, width=1.0)
    axes[3].set(xlabel="component", ylabel="bits")
    total = token.bits.sum()
    axes[3].set_title(
        f"4  Bits of the symbols: {total:.0f}, {total / len(token.bits):.2f} per point"
    )
    axes[4].plot(channels, token.x, color=GREY, lw=0.8, label="the token")
    axes[4].plot(channels, token.decoded, color=BLUE, lw=0.8, label="decoded")
    axes[4].plot(channels, token.decoded - token.x, color=ORANGE, lw=0.8, label="error")
    axes[4].set(title="5  Decoded", xlabel="channel", ylabel="value")
    axes[4].legend(loc="lower right", ncols=3)
    for each in axes:
        each.margins(x=0.01)
        each.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_search(axes: "Axes", token: Followed) -> None:
    """Values, what the quantiser in turn may take, and what it takes."""
    for i in range(min(SHOWN, len(token.y))):
        quantiser = int(token.states[i]) & 1
        k = np.arange(-8, 9)
        allowed = 2 * k - quantiser * np.sign(k)
        allowed = allowed[np.abs(allowed) <= REACH]
        axes.scatter([i] * len(allowed), allowed, s=7, color=QUANTISERS[quantiser], alpha=0.35)
        axes.text(i, -REACH - 1.4, str(token.states[i]), ha="center", fontsize=7)
        far = abs(token.y[i]) > REACH
        height = np.clip(token.y[i], -REACH, REACH)
        if far:
            axes.text(i, height, f"{token.y[i]:.0f}", ha="center", va="center", fontsize=7)
            continue
        axes.plot([i, i], [token.y[i], token.values[i]], color="black", lw=0.8)
        axes.scatter([i], [token.y[i]], marker="x", s=22, color="black", lw=1, zorder=3)
        axes.scatter([i], [token.values[i]], s=26, color=QUANTISERS[quantiser], zorder=2)
    axes.scatter([], [], marker="x", color="black", label="component")
    for number, colour in enumerate(QUANTISERS):
        axes.scatter([], [], color=colour, label=f"quantiser {number}")
    axes.text(-1.2, -REACH - 1.4, "state", ha="right", fontsize=7)
    axes.set_ylim(-REACH - 2, REACH + 2)
    axes.set(xlabel=f"component, the first {SHOWN}", ylabel="fine steps")
    axes.set_title("3  The search: quantisers take turns", loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)


def draw_spread(codec: KltCodec, features: Sequence[np.ndarray]) -> "Figure":
    """Variance of channels and components, and bits of components, over all tokens."""
    from matplotlib.figure import Figure

    model, grade = codec.model, codec.grade
    vectors = np.concatenate([model.to_vectors(x) for x in features])
    found, raw = model.search(vectors, grade)
    tables = model.rungs[rung(grade)]
    power = np.zeros(len(tables.shift))
    for mode in np.unique(found.modes).tolist():
        y = coder.forward(model.transform, vectors[(found.modes == mode) & ~raw], mode)
        power += np.square(y, dtype=np.float64).sum(1) / max(1, (~raw).sum())
    bits = tables.bits_of(found.code, found.modes).mean(1) + tables.shift
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(np.sort(vectors[~raw, :, 0].var(0))[::-1], color=GREY, label="channels, sorted")
    left.semilogy(power, color=BLUE, label="components")
    noise = (trellis.FINE * model.transform.step(grade)) ** 2 / 3
    left.axhline(noise, color=ORANGE, lw=0.8, label="fine step squared / 3")
    left.set(title="Variance", xlabel="channel or component")
    left.set_ylim(bottom=noise / 20)  # some component may have none
    left.legend()
    right.plot(bits, color=BLUE)
    right.set(title=f"Bits per symbol, {bits.mean():.2f} on average", xlabel="component")
    for each in (left, right):
        each.margins(x=0.01)
        each.spines[["top", "right"]].set_visible(False)
    return figure


def draw(cfg: DrawConfig) -> list[Path]:
    """Draw -> the PNG files.

    Raises:
        FeatureError, FileNotFoundError, UserError: no such codec, features or token.
    """
    codec = load_codec(cfg.codec)
    if not isinstance(codec, KltCodec):
        raise UserError(f"codec: {cfg.codec} is no klt codec")
    codec = codec if cfg.quality is None else codec.at_quality(cfg.quality)
    features = [codec.facts.read(path) for path in list_features(cfg.features)]
    figures = {"stages": draw_stages(follow(codec, features[0], cfg.token))}
    figures["spread"] = draw_spread(codec, features)
    paths = []
    for name, figure in figures.items():
        paths.append(cfg.output.with_name(f"{cfg.output.name}_{name}.png"))
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[-1], dpi=110, metadata={"Software": None})
    return paths
