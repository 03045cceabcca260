"""What errors of a feature cost the model behind: the command of :mod:`dtufc.klt.fit_metric`."""

from dtufc.klt.fit_metric import main

if __name__ == "__main__":
    main()
