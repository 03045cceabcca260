"""The main job on the embedded data, through the published commands: features of the tiny ResNet,
transform, patches, three Hyperpriors and an ELIC, coded test features, top-1 against rate."""

import os
import subprocess
import sys
import time
from pathlib import Path

from plot_rate_accuracy import PlotConfig, plot

from coding.paths import REPOSITORY, default_data_root

STEPS = (
    ("features and their accuracy", "machines/resnet50", ["cls.py"]),
    ("transform", "coding/transform", ["nonlinear_transform.py"]),
    ("patches", "coding/transform", ["generate_data.py"]),
    ("codecs", "coding/CompressAI", ["run_batch.py", "--jobs", str(min(2, os.cpu_count() or 1))]),
)
TABLE = Path("coded") / "tiny_kmeans10_bitdepth8.csv"


def main() -> None:
    start = time.time()
    for title, folder, command in STEPS:
        print(f"\n== {title}: cd {folder}; python {' '.join(command)}", flush=True)
        status = subprocess.run([sys.executable, *command], cwd=REPOSITORY / folder).returncode
        if status != 0:
            raise SystemExit(f"quickstart: {' '.join(command)} ended with status {status}")
    table = default_data_root() / TABLE
    print("\nplots:", *plot(PlotConfig(table=table)), sep="\n  ")
    print(f"done in {(time.time() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
