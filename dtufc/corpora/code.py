"""Code features into a corpus, on one machine or many.

    python code_corpus.py --codec CODEC --input DIR --output CORPUS
    python code_corpus.py --codec CODEC --input s3://bucket/part-{0..9}.tar --output s3://bucket/corpus
    python code_corpus.py --codec CODEC --input DIR --output CORPUS --engine ray --address auto

The input is folders of .npy, with the folders below them, or tars of .npy. The shards are those of
``pack_corpus.py``: stream files of the samples in their order. Here a shard is coded as a whole, by
whoever is free, and appears when it is whole, with a done-marker beside it,
``shard-00000.done.json``. A run that was killed is run again: shards with a marker of the same codecs,
settings and sample names are not coded again. ``corpus.json`` appears when all is there.

With ``--engine ray`` the shards go through Ray Data to actors on the nodes of a cluster. Each actor
loads the codecs once. All nodes must see the input, the output and the codecs under the same names.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from dtufc import config, files
from dtufc.codec import codec_digest
from dtufc.corpora import sources, stores
from dtufc.corpora.pack import fill_shard
from dtufc.corpora.shards import (
    CORPUS_JSON,
    ShardFacts,
    corpus_record,
    facts_of,
    is_shard,
    read_shard,
    shard_name,
)
from dtufc.corpora.stores import Folder, Location, open_folder
from dtufc.errors import UserError
from dtufc.memory import keep_memory
from dtufc.stamps import Stamp
from dtufc.streams.fill import FillOptions
from dtufc.streams.writer import SUFFIX

DONE = ".done.json"
"""Ending of a shard's done-marker, in place of the shard's own."""
DECIDES = ("name", "kind", "quality", "frame_rows", "model", "tokenizer", "split")
"""Options that decide the bytes of a shard, beside codecs and samples."""


@dataclass(frozen=True, kw_only=True)
class CodeConfig(FillOptions):
    """Features to a corpus, shard by shard."""

    input: list[str]
    """A folder of .npy features per tensor, or tars of them: paths, or URLs such as s3://bucket/x."""
    output: str
    """Folder of the corpus, a path or a URL; one that is there is gone on with."""
    shard_samples: int = 1000
    """Samples per shard, which one worker codes at a time."""
    replace: bool = False
    """Code shards again that hold other samples, or were coded by other codecs or settings; by default
    they are refused."""
    readers: int = 4
    """Features that a worker reads ahead, side by side."""
    engine: Literal["local", "ray"] = "local"
    """Where shards are coded: local, in this process; ray, on a cluster that shares input and output."""
    address: str = ""
    """Of Ray: auto, host:port or ray://host:port; empty starts a Ray on this machine alone."""
    workers: int | None = None
    """Of Ray: actors; null: as many as the cluster has room for."""
    cpus_per_worker: int = 1
    """Of Ray: cores that each actor takes on its node; its threads are as many."""
    gpus_per_worker: float | None = None
    """Of Ray: GPUs of each actor; null: one where --device is no CPU."""
    retries: int = 3
    """Of Ray: how often in a row actors and nodes may die before a shard is done."""

    def __post_init__(self):
        super().__post_init__()
        if not self.input:
            raise UserError("input: expected at least one folder or tar")
        if min(self.shard_samples, self.readers, self.cpus_per_worker, self.workers or 1) < 1:
            raise UserError("shard_samples, readers, workers, cpus_per_worker: expected at least 1")
        if min(self.retries, self.gpus_per_worker or 0) < 0:
            raise UserError("retries, gpus_per_worker: expected at least 0")
        if self.address and self.engine != "ray":
            raise UserError("address: goes with --engine ray")

    def absolute(self) -> "CodeConfig":
        """With places that are the same from any working folder."""
        codecs = [folder.resolve() if folder.is_dir() else folder for folder in self.codec]
        inputs = [str(_absolute(name)) for name in self.input]
        return replace(self, codec=codecs, input=inputs, output=str(_absolute(self.output)))

    @property
    def locations(self) -> list[Location]:
        """The inputs."""
        return [stores.find(name) for name in self.input]


