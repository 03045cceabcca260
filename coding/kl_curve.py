"""What a codec costs a language model by quality: the command of :mod:`dtufc.kl_curve`."""

from dtufc.kl_curve import main

if __name__ == "__main__":
    main()
