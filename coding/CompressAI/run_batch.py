"""The published command of the driver: ``python run_batch.py``; see :mod:`coding.experiments.driver`."""

from coding.experiments.driver import main

if __name__ == "__main__":
    main()
