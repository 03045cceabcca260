"""A corpus as a dataset of torch: samples, or windows of rows, decoded when they are asked for."""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from dtufc.codec import Codec, load_codec
from dtufc.corpora.shards import CORPUS_JSON, Shard, list_shards, read_shard
from dtufc.errors import UserError
from dtufc.streams.reader import StreamFile, open_stream

OPEN_FILES = 64
"""Shards that a process keeps open."""


class Corpus(Dataset):
    """Items ``{"key": str, "first": int, <tensor>: (R, C) or (N, C, H, W)}`` of a corpus.

    An item is a window of ``rows`` rows of a sample, or a whole sample. ``first`` is the window's first
    row. Tensors of tokens come as (rows, channels), others as they were coded. To be used by any number
    of DataLoader workers, however they are started: each opens its own files, and loads the codecs once.

    Args:
        folder: of the corpus.
        codecs: folders or names of the codecs that wrote it; ``None``: those that ship.
        tensors: names; ``None``: all. The others are not decoded.
        rows: length of a window; ``None``: whole samples. Frames of as many rows (``--frame_rows``) are
            read fastest: a frame is decoded whole.
        short: keep windows at the end of a sample that are shorter.
        dtype: of the tensors; ``None``: as they were coded.
        unfinished: take a corpus that is still being written, or whose writer was killed, as it is now.

    Raises:
        FileNotFoundError: no such corpus, or codec.
        BitstreamError: a shard is damaged; the message names the file.
        UserError: unfinished, no such tensor, or tensors of different rows where windows are asked for.
    """

    def __init__(
        self,
        folder: str | Path,
        codecs: Sequence[str | Path] | None = None,
        *,
        tensors: Sequence[str] | None = None,
        rows: int | None = None,
        short: bool = False,
        dtype: torch.dtype | None = None,
        unfinished: bool = False,
    ):
        self.folder, self.rows, self.dtype = Path(folder), rows, dtype
        if rows is not None and rows < 1:
            raise UserError(f"rows: expected at least 1, got {rows}")
        shards = [read_shard(path) for path in list_shards(self.folder)]
        if not unfinished and not (self.folder / CORPUS_JSON).is_file():
            raise UserError(
                f"{self.folder}: has no {CORPUS_JSON}, so it is not finished; run pack_corpus.py again, "
                "or take it as it is (unfinished=True)"
            )
        known = [spec.name for spec in shards[0].tensors]
        self.tensors = known if tensors is None else [*tensors]
        if odd := [name for name in self.tensors if name not in known]:
            raise UserError(f"{self.folder}: holds {known}, not {odd[0]!r}")
        self._codecs = None if codecs is None else [Path(codec) for codec in codecs]
        self._flat = {
            spec.name: spec.axis == 2 and spec.row[:2] == (1, 1) for spec in shards[0].tensors
        }
        self._paths = [shard.path for shard in shards]
        self._index(shards, [known.index(name) for name in self.tensors], short)
        self._forget()

    def _index(self, shards: Sequence[Shard], chosen: Sequence[int], short: bool) -> None:
        """Samples in their order, and how many windows come before each."""
        self._places = [
            (n, place) for n, shard in enumerate(shards) for place in range(len(shard.keys))
        ]
        self._keys = [key for shard in shards for key in shard.keys]
        counts = [[rows[k] for k in chosen] for shard in shards for rows in shard.rows]
        self._counts = [each[0] for each in counts]
        if self.rows is None:
            windows = [1] * len(counts)
        else:
            for key, each in zip(self._keys, counts, strict=True):
                if len(set(each)) > 1:
                    raise UserError(
                        f"{self.folder}: sample {key!r}: windows need tensors of as many rows, got "
                        f"{dict(zip(self.tensors, each, strict=True))}"
                    )
            extra = self.rows - 1 if short else 0
            windows = [(count + extra) // self.rows for count in self._counts]
        self._ends = [*accumulate(windows)]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, item: int) -> dict[str, Any]:
        """
        Raises:
            IndexError: no such item.
            BitstreamError: what is read of the shard is damaged; the message names the file.
        """
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item}: there are {len(self)}")
        item %= len(self)
        sample = bisect_right(self._ends, item)
        first = 0
        if self.rows is not None:
            first = (item - (self._ends[sample - 1] if sample else 0)) * self.rows
        end = None if self.rows is None else min(first + self.rows, self._counts[sample])
        shard, place = self._places[sample]
        file = self._open(shard)
        found: dict[str, Any] = {"key": self._keys[sample], "first": first}
        for name in self.tensors:
            x = torch.from_numpy(file[name][place, first:end])
            found[name] = (x[0, 0] if self._flat[name] else x).to(self.dtype or x.dtype)
        return found

    def _open(self, shard: int) -> StreamFile:
        """A shard's file, of this process."""
        if self._owner != os.getpid():
            self._forget()  # in a forked process: file positions are shared with its parent
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if self._loaded is None and self._codecs is not None:
            self._loaded = [load_codec(folder) for folder in self._codecs]
        while len(self._files) >= OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        self._files[shard] = open_stream(self._paths[shard], self._loaded)
        return self._files[shard]

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._files: OrderedDict[int, StreamFile] = OrderedDict()
        self._loaded: list[Codec] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without files and codecs, which the process that unpickles it opens anew."""
        state = dict(self.__dict__)
        return state | {"_owner": None, "_files": OrderedDict(), "_loaded": None}
