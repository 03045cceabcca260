"""A learned codec frozen to integers: the command of :mod:`dtufc.CompressAI.freeze`."""

from dtufc.CompressAI.freeze import main

if __name__ == "__main__":
    main()
