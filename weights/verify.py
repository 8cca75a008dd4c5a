"""Check a converted checkpoint against its source: the command of `jaxsteer.models`."""

import sys

from jaxsteer.models.verification import main

if __name__ == "__main__":
    sys.exit(main())
