"""The fit of the transform: the command of :mod:`dtufc.transform.nonlinear_transform`."""

from dtufc.transform.nonlinear_transform import main

if __name__ == "__main__":
    main()
