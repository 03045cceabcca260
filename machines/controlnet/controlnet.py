"""SD3.5 with a ControlNet: the command of :mod:`dtufc.machines.controlnet.controlnet`."""

from dtufc.machines.controlnet.controlnet import main

if __name__ == "__main__":
    main()
