"""FalconMamba: extract states, evaluate them: the command of :mod:`dtufc.machines.mamba.mamba`."""

from dtufc.machines.mamba.mamba import main

if __name__ == "__main__":
    main()
