"""ResNet50: extract features, evaluate them: the command of :mod:`dtufc.machines.resnet50.cls`."""

from dtufc.machines.resnet50.cls import main

if __name__ == "__main__":
    main()
