"""What the driver asks of every product, whoever makes it.

A product is made if its stamp differs from the one that its script would give it now, see
:mod:`dtufc.stamps`; nothing else decides.
"""

from typing import Protocol

from dtufc.feature import FeatureError
from dtufc.stamps import Stamp


class Product(Protocol):
    """The configuration of a script that makes one product."""

    def stamp(self) -> Stamp:
        """Of the product that the script would make now.

        Raises:
            FileNotFoundError, FeatureError: what it is made from is not there.
        """

    def why_not_made(self) -> str | None:
        """Why it must be made, in words; ``None`` if it is there and current."""


def why_not_made(product: Product) -> str | None:
    """Why a product must be made, in words, even where what it is made from is not there yet."""
    try:
        return product.why_not_made()
    except (FileNotFoundError, FeatureError):
        return "its inputs are not there yet"
