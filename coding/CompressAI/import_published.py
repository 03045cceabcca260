"""A published checkpoint as a codec folder: the command of :mod:`dtufc.CompressAI.import_published`."""

from dtufc.CompressAI.import_published import main

if __name__ == "__main__":
    main()
