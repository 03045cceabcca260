"""The least quality that a bound on the KL divergence allows, by the curve stored with a codec."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dtufc.codec import Codec
from dtufc.errors import UserError
from dtufc.kl_curve import quality_for_kl


@dataclass(frozen=True)
class Guard:
    """A bound on what coding may cost a language model."""

    max_kl: float
    """KL divergence from the uncut model, nats per token, at most."""
    quality: float
    """The codec's lowest quality that keeps it."""
    whose: str
    """Who set it: max_kl, or the server's max_kl."""

    @classmethod
    def of_codec(cls, codec: Codec, folder: str | Path, max_kl: float) -> Self:
        """The bound by the curve in the codec's folder.

        Raises:
            UserError: there is no curve, or it does not reach so low a divergence.
        """
        return cls(max_kl, quality_for_kl(codec, folder, max_kl, "max_kl"), "max_kl")

    @classmethod
    def of_server(cls, told: dict[str, Any]) -> Self | None:
        """The bound that a server tells in ``/health``; None where it tells none.

        Raises:
            UserError: it is no number.
        """
        values = [told.get(key) for key in ("max_kl", "min_quality")]
        if values == [None, None]:
            return None
        if not all(isinstance(each, int | float) for each in values):
            raise UserError(f"server: max_kl, min_quality: expected numbers, got {values}")
        return cls(*values, "the server's max_kl")

    def told(self) -> dict[str, float]:
        """As a server tells it."""
        return {"max_kl": self.max_kl, "min_quality": self.quality}

    def check(self, quality: float | None) -> None:
        """Refuse a quality that was asked for and is too low.

        Raises:
            UserError: it is.
        """
        if quality is not None and quality < self.quality:
            raise UserError(
                f"quality: {quality:g} is too low; {self} allows {self.quality:g} and up"
            )

    def __str__(self) -> str:
        return f"{self.whose} {self.max_kl:g}"
