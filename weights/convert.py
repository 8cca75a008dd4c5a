"""Convert a Hugging Face folder into a checkpoint: the command of `jaxsteer.models`."""

import sys

from jaxsteer.models.conversion import main

if __name__ == "__main__":
    sys.exit(main())
