"""KV caches of language models: the commands of :mod:`dtufc.kv.command`."""

from dtufc.kv.command import main

if __name__ == "__main__":
    main()
