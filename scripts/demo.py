"""One sample through a split model, coded at three rates: ``python demo.py [--machine llama3_tiny]``.

The front half makes the feature. A codec that ships with the package turns it into bytes and back, and
the back half answers. The table holds each answer against that of the uncoded feature, and
``demo_<machine>.png`` shows them. Nothing is trained and nothing is needed beforehand.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dtufc import config, files, records
from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.token_error import TokenErrors

MACHINES = {
    "dinov2_tiny": [-3, -1, 1],
    "llama3_tiny": [-3, -2.5, -1.5],
    "sd3_tiny": [-1.5, 0, 1.5],
    "resnet50_tiny": [-3, -2, 0],
}
"""The tiny machines, and three qualities of each one's ``klt`` that show something."""


@dataclass(frozen=True)
class DemoConfig:
    """One sample of one machine."""

    machine: Literal[tuple(MACHINES)] = "dinov2_tiny"
    """Which tiny machine: dinov2_tiny segments a picture, llama3_tiny answers a question, sd3_tiny
    paints a caption, resnet50_tiny names what a picture shows."""
    sample: int = 1
    """Which of its test samples, from 0."""
    quality: list[float] | None = None
    """Rates of the codec, on its own scale; by default three that suit the machine."""
    output: Path = Path("demo")
    """Folder of the picture."""


@dataclass(frozen=True)
class Line:
    """A row of the table: the feature at one rate."""

    feature: str
    bytes: int
    bits_per_point: float
    nmse: float | None
    """Squared error over the feature's variance."""
    token_error: float | None
    """Relative error per token; none for maps."""
    encode_ms: float | None
    decode_ms: float | None
    answer: str


def demo(cfg: DemoConfig) -> list[Line]:
    """Run one sample; write the picture -> the table.

    Raises:
        UserError: there is no such sample or quality.
    """
    from dtufc.machines.opening import open_machine

    machine: Any = open_machine(cfg.machine)
    samples = machine.samples("test")
    if not 0 <= cfg.sample < len(samples):
        raise UserError(f"sample: expected 0 .. {len(samples) - 1}, got {cfg.sample}")
    sample = samples[cfg.sample]
    x = machine.extract(sample)
    asked, uncoded = _question(machine, sample), machine.predict(sample, x)
    lines = [Line("uncoded", x.nbytes, 8 * x.itemsize, *[None] * 4, _tell(uncoded, uncoded))]
    panels = [(_caption(lines[0]), uncoded)]
    codec = load_codec(f"klt_{cfg.machine}")
    codec.decode(codec.encode(x))  # the first call compiles
    tokens = None if codec.known[0].views.is_map else TokenErrors()
    if tokens:
        tokens.add(x)
    for quality in cfg.quality or MACHINES[cfg.machine]:
        coder = codec.at_quality(quality)
        start = time.perf_counter()
        data = coder.encode(x)
        middle = time.perf_counter()
        x_hat = coder.decode(data)
        end = time.perf_counter()
        answer = machine.predict(sample, x_hat)
        nmse = float(np.mean(np.square(x_hat.astype(np.float64) - x)) / np.var(x))
        seconds = (1000 * (middle - start), 1000 * (end - middle))
        line = Line(f"klt, quality {quality:g}", len(data), 8 * len(data) / x.size, nmse,
                    tokens and tokens.error(x, x_hat), *seconds, _tell(answer, uncoded))  # fmt: skip
        lines.append(line)
        panels.append((_caption(line), answer))
    path = cfg.output / f"demo_{cfg.machine}.png"
    _draw(path, asked, panels)
    if not isinstance(asked, np.ndarray):
        print(f"{asked}\n")
    print(records.format_table(lines), f"\n{path}", sep="\n")
    return lines


def _question(machine: Any, sample: Any) -> Any:
    """What the sample asks: a picture, (H, W, 3) uint8, or text."""
    from dtufc.machines.sources.source import MaskedPicture, Question

    source = sample.source
    if isinstance(source, Question):
        choices = [f"{'ABCDE'[i]}: {text}" for i, text in enumerate(source.choices)]
        return "\n".join([source.stem, *choices])
    if isinstance(source, tuple):  # a caption and its number, which seeds the noise
        return source[0]
    if isinstance(source, MaskedPicture):
        return source.rgb()
    return source.rgb(machine.options.resize, machine.options.crop)


def _tell(answer: Any, uncoded: Any) -> str:
    """An answer in words; a picture or a mask by how near it is to the uncoded one."""
    if not isinstance(answer, np.ndarray):
        return str(answer)
    if answer.ndim == 2:
        return f"mask, {100 * np.mean(answer == uncoded):.1f}% of its pixels as uncoded"
    error = np.mean(np.square(answer.astype(np.float64) - uncoded))
    psnr = f"{10 * np.log10(255**2 / error):.1f} dB from" if error else "as"
    return f"picture, {psnr} uncoded"


def _caption(line: Line) -> str:
    return f"{line.feature}\n{line.bytes:,} bytes, {line.bits_per_point:.3g} bits per point"


def _draw(path: Path, asked: Any, panels: Sequence[tuple[str, Any]]) -> None:
    """Draw question and answers side by side."""
    import textwrap

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [("input", asked), *panels]
    size = (2.7 * len(panels), 3.2)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained")
    for axis, (title, what) in zip(axes, panels, strict=True):
        axis.set_title(title, fontsize=9)
        axis.axis("off")
        if isinstance(what, np.ndarray):
            classes = {} if what.ndim == 3 else {"cmap": "tab20", "vmin": 0, "vmax": 19}
            axis.imshow(what, interpolation="nearest", **classes)
        else:
            lines = [textwrap.fill(line, 30) for line in str(what).splitlines()]
            size = 9 if len(str(what)) > 20 else 22
            axis.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", fontsize=size)
    with files.write_atomic(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        demo(config.parse(DemoConfig, argv, __doc__))


if __name__ == "__main__":
    main()
