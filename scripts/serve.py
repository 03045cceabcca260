"""The back half of a machine behind a socket; the code is in :mod:`dtufc.live`."""

from dtufc.live.serve import main

if __name__ == "__main__":
    main()
