"""`python -m metalearn`, and so `torchrun -m metalearn`."""

from metalearn.cli import main

if __name__ == "__main__":
    main()
