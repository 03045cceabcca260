"""Pack features into a corpus: ``python pack_corpus.py --codec CODEC --input DIR --output CORPUS``.

    python pack_corpus.py --codec CODEC --input DIR --output CORPUS           a folder of .npy, and below
    python pack_corpus.py --codec CODEC --input a.tar b.tar --output CORPUS   tars of .npy (WebDataset)
    extract ... | python pack_corpus.py --codec CODEC --input - --output CORPUS
    python pack_corpus.py --codec CODEC --machine llama3_tiny --samples train --output CORPUS

The last makes the features as it goes, by the machine's front half: none is ever a file. Several tensors
of a sample take several codecs, and folders, or members ``<key>.<tensor>.npy`` of a tar. What a killed
run had written is kept; run it again. ``corpus.json`` appears when all is there.
"""

import itertools
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from dtufc import config, locks, threads
from dtufc.bitstream import BitstreamError
from dtufc.corpora import sources
from dtufc.corpora.shards import CORPUS_JSON, Shard, read_shard, shard_path, write_record
from dtufc.errors import UserError
from dtufc.memory import keep_memory
from dtufc.streams.encoder import Tensor
from dtufc.streams.fill import FillOptions, append_sample
from dtufc.streams.writer import write_stream


@dataclass(frozen=True, kw_only=True)
class CorpusConfig(FillOptions):
    """Features to a corpus."""

    output: Path
    """Folder of the corpus; one that is there is gone on with."""
    input: list[Path] = field(default_factory=list)
    """A folder of .npy features per tensor, or tars of them, or - for a tar on the standard input."""
    machine: str | None = None
    """In place of input: preset of a machine whose front half makes the features."""
    samples: Literal["train", "validation", "test"] = "train"
    """Which of the machine's samples."""
    shard_samples: int = 1000
    """Samples per shard."""
    workers: int = 1
    """Processes that fill shards side by side, from folders and tars; the cores are shared out."""

    def __post_init__(self):
        super().__post_init__()
        if bool(self.input) == bool(self.machine):
            raise UserError("input: expected either --input or --machine")
        if min(self.shard_samples, self.workers) < 1:
            raise UserError("shard_samples, workers: expected at least 1")
        if self.machine and len(self.codec) != 1:
            raise UserError(f"codec: a machine has one tensor, got {len(self.codec)} codecs")
        if sources.PIPE in self.input and len(self.input) > 1:
            raise UserError("input: expected - alone")

    @property
    def sequential(self) -> bool:
        """Whether the samples come one after the other, and cannot be asked for again."""
        return bool(self.machine) or sources.PIPE in self.input


def pack_corpus(cfg: CorpusConfig) -> None:
    """Write the corpus.

    Raises:
        FeatureError, FileNotFoundError, UserError: as the codec API, or the folder holds other samples;
            the message names the file.
    """
    tensors = cfg.tensors()
    with locks.hold(cfg.output):
        if cfg.sequential:
            (cfg.output / CORPUS_JSON).unlink(missing_ok=True)
            _pack_sequence(cfg, tensors)
        else:
            _pack_entries(cfg, tensors)
        given = [f"machine {cfg.machine}: {cfg.samples}"] if cfg.machine else map(str, cfg.input)
        record = write_record(cfg.output, [*given], [str(folder) for folder in cfg.codec])
    print(
        f"{record['samples']} samples, {len(record['shards'])} shards, {record['bytes']} bytes, "
        f"{record['bits_per_point']:.4g} bits per point -> {cfg.output}"
    )


def _pack_entries(cfg: CorpusConfig, tensors: Mapping[str, Tensor]) -> None:
    """Shards from entries that lie in files, each by itself."""
    entries = sources.list_entries(cfg.input, [*tensors])
    size = cfg.shard_samples
    shards = [entries[first : first + size] for first in range(0, len(entries), size)]
    missing = [
        number
        for number, part in enumerate(shards)
        if not _is_packed(shard_path(cfg.output, number), [entry.key for entry in part])
    ]
    if shard_path(cfg.output, len(shards)).is_file():
        raise UserError(f"{cfg.output}: holds more samples than {', '.join(map(str, cfg.input))}")
    if missing:
        (cfg.output / CORPUS_JSON).unlink(missing_ok=True)
    there = len(entries) - sum(len(shards[number]) for number in missing)
    with tqdm(total=len(entries), initial=there, desc="pack", unit="sample") as bar:
        if cfg.workers == 1 or len(missing) < 2:
            for number in missing:
                fill_shard(shard_path(cfg.output, number), cfg, tensors, _read(shards[number], bar))
            return
        with _few_threads(cfg.workers), _pool(cfg.workers) as pool:
            jobs = {pool.submit(_fill_entries, cfg, n, shards[n]): n for n in missing}
            try:
                for job in as_completed(jobs):
                    job.result()
                    bar.update(len(shards[jobs[job]]))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


