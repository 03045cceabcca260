"""Stable Diffusion 3: extract features, evaluate them: the command of :mod:`dtufc.machines.sd3.sd3`."""

from dtufc.machines.sd3.sd3 import main

if __name__ == "__main__":
    main()
