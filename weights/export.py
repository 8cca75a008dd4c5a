"""Write a checkpoint as a Hugging Face folder: the command of `jaxsteer.models`."""

import sys

from jaxsteer.models.exporting import main

if __name__ == "__main__":
    sys.exit(main())
