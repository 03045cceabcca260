"""A linear head on features of your own: the command of :mod:`dtufc.machines.linear.linear`."""

from dtufc.machines.linear.linear import main

if __name__ == "__main__":
    main()
