"""What a script needs and may lack on a fresh machine: features, made by their machine's own script.

The coding half knows nothing of models. Where a machine's YAML names a ``script``, missing features
are one command away, and that command is run; where it names none, the error says what to put where.
"""

import sys
from pathlib import Path

from dtufc import locks
from dtufc.feature import FeatureError, find_machine_config, find_script
from dtufc.paths import EXTRACTED_JSON, ORIGIN_JSON, DataRoot, FeatureRoot
from dtufc.states import StateFacts, load_machine_facts


def script_path(machine: str | Path) -> Path:
    """The machine's script that makes and judges its features.

    Raises:
        FeatureError: its YAML names none.
    """
    preset = find_machine_config(machine)
    facts = load_machine_facts(preset)
    if facts.script is None:
        raise FeatureError(f"{preset}: names no script")
    return find_script(preset, facts.script)


def missing_features(machine: str | Path, data_root: Path) -> list[Path]:
    """The folders of a machine that lack features, or hold some of an extraction that was not finished.

    Args:
        machine: preset name or YAML file; with a tensor's name, the folders are the tensor's.
    """
    facts = load_machine_facts(machine)
    root = DataRoot(data_root).feature(facts.model, facts.task)
    names = facts.tensors if isinstance(facts, StateFacts) else ("",)
    folders = (root.train_part("train"), root.train_part("test"), root.feature_test)
    needed = [folder / name for folder in folders for name in names]
    missing = [folder for folder in needed if not any(folder.glob("*.npy"))]
    begun = (root.folder / ORIGIN_JSON).is_file() and not (root.folder / EXTRACTED_JSON).is_file()
    return missing or (needed if begun else [])


def extraction(machine: str | Path, data_root: Path) -> list[str]:
    """The command that makes a machine's features.

    Raises:
        FeatureError: its YAML names no script.
    """
    preset = find_machine_config(machine)
    command = [sys.executable, str(script_path(machine)), "--mode", "extract"]
    return [*command, "--machine", str(preset), "--data_root", str(data_root)]


def ensure_features(machine: str | Path, data_root: Path) -> FeatureRoot:
    """The folder of a machine's features, extracted first if they are not there.

    Args:
        machine: preset name or YAML file; with a tensor's name, the folder is the tensor's.

    Raises:
        FeatureError: the features are missing and the YAML names no script, or the script failed.
    """
    facts = load_machine_facts(machine)
    root = DataRoot(data_root).feature(facts.model, facts.task)
    folders = missing_features(machine, data_root)
    if not folders:
        return root
    where = ", ".join(str(folder) for folder in folders)
    script = load_machine_facts(find_machine_config(machine)).script
    if script is None:
        raise FeatureError(f"no features in {where}: put the .npy files of {facts.kind} there")
    command = extraction(machine, data_root)
    print(f"features are missing in {where}; running: {' '.join(command)}", flush=True)
    status = locks.run(command)
    if status != 0:
        raise FeatureError(f"{script} ended with status {status} and left no features")
    return root
