"""``python -m ntkmtl``: the command line."""

from ntkmtl.cli import main

if __name__ == "__main__":
    main()
