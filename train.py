"""`python train.py ...` is `dispatchgym train ...` for people in a checkout."""

import sys

from dispatchgym.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
