"""Where a result comes from: ``run.json`` with configuration, stamp, and the processes that made it."""

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dtufc import files
from dtufc.paths import CONFIG_JSON, REPOSITORY, RUN_JSON
from dtufc.stamps import Stamp, read_stamp

LIBRARIES = (
    "torch", "compressai", "numpy", "numba", "transformers", "torchvision", "diffusers",
)  # fmt: skip
REVISION = "DTUFC_REVISION"
"""Environment variable with the revision of a tree without ``.git``; container images set it."""


class Run:
    """Provenance of one run -> ``run.json``: its configuration and stamp, and each process that worked
    on it with revision, versions, computer and wall time in seconds.

    Written with ``finished: false`` at the start, and ``true`` by :meth:`finish`. A process that goes on
    with the unfinished run of the same stamp adds itself to those before.
    """

    def __init__(self, folder: Path, config: Any, stamp: Stamp, **facts: Any):
        self.path = folder / RUN_JSON
        self.start = time.time()
        self.process = {"started": datetime.now(UTC).isoformat(timespec="seconds")}
        self.process |= environment()
        before = files.read_json(self.path) if resumes(folder, stamp) else {}
        self.values = {
            "config": config_values(config),
            **stamp.record(),
            **facts,
            "processes": [*before.get("processes", []), self.process],
            "finished": False,
        }
        self._write()

    def update(self) -> None:
        """Write the wall time so far, every ten seconds at most, so that a kill loses little of it."""
        if time.time() - self.written > 10:
            self._write()

    def _write(self) -> None:
        self.written = time.time()
        self.process["wall_s"] = round(time.time() - self.start, 3)
        self.values["wall_s"] = round(sum(each["wall_s"] for each in self.values["processes"]), 3)
        files.write_json(self.path, self.values)

    def finish(self, **results: Any) -> None:
        """Add results and the total wall time."""
        self.values |= {"finished": True, **results}
        self._write()


def resumes(folder: Path, stamp: Stamp) -> bool:
    """Whether ``folder`` holds a run of this stamp, finished or not."""
    return stamp.differs(read_stamp(folder / RUN_JSON)) is None


def why_not_made(folder: Path, stamp: Stamp) -> str | None:
    """Why ``folder`` does not hold the finished run of this stamp; ``None`` if it does."""
    if why := stamp.differs(read_stamp(folder / RUN_JSON)):
        return why
    return None if files.read_json(folder / RUN_JSON).get("finished") else "not finished"


def why_no_codec(folder: Path, stamp: Stamp) -> str | None:
    """Why a codec folder is not what training or fitting by this stamp gives; ``None`` if it is, or if
    it has no record: then it was put there by hand, and is taken as it is."""
    if not (folder / CONFIG_JSON).is_file():
        return "not made yet"
    return why_not_made(folder, stamp) if (folder / RUN_JSON).is_file() else None


def config_values(config: Any) -> dict[str, Any]:
    """A config dataclass as it stands in ``run.json``."""
    return files.jsonable(asdict(config))


def environment() -> dict[str, Any]:
    """Revision, versions and computer of this process."""
    return {"revision": git_revision(), "versions": versions(), "machine": machine()}


def git_revision() -> str | None:
    """Commit of the working tree, with ``-dirty`` if changed; outside a checkout what the environment
    variable ``DTUFC_REVISION`` says, or ``None``."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    # an installation may lie within another project's checkout, whose commit says nothing of this code
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(REPOSITORY.parent)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(REVISION) or None
    return done.stdout.strip()


def computer(process: Mapping[str, Any]) -> dict[str, Any]:
    """What tables of results say of a process of a record: threads, cores, processor and revision."""
    host = process.get("machine") or {}
    return {
        "threads": str(host.get("threads") or "all"),
        "cores": host.get("cores"),
        "processor": host.get("processor") or "",
        "revision": process.get("revision") or "",
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that matter for numbers."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the run ran on."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


def _processor() -> str:
    """Name of the processor, with the widest instructions that speed depends on."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.is_file() else ""
    facts = dict(re.findall(r"^(model name|flags)\s*: (.*)$", text, re.MULTILINE))
    flags = facts.get("flags", "").split()
    wide = [name for name in ("amx_int8", "avx512f", "avx2") if name in flags][:1]
    return ", ".join([facts.get("model name", platform.machine()), *wide])
