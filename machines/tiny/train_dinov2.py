"""The training of the tiny dinov2: the command of :mod:`dtufc.machines.tiny.train_dinov2`."""

from dtufc.machines.tiny.train_dinov2 import main

if __name__ == "__main__":
    main()
