"""KV caches of language models, coded.

codec = load_kv(folder)               # fitted by ``coding/kv.py fit``
data = codec.encode_cache(cache)      # transformers' DynamicCache -> bytes
cache = codec.decode_cache(data)      # and back; generation goes on from it

caches, rope      what a cache holds; keys before RoPE
model, codec      what was learned of a model's caches; bytes and back, at once or as the cache grows
container         every byte
fit_kv, fit       the fit, with capture: caches and gradients of a model
evaluate_kv, evaluate, rivals   divergence and rate, beside what one would take otherwise
lmcache_serde     LMCache's interface
"""

from dtufc.kv.codec import KvCodec, KvDecoder, KvEncoder, load_kv
from dtufc.kv.container import KvLimits

__all__ = ["KvCodec", "KvDecoder", "KvEncoder", "KvLimits", "load_kv"]
