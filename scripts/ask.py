"""The front half of a machine, with its back half behind a server; the code is in :mod:`dtufc.live`."""

from dtufc.live.ask import main

if __name__ == "__main__":
    main()
