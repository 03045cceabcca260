"""KV caches in LMCache: import this where LMCache runs, and its configs know the serde ``dtufc``."""

from dtufc.kv.lmcache_serde import KvDeserializer, KvSerializer, register

__all__ = ["KvDeserializer", "KvSerializer", "register"]

register()
