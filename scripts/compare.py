"""Codecs on folders of your own features, to one page: the command of
:mod:`dtufc.experiments.compare`."""

from dtufc.experiments.compare import main

if __name__ == "__main__":
    main()
