"""FalconMamba, a text that is read on one device and goes on on another: ``python mamba.py``.

As :mod:`dtufc.machines.qwen3.qwen3`, of a model without attention: in place of keys and values the
front half sends what its layers keep of the text, whatever its length. The tensors are ``hidden``, the
hidden states behind layer L, and of each layer ``conv0``, the last inputs of its convolution,
(1, 1, inner, taps), and ``ssm0``, its recurrent state, (1, 1, inner, state). The rest of the text is
read token by token.
"""

from collections.abc import Sequence

from dtufc import config
from dtufc.machines.command import parse_options, run
from dtufc.machines.qwen3.qwen3 import ContinuedOptions

PRESET = "falcon_mamba_state"


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(ContinuedOptions, PRESET, argv, __doc__)
        from dtufc.machines.mamba.halves import MambaMachine

        run(MambaMachine(options), options)


if __name__ == "__main__":
    main()
