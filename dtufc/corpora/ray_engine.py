"""The shards of a corpus through Ray Data, coded by actors on the nodes of a cluster.

A row of the dataset is a shard: its number, and where its samples lie. Features travel from where they
lie to the actor that codes them, and never through the cluster's object store.

When an actor or a node dies, the shards that are not done yet are given to the actors that are left.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from dtufc import cluster, extras
from dtufc.corpora.code import CodeConfig, ShardCoder, Work
from dtufc.corpora.shards import ShardFacts
from dtufc.errors import UserError
from dtufc.threads import thread_environment


class ShardActor:
    """In an actor: codes the shards that it is given."""

    def __init__(self, cfg: CodeConfig):
        self._cfg = cfg
        self._coder: ShardCoder | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """A batch of shards to be coded -> what each holds, or the problem with its input."""
        told: dict[str, list[Any]] = {"number": [], "facts": [], "problem": []}
        for text in batch["work"]:
            work = Work.load(str(text))
            facts, problem = "", ""
            try:
                if self._coder is None:  # here, so that a problem is told as any other
                    self._coder = ShardCoder(self._cfg)
                facts = self._coder.code(work).dump()
            except (UserError, OSError) as error:
                problem = str(error)
            told["number"].append(work.number)
            told["facts"].append(facts)
            told["problem"].append(problem)
        return told


def code_on_cluster(
    cfg: CodeConfig, works: Sequence[Work], actor: type = ShardActor
) -> Iterator[ShardFacts]:
    """Code shards on the cluster, and tell of each when it is done.

    Args:
        actor: what codes them; a measurement may put another in its place.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address, an input does not fit, or
            actors died too often without a shard between.
    """
    with cluster.connect(cfg.address) as ray:
        left, lost = {work.number: work for work in works}, 0
        while left:
            try:
                for number, facts in _pass(ray, cfg, [*left.values()], actor):
                    del left[number]
                    lost = 0
                    yield facts
            except cluster.losses(ray) as error:
                lost += 1
                if lost > cfg.retries:
                    raise UserError(
                        f"{cfg.output}: actors or nodes died {lost} times in a row ({error})"
                    ) from error
                print(f"an actor or node was lost ({type(error).__name__}); going on", flush=True)


def _pass(
    ray: ModuleType, cfg: CodeConfig, works: Sequence[Work], actor: type
) -> Iterator[tuple[int, ShardFacts]]:
    """Number and facts of each shard, until all are done or an actor is lost.

    Raises:
        UserError: an input does not fit.
    """
    data = extras.load("ray.data")
    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the progress bar is the command's own
    gpus = cfg.gpus_per_worker
    if gpus is None:
        gpus = 0 if cfg.device == "cpu" else 1
    rows = [{"work": work.dump()} for work in works]
    actors = _actors(ray, cfg, gpus, len(rows))
    with warnings.catch_warnings():
        # Ray's own default restarts an actor, whose shard then waits for a node that may never come
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        dataset = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            actor,
            fn_constructor_args=(cfg,),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
            num_cpus=cfg.cpus_per_worker,
            num_gpus=gpus,
            runtime_env={"env_vars": thread_environment(cfg.cpus_per_worker)},
            max_restarts=0,
        )
    for row in dataset.iter_rows():
        if row["problem"]:
            raise UserError(row["problem"])
        yield int(row["number"]), ShardFacts.load(row["facts"])


def _actors(ray: ModuleType, cfg: CodeConfig, gpus: float, shards: int) -> int:
    """How many actors there may be: as asked, or as the cluster has room for; no more than shards."""
    if cfg.workers is not None:
        return min(cfg.workers, shards)
    room = ray.cluster_resources()
    count = room.get("CPU", 0) // cfg.cpus_per_worker
    if gpus:
        count = min(count, room.get("GPU", 0) // gpus)
    return max(1, min(int(count), shards))
