"""DINOv3: extract states, evaluate them: the command of :mod:`dtufc.machines.dinov3.dinov3`."""

from dtufc.machines.dinov3.dinov3 import main

if __name__ == "__main__":
    main()
