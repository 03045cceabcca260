"""The main job on the tiny machines, through the published commands: features of four small models
of the paper's classes, their transforms, a universal Hyperprior at three rates and one of each model's
own, the codec without a network, coded test features, task accuracy against rate, the report."""

import os
import subprocess
import sys
import time
from pathlib import Path

from cross_table import CrossConfig, print_cross
from plot_rate_accuracy import PlotConfig, plot

from dtufc.paths import REPOSITORY, default_data_root
from dtufc.report.page import write_report

MACHINES = {"llama3": "llama3.py", "dinov2": "seg.py", "sd3": "sd3.py", "resnet50": "cls.py"}
STEPS = (
    *((f"features of {name} and their accuracy", f"machines/{name}", [script])
      for name, script in MACHINES.items()),
    *((f"transform of {name}", "coding/transform",
       ["nonlinear_transform.py", "--machine", f"{name}_tiny"]) for name in MACHINES),
    ("codecs", "coding/CompressAI", ["run_batch.py", "--jobs", str(min(2, os.cpu_count() or 1))]),
)  # fmt: skip
TABLE = Path("coded") / "tiny_kmeans10_bitdepth8.csv"


def main() -> None:
    start = time.time()
    for title, folder, command in STEPS:
        print(f"\n== {title}: cd {folder}; python {' '.join(command)}", flush=True)
        status = subprocess.run([sys.executable, *command], cwd=REPOSITORY / folder).returncode
        if status != 0:
            raise SystemExit(f"quickstart: {' '.join(command)} ended with status {status}")
    root = default_data_root()
    table = root / TABLE
    print("\n== universal against task-specific")
    print(print_cross(CrossConfig(table=table)))
    print("\nplots:", *plot(PlotConfig(table=table)), sep="\n  ")
    print("\nreport:", write_report(root, root / "report", None), sep="\n  ")
    print(f"done in {(time.time() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
