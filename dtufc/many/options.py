"""What the options of a rate mean to a codec of states."""

from collections.abc import Sequence
from dataclasses import fields

from dtufc.errors import UserError
from dtufc.many.codec import StateCodec, reach
from dtufc.options import CodecOptions, RateOptions
from dtufc.rate import Target
from dtufc.states import State

TAKEN = ("codec", "device", "quality", "target_nmse", "target_bpfp", "per_file", "max_bytes")
"""Options that a codec of states knows."""


def check_options(cfg: CodecOptions) -> None:
    """Refuse what a codec of states does not know.

    Raises:
        UserError: such an option is given; the message names it.
    """
    shared = RateOptions if isinstance(cfg, RateOptions) else CodecOptions
    known = [each for each in fields(shared) if each.name not in TAKEN]
    given = [each.name for each in known if getattr(cfg, each.name) != each.default]
    if getattr(cfg, "published", False):
        given.append("published")
    if given:
        raise UserError(f"{given[0]}: a codec of states does not take it")


def at_rate(cfg: RateOptions, codec: StateCodec, states: Sequence[State]) -> StateCodec:
    """The codec at the rate that is asked for.

    Args:
        states: those that a pooled target is about.

    Raises:
        UserError: no such quality, or none that meets the target.
    """
    if cfg.quality is not None:
        return codec.at_quality(cfg.quality)
    if cfg.per_file or (cfg.target_nmse is None and cfg.target_bpfp is None):
        return codec
    return reach(codec, states, Target(None, cfg.target_bpfp, cfg.target_nmse))
