"""The best codec for some features: the command of :mod:`dtufc.experiments.automatic`."""

from dtufc.experiments.automatic import main

if __name__ == "__main__":
    main()