def _absolute(name: str) -> Location:
    place = stores.find(name)
    return place.resolve() if isinstance(place, Path) else place


@dataclass(frozen=True)
class Work:
    """A shard that must be coded."""

    number: int
    entries: list[sources.Entry]
    stamp: Stamp
    """Of what it will be: settings, codecs and sample names."""

    @property
    def marker(self) -> str:
        """Name of its done-marker."""
        return marker_name(shard_name(self.number))

    def dump(self) -> str:
        """Itself as JSON."""
        entries = [entry.record() for entry in self.entries]
        return json.dumps([self.number, entries, self.stamp.config, self.stamp.inputs])

    @classmethod
    def load(cls, text: str) -> "Work":
        """The work that :meth:`dump` told of."""
        number, entries, settings, inputs = json.loads(text)
        return cls(
            number, [sources.Entry.of_record(each) for each in entries], Stamp(settings, inputs)
        )


Engine = Callable[[CodeConfig, Sequence[Work]], Iterator[ShardFacts]]
"""Codes shards and tells of each when it is done, in any order."""


def marker_name(shard: str) -> str:
    return shard.removesuffix(SUFFIX) + DONE


class ShardCoder:
    """Codes shards of a corpus. The codecs are loaded once.

    Raises:
        FileNotFoundError, UserError: no such codec, or the output cannot be opened.
    """

    def __init__(self, cfg: CodeConfig):
        keep_memory()
        self._cfg, self._tensors, self._out = cfg, cfg.tensors(), open_folder(cfg.output)

    def code(self, work: Work) -> ShardFacts:
        """Code a shard, unless its marker is there -> what it holds.

        Raises:
            FeatureError, FileNotFoundError, UserError: a feature is missing or does not fit; the
                message names it.
        """
        known = read_marker(self._out, work.marker)
        if known is not None and work.stamp.differs(known[1]) is None:
            return known[0]
        name = shard_name(work.number)
        samples = read_ahead(work.entries, self._cfg.readers)
        self._out.remove(work.marker)
        with self._out.making(name) as path:
            fill_shard(path, self._cfg, self._tensors, samples)
            facts = facts_of(read_shard(path), name)
        record = asdict(facts) | work.stamp.record()
        self._out.write(work.marker, files.indented_json(record).encode())
        return facts


