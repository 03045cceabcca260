"""What a server has: the back half of a machine, and the codecs whose features it takes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from dtufc.bitstream import ID_BYTES, BitstreamError, unpack
from dtufc.codec import Codec
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts
from dtufc.handcrafted.codec import CastCodec
from dtufc.live import single
from dtufc.live.compute import each_or_together, outcome
from dtufc.live.guard import Guard
from dtufc.live.limits import LiveLimits
from dtufc.live.metrics import Metrics
from dtufc.live.refusals import Refusal, of_bytes
from dtufc.machines.machine import Sample
from dtufc.streams import Limits, Session, StreamDecoder

BFLOAT16 = 8
"""Quality of ``cast``."""


def raw_codec(facts: FeatureFacts) -> Codec:
    """Features as bfloat16, which both sides know without a folder."""
    return CastCodec(facts, {}, BFLOAT16)


def identify(machine: Any) -> dict[str, str]:
    """What both halves must have alike: the weights and the tokenizer of a language model, and the cut.

    Keys are those of a session's header.
    """
    kind = machine.options.facts.kind
    if not single.is_language(machine):
        layer = getattr(machine, "layer", None)
        cut = getattr(machine.options, "split", "" if layer is None else f"layer {layer}")
        return {"model": kind, "tokenizer": "", "split": cut}
    from dtufc.files import digest
    from dtufc.machines.checkpoints import weights_digest

    folder = machine.folder
    tokenizer = digest(*sorted(folder.glob("tokenizer*")))
    return {
        "model": f"{kind} {weights_digest(folder)[:16]}",
        "tokenizer": tokenizer[:16],
        "split": f"layer {machine.layer}",
    }


class Backend:
    """The back half, its codecs and what it takes of a client.

    Args:
        guard: that clients are told to keep.

    Raises:
        UserError: the codec knows no such kind of feature, or a session could hold no token.
    """

    def __init__(self, machine: Any, codec: Codec, limits: LiveLimits, guard: Guard | None = None):
        self.guard = guard
        self.machine, self.limits, self.facts = machine, limits, machine.options.facts
        if self.facts.kind not in [facts.kind for facts in codec.known]:
            known = [facts.kind for facts in codec.known]
            raise UserError(f"codec: knows {known}, the machine's features are {self.facts.kind}")
        self.codecs = [codec, raw_codec(self.facts)]
        self.identity = identify(machine)
        self.language = single.is_language(machine)
        if self.language and self.most_tokens < 1:
            raise UserError(
                f"session_mib: {limits.session_mib} MiB hold no token of this model's cache"
            )

    def warm_up(self) -> None:
        """Load the weights and compile the kernels before the first client comes."""
        _ = self.machine.back, self.language and self.machine.tokenizer
        for codec in self.codecs:
            codec.warm_up()

    @cached_property
    def alone(self) -> str | None:
        """Why steps of sessions are computed one at a time; None where they may be batched."""
        if not self.language:
            return f"{self.facts.kind} has no sessions"
        from dtufc.machines.llama3.together import why_alone

        return why_alone(self.machine)

    def told_guard(self) -> dict[str, float]:
        """What clients are told of the guard; nothing where there is none."""
        return {} if self.guard is None else self.guard.told()

    def tell_batches(self, size: int) -> str:
        """What is computed together, in a line."""
        if not self.language:
            return f"batches of up to {size} posted features of one size"
        if self.alone:
            return f"steps of sessions one at a time: {self.alone}"
        return f"batches of up to {size} steps of sessions"

    @property
    def most_tokens(self) -> int:
        """Tokens that a session may have: what the model was made for, and what its memory holds."""
        from dtufc.machines.llama3.generate import bytes_per_token

        most = self.machine.config.max_position_embeddings
        per_token = bytes_per_token(self.machine)
        return min(most, (self.limits.session_mib << 20) // per_token) if per_token else most

    def open(self) -> StreamDecoder:
        """The receiver of a session.

        Raises:
            Refusal: header, where the machine answers whole features alone.
        """
        if not self.language:
            raise Refusal("header", f"{self.facts.kind} has no sessions; POST /predict instead")
        rows = self.limits.frame_rows
        limits = Limits(
            header_bytes=1 << 16,
            tensors=1,
            frame_bytes=self.limits.frame_bytes,
            frame_rows=rows,
            frame_points=rows * self.machine.config.hidden_size,
            session_rows=self.most_tokens,
        )
        return StreamDecoder(self.codecs, limits=limits)

    def check_session(self, session: Session) -> None:
        """Refuse a session that is not of this model, tokenizer and cut.

        Raises:
            Refusal: header.
        """
        self.check_identity({key: getattr(session, key) for key in self.identity})

    def check_identity(self, told: Mapping[str, str]) -> None:
        """Refuse a client whose half is not the other one of this.

        Raises:
            Refusal: header.
        """
        for key, here in self.identity.items():
            if told.get(key, "") != here:
                raise Refusal("header", f"{key}: {told.get(key, '')[:80]!r} there, {here!r} here")

    def read(self, data: bytes, told: Mapping[str, str]) -> tuple[Sample, np.ndarray]:
        """A posted bitstream (version 1) and what its request told -> what the back half takes.

        Raises:
            Refusal: the bitstream is damaged or too large, or what must be told beside it is not.
        """
        self.check_identity(told)
        sample = single.sample_for_back(self.machine, told, self.limits.pixels)
        with _refusing():
            stream = unpack(data, self.limits.points)
            ids = [codec.id[:ID_BYTES] for codec in self.codecs]
            if stream.codec_id not in ids:
                here = " and ".join(each.hex() for each in ids)
                raise Refusal(
                    "header", f"written by codec {stream.codec_id.hex()}, here are {here}"
                )
            codec = self.codecs[ids.index(stream.codec_id)]
            feature = codec.decode(data, max_points=self.limits.points)
            if why := self.facts.mismatch(feature):
                raise BitstreamError(why)
            if self.language and feature.shape[2] > min(self.most_tokens, self.limits.frame_rows):
                raise Refusal("size", f"{feature.shape[2]} tokens are more than are taken here")
        return sample, feature

    def answer(self, given: tuple[Sample, np.ndarray]) -> dict[str, Any]:
        """What the back half takes -> the answer, JSON.

        Raises:
            Refusal: frame, where the feature is none of this sample.
        """
        with _refusing():
            return single.answer(self.machine, *given)

    def answers(self, given: Sequence[tuple[Sample, np.ndarray]]) -> list[dict[str, Any]]:
        """:meth:`answer` of several that fit into a batch (:meth:`Machine.fits`)."""
        return single.answers(self.machine, *zip(*given, strict=True))


class Predictions:
    """Posted bitstreams, each with what its request told -> an answer, or what it was refused for, each.

    Each is decoded alone. Those that fit go through the back half together.
    """

    def __init__(self, backend: Backend, metrics: Metrics):
        self.backend, self.metrics = backend, metrics

    def __call__(self, posted: Sequence[tuple[bytes, Mapping[str, str]]]) -> list[Any]:
        found = [outcome(self.backend.read, *each) for each in posted]
        batches: dict[Any, list[int]] = {}
        for place, given in enumerate(found):
            if not isinstance(given, Exception):
                fits = self.backend.machine.fits(*given)
                batches.setdefault((place,) if fits is None else fits, []).append(place)
        for places in batches.values():
            self.metrics.batch.labels("features").observe(len(places))
            given = [found[place] for place in places]
            answers = each_or_together(given, self.backend.answers, self.backend.answer)
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
        return found


@contextmanager
def _refusing() -> Iterator[None]:
    """Around what is done with a client's bytes."""
    try:
        yield
    except Refusal:
        raise
    except UserError as error:
        raise of_bytes(error, "frame") from error
