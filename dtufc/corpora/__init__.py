"""Corpora: many samples of hidden states, coded, in a folder of stream files.

    python scripts/pack_corpus.py --codec CODEC --input DIR --output CORPUS

    corpus = Corpus("CORPUS", ["CODEC"], rows=256)      # a torch Dataset of windows of 256 rows
    corpus[7]                                           # {"key": ..., "first": ..., "hidden": (256, C)}

A corpus is a folder of shards, ``shard-00000.ufs`` and on, each a stream file of the same session
(:mod:`dtufc.streams`), and ``corpus.json``, which is written last and says what there is.
"""

from typing import Any

__all__ = ["Corpus"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dtufc.corpora.dataset import Corpus  # torch, for those who ask for it

    return Corpus
