"""Whisper: extract features, evaluate them: the command of :mod:`dtufc.machines.whisper.whisper`."""

from dtufc.machines.whisper.whisper import main

if __name__ == "__main__":
    main()
