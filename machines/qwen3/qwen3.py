"""Qwen3: extract states, evaluate them: the command of :mod:`dtufc.machines.qwen3.qwen3`."""

from dtufc.machines.qwen3.qwen3 import main

if __name__ == "__main__":
    main()
