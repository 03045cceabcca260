"""The fit of the codec without a network: the command of :mod:`dtufc.klt.fit_klt`."""

from dtufc.klt.fit_klt import main

if __name__ == "__main__":
    main()
