"""The front half of a machine here, its back half behind a server: ``python ask.py --server URL``.

A language model continues ``--prompt``: a frame per token goes there, the token behind it comes back.
``--picture`` and ``--caption`` are one bitstream there, and one answer back.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dtufc import config
from dtufc.errors import UserError

if TYPE_CHECKING:
    from dtufc.codec import Codec
    from dtufc.live.client import LiveClient, LiveSession
    from dtufc.live.guard import Guard
    from dtufc.live.link import Choice


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """What is asked, and of whom."""

    server: str
    """http://host:port of serve.py, or https:// with TLS."""
    machine: str
    """Machine preset or YAML, the server's."""
    codec: Path | None = None
    """Codec folder, or name of a shipped codec, the server's; null: klt_<machine>, where that ships."""
    options: list[str] = field(default_factory=list)
    """Flags of the machine's own script, key=value each: layer=1 device=cuda."""
    prompt: str | None = None
    """What a language model continues."""
    tokens: int = 64
    """Tokens that are asked for, at most."""
    picture: Path | None = None
    """A picture, for DINOv2 and ResNet50."""
    caption: str | None = None
    """What Stable Diffusion 3 paints."""
    output: Path | None = None
    """PNG file of an answer that is a picture or a mask."""
    quality: float | None = None
    """Rate on the codec's own scale; null: its default."""
    raw: bool = False
    """Send bfloat16 without the codec."""
    bandwidth: str | None = None
    """The link's bits per second as 2Mbit, or auto to measure it: picks the quality, or raw where that
    is faster."""
    row_ms: float | None = None
    """With --bandwidth: milliseconds that coding and wire of a row may take; null: what the front half
    takes for a row of the prompt, or for the picture."""
    min_quality: float | None = None
    """With --bandwidth: quality that is kept however slow the link is; null: the codec's own."""
    target_kl: float | None = None
    """Lowest quality whose KL divergence from the uncut language model, in nats per token, is at most
    this by the codec's own curve; see kl_curve.py."""
    max_kl: float | None = None
    """No quality whose KL divergence is above this by the codec's own curve, whatever the link asks."""
    token_file: Path | None = None
    """File with the server's token."""
    authority: Path | None = None
    """PEM file of the certificate that is trusted; null: the system's."""

    def __post_init__(self):
        asked = [each for each in (self.prompt, self.picture, self.caption) if each is not None]
        if len(asked) != 1:
            raise UserError("prompt, picture, caption: expected one of them")
        if self.prompt == "":
            raise UserError("prompt: expected at least one character")
        if self.tokens < 1:
            raise UserError(f"tokens: expected at least 1, got {self.tokens}")
        rates = [self.quality, self.bandwidth, self.target_kl]
        if self.raw + sum(rate is not None for rate in rates) > 1:
            raise UserError("raw, quality, bandwidth, target_kl: expected one of them")
        if self.raw and self.max_kl is not None:
            raise UserError("max_kl: it bounds what a codec costs; raw does without one")
        for key in ("target_kl", "max_kl"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{key}: expected a number above 0, got {value}")
        if self.row_ms is not None and not self.row_ms > 0:
            raise UserError(f"row_ms: expected a number above 0, got {self.row_ms}")
        if self.bandwidth is None and (self.row_ms, self.min_quality) != (None, None):
            raise UserError("row_ms, min_quality: they go with --bandwidth")
        if self.bandwidth is not None:
            from dtufc.live.link import parse_bandwidth

            parse_bandwidth(self.bandwidth)


@dataclass(frozen=True)
class Text:
    """What a session gave."""

    ids: list[int]
    text: str
    frames: list[dict[str, Any]]
    """The server's message for each, with the bytes and milliseconds of both sides."""
    choice: "Choice"

    def tell(self) -> str:
        """Bytes and milliseconds per token. The first frame carries the prompt, and is told apart."""
        steps = self.frames[1:] or self.frames
        parts = {
            part: np.mean([frame[f"{part}_ms"] for frame in steps])
            for part in ("front", "encode", "wire", "wait", "decode", "compute")
        }
        size = np.mean([frame["bytes"] for frame in steps])
        each = ", ".join(f"{part} {took:.2f}" for part, took in parts.items())
        return (
            f"{len(self.ids)} tokens, {size:.2f} bytes and {sum(parts.values()):.2f} ms per token "
            f"({each}); prompt {self.frames[0]['bytes']} bytes"
        )


def ask(cfg: AskConfig) -> Text | dict[str, Any]:
    """Ask the server, and print the answer as it comes.

    Raises:
        FileNotFoundError, OSError, UserError: machine, codec or input are missing, the server is not
            there, or refuses; the message says why.
    """
    from dtufc.live import single
    from dtufc.live.client import LiveClient
    from dtufc.live.gate import read_token
    from dtufc.machines.opening import open_machine

    machine: Any = open_machine(cfg.machine, cfg.options)
    client = LiveClient(cfg.server, read_token(cfg.token_file), cfg.authority)
    if single.is_language(machine) != (cfg.prompt is not None):
        takes = "--prompt" if single.is_language(machine) else "--picture or --caption"
        raise UserError(f"{cfg.machine}: takes {takes}")
    if cfg.prompt is not None:
        text = talk(cfg, machine, client)
        print("", *filter(None, [text.choice.why]), text.tell(), sep="\n")
        return text
    return ask_once(cfg, machine, client)


def talk(cfg: AskConfig, machine: Any, client: "LiveClient") -> Text:
    """Continue the prompt, and print the text as it comes."""
    from dtufc.live.backend import identify
    from dtufc.live.client import plain
    from dtufc.live.link import Choice
    from dtufc.machines.llama3.generate import FrontHalf, end_tokens, generate
    from dtufc.streams import Tensor, open_session

    chosen, front = chooser(cfg, machine, client), FrontHalf(machine)
    ids, _ = machine.tokenizer(cfg.prompt).input_ids, machine.front  # loaded before times are taken
    choice: Choice | None = None
    session: LiveSession | None = None
    stack = contextlib.ExitStack()
    frames: list[dict[str, Any]] = []
    asked = time.perf_counter()

    def answer(rows: np.ndarray) -> int:
        nonlocal choice, session, asked
        took = time.perf_counter() - asked
        if session is None:
            # the prompt tells what rows to come are like, and what one of them costs here
            each = [row[None, None, None] for row in rows]
            choice = chosen(each, took / len(rows))
            tensor = Tensor(choice.codec, machine.options.facts.kind)
            encoder = open_session({"hidden": tensor}, **identify(machine))
            session = stack.enter_context(client.open(encoder))
        frames.append(session.send(rows) | {"front_ms": 1000 * took})
        print(plain(frames[-1]["text"]), end="", flush=True)
        asked = time.perf_counter()
        return frames[-1]["id"]

    with stack:
        made = list(generate(front, ids, answer, cfg.tokens, end_tokens(machine)))
        session.close()
    return Text(made, "".join(frame["text"] for frame in frames), frames, choice)


def ask_once(cfg: AskConfig, machine: Any, client: "LiveClient") -> dict[str, Any]:
    """A picture or a caption -> the answer; an answer that is a picture goes to the output."""
    import base64
    import binascii

    from dtufc import files
    from dtufc.live import single
    from dtufc.live.backend import identify
    from dtufc.live.client import plain

    sample, told = single.sample_for_front(machine, cfg.picture, cfg.caption)
    _ = machine.front  # loaded before times are taken
    start = time.perf_counter()
    feature = machine.extract(sample)
    took = time.perf_counter() - start
    choice = chooser(cfg, machine, client)([feature], took)
    middle = time.perf_counter()
    data = choice.codec.encode(feature, machine.options.facts.kind)
    encoded = time.perf_counter()
    answer = client.predict(data, identify(machine) | told)
    end = time.perf_counter()
    if "png" in answer:
        path = cfg.output or Path("answer.png")
        try:
            files.write_bytes(path, base64.b64decode(answer["png"], validate=True))
        except (TypeError, binascii.Error) as error:
            raise UserError("server: expected a PNG in base64") from error
        print(path)
    else:
        print(plain(str(answer.get("prediction"))))
    if choice.why:
        print(choice.why)
    print(
        f"{len(data)} bytes; front {1000 * took:.1f} ms, encode {1000 * (encoded - middle):.1f} ms, "
        f"server and wire {1000 * (end - encoded):.1f} ms"
    )
    return answer


def chooser(
    cfg: AskConfig, machine: Any, client: "LiveClient"
) -> "Callable[[Sequence[np.ndarray], float], Choice]":
    """Rows like those to come, and the seconds that the front half takes for one -> how they are coded.

    Raises:
        FileNotFoundError, UserError: there is no such codec or quality.
    """
    from dtufc.live.backend import raw_codec
    from dtufc.live.link import Choice, choose, parse_bandwidth

    raw = raw_codec(machine.options.facts)
    if cfg.raw:
        return lambda rows, seconds: Choice(raw, True, "")
    codec = load_own(cfg)
    guard = find_guard(cfg, client, codec)
    if cfg.bandwidth is None:
        chosen, why = by_hand(cfg, codec, guard)
        return lambda rows, seconds: Choice(chosen, False, why)
    least = cfg.min_quality
    if guard is not None:
        least = guard.quality if least is None else max(least, guard.quality)

    def by_link(rows: Sequence[np.ndarray], seconds: float) -> Choice:
        bandwidth = parse_bandwidth(cfg.bandwidth) or client.bandwidth()
        budget = seconds if cfg.row_ms is None else cfg.row_ms / 1000
        facts = machine.options.facts
        keeper = str(guard) if guard is not None and guard.quality == least else ""
        return choose(codec, raw, rows, facts, bandwidth, budget, least, keeper)

    return by_link


def find_guard(cfg: AskConfig, client: "LiveClient", codec: "Codec") -> "Guard | None":
    """The stricter of the bounds that --max_kl and the server set; None where there is none.

    Raises:
        OSError, UserError: the server does not answer; the codec has no KL curve.
    """
    from dtufc.live.guard import Guard

    guards = [Guard.of_server(client.health())]
    if cfg.max_kl is not None:
        guards.append(Guard.of_codec(codec, name_of(cfg), cfg.max_kl))
    return max(filter(None, guards), key=lambda guard: guard.quality, default=None)


def by_hand(cfg: AskConfig, codec: "Codec", guard: "Guard | None") -> "tuple[Codec, str]":
    """The codec at the rate that is asked for, or else its own, and a line where a guard raised it.

    Raises:
        UserError: no such rate, or one that a guard does not allow.
    """
    from dtufc.kl_curve import quality_for_kl

    asked = cfg.quality
    if cfg.target_kl is not None:
        asked = quality_for_kl(codec, name_of(cfg), cfg.target_kl)
    if guard is not None:
        guard.check(asked)
        if asked is None and codec.quality is not None and codec.quality < guard.quality:
            chosen = codec.at_quality(guard.quality)
            return chosen, f"quality {guard.quality:g}: {guard} allows no less"
    return (codec if asked is None else codec.at_quality(asked)), ""


def name_of(cfg: AskConfig) -> Path:
    """The codec's folder or name."""
    return cfg.codec or Path(f"klt_{cfg.machine}")


def load_own(cfg: AskConfig) -> "Codec":
    """The codec, warmed up."""
    from dtufc.codec import load_codec

    return load_codec(name_of(cfg)).warm_up()


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        ask(config.parse(AskConfig, argv, __doc__))


if __name__ == "__main__":
    main()
