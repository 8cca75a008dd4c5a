"""What of a model fits on which chips: `python -m jaxsteer.plan`; the work is `planning`."""

import sys

from jaxsteer.planning.fit import main

if __name__ == "__main__":
    sys.exit(main())
