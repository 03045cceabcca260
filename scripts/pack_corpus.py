"""Features to a corpus: the command of :mod:`dtufc.corpora.pack`."""

from dtufc.corpora.pack import main

if __name__ == "__main__":
    main()
