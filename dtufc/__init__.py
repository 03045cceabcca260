"""DT-UFC: universal feature coding for large models.

import dtufc
codec = dtufc.load_codec("klt_dinov2_tiny")    # a shipped codec's name, or a codec folder
data = codec.encode(feature)
feature = codec.decode(data)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtufc.bitstream import BitstreamError
    from dtufc.codec import Codec, load_codec
    from dtufc.errors import UserError
    from dtufc.feature import FeatureError, FeatureFacts, load_facts
    from dtufc.registry import codecs
    from dtufc.shipped import pretrained
    from dtufc.streams import Limits, StreamDecoder, open_session, open_stream, write_stream

    __version__: str

__all__ = [
    "BitstreamError",
    "Codec",
    "FeatureError",
    "FeatureFacts",
    "Limits",
    "StreamDecoder",
    "UserError",
    "__version__",
    "codecs",
    "load_codec",
    "load_facts",
    "open_session",
    "open_stream",
    "pretrained",
    "write_stream",
]

_MODULES = {
    "BitstreamError": "bitstream",
    "Codec": "codec",
    "FeatureError": "feature",
    "FeatureFacts": "feature",
    "Limits": "streams",
    "StreamDecoder": "streams",
    "UserError": "errors",
    "codecs": "registry",
    "load_codec": "codec",
    "load_facts": "feature",
    "open_session": "streams",
    "open_stream": "streams",
    "pretrained": "shipped",
    "write_stream": "streams",
}
"""Where each name of the public API lies; its module is imported when the name is first used."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("dtufc")
    elif name in _MODULES:
        value = getattr(importlib.import_module(f"dtufc.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module 'dtufc' has no attribute {name!r}")
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
