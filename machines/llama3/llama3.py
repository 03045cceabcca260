"""LLaMA3: extract features, evaluate them: the command of :mod:`dtufc.machines.llama3.llama3`."""

from dtufc.machines.llama3.llama3 import main

if __name__ == "__main__":
    main()
