"""Features to a corpus, on one machine or many: the command of :mod:`dtufc.corpora.code`."""

from dtufc.corpora.code import main

if __name__ == "__main__":
    main()
