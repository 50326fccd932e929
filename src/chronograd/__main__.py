"""``python -m chronograd``: the command line."""

import sys

from chronograd.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
