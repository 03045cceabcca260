"""KV caches of language models, coded::

    codec = load_kv(folder)               # fitted by ``coding/kv.py fit``
    data = codec.encode_cache(cache)      # transformers' DynamicCache -> bytes
    cache = codec.decode_cache(data)      # and back; generation goes on from it

The modules::

    caches, rope      what a cache holds; keys before RoPE
    model, codec      what was learned of a model's caches; bytes and back, at once or as the cache grows
    container         every byte
    fit_kv, fit       the fit, with capture: caches and gradients of a model
    evaluate_kv, evaluate, rivals   divergence and rate, beside what one would take otherwise
    lmcache_serde     LMCache's interface
"""

import importlib
from typing import Any

__all__ = ["KvCodec", "KvDecoder", "KvEncoder", "KvLimits", "load_kv"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # torch and kernels, for those who ask for them
    module = "dtufc.kv.container" if name == "KvLimits" else "dtufc.kv.codec"
    return getattr(importlib.import_module(module), name)
