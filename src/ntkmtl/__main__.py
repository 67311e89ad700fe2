"""``python -m ntkmtl``: the command line."""

from ntkmtl.bench.cli import main

if __name__ == "__main__":
    main()
