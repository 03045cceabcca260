"""The training of the tiny llama3: the command of :mod:`dtufc.machines.tiny.train_llama3`."""

from dtufc.machines.tiny.train_llama3 import main

if __name__ == "__main__":
    main()