@contextmanager
def _few_threads(workers: int) -> Iterator[None]:
    """Let processes that start here have their share of the cores."""
    before = {name: os.environ.get(name) for name in threads.VARIABLES}
    os.environ |= threads.thread_environment(max(1, (os.cpu_count() or 1) // workers))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _read(
    entries: Iterable[sources.Entry], bar: tqdm | None = None
) -> Iterator[tuple[str, dict[str, np.ndarray], str]]:
    for entry in entries:
        yield entry.key, entry.read(), entry.where
        if bar is not None:
            bar.update()


def _fill_entries(cfg: CorpusConfig, number: int, entries: Sequence[sources.Entry]) -> None:
    """A shard in a process of its own."""
    keep_memory()
    fill_shard(shard_path(cfg.output, number), cfg, cfg.tensors(), _read(entries))


def _is_packed(path: Path, keys: Sequence[str]) -> bool:
    """Whether a shard holds these samples, and was finished.

    Raises:
        UserError: it holds others.
    """
    shard = _known(path)
    if shard is None:
        return False
    if shard.keys != [*keys[: len(shard.keys)]] and shard.keys != [""]:
        raise UserError(
            f"{path}: holds other samples than those that are given; take another --output, or "
            "another --shard_samples, or remove it"
        )
    return shard.closed and len(shard.keys) == len(keys)


def _pack_sequence(cfg: CorpusConfig, tensors: Mapping[str, Tensor]) -> None:
    """Shards from samples that come one after the other."""
    finished = 0
    while _is_full(shard_path(cfg.output, finished), cfg.shard_samples):
        finished += 1
    done = finished * cfg.shard_samples
    if cfg.machine:
        samples = sources.machine_samples(cfg.machine, cfg.samples, *tensors, done)
    else:
        samples = itertools.islice(sources.piped_samples([*tensors]), done, None)
    where = cfg.machine or "standard input"
    with tqdm(initial=done, desc="pack", unit="sample") as bar:
        named = _told(samples, where, bar)
        for number in itertools.count(finished):
            first = next(named, None)
            if first is None:
                break
            part = itertools.islice(named, cfg.shard_samples - 1)
            path = shard_path(cfg.output, number)
            fill_shard(path, cfg, tensors, itertools.chain([first], part))
    if not done and not bar.n:
        raise UserError(f"{where}: no sample")


def _is_full(path: Path, samples: int) -> bool:
    shard = _known(path)
    return shard is not None and shard.closed and len(shard.keys) == samples


def _known(path: Path) -> Shard | None:
    """What is there of a shard; ``None``: nothing, or less than a header, which its writer judges."""
    try:
        return read_shard(path)
    except (FileNotFoundError, BitstreamError):
        return None


def _told(
    samples: Iterable[tuple[str, dict[str, np.ndarray]]], where: str, bar: tqdm
) -> Iterator[tuple[str, dict[str, np.ndarray], str]]:
    for key, features in samples:
        bar.update()
        yield key, features, f"{where}: {key}"


def fill_shard(
    path: Path,
    options: FillOptions,
    tensors: Mapping[str, Tensor],
    samples: Iterable[tuple[str, dict[str, np.ndarray], str]],
) -> None:
    """Write a shard, or what it lacks. Its samples are on the disk when it is closed.

    Args:
        samples: key, tensors by name, and what messages say of each.

    Raises:
        UserError: the file is another's, or a sample does not fit; the message names it.
    """
    with write_stream(path, tensors, **options.identities) as writer:
        known = [*writer.keys] if writer.keys != [""] else []
        there = {key: place for place, key in enumerate(known)}
        for place, (key, features, where) in enumerate(samples):
            if place < len(known) and known[place] != key:
                raise UserError(f"{path}: holds {known[place]!r} as sample {place}, not {key!r}")
            append_sample(writer, key, features, options.frame_rows, there, where)


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        pack_corpus(config.parse(CorpusConfig, argv, __doc__))


if __name__ == "__main__":
    main()
