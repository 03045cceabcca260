"""The fit of a codec to each tensor of a machine: the command of :mod:`dtufc.many.fit_many`."""

from dtufc.many.fit_many import main

if __name__ == "__main__":
    main()
