"""DINOv2: extract features, evaluate them: the command of :mod:`dtufc.machines.dinov2.dpt`."""

from dtufc.machines.dinov2.dpt import main

if __name__ == "__main__":
    main()
