"""The fit of a handcrafted codec: the command of :mod:`dtufc.handcrafted.fit_handcrafted`."""

from dtufc.handcrafted.fit_handcrafted import main

if __name__ == "__main__":
    main()
