"""Rows of a stream file into feature files: the command of :mod:`dtufc.streams.unpack`."""

from dtufc.streams.unpack import main

if __name__ == "__main__":
    main()
