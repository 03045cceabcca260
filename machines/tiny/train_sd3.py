"""The training of the tiny sd3: the command of :mod:`dtufc.machines.tiny.train_sd3`."""

from dtufc.machines.tiny.train_sd3 import main

if __name__ == "__main__":
    main()
