"""The driver: the command of :mod:`dtufc.experiments.driver`."""

from dtufc.experiments.driver import main

if __name__ == "__main__":
    main()
