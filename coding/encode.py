"""The sender: the command of :mod:`dtufc.encode`."""

from dtufc.encode import main

if __name__ == "__main__":
    main()
