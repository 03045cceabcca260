"""Every path of a data root, and of the repository. No other module spells them.

The data root is ``Data_example/`` at the repository's root, or what the environment variable
``DTUFC_DATA`` or a script's ``--data_root`` names. Its layout::

    <model>/<task>/source/                             inputs and lists of the machine
                   pretrained_head/                    checkpoints of the machine
                   feature_train/{train,test}/*.npy    features to fit and train on, and to validate on
                   feature_test/*.npy                  features to evaluate on
                   origin.json, extracted.json         what made the features; that all are there
                   accuracy.json                       task accuracy of the uncompressed features
                   transform/                          mappings, fit records, plots
                   patches/<transform>/crop_hgt<h>_wdt<w>/{train,test}/*.npy
    codecs/<codec>/trained_<task>/<transform>/<run>/   a trained codec, its logs and curves
    coded/<codec>/trained_<task>/<transform>/<run>/<model>_<task>/
                                                       bitstreams/, decoded/, rate.csv, accuracy.json

A codec that is fitted to one kind of feature has any rate and no transform: <transform> is ``none``,
<run> is ``fit`` under ``codecs`` and ``quality<q>`` under ``coded``.

Of a machine of several tensors, each folder of features holds a folder per tensor,
``feature_test/k0/*.npy``, ``feature_train/train/k0/*.npy``, and so does ``decoded/``;
``bitstreams/*.ufs`` has a file per state. Beside ``origin.json`` lies ``sensitivity.json``. A tensor
alone is the task ``<task>@<tensor>``.
"""

import os
from dataclasses import dataclass
from pathlib import Path

TENSOR_MARK = "@"
"""Between a machine or a task and the name of one of its tensors."""
PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parent
"""The checkout; where the package is installed, the folder that it is installed in."""
CONFIGS = PACKAGE / "configs"


def default_data_root() -> Path:
    """``$DTUFC_DATA`` if set, else ``Data_example`` at the repository's root, or in the working folder
    where the package is installed without its repository."""
    checkout = all((REPOSITORY / name).exists() for name in ("pyproject.toml", "coding"))
    base = REPOSITORY if checkout else Path.cwd()
    return Path(os.environ.get("DTUFC_DATA") or base / "Data_example")


@dataclass(frozen=True)
class FeatureRoot:
    """The folder of one machine and task: ``<data root>/<model>/<task>``."""

    folder: Path
    tensor: str = ""
    """Name of the tensor that is meant, of a machine of several; empty where all are, or one is all."""

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def pretrained_head(self) -> Path:
        return self.folder / "pretrained_head"

    @property
    def feature_train(self) -> Path:
        return self.folder / "feature_train"

    def train_part(self, part: str) -> Path:
        """The features to fit and train on, ``train``, or to validate on, ``test``."""
        return self.feature_train / part / self.tensor

    @property
    def feature_test(self) -> Path:
        return self.folder / "feature_test" / self.tensor

    @property
    def accuracy(self) -> Path:
        return self.folder / "accuracy.json"

    @property
    def transform(self) -> Path:
        return self.folder / "transform" / self.tensor

    def mapping(self, task: str, name: str) -> Path:
        """The mapping's file, named as published.

        Args:
            name: :attr:`dtufc.transform.options.TransformOptions.mapping_name`.
        """
        return self.transform / f"transform_mapping_{task}_{name}.json"

    def patches(self, transform: str, height: int, width: int, layout: str = "plane") -> Path:
        """The folder of ``{train,test}/*.npy`` patches of ``height`` x ``width`` (after folding)."""
        name = "crop" if layout == "plane" else layout
        return self.folder / "patches" / self.tensor / transform / f"{name}_hgt{height}_wdt{width}"


@dataclass(frozen=True)
class DataRoot:
    """A data root; see the module's docstring for its layout."""

    folder: Path

    def feature(self, model: str, task: str) -> FeatureRoot:
        task, _, tensor = task.partition(TENSOR_MARK)
        return FeatureRoot(self.folder / model / task, tensor)

    def codec(self, codec: str, train_task: str, transform: str, run: str) -> Path:
        return self.folder / "codecs" / codec / f"trained_{train_task}" / transform / run

    def coded(
        self, codec: str, train_task: str, transform: str, run: str, model: str, task: str
    ) -> Path:
        group = self.folder / "coded" / codec / f"trained_{train_task}" / transform / run
        return group / f"{model}_{task}"


NO_TRANSFORM, FIT_RUN = "none", "fit"
MAPPING_JSON, PATCHES_JSON, STARTED_JSON = "mapping.json", "patches.json", "patches_started.json"
BITSTREAMS, DECODED = "bitstreams", "decoded"
RATE_CSV, SUMMARY_JSON, RUN_JSON = "rate.csv", "summary.json", "run.json"
CONFIG_JSON, DECODED_JSON, LOG_CSV = "config.json", "decoded.json", "log.csv"
ORIGIN_JSON, EXTRACTED_JSON = "origin.json", "extracted.json"
TENSORS_JSON, TENSORS_CSV, SENSITIVITY_JSON = "tensors.json", "tensors.csv", "sensitivity.json"
ACCURACY_JSON, ACCURACY_CSV = "accuracy.json", "accuracy.csv"
