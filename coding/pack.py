"""Feature files into a stream file: the command of :mod:`dtufc.streams.pack`."""

from dtufc.streams.pack import main

if __name__ == "__main__":
    main()