def read_ahead(
    entries: Iterable[sources.Entry], readers: int
) -> Iterator[tuple[str, dict[str, np.ndarray], str]]:
    """Key, tensors and place of each entry in order, the next of them being read meanwhile."""
    waiting: deque[tuple[sources.Entry, Future[dict[str, np.ndarray]]]] = deque()
    with ThreadPoolExecutor(readers) as pool:
        try:
            for entry in entries:
                waiting.append((entry, pool.submit(entry.read)))
                if len(waiting) > readers:
                    yield _told(*waiting.popleft())
            while waiting:
                yield _told(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()


def _told(
    entry: sources.Entry, future: "Future[dict[str, np.ndarray]]"
) -> tuple[str, dict[str, np.ndarray], str]:
    return entry.key, future.result(), entry.where


def read_marker(folder: Folder, name: str) -> tuple[ShardFacts, Stamp | None] | None:
    """What a done-marker tells; ``None`` if there is none, or no sound one."""
    try:
        record = json.loads(folder.read(name))
        known = [record[field] for field in ("file", "samples", "bytes", "tensors")]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return ShardFacts(*known), Stamp.of_record(record)


def code_corpus(cfg: CodeConfig) -> dict[str, object]:
    """Write the corpus -> what ``corpus.json`` says.

    Raises:
        FeatureError, FileNotFoundError, UserError: as the codec API, or the folder holds other shards;
            the message names the file.
    """
    cfg = cfg.absolute()
    names = [*replace(cfg, device="cpu").tensors()]  # those who code have the device
    out = open_folder(cfg.output)
    with out.hold():
        works = plan(cfg, names, sources.list_entries(cfg.locations, names))
        done = _what_is_done(cfg, works, out)
        missing = [work for work in works if work.number not in done]
        if missing:
            out.remove(CORPUS_JSON)
        total = sum(len(work.entries) for work in works)
        there = total - sum(len(work.entries) for work in missing)
        numbers = {shard_name(work.number): work.number for work in missing}
        with tqdm(total=total, initial=there, desc="code", unit="sample") as bar:
            for facts in _engine(cfg)(cfg, missing) if missing else ():
                done[numbers[facts.file]] = facts
                bar.update(facts.samples)
        shards = [done[work.number] for work in works]
        record = corpus_record(shards, cfg.input, [str(folder) for folder in cfg.codec])
        out.write(CORPUS_JSON, files.indented_json(record).encode())
    return record


def _engine(cfg: CodeConfig) -> Engine:
    if cfg.engine == "local":
        return code_here
    from dtufc.corpora.ray_engine import code_on_cluster

    return code_on_cluster


def code_here(cfg: CodeConfig, works: Sequence[Work]) -> Iterator[ShardFacts]:
    """The local engine: one shard after the other, in this process."""
    coder = ShardCoder(cfg)
    for work in works:
        yield coder.code(work)


def plan(cfg: CodeConfig, names: Sequence[str], entries: Sequence[sources.Entry]) -> list[Work]:
    """The shards of a corpus, each with the stamp that it will have."""
    settings = files.jsonable({key: getattr(cfg, key) for key in DECIDES}) | {"name": [*names]}
    codecs = {
        f"codec {name}": codec_digest(each) for name, each in zip(names, cfg.codec, strict=True)
    }
    size = cfg.shard_samples
    works = []
    for number, first in enumerate(range(0, len(entries), size)):
        part = [*entries[first : first + size]]
        keys = files.digest(files.dump_json([entry.key for entry in part]))
        works.append(Work(number, part, Stamp(settings, codecs | {"sample names": keys})))
    return works


def _what_is_done(cfg: CodeConfig, works: Sequence[Work], out: Folder) -> dict[int, ShardFacts]:
    """The shards that are there and current, by number.

    Raises:
        UserError: others are there, and they are not to be replaced.
    """
    there = out.names()
    done, stale = {}, {}
    for work in works:
        name = shard_name(work.number)
        if work.marker in there and name not in there:
            out.remove(work.marker)  # somebody removed the shard alone
        known = read_marker(out, work.marker) if {work.marker, name} <= there else None
        if known is None:
            if {CORPUS_JSON, name} <= there:
                # another command's: a killed run leaves no corpus.json
                stale[name] = "it has no done-marker"
            continue
        why = work.stamp.differs(known[1])
        if why is None:
            done[work.number] = known[0]
        else:
            stale[name] = why
    expected = {shard_name(work.number) for work in works}
    stale |= {
        name: "it is beyond the last shard"
        for name in there
        if is_shard(name) and name not in expected
    }
    if stale and not cfg.replace:
        name, why = min(stale.items())
        raise UserError(
            f"{cfg.output}: {name} is no shard of what is given: {why}; take another --output, or "
            "--replace true"
        )
    for name in stale:
        out.remove(marker_name(name))
        if name not in expected:
            out.remove(name)
    return done


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        cfg = config.parse(CodeConfig, argv, __doc__)
        start = time.perf_counter()
        record = code_corpus(cfg)
        print(
            f"{record['samples']} samples, {len(record['shards'])} shards, {record['bytes']} bytes, "
            f"{record['bits_per_point']:.4g} bits per point -> {cfg.output} "
            f"({time.perf_counter() - start:.1f} s)"
        )


if __name__ == "__main__":
    main()
