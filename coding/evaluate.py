"""Rate and distortion of a codec: the command of :mod:`dtufc.evaluate`."""

from dtufc.evaluate import main

if __name__ == "__main__":
    main()
