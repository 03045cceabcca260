"""A GGUF file as a folder that every machine reads: ``python convert_gguf.py --gguf FILE --output DIR``.

GGUF is the format of llama.cpp and Ollama. transformers reads it, dequantises the weights and rebuilds
the tokenizer; the folder then holds ``config.json``, ``model.safetensors`` and the tokenizer's files, as
``machines/llama3/llama3.py --checkpoint DIR`` takes them.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dtufc import config, locks
from dtufc.errors import UserError

MAGIC = b"GGUF"


@dataclass(frozen=True)
class ConvertConfig:
    """A GGUF file, and the folder that it becomes."""

    gguf: Path
    """The file."""
    output: Path
    """The folder; it must not exist, or be empty."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """dtype of the weights in the folder."""


def convert(cfg: ConvertConfig) -> Path:
    """Write the folder, whole or not at all.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no GGUF file, or of an architecture that transformers cannot read; or the output
            holds something.
    """
    path = cfg.gguf
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such GGUF file")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{path}: not a GGUF file, which begins with GGUF")
    if cfg.output.exists() and (not cfg.output.is_dir() or any(cfg.output.iterdir())):
        raise UserError(f"output: {cfg.output} is there already; take another folder")
    model, tokenizer = _load(path, cfg.dtype)
    cfg.output.parent.mkdir(parents=True, exist_ok=True)
    with locks.hold(cfg.output.parent):
        part = Path(tempfile.mkdtemp(dir=cfg.output.parent, prefix=".convert_", suffix=".part"))
        try:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            for path in part.iterdir():  # safetensors writes for its owner alone
                shutil.copymode(part / "config.json", path)
            part.chmod(0o755)
            if cfg.output.is_dir():
                cfg.output.rmdir()
            part.rename(cfg.output)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return cfg.output


def _load(path: Path, dtype: str) -> tuple[Any, Any]:
    """Model with plain weights, and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        packed = AutoModelForCausalLM.from_pretrained(
            **where, dtype=getattr(torch, dtype), quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except (ValueError, KeyError, NotImplementedError, OSError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: transformers cannot read this GGUF file: {reason}") from error
    known = packed.config
    if hasattr(known, "quantization_config"):
        del known.quantization_config
    # transformers does not save what came from GGUF, dequantised or not; a plain model it does
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(known, dtype=getattr(torch, dtype))
    plain.load_state_dict(packed.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = packed.generation_config
    return plain, tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(ConvertConfig, argv, __doc__)
        print(f"{convert(cfg)}: a folder for --checkpoint of machines/llama3/llama3.py")


if __name__ == "__main__":
    main()
