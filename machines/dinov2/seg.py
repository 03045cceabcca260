"""DINOv2: extract features, evaluate them: the command of :mod:`dtufc.machines.dinov2.seg`."""

from dtufc.machines.dinov2.seg import main

if __name__ == "__main__":
    main()
