"""`python evaluate.py ...` is `dispatchgym evaluate ...` for people in a checkout."""

import sys

from dispatchgym.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
