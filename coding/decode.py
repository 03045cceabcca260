"""The receiver: the command of :mod:`dtufc.decode`."""

from dtufc.decode import main

if __name__ == "__main__":
    main()
