"""KV caches of language models: fit a codec to a model, judge one.

python coding/kv.py fit --machine smollm2 --texts FIT.txt --output DIR
python coding/kv.py evaluate --machine smollm2 --codec DIR --texts TEST.txt --output CSV
"""

import contextlib
import sys
from collections.abc import Callable, Sequence

COMMANDS = ("fit", "evaluate")


def main(argv: Sequence[str] | None = None) -> None:
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h"):
        print(__doc__)
        for each in COMMANDS:
            print(f"kv.py {each}:\n")
            with contextlib.suppress(SystemExit):
                _find(each)(["--help"])
        return
    if name not in COMMANDS:
        raise SystemExit(f"error: expected one of {', '.join(COMMANDS)}, got {name!r}")
    _find(name)(rest)


def _find(name: str) -> Callable[[Sequence[str]], None]:
    if name == "fit":
        from dtufc.kv.fit_kv import main as run
    else:
        from dtufc.kv.evaluate_kv import main as run
    return run


if __name__ == "__main__":
    main()
