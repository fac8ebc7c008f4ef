"""`python -m dispatchgym` is the `dispatchgym` command."""

import sys

from dispatchgym.cli import main

if __name__ == "__main__":
    sys.exit(main())
