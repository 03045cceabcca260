"""The training of a learned codec: the command of :mod:`dtufc.CompressAI.train`."""

from dtufc.CompressAI.train import main

if __name__ == "__main__":
    main()
