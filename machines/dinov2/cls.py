"""DINOv2: extract features, evaluate them: the command of :mod:`dtufc.machines.dinov2.cls`."""

from dtufc.machines.dinov2.cls import main

if __name__ == "__main__":
    main()
