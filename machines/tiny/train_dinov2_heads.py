"""The training of the tiny dinov2's heads: :mod:`dtufc.machines.tiny.train_dinov2_heads`."""

from dtufc.machines.tiny.train_dinov2_heads import main

if __name__ == "__main__":
    main()
