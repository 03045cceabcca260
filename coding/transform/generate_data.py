"""Training patches: the command of :mod:`dtufc.transform.generate_data`."""

from dtufc.transform.generate_data import main

if __name__ == "__main__":
    main()
