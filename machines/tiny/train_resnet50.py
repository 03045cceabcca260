"""The training of the tiny resnet50: the command of :mod:`dtufc.machines.tiny.train_resnet50`."""

from dtufc.machines.tiny.train_resnet50 import main

if __name__ == "__main__":
    main()
