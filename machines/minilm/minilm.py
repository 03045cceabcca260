"""A sentence encoder: extract, evaluate: the command of :mod:`dtufc.machines.minilm.minilm`."""

from dtufc.machines.minilm.minilm import main

if __name__ == "__main__":
    main()
